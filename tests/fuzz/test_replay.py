"""Inputs that once reached new lines or crashed: a value or an AulaitError, and in no time.
Longer: scripts/fuzz.py."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.fuzz.inputs import INPUTS

from aulait.core.errors import AulaitError

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_what_is_kept_of_a_kind(name):
    own = INPUTS[name]
    seeds, dice = own.seeds(), random.Random(1)
    own.read(seeds[0])  # accepted as it is
    made = [own.mutate(dice.choice(seeds), dice) for _ in range(0 if name == "gguf" else 5)]
    for raw in [*made, *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]:
        began_s = time.monotonic()
        with suppress(AulaitError):
            own.read(raw)
        assert time.monotonic() - began_s < 20.0


def test_the_corpus_is_small_and_of_kinds_that_are_known():
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 400_000
    assert {path.parent.name for path in files} <= {*INPUTS}
