"""SplitLoRA: every client trains the first blocks, the server the rest for all of them at once; the
clients' factors are averaged.

In each of I steps clients send states at the cut and labels; the server makes one step on the mean
of their losses and returns to each the gradient of its own; after the last step the clients'
factors are averaged, A and B separately. This is the paper's parallel form; SGD in one step is then
a centralised step on all batches (paper test 6). A step costs up 4 B T D + 4 B T + 4 bytes, down
4 B T D + 4 (``training.split_trainer``, also for narrower wires and T5). ``travels`` gives the
factors alone; batches are not known there.

The authors' code steps the server after every client in turn, counts one client twice, drops the
last updates before an average and schedules only the server; here the server steps once a step,
each client counts once, after its last update, and one schedule holds for both. The average ends
every round. Clipping is over both halves' norm. A client reads a batch once more to go backward, so
that it remembers no graph. Proxies take no part. 'fedit' trains the same factors on whole models.

what: first blocks at the clients, the rest at the server; activations travel, fronts are averaged
source: Lin et al., SplitLoRA, 2024, arXiv 2407.00952
travels: up 4 sum_front r_k (M + N), a step 4 B T (D + 1) + 4; down 4 sum_front r_k (M + N), a step
    4 B T D + 4
privacy: refused: activations of single records leave the site
differs: the parallel form; each client counts once after its last update; one schedule for both
    halves
unequal ranks: yes
exact: no
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.factors import FactorName, Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.per_client import FactorMean
from aulait.methods.shared.split_exchange import (
    MOST_STEPS,
    SplitRound,
    exchange_number,
    is_last,
    remembered,
)
from aulait.privacy import clipping
from aulait.training import split_model
from aulait.training.activation_codec import Activations, Gradients, Wire
from aulait.training.split_trainer import ClientHalf, ModelCut, ServerHalf, fault
from aulait.training.trainer import Learner, LocalTraining

TRAITS = described(__name__, __doc__, Abilities(private=False, secure=False, instead="fedit"))
# name of the site that trains the server's half; it is at the server, so nothing it gets travels
SERVER = "server"


class SplitLoRAConfig(BaseModel):
    """``[algorithm] name = "splitlora"``.

    Attributes:
        cut: blocks at the client; of a T5 model all of its encoder.
        wire: how states and gradients travel.
        weights: of the clients' losses and factors: "uniform", or "size" by their records.
        moments: of the optimisers: "keep" over rounds as the authors do, or "fresh" in every round.
        label_smoothing: part of a token's target that is spread over the vocabulary in training;
            the authors' E2E runs have 0.1. Losses that are told while training hold it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    cut: int = Field(2, ge=1)
    wire: Wire = "float32"
    weights: Literal["uniform", "size"] = "uniform"
    moments: Literal["keep", "fresh"] = "keep"
    label_smoothing: float = Field(0.0, ge=0, lt=1)


Config = SplitLoRAConfig


def init(config: SplitLoRAConfig, context: RunContext) -> State:
    """The common start: A random, B zero."""
    return State(0, lora.to_tensors(context.initial()))


