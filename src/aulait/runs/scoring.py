"""Held-out scores of a run: of the bare base, of the shared adapter, of the clients' own adapters,
on unseen clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aulait.core.types import Adapter, Record
from aulait.evaluation.losses import evaluate
from aulait.methods.contract import PersonalMethod, State
from aulait.runs.progress import Progress
from aulait.runs.setup import House

Worn = Adapter | Mapping[str, Adapter] | None


def base_scores(house: House) -> dict[str, Any]:
    """Scores of the bare base, measured once for all runs of a process."""
    settings = house.settings
    if house.judge is not None:
        return house.judge(house, None, False)
    key = (settings.model, settings.data.model_copy(update={"pooled": False}), house.seeds,
           settings.evaluate)
    found: dict[str, Any] = house.workshop.once("base-eval", key, lambda: _all(house, None))
    return found


def scores(house: House, state: State, progress: Progress, final: bool) -> dict[str, Any]:
    """Scores after a round, each client under the adapter it would use: its own where the method
    makes one.

    Args:
        house: held-out records and the method.
        state: of the method.
        progress: keeps the personal adapters of the last round.
        final: whether this is the last measurement; then personal methods also tell ``shared``, the
            scores of the shared adapter, and unseen clients are scored (under the shared adapter:
            they have no other).
    """
    if house.judge is not None:
        return house.judge(house, state, final)
    shared = house.settings.method.result(house.context, state)
    progress.personal = personal(house, state, final)
    if not progress.personal:
        return _all(house, shared, final)
    own = {name: progress.personal.get(name, shared) for name in house.holdout}
    found = _seen(house, own)
    if final:
        found |= {"shared": _seen(house, shared), **_unseen(house, shared)}
    return found


def personal(house: House, state: State, final: bool) -> dict[str, Adapter]:
    """Adapters of the clients' own, where the method makes them."""
    settings = house.settings
    method = settings.method
    # elsewhere they stay with their clients
    if not isinstance(method, PersonalMethod) or house.judge is not None:
        return {}
    sites = [house.sites[name] for name in house.trainers]
    return method.personal(settings.method_config, house.context, state, sites, house.learner,
                           final)


def _all(house: House, worn: Worn, unseen: bool = True) -> dict[str, Any]:
    return {**_seen(house, worn), **(_unseen(house, worn) if unseen else {})}


def _seen(house: House, worn: Worn) -> dict[str, Any]:
    return _measured(house, worn, house.holdout)


def _unseen(house: House, worn: Worn) -> dict[str, Any]:
    records = house.corpus.unseen
    return {"unseen": _measured(house, worn, records)} if records else {}


def _measured(house: House, worn: Worn, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    names = sorted(name for name in records if records[name])
    measured = {name: records[name] for name in names[: house.settings.evaluate.clients]}
    return evaluate(house.learner, worn, measured, house.settings.evaluate,
                    _choices(house)).as_dict()


def _choices(house: House) -> tuple[str, ...]:
    """All responses there are, for the task "rank": a closed set, taken as public."""
    if house.settings.evaluate.task != "rank":
        return ()

    def gather() -> tuple[str, ...]:
        clients = house.corpus.clients.values()
        unseen = house.corpus.unseen.values()
        known = {record.text for client in clients for record in (*client.train, *client.holdout)}
        return tuple(sorted(known | {record.text for records in unseen for record in records}))

    found: tuple[str, ...] = house.workshop.once("choices", (house.settings.data, house.seeds),
        gather)
    return found
