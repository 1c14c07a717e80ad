"""What a site allows: the table ``[limits]`` of its file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aulait.core.types import Placement

PolicyCount = Annotated[int, Field(ge=1, le=2**53, strict=True)]
Flag = Annotated[bool, Field(strict=True)]


class SitePolicy(BaseModel):
    """``[limits]`` of a site file; what a coordinator may ask of this site.

    Attributes:
        roles: "local" (trains here), "proxy" (votes on synthetic texts), "split" (the front of the
            model is here).
        methods: names of methods; empty: all.
        privacy: refuse runs without privacy, with noise from a seed, with exact votes.
        epsilon: the largest that a run may promise (or that its noise multiplier amounts to).
        delta: the largest.
        lifetime_epsilon: the largest of all runs together, of any coordinator, on one data source;
            clients and records are counted apart. Not written: twice ``epsilon``.
        lifetime_delta: the largest of all runs together. Not written: twice ``delta``.
        units: what a run may protect: "client", "record".
        trust: whom a run that protects clients (or has no privacy) may trust with this site's
            updates: the "server", or nobody ("secure": sites add up secretly, each with noise).
        sum_sites: the fewest sites that a secure sum may be released of.
        colluders: the fewest sites working with the coordinator against which a secure sum must
            keep its promise.
        clip: largest bound of an update.
        records: most records of this site that a run may use; where records (or units of a field)
            are protected, most units.
        rounds: most rounds of a stage.
        steps: most optimiser steps in a round.
        batch: most sequences in a step.
        rank: largest LoRA rank.
        delta_share: with the unit "record", the largest delta times the number of this site's units
            in the run: so many units are expected to be without protection.
        context: most tokens of a sequence.
        rows: most sequences in one pass, in training and in measuring.
        lr: largest learning rate.
        candidates: most candidates of a vote.
        neighbours: most candidates that one record votes for.
        width: most numbers in the embedding of a candidate.
        message_bytes: largest message accepted.
        idle_s: seconds without a message after which the base is unloaded.
        threads: processor threads; 0 leaves it to torch.
        evaluate: measure held-out records. Without privacy the sums are told to the server; with
            privacy they stay in the site's own log.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    roles: tuple[Placement, ...] = ("local", "proxy")
    methods: tuple[str, ...] = ()
    privacy: Flag = True
    epsilon: float = Field(10.0, gt=0, strict=True)
    delta: float = Field(1e-3, gt=0, lt=1, strict=True)
    lifetime_epsilon: float = Field(20.0, gt=0, strict=True)
    lifetime_delta: float = Field(2e-3, gt=0, lt=1, strict=True)
    units: tuple[Literal["client", "record"], ...] = ("client", "record")
    trust: tuple[Literal["server", "secure"], ...] = ("server", "secure")
    sum_sites: PolicyCount = 3
    colluders: int = Field(0, ge=0, le=1000, strict=True)
    clip: float = Field(1e6, gt=0, le=1e6, strict=True)
    records: PolicyCount = 1000
    rounds: PolicyCount = 1000
    steps: PolicyCount = 1000
    batch: PolicyCount = 256
    rank: PolicyCount = 256
    delta_share: float = Field(0.1, gt=0, strict=True)
    context: PolicyCount = 4096
    rows: PolicyCount = 256
    lr: float = Field(100.0, gt=0, strict=True)
    candidates: PolicyCount = 20_000
    neighbours: PolicyCount = 100
    width: PolicyCount = 4096
    message_bytes: PolicyCount = 2**31
    idle_s: float = Field(900.0, gt=0, strict=True)
    threads: int = Field(0, ge=0, le=4096, strict=True)
    evaluate: Flag = True

    @model_validator(mode="before")
    @classmethod
    def _two_runs(cls, told: object) -> object:
        """A lifetime that is not written is two of the largest runs."""
        if not isinstance(told, dict):
            return told
        more = {f"lifetime_{key}": 2 * told[key] for key in ("epsilon", "delta")
                if type(told.get(key)) in (int, float)}
        if "lifetime_delta" in more:
            more["lifetime_delta"] = min(more["lifetime_delta"], 0.999)
        return more | told
