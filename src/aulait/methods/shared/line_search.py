"""A line search by the clients that train: how far the server goes along what a round has released,
and how much of it is the clients' and how much the proxies'.

After the aggregator has released the local clients' mean L, the server sends the state theta, L and
the proxies' mean P, all of them public, and a few pairs (a, b). Every client that trains measures

    v_k = loss(theta) - loss(theta + a_k L + b_k P)      nats a token, on some of its own records

The vectors v of all clients are released like any sum: clipped to C in L2, summed, noised, charged
to the account. The first step is the plain one, the whole weighted mean; it is taken unless another
is found better, or all are found to harm, by more than the noise can feign. So a step that noise
would spoil is not taken, proxies never hold back clients who know more, and a learning rate that
does not suit the data is mended: after a step that harmed the next ones are shorter, after the
longest one they are longer.

A few numbers are cheap under noise: K of them in T rounds cost what K T trained numbers would, by
the law of size (``privacy.noise_ratio``), out of a budget of their own
(``privacy.search_fraction``). C is so small that most vectors are cut to it: then every client
counts alike, and only which steps it finds better matters, not by how much. Harm beyond half of C
counts as half of C, or the worst steps would fill the vector. Without privacy nothing is cut, and
the best step is taken. Where L stands apart from the weighted mean it is first shortened by what is
known of its noise: of |L|² all but d s² is signal, s the noise's standard deviation in each of its
d numbers; twice that part of it, at most all, is taken for L.

Source: the line search of optimisation (Armijo, 1966), with DP mean of the clients' losses, as
Andrew et al. (NeurIPS 2021) release a quantile in every round; the pairs and the clipping are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from pydantic import BaseModel

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import WireError, require
from aulait.core.types import ClientUpdate, Info, SearchRequest, Site, Tensors, nbytes
from aulait.evaluation.losses import EvaluateConfig, totals
from aulait.methods.contract import AnyMethod, RunContext, Server, State
from aulait.privacy import clipping
from aulait.privacy.aggregator import Release
from aulait.training.trainer import Learner

Step = tuple[float, float]  # of L and of P
BOUND: Final = 0.1  # C, nats a token: what a client's vector is clipped to under privacy
FLOOR: Final = 0.05  # nats a token: harm beyond it counts as it, under privacy
RECORDS: Final = 128  # measured in a round over all clients
LEAST_RECORDS, MOST_RECORDS = 4, 32  # of a client
MOST_STEPS: Final = 32  # that a site measures at once
SCALES: Final = (1 / 16, 4.0)  # between which the length of the steps moves
LEAST_SIGNAL: Final = 0.05  # part of |L|² that is taken for signal at least
SURE: Final = 2.0  # standard deviations of a difference before the plain step is left
LENGTHS: Final = (1.0, 2.0, 0.5, 0.25)  # of the weighted mean; the plain step first
LONGEST: Final = 1  # its place among them
APART: Final = 3  # steps that take the means apart, where there are proxies
WIDER, NARROWER = 1.5, 0.5  # what the steps' length is multiplied by for the next round
LOCAL, PROXIED, TAG, DROP = "local", "proxied", "search", "drop"
STEPS, COUNT = "search_steps", "search_records"


def searches(config: BaseModel) -> bool:
    """Whether a method's settings ask for a search: then every round of training has two
    releases."""
    return getattr(config, "server", "") == "search"


@dataclass(frozen=True)
class Search:
    """What a search is made with.

    Attributes:
        context: what all sites know.
        state: theta.
        cohort: who trains, and the noise.
        server: asks the clients and releases their sum.
        kept: client -> what it keeps of the run.
    """

    context: RunContext
    state: State
    cohort: Cohort
    server: Server
    kept: Callable[[str], Tensors]


@dataclass(frozen=True)
class Means:
    """What a round has released.

    Attributes:
        local: L.
        noise_std: of every number of L; 0 without noise.
        share: of L in the weighted mean of both.
        proxied: P; None without proxies.
    """

    local: Tensors
    noise_std: float
    share: float
    proxied: Tensors | None


@dataclass(frozen=True)
class Searched:
    """What came of it.

    Attributes:
        state: after the step.
        told: for the round's line.
        traffic: bytes up and down beside those of training.
    """

    state: State
    told: Info
    traffic: dict[str, int]


def search(asked: Search, means: Means) -> Searched:
    """The state after the step that the clients find best.

    Args:
        asked: with theta.
        means: of the round.

    Raises:
        BudgetSpent: the clients have nothing left for the search; the round is not taken.
    """
    cohort, state, aggregator = asked.cohort, asked.state, asked.server.aggregator
    scale, proxied = _scale(state), means.proxied or {}
    steps = [(scale * a, scale * b) for a, b in offered(means)]
    sent = {**{name: state.tensors[name] for name in state.factors},
            **lora.tagged(LOCAL, means.local), **lora.tagged(PROXIED, proxied)}
    settings = {STEPS: [list(step) for step in steps], COUNT: records_of(cohort.planned)}
    requests = [SearchRequest(name, cohort.round, sent, settings, asked.kept(name))
                for name in cohort.local]
    template = {DROP: torch.zeros(len(steps))}
    released = aggregator.release(
        asked.server.ask(requests) if requests else [],
        Release(stage=TAG, round=cohort.round, role=cohort.role,
                bound=BOUND if aggregator.private else math.inf,
                noise_multiplier=cohort.search_noise_multiplier, planned=cohort.planned,
                template=template, clients=cohort.local),
        transform=floored if aggregator.private else None)
    count = cohort.planned if aggregator.planned_only else max(1, len(released.counted))
    drops, doubt = (released.total[DROP] / count).tolist(), released.noise_std / count
    best = chosen(drops, doubt)
    taken = (0.0, 0.0) if best is None else steps[best]
    by = WIDER if best == LONGEST else NARROWER if drops[0] < -doubt else 1.0
    length = min(SCALES[1], max(SCALES[0], scale * by))
    tensors = {**_moved(state, means.local, proxied, taken).tensors,
               **lora.tagged(TAG, {"scale": torch.tensor([length])})}
    return Searched(
        State(cohort.round, tensors),
        {"taken": list(taken), "steps": [list(step) for step in steps], "drops": drops,
         "noise_std": doubt},
        {"up_bytes": 4 * len(steps) * cohort.planned, "down_bytes": nbytes(sent) * cohort.planned})


def offered(means: Means) -> list[Step]:
    """The steps (a, b) that are measured, the plain one first."""
    if means.proxied is None:
        return [(length, 0.0) for length in LENGTHS]
    signal = _signal(means)
    return [*((length * means.share, length * (1.0 - means.share)) for length in LENGTHS),
            (0.0, 1.0), (signal, 0.0), (signal / 2, 0.5)]


def step_count(proxied: bool) -> int:
    """How many steps a search measures beside where it stands."""
    return len(LENGTHS) + (APART if proxied else 0)


def travels(own: int, proxied: bool) -> tuple[int, int]:
    """Bytes up and down that a search adds to a client's round: its vector, against theta, L and,
    where there are proxies, P.

    Args:
        own: bytes of theta at this client.
        proxied: whether proxies learn beside the clients.
    """
    return 4 * step_count(proxied), own * (3 if proxied else 2)


def chosen(drops: Sequence[float], doubt: float) -> int | None:
    """Which step is taken; None where all do harm.

    Args:
        drops: by how much each lowers the loss, the plain step first.
        doubt: standard deviation of the noise in each.
    """
    best = max(range(len(drops)), key=drops.__getitem__)
    if drops[best] <= -doubt:
        return None
    surely_better = drops[best] - drops[0] > SURE * math.sqrt(2) * doubt
    return best if surely_better or drops[0] <= -doubt else 0


def answer(requests: Sequence[SearchRequest], sites: Sequence[Site], method: AnyMethod,
           context: RunContext, learner: Learner) -> list[ClientUpdate]:
    """By how much each step lowers the loss of each site's own records, nats a token; zeros where
    no token of them is scored.

    Args:
        requests: one for each site.
        sites: with their records.
        method: makes adapters of states.
        context: what all sites know.
        learner: the shared base.
    """
    return [ClientUpdate(site.name, {DROP: _drops(request, site, method, context, learner)},
                         len(site.train)) for request, site in zip(requests, sites, strict=True)]


def floored(update: ClientUpdate) -> Tensors:
    """v with harm beyond the floor cut to it."""
    return {DROP: update.tensors[DROP].clamp(min=-FLOOR)}


def records_of(planned: int) -> int:
    """How many of its records each of so many clients measures."""
    return min(MOST_RECORDS, max(LEAST_RECORDS, math.ceil(RECORDS / max(1, planned))))


def _drops(request: SearchRequest, site: Site, method: AnyMethod, context: RunContext,
           learner: Learner) -> torch.Tensor:
    """v of one site."""
    steps = read_steps(request)
    local, proxied = (lora.under(tag, request.tensors) for tag in (LOCAL, PROXIED))
    start = State(request.round, {**lora.untagged(request.tensors), **request.kept})
    config = EvaluateConfig(records_per_client=int(request.settings[COUNT]))

    def loss(state: State) -> float:
        adapter = method.result(context, state)
        nats, _, tokens = totals(learner, adapter, {site.name: site.train}, config).get(
            site.name, (0.0, 0.0, 0.0))
        return nats / tokens if tokens else 0.0

    before = loss(start)
    found = [before - loss(_moved(start, local, proxied, step)) for step in steps]
    return torch.tensor([drop if math.isfinite(drop) else -1.0 for drop in found])


def read_steps(request: SearchRequest) -> list[Step]:
    """The pairs of a request.

    Raises:
        WireError: they are no short list of pairs of numbers.
    """
    steps, count = request.settings.get(STEPS), request.settings.get(COUNT)
    sound = isinstance(steps, Sequence) and 1 <= len(steps) <= MOST_STEPS and all(
        isinstance(step, Sequence) and len(step) == 2
        and all(isinstance(part, int | float) and math.isfinite(part) for part in step)
        for step in steps)
    require(sound and type(count) is int and 1 <= count <= MOST_RECORDS, WireError,
            f"a search without 1 to {MOST_STEPS} steps on 1 to {MOST_RECORDS} records; refused")
    assert steps is not None
    return [(float(a), float(b)) for a, b in steps]


def _moved(state: State, local: Tensors, proxied: Tensors, step: Step) -> State:
    """theta + a L + b P."""
    moved = dict(state.tensors)
    for part, direction in zip(step, (local, proxied), strict=True):
        if part:
            for name, value in direction.items():
                moved[name] = moved[name] + part * value
    return replace(state, tensors=moved)


def _scale(state: State) -> float:
    """What the steps of the next search are multiplied by."""
    kept = lora.under(TAG, state.tensors).get("scale")
    return 1.0 if kept is None else float(kept)


def _signal(means: Means) -> float:
    """What of L is taken for signal; 1 without noise."""
    if means.noise_std == 0:
        return 1.0
    square = clipping.norm(means.local) ** 2
    noise = means.noise_std**2 * sum(value.numel() for value in means.local.values())
    part = 1.0 - noise / square if square > 0 else 0.0
    return min(1.0, 2.0 * max(LEAST_SIGNAL, part))
