"""The receipts of sites' accounts that a coordinator keeps, so that it can show a site its newest.

    KEYS/receipts/NAME.json   account -> the newest receipt of the site, over all runs
    RUN/serve/receipts.jsonl  every receipt that has come in this run, once

An answer that is behind the receipt that its own message showed comes from a state that was turned
back: an honest site would have refused. Receipts that the site's key in the roster did not sign are
not kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from aulait.core.errors import ConfigError, WireError, require
from aulait.core.files import append_durably, replace_file, writing
from aulait.core.log_files import timestamp
from aulait.engines.deployment.protocol.receipts import Receipt, is_signed

FOLDER: Final = "receipts"
LOG: Final = "receipts.jsonl"
_BY_ACCOUNT: Final = TypeAdapter(dict[str, Receipt])


class ReceiptBook:
    """The newest receipts of every site.

    Args:
        keys: the coordinator's folder, where they are kept over all runs.
        run: RUN/serve.
        roster: name -> public key of every site, as in the roster.

    Raises:
        ConfigError: a file of kept receipts cannot be read.
    """

    def __init__(self, keys: Path, run: Path, roster: Mapping[str, str]) -> None:
        self._folder, self._log, self._roster = keys / FOLDER, run / LOG, dict(roster)
        self._known = {name: _read(self._folder / f"{name}.json") for name in self._roster}
        self._last: dict[str, str] = {}

    def newest(self, site: str) -> Receipt | None:
        """The receipt to show to a site: of the account that it answered with last, or that has the
        most charges of those known."""
        known = self._known.get(site, {})
        if (last := self._last.get(site)) in known:
            return known[last]
        return max(known.values(), key=lambda receipt: receipt.sequence, default=None)

    def take(self, site: str, shown: Receipt | None, came: Receipt | None) -> str:
        """Keep the receipt of an answer.

        Args:
            site: who answered.
            shown: what its message had shown.
            came: what the answer bears.

        Returns:
            A line for the operator where the account is another than was known; else "".

        Raises:
            WireError: the account was turned back, or the receipt is not the site's.
        """
        if came is None:
            require(shown is None, WireError,
                    "answered without a receipt of its account, and had one before")
            return ""
        require(is_signed(self._roster[site], site, came), WireError,
                "answered with a receipt that its key did not sign")
        known = self._known[site]
        if shown is not None and came.account == shown.account:
            back = came.sequence < shown.sequence or (
                came.sequence == shown.sequence and came.head != shown.head)
            require(not back, WireError,
                    f"answered with charge {came.sequence} of its account after charge "
                    f"{shown.sequence} was seen: its account was turned back")
        same = came.account == shown.account if shown is not None else came.account in known
        told = "" if same or not known else (
            "answers with another account than before: another [data] source, a new key, or an "
            "account that was lost and begun anew")
        if came.account not in known or known[came.account].sequence < came.sequence:
            known[came.account] = came
            self._write(site, came)
        self._last[site] = came.account
        return told

    def _write(self, site: str, came: Receipt) -> None:
        content = _BY_ACCOUNT.dump_json(self._known[site], indent=2) + b"\n"
        line = {"time": timestamp(), "site": site, **came.model_dump()}
        with writing(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            replace_file(self._folder / f"{site}.json", content, mode=0o600)
            append_durably(self._log, json.dumps(line).encode() + b"\n", mode=0o600)


def _read(path: Path) -> dict[str, Receipt]:
    if not path.is_file():
        return {}
    try:
        return _BY_ACCOUNT.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path} holds no receipts, expected those that aulait serve kept; "
                          "restore it from a copy") from error
