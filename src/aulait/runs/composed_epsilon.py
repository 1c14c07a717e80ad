"""What several runs on the same data have released together: the price of choosing the best.

Whoever ranks runs has looked at all of them, so the guarantee of the one that was chosen is that of
all. Their ledgers are composed with the accountant; single epsilons are never added. The held-out
texts by which runs are ranked are private too, and no ledger line covers them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aulait.core.errors import PrivacyError
from aulait.core.files import JsonObject
from aulait.privacy.accounting import Event, epsilon, of_worst_turn
from aulait.privacy.mechanisms import find_mechanism
from aulait.reporting.folder import RunFiles, read_run
from aulait.reporting.grouping import largest_epsilon
from aulait.reporting.story import is_off
from aulait.runfolder.schema import LedgerEntry


@dataclass(frozen=True)
class ComposedEpsilon:
    """The privacy of several runs together.

    Attributes:
        runs: how many have released something under noise.
        epsilon: of all of them together, for a unit that may have been in every release; None where
            nothing can be said, or where it is infinite.
        largest: the largest epsilon of a single run; None where it is infinite.
        delta: of these epsilons.
        unit: what is protected.
        sentence: all this in plain words; empty where no run promises anything.
    """

    runs: int = 0
    epsilon: float | None = None
    largest: float | None = None
    delta: float | None = None
    unit: str | None = None
    sentence: str = ""

    def document(self) -> JsonObject:
        """As JSON."""
        return asdict(self)


def composed_epsilon_of(folders: Sequence[Path]) -> ComposedEpsilon:
    """What the run folders have released together, unfinished runs included.

    Raises:
        DataError: a path is not a run folder.
    """
    found = [run for run in map(read_run, folders) if run.ledger and not is_off(run)]
    if not found:
        return ComposedEpsilon()
    promises = {_promise(run) for run in found}
    if len(promises) > 1 or len({_data(run) for run in found}) > 1:
        return ComposedEpsilon(len(found), sentence=(
            f"The {len(found)} private runs differ in their data, their unit of privacy or their "
            "relation, so there is no one epsilon of all of them; each has its own. Runs on the "
            "same records still add to one another."))
    unit, field, _ = promises.pop()
    delta = min(run.ledger[0].delta or 1.0 for run in found)
    try:
        spent = max(epsilon(events, delta) for events in _shares(found))
    except PrivacyError as error:
        return ComposedEpsilon(len(found), sentence=(
            f"The epsilon of all runs together could not be counted: {error}"))
    each = [largest_epsilon(run) for run in found]
    largest = max((value for value in each if value is not None), default=math.inf)
    together = math.inf if math.isinf(largest) else max(spent, 0.0)
    name = field or unit
    return ComposedEpsilon(len(found), _finite(together), _finite(largest), delta, name,
                           _sentence(found, together, largest, delta, name))


def _sentence(runs: Sequence[RunFiles], together: float, largest: float, delta: float,
              unit: str) -> str:
    if len(runs) == 1:
        return ""
    if math.isinf(together):
        return (f"Together these {len(runs)} runs promise nothing: at least one releases something "
                "without noise.")
    seeded = any(line.private is False for run in runs for line in run.ledger)
    warning = " Some noise came from a seed, which makes every epsilon void." if seeded else ""
    return (
        f"Choosing among these {len(runs)} private runs looks at all of them: together they spend "
        f"at most epsilon {together:.4g} for one {unit} (delta {delta:g}), not {largest:.4g}, "
        "the most of a single run. Their private held-out texts, by which they are ranked, are "
        "not covered by "
        f"any epsilon.{warning}")


def _promise(run: RunFiles) -> tuple[str, str, str]:
    """Unit, its field, and relation."""
    line, config = run.ledger[0], run.config.get("privacy")
    field = config.get("unit_field") if isinstance(config, dict) else None
    return line.unit or "client", str(field or ""), line.relation or ""


def _data(run: RunFiles) -> str:
    """What says whether two runs have the same data."""
    return repr(run.config.get("data"))


def _shares(runs: Sequence[RunFiles]) -> list[Counter[Event]]:
    """What every unit has at most taken part in: the releases of its role where every run divides
    the clients into roles the same way, or else all. Cohorts that take turns are dealt anew in
    every run, so the worst one of each run counts.

    Raises:
        PrivacyError: a line of a ledger is not sound.
    """
    roles = {role for run in runs for line in run.ledger for role in _roles(line)}
    if len({repr(run.config.get("federation")) for run in runs}) > 1:
        return [sum((_paid(run, roles) for run in runs), Counter[Event]())]
    return [sum((_paid(run, {role}) for run in runs), Counter[Event]()) for role in roles]


def _paid(run: RunFiles, roles: Collection[str]) -> Counter[Event]:
    """What a run costs a unit that has at most these roles."""
    return of_worst_turn(Counter(_event(line) for line in run.ledger
                                 if {*roles} & {*_roles(line)}))


def _roles(line: LedgerEntry) -> list[str]:
    return (line.role or "").split("+")


def _event(line: LedgerEntry) -> Event:
    if line.noise_multiplier is None or (line.sampling.kind == "poisson"
                                         and not line.sampling.rate):
        raise PrivacyError("a line of a ledger has no noise multiplier or rate; restore the file")
    rate = float(line.sampling.rate or 1.0) if line.sampling.kind == "poisson" else 1.0
    mechanism = find_mechanism(line.mechanism or "gaussian")
    found = mechanism.event(line.noise_multiplier, rate, int(line.steps_taken or 1))
    turn, most = line.sampling.turn, line.sampling.most
    return replace(found, turn=None if turn is None else int(turn),
                   most=None if most is None else int(most))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
