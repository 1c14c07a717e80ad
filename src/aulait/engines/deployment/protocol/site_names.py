"""What a site may be called, and how the address of a server is written."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a site, on one line, or None; it becomes a file's name and a
    client's name."""
    if _NAME.fullmatch(name) is None:
        return (
            f"site name {name[:80]!r} found, expected 1 to 64 letters, digits, '.', '_', '-', not "
            "beginning with '.' or '-'; rename it"
        )
    if name.lower() == "server" or name.lower().startswith(("proxy-", "reference-")):
        return f"site name '{name}' is kept for sites of the server; choose another name"
    return None


def address_problem(address: str) -> str | None:
    """What is wrong with a server's address, on one line, or None."""
    found = re.fullmatch(_HOST + r":(\d{1,5})", address)
    if found is None or not 0 < int(found[1]) < 65536:
        return (
            f"server address {address[:80]!r} found, expected HOST:PORT without https://, as "
            "coordinator.example.org:9443; correct it"
        )
    return None
