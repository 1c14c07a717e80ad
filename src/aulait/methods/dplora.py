"""DP-LoRA: every site adds noise to its own gradients, so that single records are protected from
everybody else.

Clients take noised LoRA steps and send the result; the server averages. Three modes: "dpsgd" clips
the gradient of every record (A and B together) on Poisson batches (Abadi et al., CCS 2016); "ffa"
does so with A frozen (Sun et al., ICLR 2024); "literal" is the paper's rule, as restated by the
FinLoRA documentation.

The unit of privacy is one record of one site's training set, or the units of a field. "dpsgd",
"ffa": a step is a Poisson sampled Gaussian mechanism of sensitivity C, rate q_k = batch / n_k.
"literal": a step is noise N(0, sigma² C²) on the batch's A gradient and on its B gradient, each
clipped to C as a whole. One record moves each of them by up to 2C, so the noise multiplier is
sigma / 2 for each, sigma / (2√2) for both, and nothing is counted for sampling: over T rounds of
one step mu = 2√2 · sqrt(T) / sigma in Gaussian differential privacy. With the paper's sigma = 2 and
T = 50: mu = 10, epsilon 92 at delta 1e-5. A role pays for its worst client: the most steps, the
largest q_k. The n_k are public. The noised steps are those of every method under privacy.unit =
"record" (``PrivateLearner``); this method's own are the paper's rule, and that proxies and controls
take the same clipped steps without noise.

privacy.noise_multiplier is the noise over the true sensitivity, so sigma = 2√2 times it in
"literal". The paper leaves the local optimiser open: "literal" takes a plain gradient step, the
others ``train.optimizer``. More steps a round are more noised steps, each accounted. The paper's
mean by records is weights = "size". Rank, targets and the mean with proxies (on public texts,
without noise) are ours.

what: sites add noise to clipped gradients of their records; A and B are averaged separately
source: Liu et al., Differentially Private Low-Rank Adaptation of Large Language Model Using
    Federated Learning, ACM TMIS 16(2), 2025, arXiv 2312.17493
travels: up 4 R sum(M + N), mode 'ffa' 4 R sum M; down 4 R sum(M + N), mode 'ffa' 4 R sum M
privacy: unit record: noise at the site on gradients clipped to C; sensitivity C ('literal': 2√2 C)
differs: noise over the true sensitivity; one step a round only with train.steps = 1
unequal ranks: no
exact: no
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import PrivacyError, require
from aulait.core.factors import Trainable
from aulait.core.types import Adapter, ClientUpdate, Info, Site, TrainRequest
from aulait.core.units import units
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import initial_state, server_step
from aulait.methods.shared.weighted_mean import (
    Averaging,
    AveragingConfig,
    clip_bound,
    factor_requests,
    mixed_mean,
)
from aulait.privacy import record_level
from aulait.privacy.record_level import SiteNoise
from aulait.training.private_learner import PrivateLearner, RecordLearner
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    private=False, secure=False, instead="ffa", unit="record", splits=False, steps=True,
    asynchronous=True))


class DPLoRAConfig(AveragingConfig):
    """``[algorithm] name = "dplora"``.

    Attributes:
        mode: "dpsgd", "ffa" or "literal".
        noise: "none" is a control: clipping (to privacy.clip, if that is a number) without noise.
            Not private; it needs privacy.off = true, which in any case takes the noise away.
        clip: "none" is a control: no clipping either. Not private; it needs privacy.off = true.
        max_rate: as ``privacy.max_rate``; the smaller of the two holds. Not for "literal".
    """

    mode: Literal["dpsgd", "ffa", "literal"] = "dpsgd"
    noise: Literal["gaussian", "none"] = "gaussian"
    clip: Literal["norm", "none"] = "norm"
    max_rate: float = Field(1.0, gt=0, le=1)


Config = DPLoRAConfig


def mechanism(config: DPLoRAConfig) -> str:
    """What the accountant sees of a mode."""
    return _mechanism(config.mode)


def record_mechanism(config: DPLoRAConfig, sites: Sequence[Site]) -> record_level.RecordMechanism:
    """What a round may ask of any record of these sites, at most.

    Raises:
        PrivacyError: the settings ask for a control, which is not private.
    """
    for name in ("noise", "clip"):
        text = (
            f"algorithm.{name} = 'none' is a control and not private; remove it, or set "
            "privacy.off = true"
        )
        require(getattr(config, name) != "none", PrivacyError, text)
    clients = [(len(units(site.train)), site.plan.steps, site.plan.batch) for site in sites]
    return record_level.worst_case(mechanism(config), clients, config.max_rate)


def init(config: DPLoRAConfig, context: RunContext) -> State:
    """The common start: A random, B zero; with mode "ffa" A follows from the seed and is no
    state."""
    return initial_state(config, lora.to_tensors(context.initial(), _trained_by(config.mode)))


def step(config: DPLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send (A, B), average how they moved. Where no noise is asked for, the request says how the
    gradients are clipped."""
    unclipped = config.clip == "none" or server.aggregator.config.clip == "proxies"
    bound = math.inf if unclipped else clip_bound(server.aggregator.config, ())
    more = {"mode": config.mode, "most_rate": config.max_rate}
    more |= {} if math.isinf(bound) else {"clip": bound}
    sent = [replace(request, settings={**request.settings, **more})
            for request in factor_requests(context, cohort, state.factors)]
    mean, metrics = mixed_mean(config, context, cohort, server,
                               Averaging(sent, state.factors, bounded=False))
    clip = None if math.isinf(bound) else bound
    return State(cohort.round, server_step(config, state, mean)), metrics | {
        "clip_bound": clip, "mode": config.mode}


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Steps on clipped gradients; the update is how the factors moved. The noise is in the learner
    that a protected site is given; proxies and controls have none."""
    mode, clip = requests[0].settings["mode"], requests[0].settings.get("clip", math.inf)
    if not isinstance(learner, PrivateLearner):
        learner = RecordLearner(learner, SiteNoise(
            mechanism=_mechanism(mode), clip=clip, sigma=0.0,
            most_rate=requests[0].settings["most_rate"],
            most_steps=max(site.plan.steps for site in sites)))
    trainable = _trained_by(mode)
    training = client_update.local_training(
        requests, sites, context,
        lambda request, _: lora.with_tensors(context.initial(), request.tensors), trainable)
    return client_update.changes(
        sites, client_update.train(requests, training, learner), trainable)


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors; A from the seed where it is frozen."""
    return lora.with_tensors(context.initial(), state.factors)


def travels(config: DPLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    own = client_update.factor_bytes(context, client, _trained_by(config.mode))
    return own, own


def _mechanism(mode: str) -> str:
    return "gaussian-batch" if mode == "literal" else record_level.DP_SGD


def _trained_by(mode: str) -> Trainable:
    """The factors that a mode trains."""
    return Trainable.B if mode == "ffa" else Trainable.AB