def step(config: SplitLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Steps of clients and server in turn until every client has made its last; then the average of
    the clients' factors."""
    of_clients = {name: value for name, value in state.tensors.items()
                  if split_model.in_client_half(FactorName.parse(name).layer, config.cut)}
    of_server = start = {name: value for name, value in state.tensors.items()
                         if name not in of_clients}
    settings = config.model_dump(exclude={"weights"}) | {
        "lr": cohort.lr, "wanted": bool(of_clients)}
    sent = {name: context.leading(of_clients, name) for name in sorted(cohort.local)}
    exchanges = SplitRound(server, dict(sent), "splitlora", TRAITS.instead)
    mean, number = FactorMean(of_clients), 0
    while sent and number < MOST_STEPS:
        number += 1
        now = settings | {"step": number}
        updates = exchanges.exchange([TrainRequest(name, cohort.round, tensors, now)
                                      for name, tensors in sent.items()], cohort)
        weights = {name: update.weight if config.weights == "size" else 1.0
                   for name, update in updates.items()}
        down: Tensors = {}
        for name, update in updates.items():
            factors = {key: value for key, value in update.tensors.items() if key in of_clients}
            if is_last(update):
                mean.add(weights[name], factors)
            down |= lora.tagged(name, {key: value for key, value in update.tensors.items()
                                       if key not in factors})
        (own,) = server.ask([TrainRequest(SERVER, cohort.round, start | down,
                                          now | {"weights": weights})])
        of_server = {n: t for n, t in own.tensors.items() if n in of_server} or of_server
        start = {}
        sent = exchanges.returned(
            own, [name for name, update in updates.items() if not is_last(update)])
    after = mean.mean() | of_server
    norm = clipping.norm(lora.subtract(after, state.tensors))
    return State(cohort.round, after), exchanges.metrics(norm)


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """A step backward on what the server returned, and a step forward; or the server's step on what
    clients sent."""
    if requests[0].client == SERVER:
        return [_server_step(requests[0], sites[0], context, learner)]
    # a pass takes sites that have made equally many steps, of equal shape
    groups: dict[tuple[float, ...], list[int]] = {}
    for i, (request, site) in enumerate(zip(requests, sites, strict=True)):
        done = float(remembered(request, site).get("t", torch.zeros(1)))
        groups.setdefault((done, site.plan.steps, site.plan.batch), []).append(i)
    found: dict[int, ClientUpdate] = {}
    for (*_, batch), members in groups.items():
        size = max(1, learner.config.rows_at_once // int(batch))
        for some in (members[i : i + size] for i in range(0, len(members), size)):
            updates = _client_steps([requests[i] for i in some], [sites[i] for i in some], context,
                                    learner)
            found.update(zip(some, updates, strict=True))
    return [found[i] for i in range(len(requests))]


def result(context: RunContext, state: State) -> Adapter:
    """The clients' averaged factors with the server's."""
    return context.adapter(state.tensors)


def travels(config: SplitLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes of the factors of one client, up and down; the messages of its steps:
    ``split_trainer.travelled``."""
    layers = split_model.client_layers(context.shapes, config.cut)
    half = replace(context, shapes={layer: context.shapes[layer] for layer in layers})
    own = client_update.factor_bytes(half, client)
    return own, own


def _client_steps(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
                  learner: Learner) -> list[ClientUpdate]:
    """Go back on the batch before with the gradients that came, then forward on the next one; after
    the last, send the factors."""
    settings = requests[0].settings
    number, cut = settings["step"], ModelCut(settings["cut"], settings["wire"])
    states = [remembered(request, site) for request, site in zip(requests, sites, strict=True)]

    training = []
    for request, site, state in zip(requests, sites, states, strict=True):
        factors = request.tensors if number == 1 else _factors(state)
        training.append(LocalTraining(
            context.adapter(factors), site.train, Trainable.AB, site.plan.steps, site.plan.batch,
            request.settings["lr"], context.seeds.integer("batches", request.round, site.name)))
    half = ClientHalf(learner, training, cut)
    half.resume(states)

    tensors: list[Tensors] = [{} for _ in sites]
    if number > 1:
        half.forward(number - 2)
        returned = [Gradients({n: t for n, t in request.tensors.items() if n != "square"},
                              request.tensors["square"]) for request in requests]
        tensors = [{"square": square.reshape(1).cpu()} for square in half.backward(returned)]
    last = number > sites[0].plan.steps
    ahead = [] if last else half.forward(number - 1)
    updates = []
    for k, (request, site) in enumerate(zip(requests, sites, strict=True)):
        own = lora.to_tensors(half.stack.take(k))
        client_update.keep(site, exchange_number(request), own | half.moments(k))
        message = own if last else ahead[k].tensors()
        updates.append(ClientUpdate(site.name, tensors[k] | message, float(len(site.train))))
    return updates


def _server_step(request: TrainRequest, site: Site, context: RunContext,
                 learner: Learner) -> ClientUpdate:
    """End the step before, now that its norms are known; begin the next on what clients sent, or
    hand over the factors."""
    settings, state = request.settings, remembered(request, site)
    start = context.adapter(
        lora.untagged(request.tensors) if settings["step"] == 1 else _factors(state))
    training = LocalTraining(start, (), Trainable.AB, 1, 1, settings["lr"], 0)
    half = ServerHalf(learner.base, learner.config, [start], training,
                      ModelCut(settings["cut"], settings["wire"]), settings["wanted"])
    half.label_smoothing = settings["label_smoothing"]
    half.resume([state])
    received = lora.by_tag(request.tensors)
    if settings["step"] > 1:
        _finish_step(half, state, received, settings["weights"])

    tensors, diagnostics = _begin_step(half, received, settings["weights"])
    gradients = {f"g/{name}": leaf.grad[0].cpu()
                 for name, leaf in zip(half.names, half.stack.leaves, strict=True)
                 if leaf.grad is not None} if tensors else {}
    factors = lora.to_tensors(half.stack.take(0))
    client_update.keep(site, exchange_number(request), factors | half.moments(0) | gradients)
    return ClientUpdate(site.name, tensors or factors, 0.0, diagnostics)


def _finish_step(half: ServerHalf, state: Tensors, received: Mapping[str, Tensors],
                 weights: Mapping[str, float]) -> None:
    """The step of the server's factors on the gradient it kept, now that the clients' norms came.

    Args:
        half: the server's half.
        state: holds the gradients under the tag "g"; without them there was no step.
        received: client -> its message with "square", the squared norm of its gradient.
        weights: of the clients in the mean.
    """
    gradients = lora.under("g", state)
    if not all(str(name) in gradients for name in half.names):
        return
    squares = {name: float(own["square"]) for name, own in received.items() if "square" in own}
    total = sum(weights[name] for name in squares)
    mean = sum(weights[name] * square for name, square in squares.items()) / (total or 1.0)
    for name, leaf in zip(half.names, half.stack.leaves, strict=True):
        leaf.grad = gradients[str(name)][None].to(leaf.device)
    half.update(torch.tensor([mean], device=half.base.device))


def _begin_step(half: ServerHalf, received: Mapping[str, Tensors],
                weights: Mapping[str, float]) -> tuple[Tensors, dict[str, float]]:
    """Loss and gradients on what the clients sent: what each is returned, under its name, with its
    loss and tokens; nothing where no client sent states."""
    sent = {name: Activations.of({part: value for part, value in own.items() if part != "square"})
            for name, own in received.items() if "labels" in own}
    valid = [name for name in sorted(sent)
             if weights[name] > 0 and fault(half.base, sent[name]) is None]
    if not valid:
        return {}, {}
    total = sum(weights[name] for name in valid)
    returned, loss_K, count_K = half.backward([sent[name] for name in valid],
                                              [weights[name] / total for name in valid])
    tensors: Tensors = {}
    diagnostics: dict[str, float] = {}
    for name, own, loss, count in zip(valid, returned, loss_K.tolist(), count_K.tolist(),
                                      strict=True):
        answer = own.hidden | {"square": own.square}
        tensors |= lora.tagged(name, {part: value.cpu() for part, value in answer.items()})
        diagnostics |= {f"{name}/loss": loss, f"{name}/tokens": count}
    return tensors, diagnostics


def _factors(kept: Tensors) -> Tensors:
    return {n: t for n, t in lora.untagged(kept).items() if FactorName.names_one(n)}
