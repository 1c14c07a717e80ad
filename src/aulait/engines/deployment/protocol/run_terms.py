"""The terms of a run: told to a site once and kept by it; every later request names the terms that
it belongs to.

They hold what a site must know to do its work and to refuse it, and nothing else: no path, no
address, of other clients only those with whom it adds up secretly. A site holds them against its
own policy before anything is loaded (``site/policy.py``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from aulait.core.errors import ConfigError, WireError
from aulait.core.files import JsonObject
from aulait.core.types import Placement, Site
from aulait.core.version import PACKAGE_VERSION
from aulait.engines.deployment.protocol.heads import HexKey, Name, SumStage
from aulait.evaluation.config import EvaluateConfig
from aulait.methods.contract import AnyMethod, RunContext, find_method
from aulait.models.loading import AdapterConfig, ModelConfig
from aulait.privacy.config import PrivacyConfig
from aulait.runs.experiment_file import Settings
from aulait.runs.stage_order import MOST
from aulait.training.activation_codec import Wire
from aulait.training.trainer import TrainConfig

VERSION: Final = 5  # of the messages between coordinator and site
MOST_PEERS: Final = 128  # voters and trainers, of whom at most 64 are in one sum


class SumTerms(BaseModel):
    """What a client has to know of the secure sums of a run.

    Attributes:
        peers: client -> identity, of all whom a sum may be over; this client among them.
        planned: release -> number of clients that a sum is planned for.
        noise: release -> noise multiplier of a sum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    peers: Annotated[dict[Name, HexKey], Field(max_length=MOST_PEERS)]
    planned: dict[SumStage, Annotated[int, Field(ge=1, le=MOST_PEERS)]]
    noise: dict[SumStage, Annotated[float, Field(gt=0)]]


