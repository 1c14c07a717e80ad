"""From settings to a run that can begin: data dealt to sites, tiers to placements, a budget to
noise multipliers.

Everything that can be wrong is found here, before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from aulait.core.errors import ConfigError, DataError, require
from aulait.core.lora import Shapes
from aulait.core.seeds import Seeds
from aulait.core.types import Placement, Record, Site
from aulait.data import client_data
from aulait.data.client_data import ClientData, Corpus, DataConfig
from aulait.evaluation.lm_eval_tasks import check_tasks
from aulait.federation import tiers
from aulait.methods.contract import RunContext
from aulait.models import loading
from aulait.models.generation import TextModel
from aulait.models.loading import Base
from aulait.resources.devices import keep_freed_memory
from aulait.runs import placement
from aulait.runs.checks import check_roles
from aulait.runs.experiment_file import Settings, with_format
from aulait.runs.placement import PlacementFacts, ranks_of
from aulait.runs.prepared import Federation, Models, PreparedRun, SharedCache, TierPlan
from aulait.runs.privacy_schedule import privacy_plan
from aulait.runs.server_choice import with_settled_server
from aulait.runs.settled import precision_settled
from aulait.runs.size_law import with_affordable_adapter, with_settled_weight
from aulait.runs.stage_order import training_ends
from aulait.runs.virtual_time.round_time import RoundCosts
from aulait.synthesis import embedding
from aulait.synthesis.generator import build_generator
from aulait.synthesis.variation import Variation
from aulait.training.context_length import fitted, readable
from aulait.training.trainer import Learner

Members = Mapping[str, Sequence[str]]  # tier -> names of its clients


def check_base(settings: Settings, cache: SharedCache) -> None:
    """That the base can be had, at a glance and once for all runs of a process.

    Raises:
        ModelError: the hub cannot be reached, and nothing of the model was kept.
    """
    name = settings.model.name
    cache.once("reachable", name, lambda: loading.check_reachable(name))


def prepare(settings: Settings, cache: SharedCache,
            elsewhere: Mapping[str, int] | None = None) -> PreparedRun:
    """Load, deal and check; where rank, layers or alpha of the adapter are "auto",
    what noise allows.

    Args:
        settings: the experiment.
        cache: what runs of this process share.
        elsewhere: clients whose records lie elsewhere -> how many each may be known to have; None
            where the experiment's data are read here.

    Raises:
        ConfigError, DataError, ModelError, PrivacyError: one line a problem.
    """
    check_base(settings, cache)  # before data are read, which may take long
    settings = precision_settled(with_format(settings))
    run = _prepared(settings, cache, elsewhere)
    if settings.adapter.auto:
        require(elsewhere is None or not settings.privacy.protects_records, ConfigError,
                "adapter.rank or adapter.layers is 'auto' in a deployment with privacy.unit = "
                "'record', where the numbers of records are not known in time; set them, as "
                "'aulait plan' on data of that size says")
        run = _prepared(with_affordable_adapter(run), cache, elsewhere)
    if settings.federation.asynchronous:
        RoundCosts.of(run).buffers()  # raises where they cannot be filled
    return replace(run, settings=with_settled_weight(run))


def _prepared(settings: Settings, cache: SharedCache,
              elsewhere: Mapping[str, int] | None) -> PreparedRun:
    """As ``prepare``, with the adapter as it stands in the settings."""
    if settings.engine.threads:
        torch.set_num_threads(settings.engine.threads)
    seeds = Seeds(settings.run.seed)
    # held-out records stay with their clients, also where training records are pooled
    unpooled = settings.data.model_copy(update={"pooled": False})
    corpus = _corpus(settings, unpooled, seeds, cache, elsewhere)
    models = _models(settings, cache)
    settings = settings.model_copy(update={"model": models.base.config})
    clients: Mapping[str, ClientData] = corpus.clients
    if elsewhere is None:
        clients, corpus = _fitted(settings, cache, models.learner, unpooled, corpus)
    shapes = loading.targets(models.base, settings.adapter)
    if settings.method.TRAITS.folds:
        loading.check_foldable(models.base)
    training = _pooled(clients) if settings.data.pooled else clients
    members = tiers.members(settings.federation.tier, list(training), seeds)
    plans = placement.tier_plans(PlacementFacts(
        settings, models.base, shapes, models.learner.encode,
        {tier: [training[name].train for name in names] for tier, names in members.items()},
        corpus.public, seeds, here=elsewhere is None))
    context = RunContext(shapes, settings.adapter.rank, settings.adapter.alpha, seeds,
                         settings.train.rounds, _ranks(settings, shapes, members, plans),
                         settings.adapter.scaling, training_ends(settings.stage_spans))
    settings = with_settled_server(settings, context)
    holdout = {name: client.holdout for name, client in clients.items()}
    federation = _federation(settings, corpus, _sites(members, plans, training), plans, holdout)
    check_roles(settings, federation)
    check_tasks(settings.evaluate)
    privacy = privacy_plan(settings, context, federation.voters, federation.training_sites)
    return PreparedRun(settings, context, models, federation, privacy, cache)


def _corpus(settings: Settings, unpooled: DataConfig, seeds: Seeds, cache: SharedCache,
            elsewhere: Mapping[str, int] | None) -> Corpus:
    """The data as read, or what is known of data that lie elsewhere."""
    corpus = (
        client_data.at_sites(unpooled, elsewhere) if elsewhere is not None
        else cache.once("corpus", (settings.data, settings.unit_rule, seeds),
                        lambda: client_data.load_clients(settings.data, seeds, settings.unit_rule,
                                                         by_owner=True))
    )
    require(bool(corpus.clients), DataError, "no client has enough records; lower data.min_records")
    if not settings.privacy.off:
        problems = settings.privacy.problems(len(corpus.clients))
        require(not problems, ConfigError, "\n".join(problems))
    return corpus


def _models(settings: Settings, cache: SharedCache) -> Models:
    """The base and its trainer, loaded; embedder and generator, to be loaded when asked for."""
    base: Base = cache.once("base", settings.model, lambda: loading.load_base(settings.model))
    if base.device.type == "cpu":
        keep_freed_memory()
    dropout = settings.adapter.dropout
    learner = cache.once("learner", (settings.model, settings.train, dropout),
                         lambda: Learner(base, settings.train, dropout))
    synthesis, device = settings.synthesis, str(base.device)

    def embedder() -> embedding.Embedder:
        name, most = synthesis.embedder, synthesis.max_tokens
        return cache.once("embedder", (name, device, most),
                          lambda: embedding.load_embedder(name, device, max_tokens=most))

    def generator() -> Variation:
        how, name = synthesis.generate, synthesis.generator
        return cache.once(
            "variation", (settings.model, how, name),
            lambda: build_generator(how, name, TextModel(base.model, base.tokenizer, base.device,
                                                         base.config.template)))

    return Models(base, learner, embedder, generator)


def _fitted(
    settings: Settings, cache: SharedCache, learner: Learner, unpooled: DataConfig, corpus: Corpus
) -> tuple[Mapping[str, ClientData], Corpus]:
    """Clients whose records fit the base's context, and the corpus whose unseen clients are
    treated alike."""
    key = (unpooled, settings.unit_rule, Seeds(settings.run.seed), settings.model)
    how, context, encode = settings.data.too_long, settings.model.context, learner.encode

    def suited(clients: Mapping[str, ClientData]) -> tuple[dict[str, ClientData], tuple[str, ...]]:
        left, remarks = readable(encode, clients)
        return fitted(how, context, encode, left), remarks

    clients, remarks = cache.once("fitted", key, lambda: suited(corpus.clients))
    unseen = {name: ClientData(records, ()) for name, records in corpus.unseen.items()}
    new, more = cache.once("fitted-unseen", key, lambda: suited(unseen))
    return clients, replace(corpus, unseen={name: client.train for name, client in new.items()},
                            malformed=(*corpus.malformed, *remarks, *more))


def _pooled(clients: Mapping[str, ClientData]) -> Mapping[str, ClientData]:
    """One client with everybody's training records."""
    records = tuple(record for name in sorted(clients) for record in clients[name].train)
    return {client_data.EVERYONE: ClientData(records, ())}


