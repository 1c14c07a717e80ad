"""What a method says of itself, said once: the last paragraph of its module's docstring.

That paragraph holds the sections of ``SECTIONS``, each as ``name: text``, continued on indented
lines; the text is a cell of the tables of ``aulait list``, of docs/methods.md and of the report.
Whatever needs more words stands in the paragraphs before it. What the code decides by, and not
people, is no prose: it is declared as ``Abilities`` beside the docstring.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeVar

from aulait.core.errors import ConfigError, did_you_mean
from aulait.core.factors import Trainable
from aulait.privacy.mechanisms import Unit

T = TypeVar("T")
Exact = Literal["yes", "no", "at equal ranks"]
EXACT: dict[str, Exact] = {"yes": "yes", "no": "no", "at equal ranks": "at equal ranks"}
YES_NO = {"yes": True, "no": False}
SECTIONS = ("what", "source", "travels", "privacy", "differs", "unequal ranks", "exact")


@dataclass(frozen=True)
class Abilities:
    """What the code has to know of a method before it calls it.

    Attributes:
        private: whether client-level differential privacy is offered.
        secure: whether the server needs sums only, so that secure aggregation can hide single
            updates.
        instead: the nearest method under privacy, where it is not offered.
        trains: the factors that clients train.
        personal: whether clients end with adapters of their own (``PersonalMethod``).
        unit: the one unit of a method that says no ``units``.
        units: what it can protect: "client" (the server needs noised sums only), "record" (clients
            train by ``Learner.train`` only, and the answer is a function of what was trained);
            None follows from ``private`` and ``unit``.
        splits: whether a client may hold the client half of the model alone: so where clients
            train by ``Learner.train`` only.
        folds: whether dense updates are folded into the base weights, which a base in a narrow
            precision would round away.
        steps: whether an update is nothing but how the factors that a client trains have moved
            from those it was sent, and is shaped as they are: then under secure aggregation the
            sum of single records' gradients can stand in its place.
        searches: whether the clients that train can search for the server's step
            (``methods.shared.line_search``): the state's factors are all that a round moves.
        placed: whether an update joins a sum as it is, its factors among the leading columns of
            those of the whole rank: then a site can make its part of a secure sum alone.
        asynchronous: whether an update may be added to later factors than it began from
            (``federation.schedule = "async"``): it says how factors moved, the same of them in
            every round, and neither a client nor a round remembers more.
    """

    private: bool = True
    secure: bool = True
    instead: str = ""
    trains: Trainable = Trainable.AB
    personal: bool = False
    unit: Unit = "client"
    splits: bool = True
    units: tuple[Unit, ...] | None = None
    folds: bool = False
    searches: bool = False
    steps: bool = False
    asynchronous: bool = False
    placed: bool = False

    @property
    def offered(self) -> tuple[Unit, ...]:
        """The units that the method can protect."""
        if self.units is not None:
            return self.units
        return (self.unit,) if self.private or self.unit == "record" else ()


@dataclass(frozen=True)
class Traits:
    """A method for tables and reports: the sections of its docstring and its abilities.

    Attributes:
        what: one sentence.
        source: authors, title, venue, year, link.
        up: bytes a client sends in a round, as a formula.
        down: bytes a client receives in a round, as a formula.
        privacy: what is summed and its sensitivity, or why it is refused.
        differs: where it differs from the paper.
        unequal_ranks: whether tiers may have different ranks.
        exact: whether the merge equals the mean of the clients' dense updates.
        private: see ``Abilities``, as all that follow.
    """

    what: str
    source: str
    up: str
    down: str
    privacy: str
    differs: str
    unequal_ranks: bool
    exact: Exact
    private: bool
    secure: bool
    instead: str
    trains: Trainable
    personal: bool
    unit: Unit
    splits: bool
    units: tuple[Unit, ...]
    folds: bool
    searches: bool
    steps: bool
    asynchronous: bool
    placed: bool


def described(module: str, docstring: str | None, abilities: Abilities) -> Traits:
    """The traits of a method, from its docstring and what it declares.

    Args:
        module: ``__name__`` of the method; its last part is the method's name.
        docstring: ``__doc__`` of the method.
        abilities: what it declares.

    Raises:
        ConfigError: a section is missing, unknown, empty, there twice, or cannot be read. The
            message names the method.
    """
    name = module.rpartition(".")[2]
    try:
        found = sections(docstring or "")
        travels = re.fullmatch(r"up (.+?); down (.+)", found["travels"])
        if travels is None:
            raise ValueError("section 'travels' is "
                             f"'{found['travels']}', expected 'up FORMULA; down FORMULA'")
        return Traits(
            found["what"], found["source"], travels[1], travels[2], found["privacy"],
            found["differs"], _one_of(YES_NO, "unequal ranks", found),
            _one_of(EXACT, "exact", found), abilities.private, abilities.secure, abilities.instead,
            abilities.trains, abilities.personal, abilities.unit, abilities.splits,
            abilities.offered, abilities.folds, abilities.searches, abilities.steps,
            abilities.asynchronous, abilities.placed)
    except ValueError as error:
        raise ConfigError(f"algorithm '{name}' does not describe itself: {error}; correct the last "
                          "paragraph of its docstring") from None


def sections(docstring: str) -> dict[str, str]:
    """Section -> its text on one line, of the last paragraph."""
    found: dict[str, str] = {}
    section = ""
    for line in docstring.strip().split("\n\n")[-1].splitlines():
        if line[:1].isspace() and section:
            found[section] = f"{found[section]} {line.strip()}".strip()
            continue
        section, colon, text = line.partition(":")
        if not colon or section not in SECTIONS:
            raise ValueError(f"section '{section[:40]}' is unknown; "
                             f"{did_you_mean(section, SECTIONS)}")
        if section in found:
            raise ValueError(f"section '{section}' is there twice")
        found[section] = text.strip()
    missing = [section for section in SECTIONS if not found.get(section)]
    if missing:
        raise ValueError(f"section '{missing[0]}' is missing")
    return found


def _one_of(known: dict[str, T], section: str, found: dict[str, str]) -> T:
    if found[section] not in known:
        raise ValueError(f"section '{section}' is '{found[section]}', expected one of "
                         f"{', '.join(known)}")
    return known[found[section]]
