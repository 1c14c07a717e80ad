"""What a method says of itself: sections of its docstring, read strictly."""

import pytest

from aulait.core.errors import ConfigError
from aulait.core.factors import Trainable
from aulait.methods.description import Abilities, described

SOUND = """A toy.

Prose with a colon: and no section.

what: clients send the mean length of their records
source: nobody,
    nowhere, 2024
travels: up 4 R; down 4 R, then nothing
privacy: sum of clipped means; sensitivity C ('loud': 2 C)
differs: it is a toy
unequal ranks: yes
exact: at equal ranks
"""


def test_sections_become_the_table():
    found = described("a.package.toy", SOUND, Abilities(trains=Trainable.B, secure=False))
    assert found.what == "clients send the mean length of their records"
    assert found.source == "nobody, nowhere, 2024"
    assert (found.up, found.down) == ("4 R", "4 R, then nothing")
    assert found.privacy == "sum of clipped means; sensitivity C ('loud': 2 C)"
    assert (found.unequal_ranks, found.exact) == (True, "at equal ranks")
    assert (found.private, found.secure, found.trains, found.unit) == (True, False, "B", "client")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("differs: it is a toy\n", "", "section 'differs' is missing"),
    ("differs: it is a toy", "differs:", "section 'differs' is missing"),
    ("differs:", "difers:", "section 'difers' is unknown; did you mean 'differs'"),
    ("differs: it is a toy", "differs: it is\na toy", "section 'a toy' is unknown"),
    ("source:", "what:", "section 'what' is there twice"),
    ("unequal ranks: yes", "unequal ranks: some", "section 'unequal ranks' is 'some', expected one of yes, no"),
    ("exact: at equal ranks", "exact: nearly", "section 'exact' is 'nearly'"),
    ("up 4 R; down", "4 R and", "expected 'up FORMULA; down FORMULA'"),
])
def test_a_fault_is_one_error_that_names_the_method(old, new, message):
    assert old in SOUND
    with pytest.raises(ConfigError, match=message) as caught:
        described("a.package.toy", SOUND.replace(old, new), Abilities())
    assert str(caught.value).startswith("algorithm 'toy' does not describe itself: ")


@pytest.mark.parametrize("docstring", [None, "", "A toy."])
def test_a_method_without_sections_is_refused(docstring):
    with pytest.raises(ConfigError, match="algorithm 'toy' does not describe itself"):
        described("toy", docstring, Abilities())
