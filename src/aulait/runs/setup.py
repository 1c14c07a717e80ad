"""From settings to a house that can run: data dealt to sites, tiers to placements, a budget to
noise multipliers.

Everything that can be wrong is found here, before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from aulait.core.errors import ConfigError, DataError, require
from aulait.core.lora import Shapes
from aulait.core.seeds import Seeds
from aulait.core.types import Placement, Record, Site
from aulait.data import client_data
from aulait.data.client_data import ClientData, Corpus, DataConfig
from aulait.federation import tiers
from aulait.methods.contract import RecordMethod, RunContext, server_site
from aulait.models import loading
from aulait.models.generation import TextModel
from aulait.models.loading import Base
from aulait.privacy import record_level as records
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.plan import PrivacyPlan
from aulait.resources.devices import keep_freed_memory
from aulait.runs import placement
from aulait.runs.experiment_file import Settings
from aulait.runs.placement import Place, ranks_of
from aulait.runs.privacy_schedule import privacy_plan
from aulait.synthesis import embedding
from aulait.synthesis.embedding import Embedder
from aulait.synthesis.generator import build_generator
from aulait.synthesis.variation import Variation
from aulait.training import record_gradients
from aulait.training.context_length import fitted
from aulait.training.trainer import Learner


@dataclass
class Workshop:
    """What several runs of one process share: loaded models, read data, finished first stages, the
    base's scores."""

    kept: dict[str, Any] = field(default_factory=dict)

    def once(self, kind: str, key: Any, make: Any) -> Any:
        """The thing filed under kind and key, made on first use."""
        name = f"{kind}|{key}"
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


# Stands in House until the checks have passed.
NOTHING_PLANNED = PrivacyPlan(PrivacyConfig(off=True), (), {}, {})


class Judge(Protocol):
    """Scores of held-out records that lie at the sites."""

    def __call__(self, house: House, state: Any, final: bool) -> dict[str, Any]:
        """Scores under what ``state`` of the method gives; of the bare base where it is None."""


@dataclass(frozen=True)
class House:
    """Everything a run needs.

    Attributes:
        settings: the experiment.
        corpus: the data as read.
        base: the frozen model.
        learner: trains on it.
        shapes: of the adapted layers.
        setting: what all sites know.
        sites: every client, by name.
        places: tier -> what its clients do, and why.
        holdout: held-out records by client, also when the training records are pooled.
        roles: placement -> names of its clients.
        privacy_plan: what will be released, with how much noise, at what cost.
        workshop: what runs of this process share.
        judge: how held-out records are scored that lie elsewhere; None where they are here.
    """

    settings: Settings
    corpus: Corpus
    base: Base
    learner: Learner
    shapes: Shapes
    context: RunContext
    sites: Mapping[str, Site]
    places: Mapping[str, Place]
    holdout: Mapping[str, tuple[Record, ...]]
    roles: Mapping[Placement, tuple[str, ...]]
    privacy_plan: PrivacyPlan
    workshop: Workshop
    judge: Judge | None = None

    @property
    def seeds(self) -> Seeds:
        """Of the run."""
        return self.context.seeds

    @property
    def voting(self) -> bool:
        """Whether stage 1 takes votes or at least breeds texts."""
        return (
            bool(self.roles["proxy"]) and self.settings.synthesis.proxies in ("synthetic", "noise")
        )

    @property
    def voters(self) -> tuple[str, ...]:
        """Clients that vote."""
        if not self.voting or self.settings.synthesis.selection == "random":
            return ()
        extra = self.trainers if self.settings.synthesis.voters == "all" else ()
        return tuple(sorted((*self.roles["proxy"], *extra)))

    @property
    def trainers(self) -> tuple[str, ...]:
        """Clients that train on their own texts, here or with the server's half."""
        return tuple(sorted((*self.roles["local"], *self.roles["split"])))

    @property
    def secret_time(self) -> bool:
        """Whether seconds would tell of clients' records: in a deployment under privacy the slowest
        site sets them."""
        return self.settings.engine.name == "flower" and not self.settings.privacy.off

    @property
    def record_mechanism(self) -> records.RecordMechanism | None:
        """With the unit "record", what a round may ask of any record of a client that trains; else
        None."""
        method, privacy = self.settings.method, self.settings.privacy
        if privacy.off or privacy.unit == "client" or not isinstance(method, RecordMethod):
            return None
        trainers = [self.sites[name] for name in self.trainers]
        return method.record_mechanism(self.settings.method_config, trainers)

    def embedder(self) -> Embedder:
        """The embedder of stage 1, loaded once."""
        name, device = self.settings.synthesis.embedder, str(self.base.device)
        most = self.settings.synthesis.max_tokens
        made: Embedder = self.workshop.once("embedder", (name, device, most),
            lambda: embedding.load_embedder(name, device, max_tokens=most))
        return made

    def variation(self) -> Variation:
        """The writer of candidates, loaded once."""
        how, generator, base = (
            self.settings.synthesis.generate, self.settings.synthesis.generator, self.base
        )
        made: Variation = self.workshop.once(
            "variation", (self.settings.model, how, generator),
            lambda: build_generator(
                how, generator, TextModel(base.model, base.tokenizer, base.device)))
        return made


