"""Addresses of servers as settings hold them: never with a password or a key in them, because
settings are written to config.toml, to logs, to reports and into messages."""

from __future__ import annotations

import re
from typing import Final

# Rather too much than too little: a password may hold any letter, if it is not encoded.
_USER: Final = re.compile(r"://.*@")
_QUERY: Final = re.compile(r"(://[^\s'\"?#]*)[?#][^\s'\"]*")


def secret_problem(address: str, variable: str) -> str | None:
    """Why an address may hold a secret, without repeating it; None where it cannot, or where it is
    no address.

    Args:
        address: of a server, or a name or path, which is no address.
        variable: what to do instead: "the environment variable OPENAI_API_KEY".
    """
    if "://" not in address or masked(address) == address:
        return None
    return (f"an address with a user, a password, '?' or '#' found ({masked(address)}), expected "
            f"none of them: settings are written to files; put the key into {variable}")


def masked(text: str) -> str:
    """A text whose addresses have lost what may be a secret."""
    return _QUERY.sub(r"\1?***", _USER.sub("://***@", text))
