"""DP-LoRA: every site adds noise to its own gradients, so that single records are protected from
everybody else.

what: clients take noised LoRA steps and send the result; the server averages. Three modes: "dpsgd"
    clips the gradient of every record (A and B together) on Poisson batches; "ffa" does so with A
    frozen; "literal" is the paper's rule.
source: Liu et al., "Differentially Private Low-Rank Adaptation of Large Language Model Using
    Federated Learning", ACM Transactions on Management Information Systems 16(2), 2025, arXiv
    2312.17493, as restated by the FinLoRA documentation; "dpsgd": Abadi et al., CCS 2016; "ffa":
    Sun et al., ICLR 2024.
travels: up and down 4 · R · sum over layers (M + N) bytes a client and round; with "ffa" 4 · R ·
sum over layers M.
privacy: the unit is one record of one site's training set. "dpsgd", "ffa": a step is a Poisson
    sampled Gaussian mechanism of sensitivity C, rate q_k = batch / n_k. "literal": a step is noise
    N(0, sigma² C²) on the batch's A gradient and on its B gradient, each clipped to C as a whole.
    One record moves each of them by up to 2C, so the noise multiplier is sigma / 2 for each, sigma
    / (2√2) for both, and nothing is counted for sampling: over T rounds of one step mu = 2√2 ·
    sqrt(T) / sigma in Gaussian differential privacy. With the paper's sigma = 2 and T = 50: mu =
    10, epsilon 92 at delta 1e-5. A role pays for its worst client: the most steps, the largest q_k.
    The n_k are public. Nobody sees a site's gradients, but a site adds the noise that its order
    tells: it trusts the server for that number.
differs: privacy.noise_multiplier is the noise over the true sensitivity, so sigma = 2√2 times it in
    "literal". The paper leaves the local optimiser open: "literal" takes a plain gradient step, the
    others ``train.optimizer``. One step a round is train.steps = 1; more steps are more noised
    steps, each accounted. The paper's mean by records is weights = "size". Rank, targets and the
    mean with proxies (on public texts, without noise) are ours.
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
from aulait.methods.contract import RunContext, Server, State, Traits
from aulait.methods.shared import client_update
from aulait.methods.shared.server_optimizer import apply, start
from aulait.methods.shared.traffic import Meter
from aulait.methods.shared.weighted_mean import AveragingConfig, clip_bound, trained
from aulait.privacy import clipping as clip
from aulait.privacy import record_level
from aulait.privacy.aggregator import PrivateAggregator, Release
from aulait.training.record_gradients import PrivateWork, train
from aulait.training.trainer import Learner

TRAITS = Traits(
    what="sites add noise to clipped gradients of their records; A and B are averaged separately",
    source="Liu et al., Differentially Private Low-Rank Adaptation of Large Language Model Using "
           "Federated Learning, "
    "ACM TMIS 16(2), 2025, arXiv 2312.17493",
    up="4 R sum(M + N), mode 'ffa' 4 R sum M",
    down="4 R sum(M + N), mode 'ffa' 4 R sum M",
    privacy="unit record: noise at the site on gradients clipped to C; sensitivity C ('literal': "
            "2√2 C)",
    differs="noise over the true sensitivity; one step a round only with train.steps = 1",
    unequal_ranks=False,
    exact="no",
    private=False,
    secure=False,
    instead="ffa",
    unit="record",
    splits=False,
)


class Config(AveragingConfig):
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


def mechanism(config: Config) -> str:
    """What the accountant sees of a mode."""
    return "gaussian-batch" if config.mode == "literal" else "dp-sgd"


def record_mechanism(config: Config, sites: Sequence[Site]) -> record_level.RecordMechanism:
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
    return record_level.worst(mechanism(config),
        [(len(site.train), site.plan.steps, site.plan.batch) for site in sites], config.max_rate)


def init(config: Config, context: RunContext) -> State:
    """The common start: A random, B zero; with mode "ffa" A follows from the seed and is no
    state."""
    theta = lora.to_tensors(_initial(context), _part(config))
    return State(0, theta | start(config, theta))


def step(config: Config, context: RunContext, state: State, cohort: Cohort,
         server: Server) -> tuple[State, Info]:
    """Send (A, B), let the aggregator charge and ask, average what comes back."""
    ask, aggregator = server.ask, server.aggregator
    theta, moments = trained(state), {name: t for name, t in state.tensors.items() if "/" in name}
    bound = math.inf if config.clip == "none" else clip_bound(aggregator.config, ())
    sent = _orders(config, cohort, aggregator, theta, bound)
    for_proxies = [request for request in sent if request.client in cohort.proxies]
    expected_shapes = dict.fromkeys(cohort.everyone, theta)
    public, _ = (
        aggregator.admit(ask(for_proxies), theta, expected_shapes) if for_proxies else ([], ())
    )
    parts = [(cohort.proxies[update.client], update.tensors) for update in public]
    whole = sum(weight for weight, _ in parts)
    meter = Meter(sent, cohort)
    info: Info = {"proxies": len(public), "clip_bound": None if math.isinf(bound) else bound,
                  "mode": config.mode}
    if cohort.local or cohort.planned:
        released = aggregator.release_records(
            lambda: meter.up(ask(meter.local) if meter.local else []),
            Release.of_cohort(cohort, stage="train", bound=bound, template=theta),
            expected_shapes, weights=config.weights)
        parts.append((config.local_weight, released.total))
        whole += config.local_weight * sum(released.counted.values())
        refused = [f"{name}: {reason}" for name, reason in released.refused]
        info |= {"refused": len(refused), "refused_clients": refused, **released.info}
    mean_update = lora.weighted_sum([(weight / (whole or 1.0), tensors) for weight,
        tensors in parts]
                               or [(0.0, theta)])
    after, kept = apply(config, theta, mean_update, moments)
    sigma = next((request.settings["sigma"] for request in meter.local), 0.0)
    return State(cohort.round, after | kept), info | {"step_noise_std": sigma,
        "update_norm": clip.norm(mean_update), **meter.told()}


def answer(requests: Sequence[TrainRequest], sites: Sequence[Site], context: RunContext,
           learner: Learner) -> list[ClientUpdate]:
    """Noised local steps; the share is the change. Diagnostics carry no noise, so a private update
    has none."""
    updates = []
    for request, site in zip(requests, sites, strict=True):
        work = _work(request, site, context)
        done = train(learner, work)
        share = lora.subtract(lora.to_tensors(done.adapter, work.trainable),
                              lora.to_tensors(work.start, work.trainable))
        told = (
            {} if request.settings["protected"]
            else {"train_loss": done.loss, "train_tokens": float(done.tokens)}
        )
        updates.append(ClientUpdate(site.name, share, float(len(site.train)), told))
    return updates


def result(context: RunContext, state: State) -> Adapter:
    """The averaged factors; A from the seed where it is frozen."""
    return lora.with_tensors(_initial(context), trained(state))


def travels(config: Config, context: RunContext, round: int, name: str,
            sites: Sequence[str]) -> tuple[int, int]:
    """Bytes up and down of one client in a round."""
    return client_update.factor_bytes(context, name, _part(config)), client_update.factor_bytes(
        context, name, _part(config))


def _orders(config: Config, cohort: Cohort, aggregator: PrivateAggregator, theta: Tensors,
            bound: float) -> list[TrainRequest]:
    """The factors, and for clients under privacy the noise and the most that is accounted; proxies
    add no noise."""
    plain: dict[str, Any] = {"lr": cohort.lr, "mode": config.mode, "sigma": 0.0, "protected": False,
                             "most_rate": config.max_rate}
    if math.isfinite(bound):
        plain["clip"] = bound
    ordered = dict(plain)
    if (relation := aggregator.config.relation) is not None and aggregator.private:
        if aggregator.record_mechanism is None:
            raise PrivacyError(
                "'dplora' protects records and privacy.unit is 'client'; set privacy.unit = "
                "'record', or use 'ffa'")
        sigma = cohort.noise_multiplier * aggregator.record_mechanism.sensitivity(bound, relation)
        ordered |= {"sigma": sigma, "protected": True,
                    "most_steps": aggregator.record_mechanism.steps,
                    "most_rate": aggregator.record_mechanism.rate}
        if aggregator.config.noise_seed is not None:
            ordered["noise_seed"] = aggregator.config.noise_seed
    return [TrainRequest(name, cohort.round, theta, plain if name in cohort.proxies else ordered)
            for name in cohort.everyone]


def _work(request: TrainRequest, site: Site, context: RunContext) -> PrivateWork:
    """An order at a site, within what is accounted."""
    told = request.settings
    seed = told.get("noise_seed")
    factors = lora.with_tensors(_initial(context), request.tensors)
    return PrivateWork(
        start=factors, records=site.train, trainable=Trainable.B if told["mode"] == "ffa" else Trainable.AB,
        steps=min(site.plan.steps, int(told.get("most_steps", site.plan.steps))),
        batch=site.plan.batch, lr=told["lr"],
        mode="batch" if told["mode"] == "literal" else "records", clip=told.get("clip", math.inf),
        sigma=told["sigma"],
        seed=context.seeds.integer("batches", request.round, site.name),
        noise_seed=None if seed is None else Seeds(seed).integer("steps", request.round, site.name),
        most=told["most_rate"])


def _part(config: Config) -> Trainable:
    return Trainable.B if config.mode == "ffa" else Trainable.AB


def _initial(context: RunContext) -> Adapter:
    """A from the run's seed, B zero."""
    return lora.initial(context.shapes, context.rank, context.alpha, context.seeds)