def assemble(settings: Settings, workshop: Workshop,
             elsewhere: Mapping[str, int] | None = None) -> House:
    """Load, deal and check.

    Args:
        settings: the experiment.
        workshop: what runs of this process share.
        elsewhere: in a deployment, its clients, and how many records each may be known to have; no
            record is here then.

    Raises:
        ConfigError, DataError, ModelError, PrivacyError: one line a problem.
    """
    if settings.engine.threads:
        torch.set_num_threads(settings.engine.threads)
    seeds = Seeds(settings.run.seed)
    # held-out records stay with their clients
    apart = settings.data.model_copy(update={"pooled": False})
    corpus: Corpus = client_data.at_sites(apart,
        elsewhere) if elsewhere is not None else workshop.once(
        "corpus", (apart, seeds), lambda: client_data.load_clients(apart, seeds))
    require(bool(corpus.clients), DataError, "no client has enough records; lower data.min_records")
    if not settings.privacy.off:
        problems = settings.privacy.problems(len(corpus.clients))
        require(not problems, ConfigError, "\n".join(problems))
    base: Base = workshop.once("base", settings.model, lambda: loading.load_base(settings.model))
    if base.device.type == "cpu":
        keep_freed_memory()
    shapes = loading.targets(base, settings.adapter)
    learner: Learner = workshop.once("learner", (settings.model, settings.train),
        lambda: Learner(base, settings.train))
    clients, corpus = (
        (corpus.clients, corpus) if elsewhere is not None else _all_fitted(settings, workshop,
            learner, apart, corpus)
    )
    holdout = {name: client.holdout for name, client in clients.items()}
    if settings.data.pooled:
        clients = {client_data.EVERYONE: ClientData(tuple(r for name in sorted(clients)
            for r in clients[name].train), ())}
    members = tiers.members(settings.federation.tier, list(clients), seeds)
    records = {tier: [clients[name].train for name in names] for tier, names in members.items()}
    placed = placement.places(placement.Federation(settings, base, shapes, learner.encode, records,
        corpus.public, seeds))
    sites = _sites(members, placed, clients)
    roles: dict[Placement, tuple[str, ...]] = {
        place: tuple(sorted(n for n, s in sites.items() if s.plan.placement == place))
        for place in ("local", "proxy", "split")}
    ranks = _ranks(settings, shapes, members, placed)
    context = RunContext(shapes, settings.adapter.rank, settings.adapter.alpha, seeds,
                      settings.train.rounds, ranks)
    house = House(settings, corpus, base, learner, shapes, context, sites, placed, holdout, roles,
                  NOTHING_PLANNED, workshop)
    _check_roles(house, elsewhere is None)
    planned = privacy_plan(settings, house.voters, house.trainers, house.record_mechanism,
                           context)
    return replace(house, privacy_plan=planned)


def _all_fitted(
    settings: Settings, workshop: Workshop, learner: Learner, apart: DataConfig, corpus: Corpus
) -> tuple[dict[str, ClientData], Corpus]:
    """Clients, and the corpus whose unseen clients are treated alike."""
    key = (apart, Seeds(settings.run.seed), settings.model)
    how, context = settings.data.too_long, settings.model.context
    clients = workshop.once("fitted", key, lambda: fitted(how, context, learner.encode,
        corpus.clients))
    unseen = {name: ClientData(records, ()) for name, records in corpus.unseen.items()}
    new = workshop.once("fitted-unseen", key, lambda: fitted(how, context, learner.encode, unseen))
    return clients, replace(corpus, unseen={name: client.train for name, client in new.items()})


