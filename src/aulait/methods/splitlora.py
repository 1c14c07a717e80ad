"""SplitLoRA: every client trains the first blocks, the server the rest for all of them at once;
fronts are averaged.

what: in each of I steps clients send states at the cut and labels; the server makes one step on the
    mean of their losses and returns to each the gradient of its own; after the last step the
    clients' factors are averaged, A and B separately.
source: Lin et al., "SplitLoRA: A Split Parameter-Efficient Fine-Tuning Framework for Large Language
    Models", 2024, arXiv 2407.00952, the parallel form; SGD in one step is then a centralised step
    on all batches (paper test 6).
travels: up and down 4 · sum over layers before the cut r_k (M + N) bytes a round; a step up 4 B T D
    + 4 B T + 4, down 4 B T D + 4 (``split``, also for narrower wires and T5). ``travels`` gives the
    factors; batches are not known there.
privacy: refused: states of single records leave the site. Nearest: 'fedit', whose clients train the
same factors whole.
differs: the authors' code steps the server after every client in turn, counts one client twice,
    drops the last updates before an average and schedules only the server; here the server steps
    once a step, each client counts once, after its last update, and one schedule holds for both.
    The average ends every round. Clipping is over both halves' norm (``split``). A client reads a
    batch once more to go backward, so that it remembers no graph. Proxies take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import FactorName, Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.per_client import FactorMean
from aulait.methods.shared.split_exchange import MOST_STEPS, Exchanges, before, clock, last
from aulait.privacy import clipping
from aulait.training import split_model as cut
from aulait.training.activation_codec import Activations, Gradients, Wire
from aulait.training.split_trainer import Back, Front, fault
from aulait.training.trainer import Learner, Work

TRAITS = Traits(
    what="first blocks at the clients, the rest at the server; activations travel, fronts are "
         "averaged",
    source="Lin et al., SplitLoRA, 2024, arXiv 2407.00952",
    up="4 sum_front r_k (M + N), a step 4 B T (D + 1) + 4",
    down="4 sum_front r_k (M + N), a step 4 B T D + 4",
    privacy="refused: activations of single records leave the site",
    differs="the parallel form; each client counts once after its last update; one schedule for "
            "both halves",
    unequal_ranks=True,
    exact="no",
    private=False,
    secure=False,
    instead="fedit",
)
# name of the site that trains the back; it lies at the server, nothing it gets crosses a wall
SERVER = "server"


class Config(BaseModel):
    """``[algorithm] name = "splitlora"``.

    Attributes:
        cut: blocks at the client; of a T5 model all of its encoder.
        wire: how states and gradients travel.
        weights: of the clients' losses and factors: "uniform", or "size" by their records.
        moments: of the optimisers: "keep" over rounds as the authors do, or "fresh" in every round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    cut: int = Field(2, ge=1)
    wire: Wire = "float32"
    weights: Literal["uniform", "size"] = "uniform"
    moments: Literal["keep", "fresh"] = "keep"


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(lora.initial(context.shapes, context.rank, context.alpha,
        context.seeds)))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Steps of clients and server in turn until every client has made its last; then the average of
    the fronts."""
    front = {n: t for n, t in state.tensors.items() if cut.in_front(FactorName.parse(n).layer, config.cut)}
    told = config.model_dump(exclude={"weights"}) | {"lr": cohort.lr, "wanted": bool(front)}
    sent = {name: lora.leading(front, context.rank_of(name)) for name in sorted(cohort.local)}
    back = start = {n: t for n, t in state.tensors.items() if n not in front}
    room, mean, number = Exchanges(server.aggregator, dict(sent), "splitlora",
        TRAITS.instead), FactorMean(front), 0
    while sent and number < MOST_STEPS:
        number += 1
        requests = [TrainRequest(name, cohort.round, tensors, told | {"step": number}) for name,
                  tensors in sent.items()]
        updates = room.collect(requests, cohort, server.ask)
        weights = {name: update.weight if config.weights == "size" else 1.0 for name,
                   update in updates.items()}
        for name, update in updates.items():
            if last(update):
                mean.add(weights[name], {n: t for n, t in update.tensors.items() if n in front})
        down = {f"{name}/{part}": t for name, update in updates.items() for part,
                t in update.tensors.items() if part not in front}
        (own,) = server.ask([TrainRequest(SERVER, cohort.round, start | down,
                            told | {"step": number, "weights": weights})])
        back, start = {n: t for n, t in own.tensors.items() if n in back} or back, {}
        sent = room.returned(own, [name for name, update in updates.items() if not last(update)])
    after = mean.mean() | back
    return State(cohort.round,
                 after), room.info(update_norm=clipping.norm(lora.subtract(after, state.tensors)))


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """A step backward on what the server returned, and a step forward; or the server's step on what
    clients sent."""
    if requests[0].client == SERVER:
        return [_server(requests[0], sites[0], context, learner)]
    # a pass takes sites that have made equally many steps, of equal shape
    groups: dict[tuple[float, ...], list[int]] = {}
    for i, (request, site) in enumerate(zip(requests, sites, strict=True)):
        done = float(before(request, site).get("t", torch.zeros(1)))
        groups.setdefault((done, site.plan.steps, site.plan.batch), []).append(i)
    found: dict[int, ClientUpdate] = {}
    for (*_, batch), members in groups.items():
        size = max(1, learner.config.rows_at_once // int(batch))
        for some in (members[i : i + size] for i in range(0, len(members), size)):
            found.update(zip(some, _clients([requests[i] for i in some], [sites[i] for i in some],
                context, learner), strict=True))
    return [found[i] for i in range(len(requests))]


def result(context: RunContext, state: State) -> Adapter:
    """The averaged fronts with the server's back."""
    return lora.from_tensors(state.tensors, context.alpha, context.rank)


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes of the factors of one client, up and down; the messages of its steps:
    ``split.travelled``."""
    shapes = {layer: context.shapes[layer] for layer in cut.front(context.shapes, config.cut)}
    own = client_update.factor_bytes(replace(context, shapes=shapes), name)
    return own, own


def _clients(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
             learner: Learner) -> list[ClientUpdate]:
    """Go back on the batch before with the gradients that came, then forward on the next one; after
    the last, send the factors."""
    settings, were = requests[0].settings, [before(request, site) for request,
        site in zip(requests, sites, strict=True)]
    number, works = settings["step"], []
    for request, site, was in zip(requests, sites, were, strict=True):
        start = lora.from_tensors(request.tensors if number == 1 else _factors(was), context.alpha,
                                  context.rank)
        works.append(Work(start, site.train, Trainable.AB, site.plan.steps, site.plan.batch,
                          request.settings["lr"],
                          context.seeds.integer("batches", request.round, site.name)))
    front = Front(learner, works, settings["cut"], settings["wire"])
    front.resume(were)
    shares: list[Tensors] = [{} for _ in sites]
    if number > 1:
        front.forward(number - 2)
        returned = [Gradients({n: t for n, t in request.tensors.items() if n != "square"},
                              request.tensors["square"]) for request in requests]
        shares = [{"square": square.reshape(1).cpu()} for square in front.backward(returned)]
    last = number > sites[0].plan.steps
    ahead = [] if last else front.forward(number - 1)
    updates = []
    for k, (request, site) in enumerate(zip(requests, sites, strict=True)):
        own = lora.to_tensors(front.stack.take(k))
        client_update.keep(site, clock(request), own | front.moments(k))
        updates.append(ClientUpdate(site.name, shares[k] | (own if last else ahead[k].tensors()),
                             float(len(site.train))))
    return updates


def _server(request: TrainRequest, site: Site, context: RunContext,
            learner: Learner) -> ClientUpdate:
    """End the step before, now that its norms are known; begin the next on what clients sent, or
    hand over the factors."""
    settings, was, weights = request.settings, before(request, site), request.settings["weights"]
    start = (
        lora.untagged(request.tensors) if settings["step"] == 1
        else _factors(was)
    )
    parts = lora.by_tag(request.tensors)
    work = Work(lora.from_tensors(start, context.alpha, context.rank), (), Trainable.AB, 1, 1,
                settings["lr"], 0)
    back = Back(learner.base, learner.config, [work.start], work, settings["cut"], settings["wire"],
                settings["wanted"])
    back.resume([was])
    if settings["step"] > 1 and all(f"g/{name}" in was for name in back.names):
        heard = {name: float(own["square"]) for name, own in parts.items() if "square" in own}
        mean = (
            sum(weights[name] * square for name, square in heard.items()) / (sum(weights[name]
                for name in heard) or 1.0)
        )
        for factor, leaf in zip(back.names, back.stack.leaves, strict=True):
            leaf.grad = was[f"g/{factor}"][None].to(leaf.device)
        back.update(torch.tensor([mean], device=learner.base.device))
    sent = {n: Activations.of({p: t for p, t in own.items() if p != "square"}) for n,
            own in parts.items() if "labels" in own}
    sound = [name for name in sorted(sent) if weights[name] > 0 and fault(learner.base,
        sent[name]) is None]
    share: Tensors = {}
    info, kept = dict[str, float](), dict[str, torch.Tensor]()
    if sound:
        total = sum(weights[name] for name in sound)
        told, loss_K, count_K = back.backward([sent[name] for name in sound],
            [weights[name] / total for name in sound])
        for name, own, loss, count in zip(sound, told, loss_K.tolist(), count_K.tolist(),
                strict=True):
            share |= {f"{name}/{part}": t.cpu() for part,
                      t in (own.hidden | {"square": own.square}).items()}
            info |= {f"{name}/loss": loss, f"{name}/tokens": count}
        kept = {f"g/{factor}": leaf.grad[0].cpu()
                for factor, leaf in zip(back.names, back.stack.leaves, strict=True)
                if leaf.grad is not None}
    factors = lora.to_tensors(back.stack.take(0))
    client_update.keep(site, clock(request), factors | back.moments(0) | kept)
    return ClientUpdate(site.name, share or factors, 0.0, info)


def _factors(kept: Tensors) -> Tensors:
    return {n: t for n, t in lora.untagged(kept).items() if FactorName.names_one(n)}
