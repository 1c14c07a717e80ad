"""The client's half that methods share: requests to works, trained factors to updates, and what a
site remembers.

A site's memory holds its state before and after the last round it answered, so that the same order
always gets the same update: asked again for a round, it starts from where it stood before that
round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from aulait.core import lora
from aulait.core.factors import FactorName, Trainable
from aulait.core.types import Adapter, ClientUpdate, Site, Tensors, TrainRequest, nbytes
from aulait.methods.contract import RunContext
from aulait.training.trainer import Learner, Trained, Work

Start = Callable[[TrainRequest, Site], Adapter]


def train(
    requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext, learner: Learner,
    start: Start, trainable: Trainable, **more: Any
) -> list[tuple[Adapter, Trained]]:
    """Local steps at every site; pairs of (adapter before, what came of it).

    Args:
        requests: one per site; their settings hold the learning rate ("lr").
        sites: plan and records.
        setting: the run's seeds.
        learner: the shared base.
        start: the adapter a site begins from.
        trainable: factors that are trained.
        more: further fields of ``Work`` for all sites; a list holds one value per site.
    """
    works = []
    for k, (request, site) in enumerate(zip(requests, sites, strict=True)):
        own = {key: value[k] if isinstance(value, list) else value for key, value in more.items()}
        fields: dict[str, Any] = {"records": site.train, "steps": site.plan.steps} | own
        works.append(Work(start=start(request, site), trainable=trainable, batch=site.plan.batch,
                          lr=request.settings["lr"],
                          seed=context.seeds.integer("batches", request.round, site.name),
                          **fields))
    return [(work.start, _received(request, done)) for request, work,
            done in zip(requests, works, learner.train(works), strict=True)]


def update(site: Site, share: Tensors, done: Trained) -> ClientUpdate:
    """A share with its diagnostics; of a split client also the bytes that crossed its wall, the
    back's factors not among them."""
    info = {"train_loss": done.loss, "train_tokens": float(done.tokens)}
    if done.up_bytes:
        info |= {"wire_up_bytes": float(done.up_bytes + _front_bytes(share, done)),
                 "wire_down_bytes": float(done.down_bytes)}
    return ClientUpdate(site.name, share, float(len(site.train)), info)


def changes(sites: Sequence[Site], done: Sequence[tuple[Adapter, Trained]],
            trainable: Trainable) -> list[ClientUpdate]:
    """Replies whose share is how the factors in ``trainable`` moved."""
    return [
        update(site, lora.subtract(lora.to_tensors(after.adapter, trainable),
                                  lora.to_tensors(before, trainable)), after)
        for site, (before, after) in zip(sites, done, strict=True)
    ]


def _received(request: TrainRequest, done: Trained) -> Trained:
    """With the bytes of the order among those received, where the site is split."""
    return (
        replace(done, down_bytes=done.down_bytes + _front_bytes(request.tensors, done))
        if done.up_bytes else done
    )


def _front_bytes(tensors: Tensors, done: Trained) -> int:
    """Bytes of the tensors of layers that a split site has; names are "layer.A", "layer.B", with or
    without "kind/" before."""
    return sum(nbytes({name: t for name, t in own.items() if _layer(name) in done.front})
               for own in lora.by_tag(tensors).values())


def _layer(name: str) -> str:
    """The layer a tensor belongs to: a factor of it, or its dense update."""
    return FactorName.parse(name).layer if FactorName.names_one(name) else name


def recall(site: Site, round: int) -> Tensors:
    """What the site remembers from before a round; empty when it has never taken part."""
    kept = site.memory.get("kept")
    if kept is None:
        return {}
    found: Tensors = kept["after"] if kept["round"] < round else kept["before"]
    return found


def keep(site: Site, round: int, tensors: Tensors) -> None:
    """Remember the state after a round."""
    site.memory["kept"] = {"round": round, "before": recall(site, round), "after": tensors}


def factor_bytes(context: RunContext, client: str, trainable: Trainable = Trainable.AB) -> int:
    """4 · sum over layers of r · M (for B) and r · N (for A), r the client's rank in the layer."""
    rank = context.rank_of(client)
    return 4 * sum(rank(layer) * sum(trainable.of((n, m)))
                   for layer, (m, n) in context.shapes.items())
