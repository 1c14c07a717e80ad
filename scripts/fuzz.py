"""Changed inputs against their readers: nothing may come of them but a value or an AulaitError.

    nice -n 10 python scripts/fuzz.py --minutes 60            # all kinds in turn
    python scripts/fuzz.py --minutes 5 --kinds request terms --seed 7

Every kind begins with inputs that are accepted as they are (tests/fuzz/inputs.py), so that what is
changed reaches more than the first check. An input that runs lines which no earlier one ran is kept
and changed further. What crashed, took longer than ``SLOW_S`` or more than ``MOST_BYTES`` of memory
goes to tests/fuzz/corpus/KIND with its reason told at once; so does the smallest part of the others
that still reaches as many lines as all of them did, up to ``KEPT_BYTES`` a kind. The test
tests/fuzz/test_replay.py reads all of it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import resource
import shutil
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.fuzz.inputs import INPUTS, Input, folder  # noqa: E402

from aulait.core.errors import AulaitError  # noqa: E402

CORPUS = ROOT / "tests" / "fuzz" / "corpus"
OWN = str(ROOT / "src" / "aulait")
SLOW_S, MOST_BYTES = 20.0, 2**33
KEPT_BYTES, LARGEST_KEPT = 12_000, 4_000
Lines = set[tuple[str, int]]


class Tracer:
    """Which lines of the package run; a line that every kind of input has long passed costs nothing
    more than its function."""

    def __init__(self) -> None:
        self.lines: Lines = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Called by Python for every function."""
        if not frame.f_code.co_filename.startswith(OWN):
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


@dataclass
class Kind:
    """What is known of a kind of input."""

    name: str
    own: Input
    pool: list[bytes]
    seen: Lines = field(default_factory=set)
    reached: dict[bytes, Lines] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: dict[str, bytes] = field(default_factory=dict)


def outcome(own: Input, raw: bytes) -> tuple[str, Lines, BaseException | None]:
    """What comes of an input: "accepted", "refused", "crash" or "slow"; the lines it ran."""
    tracer, began_s = Tracer(), time.monotonic()
    error: BaseException | None = None
    sys.settrace(tracer)
    try:
        own.read(raw)
        found = "accepted"
    except AulaitError:
        found = "refused"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as raised:
        found, error = "crash", raised
    finally:
        sys.settrace(None)
    if time.monotonic() - began_s > SLOW_S:
        return "slow", tracer.lines, error
    return found, tracer.lines, error


def place_of(error: BaseException | None) -> str:
    """Kind and place of an error, by which two crashes are one."""
    own, step = "", error.__traceback__ if error else None
    while step is not None:
        if step.tb_frame.f_code.co_filename.startswith(OWN):
            own = f"{step.tb_frame.f_code.co_filename[len(OWN) + 1:]}:{step.tb_lineno}"
        step = step.tb_next
    told = f" {str(error)[:160]}" if type(error).__name__ == "Defect" else ""
    return f"{type(error).__name__}{told} at {own}"


def begun(name: str) -> Kind:
    """A kind with its seeds, every one of which is accepted, and what an earlier run kept."""
    own = INPUTS[name]
    kind = Kind(name, own, own.seeds())
    for raw in kind.pool:
        found, lines, error = outcome(own, raw)
        if found != "accepted":
            own.read(raw)  # shows why
            raise SystemExit(f"a seed of {name} is {found} ({error}); expected accepted")
        kind.seen |= lines
    for path in sorted((CORPUS / name).glob("*")):
        tried(kind, path.read_bytes())
    return kind


def tried(kind: Kind, raw: bytes) -> None:
    """One input: counted, kept where it ran something new, told where it crashed."""
    found, lines, error = outcome(kind.own, raw)
    kind.outcomes[found] += 1
    if found in ("crash", "slow"):
        where = place_of(error) if error else f"slow, {len(raw)} bytes"
        if where not in kind.crashes or len(raw) < len(kind.crashes[where]):
            if where not in kind.crashes:
                print(f"{found} {kind.name}: {where}", flush=True)
            kind.crashes[where] = raw
            kept(kind.name, "crash", raw)
    elif lines - kind.seen:
        kind.reached[raw] = lines - kind.seen
        kind.seen |= lines
        kind.pool.append(raw)


def kept(name: str, what: str, raw: bytes) -> None:
    """Put an input into the corpus."""
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    if len(raw) <= 50 * LARGEST_KEPT:
        (CORPUS / name / f"{what}-{hashlib.sha256(raw).hexdigest()[:12]}").write_bytes(raw)


def written(kind: Kind) -> None:
    """The inputs that reached most, the shortest first, as many as may be kept."""
    for old in (CORPUS / kind.name).glob("reached-*"):
        old.unlink()
    room = KEPT_BYTES
    for raw in sorted(kind.reached, key=lambda raw: len(raw) / len(kind.reached[raw])):
        if len(raw) <= min(room, LARGEST_KEPT):
            kept(kind.name, "reached", raw)
            room -= len(raw)


def main() -> None:
    """Change inputs until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--kinds", nargs="*", default=list(INPUTS))
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    dice = random.Random(asked.seed)  # nosec B311: which bytes are changed is no secret
    until_s = time.monotonic() + 60 * asked.minutes
    kinds = [begun(name) for name in asked.kinds]
    print(f"the seeds of {len(kinds)} kinds are accepted", flush=True)
    weights, spent_s = [kind.own.weight for kind in kinds], dict.fromkeys(asked.kinds, 0.0)
    while time.monotonic() < until_s:
        # the kind that has had least of its share of the time
        kind = min(kinds, key=lambda kind: spent_s[kind.name] / weights[kinds.index(kind)])
        began_s = time.monotonic()
        for _ in range(20):
            tried(kind, kind.own.mutate(dice.choice(kind.pool), dice))
            if time.monotonic() - began_s > 2.0:
                break
        spent_s[kind.name] += time.monotonic() - began_s
    for kind in kinds:
        written(kind)
    told = {kind.name: {**kind.outcomes, "lines": len(kind.seen), "kept": len(kind.reached),
                        "crashes": len(kind.crashes)} for kind in kinds}
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"minutes": asked.minutes, "peak_bytes": peak_bytes, "kinds": told}))
    shutil.rmtree(folder(), ignore_errors=True)


if __name__ == "__main__":
    main()