class RunTerms(BaseModel):
    """One client's part in one run.

    Attributes:
        version: of the messages.
        package: the coordinator's version of aulait.
        run: 32 hexadecimal digits.
        name: of the experiment.
        client: whom it is for.
        tier, placement, rank, steps, batch: the work of a round.
        ranks: layer -> rank, where not all layers have the adapter's.
        votes: whether the client votes in stage 1.
        exact_votes: whether votes get no noise, a control of simulations.
        rounds, synthesis_rounds: of the stages.
        stages: (stage, its last round) in their order, so that the site knows which round comes
            before which.
        seed: of the run.
        model, adapter, train, evaluate, privacy: tables of the experiment; the name of the model is
            one of the site's own.
        algorithm: the method's name and settings.
        records_per_client, holdout, choice, share, too_long: how the client's records are chosen,
            as in ``[data]`` of an experiment.
        pairs: whether a record answers a prompt: a pair, or a conversation.
        embedder, max_tokens: of stage 1.
        candidates, neighbours: the most candidates of a vote, and how many of them a record votes
            for.
        cut, wire: of split clients.
        adapters: how factors travel.
        fingerprint: of the coordinator's base.
        sums: with ``privacy.trust = "secure"``, what its secure sums are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    version: int = VERSION
    package: str = PACKAGE_VERSION
    run: str = Field(pattern=r"^[0-9a-f]{32}$")
    name: str = Field(max_length=200)
    client: str
    tier: str
    placement: Placement
    rank: int = Field(ge=1)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    ranks: dict[str, int] | None = None
    votes: bool
    exact_votes: bool
    rounds: int = Field(ge=0)
    synthesis_rounds: int = Field(ge=0)
    stages: tuple[tuple[Literal["synthesis", "train"], int], ...] = Field(max_length=MOST)
    seed: int = Field(ge=0)
    model: ModelConfig
    adapter: AdapterConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    privacy: PrivacyConfig
    algorithm: JsonObject
    records_per_client: int = Field(ge=1)
    holdout: float = Field(ge=0, le=0.9)
    choice: Literal["auto", "count", "hash"] = "auto"
    share: float = Field(1.0, gt=0, le=1)
    too_long: Literal["error", "cut", "drop"]
    pairs: bool
    embedder: str
    max_tokens: int = Field(ge=1)
    candidates: int = Field(ge=0)
    neighbours: int = Field(ge=0)
    cut: int = Field(ge=1)
    wire: Wire
    adapters: Wire
    fingerprint: str
    sums: SumTerms | None = None

    @property
    def method(self) -> AnyMethod:
        """The module of the method."""
        return find_method(str(self.algorithm.get("name")))

    @property
    def method_config(self) -> Any:
        """The method's own settings."""
        return self.method.Config(**{key: value for key, value in self.algorithm.items()
            if key != "name"})

    @property
    def digest(self) -> str:
        """Names these terms in requests; the package's version is no part of it."""
        text = json.dumps(self.model_dump(mode="json", exclude={"package"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @field_validator("version", mode="before")
    @classmethod
    def _same_version(cls, value: object) -> object:
        if value != VERSION:
            raise ValueError(f"terms of version {str(value)[:20]} found, expected {VERSION}; run "
                             "the same version of aulait on both sides")
        return value


@dataclass(frozen=True)
class RunFacts:
    """What the coordinator knows of a run beside its settings.

    Attributes:
        run: 32 hexadecimal digits, of the run folder.
        fingerprint: of the base.
        voters: clients that vote in stage 1.
        sums: what its secure sums are; None where there are none.
    """

    run: str
    fingerprint: str
    voters: tuple[str, ...]
    sums: SumTerms | None = None


def terms_for(site: Site, settings: Settings, context: RunContext, facts: RunFacts) -> RunTerms:
    """The terms of one client.

    Args:
        site: the client, with its plan.
        settings: the experiment.
        context: what all sites know.
        facts: the rest.
    """
    votes = site.name in facts.voters
    ranks = context.ranks.get(site.name)
    return RunTerms(
        run=facts.run, name=settings.run.name[:200], client=site.name, tier=site.plan.tier,
        placement=site.plan.placement, rank=site.plan.rank,
        steps=site.plan.steps, batch=site.plan.batch, ranks=None if ranks is None else dict(ranks),
        votes=votes,
        exact_votes=settings.synthesis.votes == "exact",
        rounds=settings.train.rounds, synthesis_rounds=settings.votings if votes else 0,
        stages=tuple((span.name, span.last) for span in settings.stage_spans),
        seed=settings.run.seed,
        model=settings.model.model_copy(update={"device": "auto", "device_map": None}),
        adapter=settings.adapter, train=settings.train,
        evaluate=settings.evaluate.of_sites, privacy=settings.privacy,
        algorithm={"name": settings.algorithm["name"],
                   **settings.method_config.model_dump(mode="json")},
        records_per_client=settings.data.records_per_client, holdout=settings.data.holdout,
        choice=settings.data.choice, share=settings.data.share,
        too_long=settings.data.too_long,
        pairs=settings.data.answers, embedder=settings.synthesis.embedder,
        max_tokens=settings.synthesis.max_tokens,
        candidates=settings.synthesis.largest_ballot if votes else 0,
        neighbours=settings.synthesis.neighbours if votes else 0,
        cut=site.plan.cut or settings.compute.usual_cut, wire=settings.compute.wire,
        adapters=settings.engine.wire,
        fingerprint=facts.fingerprint, sums=facts.sums)


def read_terms(kept: bytes) -> RunTerms:
    """The terms that a site kept of a run.

    Raises:
        WireError: they are damaged, or of another version.
    """
    try:
        return RunTerms.model_validate_json(kept)
    except ValidationError as error:
        raise WireError(f"the terms of a run are not valid: {first_problem(error)}") from error


def check_method(terms: RunTerms) -> None:
    """Build the method's settings once, so that wrong ones are found here.

    Raises:
        WireError: no such method in this version, or its settings are not valid.
    """
    try:
        terms.method_config  # noqa: B018  (read for what it raises)
    except ConfigError as error:
        raise WireError(f"the terms name what this version does not have: {error}") from error
    except ValidationError as error:
        raise WireError(f"settings of the method are not valid: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Where and what, on one line; never what was found there."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "as a whole"
    return f"{where[:200]}: {first['msg'][:300]} ({error.error_count()} problems)"
