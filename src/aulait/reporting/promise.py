"""The promise in words: what is protected, which runs are compared, and what the best attacker can
do. The report and the dossier say these sentences; they stand here once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aulait.reporting import guarantee, numbers
from aulait.reporting.folder import RunFiles
from aulait.reporting.values import value_at, words

Curve = Sequence[tuple[float, float]]

RELATIONS: Final = {
    "add-remove": "with and without it (add or remove one)",
    "zero-out": "with it and with a null record in its place, which adds nothing (zero-out); how "
                "many there are stays the same and is public",
    "replace": "with it and with any other in its place (replace one)",
}
ROLES: Final = {
    "proxy": "voted on candidate texts",
    "local": "trained on its own machine",
    "split": "trained together with the server",
    "max": "any client",
}


def protected_unit(run: RunFiles) -> str:
    """What is protected: "client" or "record", as the ledger says; without one, as the result
    says."""
    lines = {line.unit for line in run.ledger}
    told = next(iter(lines)) if len(lines) == 1 else run.result.privacy.unit
    return told or "client"


def unit_field(run: RunFiles) -> str | None:
    """The field whose value names the unit; None where a unit is one record, or a client."""
    if protected_unit(run) != "record":
        return None
    return words(value_at(run.config, "privacy", "unit_field"))


def one_unit(run: RunFiles) -> str:
    """The unit as a noun of a sentence: "client", "record", or "unit" where a field names it."""
    return "unit" if unit_field(run) else protected_unit(run)


def unit_explained(run: RunFiles) -> str:
    """What one unit is."""
    return unit_in_words(protected_unit(run), unit_field(run))


def unit_in_words(unit: str, field: str | None) -> str:
    """What one unit is: of the settings "client" or "record", and the field that names it."""
    if field:
        return f"all records of one value of the field “{field}” at one client, together"
    known = {
        "client": "one client with everything it holds",
        "record": "one record of one client, with all its copies there",
    }
    return known.get(unit, unit)


def unit_limits(run: RunFiles) -> str:
    """What the promise for one unit leaves out; empty for whole clients."""
    return limits_in_words(protected_unit(run), unit_field(run))


def limits_in_words(unit: str, field: str | None) -> str:
    """As ``unit_limits``, of the settings."""
    if unit != "record":
        return ""
    several = (
        f"How many units a client trains or votes with is public, how many records a unit has is "
        f"not. Whoever appears under two values of “{field}” is protected one at a time. " if field
        else "How many records a client trains or votes with is public. A person with several "
        "records is protected one record at a time. "
    )
    noun = "unit" if field else "record"
    return (
        f"{several}The same {noun} at two clients is protected at each, and what is told of both "
        f"adds up: (2ε, 2δ), or √2 times the μ of Gaussian releases. Which of a client's {noun}s "
        f"are used is decided by a hash of each {noun} alone, so that one more moves no other; "
        f"those kept for evaluation take no part in what is released, and scores on them are not "
        "protected. Every role pays for the unit that fares worst among its clients."
    )


def relation_explained(run: RunFiles) -> str:
    """Which two runs are compared."""
    relation = run.result.privacy.relation or ""
    return RELATIONS.get(relation, relation or numbers.NOT_RECORDED)


def question(run: RunFiles) -> str:
    """What an attacker must decide."""
    noun = one_unit(run)
    return "a given client took part" if noun == "client" else f"a given {noun} was among the data"


def bounds_of(run: RunFiles, role: str = "max", curve: Curve = ()) -> guarantee.Bounds:
    """What the run tells of a role's releases; nothing where its epsilon has no bound.

    Args:
        run: as planned, or as it was.
        role: "max" for any.
        curve: further pairs (epsilon, delta) of the same releases.
    """
    epsilon, delta = run.result.privacy.epsilon.value(role), run.result.privacy.delta
    if epsilon is None or delta is None:
        return guarantee.Bounds()
    mu = guarantee.gaussian_mu(run) if role == "max" else guarantee.role_mu(run, role)
    return guarantee.Bounds(((epsilon, delta), *curve), mu)


def attack_sentences(run: RunFiles, roles: Sequence[guarantee.Bounds] = ()) -> list[str]:
    """What epsilon means for one unit, as sentences for someone who approves runs; for a run whose
    releases all carry secret noise.

    Args:
        run: as planned, or as it was.
        roles: what is known of each role's releases, more than the run itself tells; the worst of
            them counts.
    """
    epsilon, delta = run.result.privacy.epsilon.max, run.result.privacy.delta
    if epsilon is None or delta is None:
        return [no_bound()]
    bound, known = guarantee.detection(epsilon, delta), roles or (bounds_of(run),)
    best = (
        f"Take an attacker who sees all that was released and must decide whether {question(run)}.")
    text = (
        "If it accepts to be wrong about "
        f"{numbers.percent(guarantee.FALSE_ALARM, 0)} of those that were not there, it recognises "
        f"at most {rate(bound)} of those that were."
    )
    if bound >= guarantee.NEARLY_ALWAYS:
        text += (
            f" That is practically always: taken alone, ε = {numbers.epsilon(epsilon)} promises "
            "nothing against it."
        )
    found = [best, text]
    sharp = max(own.detection() for own in known)
    if sharp < bound - 0.005:
        found.append(
            "The list of releases allows a sharper statement, because each is Gaussian with known "
            f"noise: the attacker recognises at most {rate(sharp)}.")
    guess = numbers.percent(guarantee.FALSE_ALARM, 0)
    return [*found,
            f"For comparison: blind guessing at the same rate of false alarms recognises {guess}.",
            even_odds(max(own.success() for own in known))]


@dataclass(frozen=True)
class Verdict:
    """The promise in one sentence, with its terms; ``bounded``: whether it promises anything."""

    sentence: str
    terms: str
    bounded: bool


def verdict_of(run: RunFiles, roles: Sequence[guarantee.Bounds], guaranteed: bool) -> Verdict:
    """What whoever approves a run must know of it first.

    Args:
        run: as it was.
        roles: what is known of each role's releases; the worst of them counts.
        guaranteed: whether every value was released under secret noise.
    """
    asked, privacy = question(run), run.result.privacy
    success = max((own.success() for own in roles), default=1.0)
    if not guaranteed or privacy.epsilon.max is None:
        return Verdict("No guarantee: assume that whoever sees what this run gave out can tell "
                       f"with certainty whether {asked}.", "Nothing bounds ε here.", False)
    terms = (f"ε is at most {numbers.epsilon(privacy.epsilon.max)} at δ = "
             f"{numbers.delta(privacy.delta)}, for {unit_explained(run)}. It holds whatever else "
             "they know, and whatever is done with the model later.")
    if success >= guarantee.NEARLY_ALWAYS:
        return Verdict("A promise in name only: whoever sees all that this run released may tell "
                       f"in {rate(success)} of cases whether {asked}.", terms, False)
    return Verdict(f"Nobody who sees all that this run released can tell whether {asked} and be "
                   f"right in more than {rate(success)} of cases; a tossed coin is right in "
                   f"50{numbers.SPACE}%.",
                   terms, True)


def even_odds(success: float) -> str:
    """The attacker's best success where presence and absence are equally likely beforehand."""
    return (
        "If both answers are equally likely beforehand, the best possible guess is right in at "
        f"most {rate(success)} of cases; a coin is right in 50{numbers.SPACE}%.")


def no_bound() -> str:
    """What is said where nothing bounds the attacker."""
    return ("For this run there is no such bound: assume that an attacker can tell with certainty "
            "who took part.")


def rate(share: float) -> str:
    """A share of cases as a percentage, with digits enough to tell it from certainty."""
    digits = 0 if share >= 0.99995 else 2 if share >= guarantee.NEARLY_ALWAYS else 1
    return numbers.percent(share, digits)


def factor(epsilon: float | None) -> str:
    """e to the power of epsilon; empty where no figure holds it."""
    return (
        numbers.significant(math.exp(epsilon), 2) if epsilon is not None and epsilon < 700 else "")
