"""A server step that follows the signal: how far to go along a round's noised mean, from public and
released quantities alone.

A step L = S + X has a signal S and noise X of known standard deviation. Going a part c of it gains
about c g and costs about c² N, where

    g = a² f D / 2    a² = (|L|² - d std²) / (f C)²    the clients' agreement, from the released sum
                      f C = |S| if all clients agreed (f: their share of the mean, C: the bound)
                      D: what the public sites' own updates, of norm about C, gain on their own text
    N = 4 (mean of loss(X'/2), loss(-X'/2) - loss(0))  noise X' drawn anew, on public text

so c = min(1, g / 2 N). If all clients' updates were alike, L would gain each of them what its own
update gains it, about D; where they agree by a, a² of that. Half of it is counted, as D is measured
on the text that was learnt from. Clients agree less where there is less to learn, and there a fixed
step harms. All of this follows from released sums and public text: it costs no privacy.

Proxies' updates carry no noise: what they add to the mean is added whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.types import ClientRequest, ClientUpdate, Info, Record, Site, Tensors
from aulait.evaluation.losses import evaluate
from aulait.methods.contract import Ask, State
from aulait.methods.shared.mixture import MixtureConfig
from aulait.privacy import clipping
from aulait.privacy.sealed import SealedUpdate
from aulait.runs.prepared import PreparedRun

COUNTED: Final = 0.5  # of what public sites gain on the text they learnt from
TEXTS: Final = 24  # public texts on which noise is measured
DRAWS: Final = 4  # of noise, each both ways
MEASURED: Final = 0.5  # of the noise: nearer to the part that is gone, where losses are still round
UPDATES: Final = 4  # public updates whose gain is measured
Loss = Callable[[State, Sequence[Record]], float]


@dataclass(frozen=True)
class PublicSites:
    """The server's own sites, whose updates are public, and what they answered in a round.

    Attributes:
        sites: by name.
        answered: name -> its update; filled while they are heard.
    """

    sites: Mapping[str, Site]
    answered: dict[str, Tensors] = field(default_factory=dict)

    def heard(self, ask: Ask) -> Ask:
        """The same way to ask, with the public updates kept."""
        def asking(requests: Sequence[ClientRequest]) -> Iterator[ClientUpdate]:
            for update in ask(requests):
                if update.client in self.sites and not isinstance(update, SealedUpdate):
                    self.answered[update.client] = update.tensors
                yield update

        return asking


@dataclass(frozen=True)
class RoundMove:
    """How a round moved the trained numbers.

    Attributes:
        before, after: states of the method.
        cohort: of the round.
        info: what the method told of it.
    """

    before: State
    after: State
    cohort: Cohort
    info: Info


def signal_step(run: PreparedRun, move: RoundMove, public: PublicSites,
                loss: Loss | None = None) -> tuple[State, Info]:
    """The state a part c along the noised mean, and what is told of it; the state after the round
    where there is no noise or no public update, or where the method is not a plain mean.

    Args:
        run: its settings, learner and public texts.
        move: of the round.
        public: what the server's own sites answered.
        loss: of a state on records; None measures it with the base.
    """
    config, noise = run.settings.method_config, move.info.get("noise_std")
    bound, names = move.info.get("clip_bound"), sorted(move.before.factors)
    updates = {name: own for name, own in public.answered.items() if sorted(own) == names}
    plain = getattr(config, "server", "") == "plain" and not run.context.ranks
    if not (noise and bound and updates and plain and isinstance(config, MixtureConfig)):
        return move.after, {}
    measured = loss or _loss(run)
    weight = config.weight * move.cohort.planned
    whole = weight + sum(move.cohort.proxies.get(name, 0.0) for name in updates)
    rate = float(getattr(config, "server_lr", 1.0))
    known = lora.weighted_sum([
        (rate * move.cohort.proxies.get(name, 0.0) / whole, own) for name, own in updates.items()])
    local = {name: move.after.tensors[name] - move.before.tensors[name] - known[name]
             for name in names}
    generator = run.context.seeds.generator("signal-step", move.cohort.round)
    std, share = rate * config.weight * noise / whole, rate * weight / whole
    numbers = sum(value.numel() for value in local.values())
    signal = max(0.0, clipping.norm(local) ** 2 - numbers * std**2)
    agreement = min(1.0, signal / (share * bound) ** 2)
    gain = COUNTED * agreement * share * _gain(move.before, updates, public.sites, measured)
    texts = [text if isinstance(text, Record) else Record(text)
             for text in run.federation.corpus.public[:TEXTS]]
    texts = texts or [record for site in public.sites.values() for record in site.train][:TEXTS]
    draws = [{name: MEASURED * std * torch.randn(value.shape, generator=generator)
              for name, value in sorted(local.items())} for _ in range(DRAWS)]
    cost = _cost(move.before, draws, texts, measured) / MEASURED**2
    part = min(1.0, max(0.0, gain) / (2.0 * cost)) if cost > 0 else 1.0
    tensors = dict(move.after.tensors)
    for name in names:
        tensors[name] = move.before.tensors[name] + known[name] + part * local[name]
    return replace(move.after, tensors=tensors), {
        "step": part, "agreement": math.sqrt(agreement), "noise_cost": cost,
        "public_gain": gain}


def _gain(before: State, updates: Mapping[str, Tensors], sites: Mapping[str, Site],
          loss: Loss) -> float:
    """D: the mean drop of the loss on a public site's own text by its own update."""
    drops = [loss(before, sites[name].train) - loss(_moved(before, own), sites[name].train)
             for name, own in sorted(updates.items())[:UPDATES]]
    return sum(drops) / len(drops)


def _cost(before: State, draws: Sequence[Tensors], texts: Sequence[Record],
          loss: Loss) -> float:
    """What such noise costs on public text; both ways, so that no slope is left in it."""
    there = [loss(_moved(before, noise, sign), texts) for noise in draws for sign in (1.0, -1.0)]
    return sum(there) / len(there) - loss(before, texts)


def _moved(state: State, by: Tensors, sign: float = 1.0) -> State:
    """The state with its trained numbers moved."""
    moved = {name: state.tensors[name] + sign * value for name, value in by.items()}
    return replace(state, tensors={**state.tensors, **moved})


def _loss(run: PreparedRun) -> Loss:
    """The loss of the shared adapter on records, nats a token."""
    method, context, learner = run.settings.method, run.context, run.models.learner

    def measured(state: State, records: Sequence[Record]) -> float:
        config = run.settings.evaluate.model_copy(
            update={"task": "none", "records_per_client": len(records)})
        adapter = method.result(context, state)
        return float(evaluate(learner, adapter, {"public": records}, config).loss)

    return measured
