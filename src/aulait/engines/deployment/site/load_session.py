"""What a site needs to do one client's part of a run: the base, the learner, its own records.
Loaded once, kept while needed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from aulait.core.errors import DataError, ModelError, require
from aulait.core.files import JsonObject
from aulait.core.seeds import Seeds
from aulait.core.types import Plan, Site
from aulait.core.units import units
from aulait.data import client_data
from aulait.data.client_data import ClientData, DataConfig
from aulait.data.unit_rule import UnitRule
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.methods.contract import RunContext
from aulait.models import loading
from aulait.models.fingerprint import fingerprint
from aulait.models.loading import Base, ModelConfig
from aulait.resources.devices import keep_freed_memory
from aulait.synthesis import embedding
from aulait.synthesis.embedding import Embedder
from aulait.training.context_length import fitted, readable
from aulait.training.trainer import Learner


@dataclass
class ModelCache:
    """Loaded bases and embedders by what was asked for; emptied when the site has nothing to do.

    Attributes:
        loads: how often a base was loaded since the worker began.
    """

    loads: int = 0
    _base: tuple[ModelConfig, Base] | None = None
    _embedders: dict[tuple[str, int], Embedder] = field(default_factory=dict)

    def base(self, config: ModelConfig) -> Base:
        """The base; one at a time is held."""
        if self._base is None or self._base[0] != config:
            self._base = None
            self._base = (config, loading.load_base(config))
            self.loads += 1
            if self._base[1].device.type == "cpu":
                keep_freed_memory()
        return self._base[1]

    def embedder(self, name: str, most_tokens: int) -> Embedder:
        """The embedder; it remembers the vectors of texts it has seen."""
        key = (name, most_tokens)
        if key not in self._embedders:
            self._embedders[key] = embedding.load_embedder(name, "cpu", max_tokens=most_tokens)
        return self._embedders[key]

    def clear(self) -> bool:
        """Let everything go; whether there was anything."""
        held = self._base is not None or bool(self._embedders)
        self._base = None
        self._embedders.clear()
        return held


@dataclass
class SiteSession:
    """One run at one site.

    Attributes:
        terms: of the run.
        file: the site's own file.
        base: the frozen model.
        learner: trains on it.
        context: what all sites know.
        records: training and held-out records; sensitive.
        plan: the work of a round.
        cache: for the embedder.
    """

    terms: RunTerms
    file: SiteFile
    base: Base
    learner: Learner
    context: RunContext
    records: ClientData
    plan: Plan
    cache: ModelCache

    def site(self, memory: JsonObject) -> Site:
        """The client with what it remembers."""
        return Site(self.file.site.name, self.plan, self.records.train, self.records.holdout,
                    memory)

    @property
    def units(self) -> int:
        """Records that it trains on; where the unit of privacy is the record (or a field), units
        of it."""
        records = self.records.train
        return len(units(records) if self.terms.privacy.protects_records else records)

    @property
    def embedder(self) -> Embedder:
        """Of stage 1, under the name that the site's file gives it."""
        return self.cache.embedder(self.file.embedders[self.terms.embedder], self.terms.max_tokens)


def load_session(terms: RunTerms, file: SiteFile, cache: ModelCache) -> SiteSession:
    """Load what terms need; its names of base and embedder are those the site's file allows
    (checked before).

    Under privacy long records are cut whatever the run says: an error, or a site without records
    left, would tell the coordinator how long single records are, run by run.

    Raises:
        DataError: the site's records do not do.
        ModelError: the base cannot be loaded, or is not the coordinator's.
    """
    config = terms.model.model_copy(update={"name": file.models[terms.model.name],
        "device": "auto", "device_map": None})
    base = cache.base(config)
    own = fingerprint(base)
    require(own == terms.fingerprint, ModelError,
            f"the base '{terms.model.name}' here has fingerprint {own}, the coordinator's has "
            f"{terms.fingerprint}; put the same files at both, or correct [models] of the site "
            "file")
    learner = Learner(base, terms.train, terms.adapter.dropout)
    name, seeds = file.site.name, Seeds(terms.seed)
    found = client_data.own(_data(terms, file), name, seeds, _rule(terms, file))
    left, _ = readable(learner.encode, {name: found})
    fit = fitted(terms.too_long if terms.privacy.off else "cut", terms.model.context,
                 learner.encode, left)
    require(name in fit, DataError,
            "no record is left after data.too_long = 'drop'; raise model.context")
    plan = Plan(terms.tier, terms.placement, terms.rank, terms.steps, terms.batch,
                terms.cut if terms.placement == "split" else None)
    ranks = {} if terms.ranks is None else {name: terms.ranks}
    shapes = loading.targets(base, terms.adapter)
    context = RunContext(shapes, terms.adapter.rank, terms.adapter.alpha, seeds, terms.rounds,
                         ranks, terms.adapter.scaling)
    return SiteSession(terms, file, base, learner, context, fit[name], plan, cache)


def _data(terms: RunTerms, file: SiteFile) -> DataConfig:
    """The site's own source and fields with the run's caps."""
    own = file.data
    found = client_data.resolved(DataConfig(
        source=own.source, encoding=own.encoding, client=own.client, format=own.format,
        text=own.text, prompt=own.prompt, response=own.response, input=own.input, join=own.join,
        messages=own.messages, label=own.label, public="",
        records_per_client=terms.records_per_client, holdout=terms.holdout, min_records=1,
        choice=terms.choice, share=terms.share, too_long=terms.too_long))
    require(terms.pairs == found.answers, DataError,
            f"the run learns {_kind(terms.pairs)} and [data] of the site file has "
            f"{_kind(found.answers)}; set format there, and the fields that belong to it")
    return found


def _kind(answers: bool) -> str:
    return "answers to prompts" if answers else "plain texts"


def _rule(terms: RunTerms, file: SiteFile) -> UnitRule:
    """By what records are chosen; the field of the units under the site's own name for it."""
    rule = UnitRule.of(_data(terms, file), terms.privacy)
    if rule.field is None or file.data.unit_field is None:
        return rule
    return replace(rule, field=file.data.unit_field)
