"""The privacy events of a run, in order, on disk before anything they describe is released.

One JSON object a line. A line is written, flushed and synchronised before ``append`` returns, and
never changed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aulait.core.errors import PrivacyError, require
from aulait.core.files import append_durably
from aulait.privacy.accounting import Accountant, Event

MECHANISMS = {"client": ("gaussian",), "record": ("dp-sgd", "gaussian-batch")}  # by unit


@dataclass(frozen=True)
class Line:
    """One release.

    Attributes:
        release: number of the release, from 1, without gaps.
        stage: "synthesis" or "train".
        round: round of the stage.
        role: roles of the clients it may hold, as "proxy" or "proxy+local"; each of them is
            charged.
        mechanism: "gaussian", noise on a sum over clients; for records, at every site: "dp-sgd",
            noise on the sum of clipped gradients of single records, or "gaussian-batch", noise on
            the clipped gradient of a whole batch.
        sensitivity: L2 sensitivity of what gets the noise, > 0; with relation "replace" it holds
            the factor 2.
        sigma: standard deviation of the noise on every coordinate of it.
        noise_multiplier: sigma / sensitivity.
        planned: public number of clients it was planned for.
        sampling: {"kind": "all"} or {"kind": "poisson", "rate": q}, of the unit.
        epsilon: role -> epsilon so far, this release included; inf in memory is null on disk.
        delta: delta of that epsilon.
        relation: "add-remove" or "replace".
        unit: what is protected: "client" or "record"; of the clients of a role the line is true of
            the worst one.
        time: when it was written, ISO 8601, UTC.
        private: false when the noise can be predicted (seeded) or is zero.
        steps: noised mechanisms in the release, each with its own sampling; 1 for the unit
            "client".

    Raises:
        PrivacyError: a value is missing, not finite, or contradicts another one.
    """

    release: int
    stage: str
    round: int
    role: str
    mechanism: str
    sensitivity: float
    sigma: float
    noise_multiplier: float
    planned: float
    sampling: Mapping[str, Any]
    epsilon: Mapping[str, float]
    delta: float
    relation: str
    unit: str
    time: str
    private: bool
    steps: int = 1

    def __post_init__(self) -> None:
        numbers = (self.sensitivity, self.sigma, self.noise_multiplier, self.planned, self.delta)
        sound = (
            isinstance(self.release, int)
            and self.release >= 1
            and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            and self.sensitivity > 0
            and math.isclose(self.sigma, self.noise_multiplier * self.sensitivity, rel_tol=1e-9)
            and self.mechanism in MECHANISMS.get(self.unit, ())
            and self.relation in ("add-remove", "replace")
            and self.sampling.get("kind") in ("all", "poisson")
            and (self.sampling["kind"] == "all" or self.mechanism != "gaussian-batch")
            and type(self.steps) is int
            and (self.steps == 1 or self.unit == "record")
            and all(spent >= 0 for spent in self.epsilon.values())
        )
        text = (
            f"release {self.release} of the ledger has impossible values, expected a sound line; "
            "restore the file"
        )
        require(sound, PrivacyError, text)
        # building it checks the noise multiplier and the sampling rate
        assert self.event is not None

    @property
    def event(self) -> Event:
        """The release as the accountant counts it."""
        rate = 1.0 if self.sampling["kind"] == "all" else float(self.sampling["rate"])
        return Event(float(self.noise_multiplier), rate, self.steps)


class Ledger:
    """The lines of a run.

    Opening reads what is there. A last line cut short by a crash is copied to ``ledger.torn`` and
    cut off: its ``append`` never returned, so nothing was released under it. A last line that is
        whole but for its line feed is
    kept and counted.

    Args:
        path: the file; None keeps the lines in memory only.

    Raises:
        PrivacyError: a whole line is malformed, a number is missing from the sequence, or is not
            finite.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: list[Line] = []
        self._size_bytes = 0
        if path is not None and path.exists():
            self._read(path)

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines so far, in order."""
        return tuple(self._lines)

    def append(self, line: Line) -> None:
        """Add a line; when this returns it is on disk.

        Raises:
            PrivacyError: the line does not carry the next number, or the file was changed by
                somebody else.
            OSError: it could not be written; then nothing may be released.
        """
        self._follow(line)
        if self._path is not None:
            self._write(self._path, _encode(line))
        self._lines.append(line)

    def events(self, role: str) -> list[Event]:
        """The events charged to one role, in order."""
        return [line.event for line in self._lines if role in line.role.split("+")]

    def replay(self, accountant: Accountant) -> None:
        """Charge every line to a fresh accountant, so that a resumed run goes on where it
        stopped."""
        for line in self._lines:
            accountant.add(line.role, line.event)

    def _follow(self, line: Line) -> None:
        expected = len(self._lines) + 1
        text = (
            f"ledger has release {line.release} where {expected} is expected; restore the file, "
            "never edit it"
        )
        require(line.release == expected, PrivacyError, text)

    def _write(self, path: Path, data: bytes) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size != self._size_bytes:
            raise PrivacyError(
                f"{path} has {size} bytes, expected {self._size_bytes}: another run wrote to it or "
                "a write failed; "
                "stop the other run and resume this one"
            )
        append_durably(path, data)
        self._size_bytes = size + len(data)

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        *whole, tail = data.split(b"\n")
        for number, raw in enumerate(whole, start=1):
            line = _decode(raw)
            if line is None:
                raise PrivacyError(
                    f"{path} line {number} is malformed, expected a ledger line; restore it from a "
                    "copy")
            self._follow(line)
            self._lines.append(line)
        self._size_bytes = len(data)
        if tail:
            self._finish(path, tail)

    def _finish(self, path: Path, tail: bytes) -> None:
        """A last line without line feed: complete it when it is whole, else set it aside and cut it
        off."""
        line = _decode(tail)
        if line is not None:
            self._follow(line)
            self._write(path, b"\n")
            self._lines.append(line)
            return
        torn = path.with_suffix(".torn")
        append_durably(torn, tail + b"\n")
        self._size_bytes -= len(tail)
        with path.open("r+b") as file:
            file.truncate(self._size_bytes)
            os.fsync(file.fileno())


def _encode(line: Line) -> bytes:
    values = asdict(line)
    values["epsilon"] = {role: None if spent == math.inf else spent for role,
                         spent in line.epsilon.items()}
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def _decode(raw: bytes) -> Line | None:
    """The line, or None when the bytes are not one."""
    try:
        values = json.loads(raw, parse_constant=_no_number)
        values["epsilon"] = {role: math.inf if spent is None else spent for role,
                             spent in values["epsilon"].items()}
        return Line(**values)
    except (ValueError, TypeError, KeyError, AttributeError, PrivacyError):
        return None


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not a finite number")
