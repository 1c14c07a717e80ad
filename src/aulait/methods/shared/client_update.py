"""The client's side that methods share: requests to local training, what was trained to updates,
and what a site remembers.

A site's memory holds its state before and after the last round it answered, so that the same
request always gets the same update: asked again for a round, it starts from where it stood before
that round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from aulait.core import lora
from aulait.core.factors import FactorName, Trainable
from aulait.core.types import Adapter, ClientUpdate, Site, Tensors, TrainRequest, nbytes
from aulait.methods.contract import RunContext
from aulait.training.trainer import Learner, LocalTraining, Trained

Start = Callable[[TrainRequest, Site], Adapter]


def sent_factors(context: RunContext) -> Start:
    """Sites start from the factors they are sent, at the common scale alpha / R."""
    return lambda request, _: context.adapter(request.tensors)


def local_training(
    requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext, start: Start,
    trainable: Trainable = Trainable.AB
) -> list[LocalTraining]:
    """The training that every site is asked to do, on all its records by its plan; a method changes
    what it does otherwise by ``dataclasses.replace``.

    Args:
        requests: one per site; their settings hold the learning rate ("lr").
        sites: plan and records.
        context: the run's seeds.
        start: the adapter a site begins from.
        trainable: factors that are trained.
    """
    return [LocalTraining(
        start=start(request, site), records=site.train, trainable=trainable, steps=site.plan.steps,
        batch=site.plan.batch, lr=request.settings["lr"],
        seed=context.seeds.integer("batches", request.round, site.name))
        for request, site in zip(requests, sites, strict=True)]


def train(requests: Sequence[TrainRequest], training: Sequence[LocalTraining],
          learner: Learner) -> list[tuple[Adapter, Trained]]:
    """Local steps at every site; pairs of (adapter before, what came of it)."""
    return [(own.start, _with_request_bytes(request, done)) for request, own, done in
            zip(requests, training, learner.train(training), strict=True)]


def changes(sites: Sequence[Site], done: Sequence[tuple[Adapter, Trained]],
            trainable: Trainable = Trainable.AB) -> list[ClientUpdate]:
    """Updates that say how the factors moved."""
    return [update_of(site, lora.subtract(lora.to_tensors(after.adapter, trainable),
                                          lora.to_tensors(before, trainable)), after)
            for site, (before, after) in zip(sites, done, strict=True)]


def trained_factors(sites: Sequence[Site],
                    done: Sequence[tuple[Adapter, Trained]]) -> list[ClientUpdate]:
    """Updates that hold the trained factors A and B themselves."""
    return [update_of(site, lora.to_tensors(after.adapter), after)
            for site, (_, after) in zip(sites, done, strict=True)]


def update_of(site: Site, tensors: Tensors, done: Trained) -> ClientUpdate:
    """An update with its diagnostics; of a split client also the bytes it exchanged, the factors of
    the server's half not among them."""
    info = {"train_loss": done.loss, "train_tokens": float(done.tokens)}
    if done.up_bytes:
        info |= {"wire_up_bytes": float(done.up_bytes + _client_half_bytes(tensors, done)),
                 "wire_down_bytes": float(done.down_bytes)}
    return ClientUpdate(site.name, tensors, float(len(site.train)), info)


def _with_request_bytes(request: TrainRequest, done: Trained) -> Trained:
    """With the bytes of the request among those received, where the site is split."""
    if not done.up_bytes:
        return done
    return replace(done, down_bytes=done.down_bytes + _client_half_bytes(request.tensors, done))


def _client_half_bytes(tensors: Tensors, done: Trained) -> int:
    """Bytes of the tensors of layers that a split site has: factors or dense updates, under any
    tag."""
    return sum(nbytes({name: t for name, t in own.items() if _layer(name) in done.client_layers})
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
    """4 · sum over layers of r · M (for B), r · N (for A) and r² (for a core), r the client's rank
    in the layer."""
    rank = context.rank_of(client)
    return 4 * sum(trainable.entries(shape, rank(layer))
                   for layer, shape in context.shapes.items())