def _sites(
    members: Mapping[str, Sequence[str]], places: Mapping[str, Place],
    clients: Mapping[str, ClientData]
) -> dict[str, Site]:
    """Every client's site, with the work of its tier."""
    return {name: Site(name, places[tier].plan, clients[name].train, clients[name].holdout)
            for tier, names in members.items() for name in names}


def _ranks(
    settings: Settings, shapes: Shapes, members: Mapping[str, Sequence[str]],
    places: Mapping[str, Place]
) -> dict[str, dict[str, int]]:
    """Client -> layer -> rank, for the clients of tiers that do not have all of the adapter's; one
    mapping a tier."""
    found: dict[str, dict[str, int]] = {}
    for tier in settings.federation.tier:
        own = dict(ranks_of(shapes, tier.attention_rank)(places[tier.name].plan.rank))
        if set(own.values()) != {settings.adapter.rank}:
            found.update(dict.fromkeys(members[tier.name], own))
    return found


def _check_roles(house: House, here: bool) -> None:
    settings = house.settings
    reserved = sorted(name for name in house.sites if name.startswith(("proxy-", "reference-")))
    require(not reserved, DataError,
        f"client '{reserved[0] if reserved else ''}' has a name kept for sites of the server; "
        "rename it "
            "(names may not begin with 'proxy-' or 'reference-')")
    taken = server_site(settings.method)
    require(taken not in house.sites, DataError,
            f"client '{taken}' has the name of the server's own site; rename it")
    if house.roles["proxy"] and settings.synthesis.proxies != "absent":
        require(bool(house.corpus.public), DataError,
                "stage 1 needs public texts to start from and found none; set data.public")
        _check_pairs(settings, isinstance(house.corpus.public[0], str))
    seq2seq = (
        settings.model.kind == "seq2seq" and settings.synthesis.generator == "base"
        and settings.synthesis.generate.kind == "prefix"
    )
    require(not (house.voting and seq2seq), ConfigError,
            "synthesis.generator = 'base' with synthesis.generate.kind = 'prefix' needs a "
            "causal model and model.kind is 'seq2seq'; set synthesis.generator = 'brew' (built in) "
            "or to the id or folder of another "
            "causal "
            "model, or kind to 'prompt' or 'mask'")
    require(settings.model.kind == "causal" or settings.data.prompt is not None, ConfigError,
            "model.kind is 'seq2seq' and the data are "
            "plain text, expected a prompt for the encoder and a response for the decoder; set "
            "data.prompt and data.response")
    if not house.trainers and (not house.roles["proxy"] or settings.synthesis.proxies == "absent"):
        raise ConfigError(
            "nobody trains: no tier is local and proxies are absent; give a tier placement = "
            "'local'")
    if settings.federation.sampling == "poisson" and settings.synthesis.voters == "all":
        raise ConfigError(
            "synthesis.voters = 'all' with federation.sampling = 'poisson' is not accounted; use "
            "sampling = 'all'")
    name, unit = settings.algorithm["name"], settings.method.TRAITS.unit
    method = settings.method
    mechanism = (
        method.mechanism(settings.method_config) if isinstance(method, RecordMethod) else None)
    problems = records.unit_problems(settings.privacy, name, unit, mechanism, bool(house.voters))
    # elsewhere the sites look for themselves
    problems += record_gradients.missing(mechanism) if here else []
    if unit == "record" and not settings.privacy.off:
        problems += settings.privacy.problems(sum(len(site.train) for site in house.sites.values()))
    require(not problems, ConfigError, "\n".join(problems))


def _check_pairs(settings: Settings, plain: bool) -> None:
    """Proxies of clients with prompts learn from pairs, so stage 1 must start from pairs."""
    own = settings.data
    if own.prompt is None or not plain or (own.public_plain and settings.model.kind == "causal"):
        return
    other = (
        "" if settings.model.kind == "seq2seq"
        else ", or data.public_plain = true to let proxies learn from text without a prompt"
    )
    raise DataError(
        f"data.public = '{own.public}' has plain texts and the data have prompts, expected rows "
        f"with '{own.prompt}' and "
                    f"'{own.response}' so that stage 1 breeds pairs; set data.public to such a "
                    f"source{other}")
