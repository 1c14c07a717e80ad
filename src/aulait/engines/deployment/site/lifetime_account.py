"""A site's account of one data source over all runs and all coordinators: what has been given of
its records, and what may still be given.

One file a data source, ``STATE/account/NAME.jsonl``, a line a charge, each with a number and a hash
that holds the hash of the line before. A charge is on disk before what it pays for leaves.

Two units are counted apart, because their promises are apart:

    record   every noised answer is an event of the accountant; all events together are counted
             at the smallest delta that a run has promised
    client   a run is charged once with the epsilon and delta that it promises; over runs epsilons
             and deltas are added (basic composition). The noise is the server's, or of secure
             sums: then each of these is written down too, as an event that the promise has paid

A run without privacy, where the site allows one, is charged as unit "none": it has no bound, and is
told beside the others.

The file alone cannot show that it is an older copy of itself: receipts do
(``protocol/receipts.py``).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aulait.core.errors import PrivacyError, require
from aulait.core.files import append_durably, private_folder, sync_folder, writing
from aulait.privacy import accounting
from aulait.privacy.accounting import Event

FOLDER: Final = "account"
ChargedUnit = Literal["client", "record", "none"]


class Charge(BaseModel):
    """What one answer, or one run, is charged with.

    Attributes:
        run: 32 hexadecimal digits.
        unit: whose account it is.
        delta: that the run promises; None for the unit "none".
        epsilon: that the run promises; for the unit "client" alone.
        noise_multiplier, rate, steps: of the event; for the unit "record", and for secure sums.
        stage: what was answered: "synthesis", "train" or "search"; "" for a whole run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    run: str
    unit: ChargedUnit
    delta: float | None = Field(None, gt=0, lt=1)
    epsilon: float | None = Field(None, ge=0)
    noise_multiplier: float | None = Field(None, gt=0)
    rate: float = Field(1.0, gt=0, le=1)
    steps: int = Field(1, ge=1)
    stage: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.unit == "record" and self.delta is None:
            raise ValueError("a charge of records has a delta")
        return self

    @property
    def event(self) -> Event | None:
        """As the accountant counts it; None where it is not an event."""
        if self.noise_multiplier is None:
            return None
        return Event(self.noise_multiplier, self.rate, self.steps,
                     concentrated=self.unit == "client")


class AccountLine(Charge):
    """A charge in its place.

    Attributes:
        sequence: counted from 1.
        previous: ``head`` of the line before; zeros for the first.
        time: UTC.
        coordinator: fingerprint of the key by which the site knew its coordinator.
        head: SHA-256 of all else in the line.
    """

    sequence: int = Field(ge=1)
    previous: str
    time: str
    coordinator: str
    head: str = ""

    def sealed(self) -> AccountLine:
        """The line with its hash."""
        told = json.dumps(self.model_dump(exclude={"head"}), sort_keys=True)
        return self.model_copy(update={"head": hashlib.sha256(told.encode()).hexdigest()})


class Spent(BaseModel):
    """What one unit has spent.

    Attributes:
        epsilon, delta: of all charges together; delta is None while nothing is charged.
        charges: how many.
        runs: of how many runs.
    """

    model_config = ConfigDict(frozen=True)
    epsilon: float
    delta: float | None
    charges: int
    runs: int


@dataclass(frozen=True)
class Beginning:
    """What the lines of an account follow on.

    Attributes:
        head: what the first line holds in the place of the hash of a line before it.
        charges: that count beside the lines.
    """

    head: str = "0" * 64
    charges: tuple[Charge, ...] = ()


FRESH: Final = Beginning()


