"""What a site needs to do one client's part of a run: the base, the learner, its own records.
Loaded once, kept while needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aulait.core.errors import DataError, ModelError, require
from aulait.core.seeds import Seeds
from aulait.core.types import Plan, Site
from aulait.data import client_data
from aulait.data.client_data import ClientData, DataConfig
from aulait.engines.deployment.protocol.run_terms import RunTerms
from aulait.engines.deployment.site.site_file import SiteFile
from aulait.methods.contract import RunContext
from aulait.models import loading
from aulait.models.fingerprint import fingerprint
from aulait.models.loading import Base, ModelConfig
from aulait.resources.devices import keep_freed_memory
from aulait.synthesis import embedding
from aulait.synthesis.embedding import Embedder
from aulait.training.context_length import fitted
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
        brief: what was told.
        file: the site's own file.
        base: the frozen model.
        learner: trains on it.
        setting: what all sites know.
        records: training and held-out records; sensitive.
        plan: the work of a round.
        shelf: for the embedder.
    """

    brief: RunTerms
    file: SiteFile
    base: Base
    learner: Learner
    context: RunContext
    records: ClientData
    plan: Plan
    shelf: ModelCache

    def site(self, memory: dict[str, Any]) -> Site:
        """The client with what it remembers."""
        return Site(self.file.site.name, self.plan, self.records.train, self.records.holdout,
                    memory)

    @property
    def embedder(self) -> Embedder:
        """Of stage 1, under the name that the site's file gives it."""
        return self.shelf.embedder(self.file.embedders[self.brief.embedder], self.brief.max_tokens)


def load_session(brief: RunTerms, file: SiteFile, shelf: ModelCache) -> SiteSession:
    """Load what a brief needs; its names of base and embedder are those the site's file allows
    (checked before).

    Under privacy long records are cut whatever the run says: an error, or a site without records
        left, would tell the
    coordinator how long single records are, brief by brief.

    Raises:
        DataError: the site's records do not do.
        ModelError: the base cannot be loaded, or is not the coordinator's.
    """
    config = brief.model.model_copy(update={"name": file.models[brief.model.name],
        "device": "auto"})
    base = shelf.base(config)
    own = fingerprint(base)
    require(own == brief.fingerprint, ModelError,
            f"the base '{brief.model.name}' here has fingerprint {own}, the coordinator's has "
            f"{brief.fingerprint}; put the same files at both, or correct [models] of the site file")
    learner = Learner(base, brief.train)
    name, seeds = file.site.name, Seeds(brief.seed)
    found = client_data.own(_data(brief, file), name, seeds)
    fit = fitted(brief.too_long if brief.privacy.off else "cut", brief.model.context,
                 learner.encode, {name: found})
    require(name in fit, DataError,
            "no record is left after data.too_long = 'drop'; raise model.context")
    plan = Plan(brief.tier, brief.placement, brief.rank, brief.steps, brief.batch)
    ranks = {} if brief.ranks is None else {name: brief.ranks}
    shapes = loading.targets(base, brief.adapter)
    context = RunContext(shapes, brief.adapter.rank, brief.adapter.alpha, seeds, brief.rounds,
                         ranks)
    return SiteSession(brief, file, base, learner, context, fit[name], plan, shelf)


def _data(brief: RunTerms, file: SiteFile) -> DataConfig:
    """The site's own source and fields with the run's caps."""
    own = file.data
    require(brief.pairs == (own.prompt is not None), DataError,
            f"the run learns {'pairs' if brief.pairs else 'plain texts'} and [data] of "
            f"the site file has {'none' if brief.pairs else 'a prompt'}; set prompt and response "
            "there, or leave them out")
    return DataConfig(source=own.source, client=own.client, text=own.text, prompt=own.prompt,
                      response=own.response, label=own.label,
                      public="", records_per_client=brief.records_per_client, holdout=brief.holdout,
                      min_records=1, too_long=brief.too_long)