def _sites(members: Members, plans: Mapping[str, TierPlan],
           clients: Mapping[str, ClientData]) -> dict[str, Site]:
    """Every client's site, with the work of its tier."""
    return {name: Site(name, plans[tier].plan, clients[name].train, clients[name].holdout)
            for tier, names in members.items() for name in names}


def _ranks(settings: Settings, shapes: Shapes, members: Members,
           plans: Mapping[str, TierPlan]) -> dict[str, dict[str, int]]:
    """Client -> layer -> rank, for the clients of tiers that do not have all of the adapter's; one
    mapping a tier."""
    found: dict[str, dict[str, int]] = {}
    for tier in settings.federation.tier:
        own = dict(ranks_of(shapes, tier.attention_rank)(plans[tier.name].plan.rank))
        if set(own.values()) != {settings.adapter.rank}:
            found.update(dict.fromkeys(members[tier.name], own))
    return found


def _federation(settings: Settings, corpus: Corpus, sites: Mapping[str, Site],
                plans: Mapping[str, TierPlan],
                holdout: Mapping[str, Sequence[Record]]) -> Federation:
    """Clients by their roles, and who of them votes."""
    synthesis = settings.synthesis
    roles: dict[Placement, tuple[str, ...]] = {
        role: tuple(sorted(name for name, site in sites.items() if site.plan.placement == role))
        for role in ("local", "proxy", "split")}
    breeds = bool(roles["proxy"]) and synthesis.breeds and "synthesis" in settings.run.stages
    federation = Federation(corpus, sites, plans, roles, holdout, breeds, ())
    if not breeds or not synthesis.asks_for_votes:
        return federation
    more = federation.trainers if synthesis.voters == "all" else ()
    return replace(federation, voters=tuple(sorted((*roles["proxy"], *more))))
