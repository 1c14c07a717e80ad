"""DP-LoRA: every site adds noise to its own gradients, so that single records are protected from
everybody else.

Clients take noised LoRA steps and send the result; the server averages. Three modes: "dpsgd" clips
the gradient of every record (A and B together) on Poisson batches (Abadi et al., CCS 2016); "ffa"
does so with A frozen (Sun et al., ICLR 2024); "literal" is the paper's rule, as restated by the
FinLoRA documentation.

The unit of privacy is one record of one site's training set. "dpsgd", "ffa": a step is a Poisson
sampled Gaussian mechanism of sensitivity C, rate q_k = batch / n_k. "literal": a step is noise
N(0, sigma² C²) on the batch's A gradient and on its B gradient, each clipped to C as a whole. One
record moves each of them by up to 2C, so the noise multiplier is sigma / 2 for each, sigma / (2√2)
for both, and nothing is counted for sampling: over T rounds of one step mu = 2√2 · sqrt(T) / sigma
in Gaussian differential privacy. With the paper's sigma = 2 and T = 50: mu = 10, epsilon 92 at
delta 1e-5. A role pays for its worst client: the most steps, the largest q_k. The n_k are public.
Nobody sees a site's gradients, but a site adds the noise that its request names: it trusts the
server for that number.

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
from typing import Any, Literal

from pydantic import Field

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import PrivacyError, require
from aulait.core.factors import Trainable
from aulait.core.seeds import Seeds
from aulait.core.types import Adapter, ClientUpdate, Info, Site, Tensors, TrainRequest
from aulait.core.units import units
from aulait.methods.contract import RunContext, Server, State
from aulait.methods.description import Abilities, described
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import initial_state, server_step
from aulait.methods.shared.traffic import TrafficCount
from aulait.methods.shared.weighted_mean import AveragingConfig, clip_bound
from aulait.privacy import clipping, record_level
from aulait.privacy.aggregator import PrivateAggregator, Release
from aulait.training.record_gradients import PrivateTraining, train_privately
from aulait.training.trainer import Learner

TRAITS = described(__name__, __doc__, Abilities(
    private=False, secure=False, instead="ffa", unit="record", splits=False))


class DPLoRAConfig(AveragingConfig):
    """``[algorithm] name = "dplora"``.

    Attributes:
        mode: "dpsgd", "ffa" or "literal".
        noise: "none" is a control: clipping (to privacy.clip, if that is a number) without noise.
            Not private; it needs privacy.off = true, which in any case takes the noise away.
        clip: "none" is a control: no clipping either. Not private; it needs privacy.off = true.
        max_rate: the most often a record may be in a batch: q_k = min(batch / n_k, max_rate). One
            small site would otherwise set the noise of all, since a role pays for its worst client.
            Not for "literal".
    """

    mode: Literal["dpsgd", "ffa", "literal"] = "dpsgd"
    noise: Literal["gaussian", "none"] = "gaussian"
    clip: Literal["norm", "none"] = "norm"
    max_rate: float = Field(1.0, gt=0, le=1)


Config = DPLoRAConfig


def mechanism(config: DPLoRAConfig) -> str:
    """What the accountant sees of a mode."""
    return "gaussian-batch" if config.mode == "literal" else "dp-sgd"


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
    return record_level.worst_case(mechanism(config),
        [(len(units(site.train)), site.plan.steps, site.plan.batch) for site in sites],
        config.max_rate)


def init(config: DPLoRAConfig, context: RunContext) -> State:
    """The common start: A random, B zero; with mode "ffa" A follows from the seed and is no
    state."""
    return initial_state(config, lora.to_tensors(context.initial(), _trainable(config)))


def step(config: DPLoRAConfig, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send (A, B), let the aggregator charge and ask, average what comes back."""
    ask, aggregator, theta = server.ask, server.aggregator, state.factors
    bound = math.inf if config.clip == "none" else clip_bound(aggregator.config, ())
    sent = _requests(config, cohort, aggregator, theta, bound)
    for_proxies = [request for request in sent if request.client in cohort.proxies]
    expected_shapes = dict.fromkeys(cohort.everyone, theta)
    public, _ = (
        aggregator.admit(ask(for_proxies), theta, expected_shapes) if for_proxies else ([], ()))
    terms = [(cohort.proxies[update.client], update.tensors) for update in public]
    total = sum(weight for weight, _ in terms)
    traffic = TrafficCount(sent, cohort, expected_shapes)
    metrics: Info = {"proxies": len(public), "clip_bound": None if math.isinf(bound) else bound,
                     "mode": config.mode}
    if cohort.local or cohort.planned:
        released = aggregator.release_records(
            lambda: traffic.counted(ask(traffic.local) if traffic.local else []),
            Release.of_cohort(cohort, stage="train", bound=bound, template=theta),
            expected_shapes, weights=config.weights)
        terms.append((config.local_weight, released.total))
        total += config.local_weight * sum(released.counted.values())
        refused = [f"{name}: {reason}" for name, reason in released.refused]
        metrics |= {"refused": len(refused), "refused_clients": refused, **released.info}
    mean = lora.weighted_sum([(weight / (total or 1.0), tensors) for weight, tensors in terms]
                             or [(0.0, theta)])
    sigma = next((request.settings["sigma"] for request in traffic.local), 0.0)
    return State(cohort.round, server_step(config, state, mean)), metrics | {
        "step_noise_std": sigma, "update_norm": clipping.norm(mean), **traffic.metrics()}


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Noised local steps; the update is the change. Diagnostics carry no noise, so a private update
    has none."""
    updates = []
    for request, site in zip(requests, sites, strict=True):
        training = _training(request, site, context)
        done = train_privately(learner, training)
        change = lora.subtract(lora.to_tensors(done.adapter, training.trainable),
                               lora.to_tensors(training.start, training.trainable))
        diagnostics = {} if request.settings["protected"] else {
            "train_loss": done.loss, "train_tokens": float(done.tokens)}
        updates.append(ClientUpdate(site.name, change, float(len(site.train)), diagnostics))
    return updates


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors; A from the seed where it is frozen."""
    return lora.with_tensors(context.initial(), state.factors)