class LifetimeAccount:
    """The account of one data source.

    Args:
        state: the site's state folder.
        source: the data source as the site file has it.
        coordinator: fingerprint of the key of the coordinator that the site file names.
        beginning: another one than nothing, where an earlier account was lost.

    Raises:
        PrivacyError: the file is damaged.
    """

    def __init__(self, state: Path, source: str, coordinator: str = "",
                 beginning: Beginning = FRESH) -> None:
        self._path, self._beginning = account_path(state, source), beginning
        self._coordinator = coordinator
        self._lines = _read(self._path, beginning)

    @property
    def sequence(self) -> int:
        """Number of charges."""
        return len(self._lines)

    @property
    def head(self) -> str:
        """Hash of the last charge."""
        return self.head_at(self.sequence)

    def head_at(self, sequence: int) -> str:
        """Hash of the charge of this number; before the first, that of the beginning."""
        return self._lines[sequence - 1].head if sequence else self._beginning.head

    @property
    def charges(self) -> Sequence[Charge]:
        """All charges, the oldest first."""
        return tuple(self._lines)

    def of_run(self, run: str) -> list[Charge]:
        """The charges of one run."""
        return [line for line in self._lines if line.run == run]

    def spent(self, unit: ChargedUnit, more: Sequence[Charge] = ()) -> Spent:
        """What a unit has spent, or would have spent with more charges."""
        return spent([*self._beginning.charges, *self._lines, *more], unit)

    def add(self, charge: Charge) -> None:
        """Write a charge down; when this returns it is on disk.

        Raises:
            AulaitError: the disk is full or cannot be written.
        """
        line = self._line(charge)
        with writing(self._path.parent):
            private_folder(self._path.parent)
            new = not self._path.exists()
            append_durably(self._path, line.model_dump_json().encode() + b"\n", mode=0o600,
                           undo=True)
            if new:
                sync_folder(self._path.parent)
        self._lines.append(line)

    def _line(self, charge: Charge) -> AccountLine:
        return AccountLine(**charge.model_dump(include=set(Charge.model_fields)),
                           sequence=self.sequence + 1, previous=self.head,
                           time=datetime.now(UTC).isoformat(),
                           coordinator=self._coordinator).sealed()


def account_path(state: Path, source: str) -> Path:
    """Where the account of a data source lies; its name does not tell the source."""
    return state / FOLDER / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.jsonl"


def spent(charges: Sequence[Charge], unit: ChargedUnit) -> Spent:
    """Epsilon and delta of all charges of a unit together."""
    own = [charge for charge in charges if charge.unit == unit]
    runs, deltas = len({charge.run for charge in own}), [c.delta for c in own if c.delta]
    if unit == "none" or not own:
        return Spent(epsilon=math.inf if own else 0.0, delta=None, charges=len(own), runs=runs)
    if unit == "client":
        total = math.fsum(charge.epsilon or 0.0 for charge in own)
        return Spent(epsilon=total, delta=math.fsum(deltas), charges=len(own), runs=runs)
    delta = min(deltas)
    events = Counter(event for charge in own if (event := charge.event) is not None)
    return Spent(epsilon=accounting.epsilon(events, delta), delta=delta, charges=len(own),
                 runs=runs)


def _read(path: Path, beginning: Beginning) -> list[AccountLine]:
    """The lines on disk; a last line without its end was never answered and is cut off."""
    if path.exists() and not (raw := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, raw.rfind(b"\n") + 1)
    return read_lines(path, beginning)


def read_lines(path: Path, beginning: Beginning = FRESH) -> list[AccountLine]:
    """The whole lines of an account, the chain checked; none where there is no file.

    Raises:
        PrivacyError: one is damaged.
    """
    raw = path.read_bytes() if path.exists() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    lines: list[AccountLine] = []
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = AccountLine.model_validate_json(text)
        except ValidationError as error:
            raise PrivacyError(_damaged(path, number)) from error
        expected = lines[-1].head if lines else beginning.head
        whole_line = line == line.sealed() and (line.previous, line.sequence) == (expected, number)
        require(whole_line, PrivacyError, _damaged(path, number))
        lines.append(line)
    return lines


def _damaged(path: Path, number: int) -> str:
    return (f"the account {path} is damaged at line {number}, expected a charge that follows the "
            "one before; restore the newest copy of it, no run can go on without (lost for good: "
            "aulait join SITE.toml --account-lost)")