def travels(config: DPLoRAConfig, context: RunContext, round: int, client: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    own = client_update.factor_bytes(context, client, _trainable(config))
    return own, own


def _requests(config: DPLoRAConfig, cohort: Cohort, aggregator: PrivateAggregator, theta: Tensors,
              bound: float) -> list[TrainRequest]:
    """The factors, and for clients under privacy the noise and the most that is accounted; proxies
    add no noise.

    Raises:
        PrivacyError: privacy is on and protects clients.
    """
    plain: dict[str, Any] = {"lr": cohort.lr, "mode": config.mode, "sigma": 0.0, "protected": False,
                             "most_rate": config.max_rate}
    if math.isfinite(bound):
        plain["clip"] = bound
    protected = dict(plain)
    if (relation := aggregator.config.relation) is not None and aggregator.private:
        mechanism = aggregator.record_mechanism
        if mechanism is None:
            raise PrivacyError(
                "'dplora' protects records and privacy.unit is 'client'; set privacy.unit = "
                "'record', or use 'ffa'")
        sigma = cohort.noise_multiplier * mechanism.sensitivity(bound, relation)
        protected |= {"sigma": sigma, "protected": True, "most_steps": mechanism.steps,
                      "most_rate": mechanism.rate}
        if aggregator.config.noise_seed is not None:
            protected["noise_seed"] = aggregator.config.noise_seed
    return [TrainRequest(name, cohort.round, theta, plain if name in cohort.proxies else protected)
            for name in cohort.everyone]


def _training(request: TrainRequest, site: Site, context: RunContext) -> PrivateTraining:
    """What a request asks of a site, within what is accounted."""
    settings = request.settings
    seed = settings.get("noise_seed")
    return PrivateTraining(
        start=lora.with_tensors(context.initial(), request.tensors), records=site.train,
        trainable=_trained_by(settings["mode"]),
        steps=min(site.plan.steps, int(settings.get("most_steps", site.plan.steps))),
        batch=site.plan.batch, lr=settings["lr"],
        mode="batch" if settings["mode"] == "literal" else "records",
        clip=settings.get("clip", math.inf), sigma=settings["sigma"],
        seed=context.seeds.integer("batches", request.round, site.name),
        noise_seed=None if seed is None else Seeds(seed).integer("steps", request.round, site.name),
        most=settings["most_rate"])


def _trainable(config: DPLoRAConfig) -> Trainable:
    return _trained_by(config.mode)


def _trained_by(mode: str) -> Trainable:
    """The factors that a mode trains."""
    return Trainable.B if mode == "ffa" else Trainable.AB
