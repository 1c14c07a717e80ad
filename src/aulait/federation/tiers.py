"""Kinds of clients: their tables in the experiment file, what can be wrong with them, and how
clients are dealt to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from aulait.core.errors import ConfigError, did_you_mean, require
from aulait.core.seeds import Seeds
from aulait.core.types import Placement, Profile
from aulait.federation.config import ComputeConfig, CutPlace
from aulait.privacy.robust_sums import RobustRule, RuleName
from aulait.resources import profiles
from aulait.resources.links import LINKS

MEASURED = "measured"


class TierConfig(BaseModel):
    """``[[federation.tier]]``: clients with the same kind of machine.

    Attributes:
        name: what the tier is called in plans and reports; no two alike.
        share: part of all clients, 0 to 1; one tier may leave it out and takes the rest.
        count: clients, instead of a share.
        clients: the clients by name, instead of either.
        placement: "local", "split", "proxy", or "auto": the planner chooses by machine, memory and
            compute.round_s.
        rank: LoRA rank, at most ``adapter.rank``; None takes that. With "auto", the largest rank it
            may be given.
        attention_rank: LoRA rank of attention layers where it differs; None takes ``rank``.
        steps: optimiser steps a round; None takes ``train.steps``. With "auto", at most.
        batch: sequences a step; None takes ``train.batch``. With "auto", at most.
        cut: blocks at a split client; "auto": the planner chooses; None takes ``compute.cut``.
        machine: a preset ("phone", "laptop", ...; ``aulait list``) or the path of a profile that
            ``aulait probe`` saved; "measured", in a deployment: every site's own profile, as if
            each were a tier;
            None: not known, nothing is planned by it and no virtual time is told.
        link: a preset of links ("4g", "home", ...); None takes the machine's usual one.
        availability: chance that a client is there at the start of a round.
        dropout: chance that a client that began a round is lost before it answers.
        spread: standard deviation of the logarithm of a client's slow-down in a round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str
    share: float | None = Field(None, ge=0, le=1)
    count: int | None = Field(None, ge=0)
    clients: tuple[str, ...] | None = None
    placement: Placement | Literal["auto"] = "local"
    rank: int | None = Field(None, ge=1)
    attention_rank: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    cut: CutPlace | None = None
    machine: str | None = None
    link: str | None = None
    availability: float = Field(1.0, gt=0, le=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    spread: float = Field(0.0, ge=0)

    def profile(self) -> Profile | None:
        """Its machine on its link; None where no machine is named.

        Raises:
            ConfigError: there is no such machine or link.
        """
        if self.machine in (None, MEASURED):
            return None
        assert self.machine is not None
        return (
            profiles.find_profile(self.machine) if self.link is None
            else profiles.linked(profiles.find_profile(self.machine), self.link)
        )


class HostileConfig(BaseModel):
    """``[federation.hostile]``: clients of a simulation that send what does harm.

    Attributes:
        share: of the clients of a stage that are hostile, by the run's seed; 0 is none.
        attack: "sign-flip", the update turned around (of votes: for what it would not have chosen);
            "scale", the update times ``factor``; "label-flip", an honest update of records whose
            answers are exchanged, or whose words are reversed where nothing is asked.
        factor: by which an update is longer, with "sign-flip" and "scale".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    share: float = Field(0.0, ge=0, lt=1)
    attack: Literal["sign-flip", "scale", "label-flip"] = "sign-flip"
    factor: float = Field(1.0, gt=0)


class FederationConfig(BaseModel):
    """``[federation]``.

    Attributes:
        tier: kinds of machines. Which client is in which tier follows from the run's seed, never
            from its data.
        sampling: "all" training clients in every round, "poisson" (each with the chance ``rate``),
            "turns" (dealt once to ``cohorts`` cohorts that take turns), or "fixed" (a share
            ``rate`` of them; not under privacy, where it is not accounted, but with schedule
            "async").
        rate: part of the clients that a round draws, with Poisson or fixed sampling.
        cohorts: how many cohorts take turns, with sampling "turns"; each client is in one of them.
        schedule: "rounds", in which all clients that are asked begin together; or "async": clients
            work at their own pace, and a round ends when its buffer holds ``rate`` times as many
            updates as there are clients that train (FedBuff). Needs sampling "fixed" and virtual
            time; for methods that sum how factors moved.
        at_work: with "async", clients at work at a time; None: as many as fill a buffer.
        staleness: with "async", a: an update that began s rounds ago counts (1 + s)^-a.
        contributions: with "async", updates of one client in the whole run, at most, for which it
            is charged under privacy; None: one a round.
        preset: FlexLoRA's tiers instead of written ones: "uniform", "heavy-tail-light",
            "heavy-tail-strong", "normal", "equal".
        max_norm: a reply whose L2 norm is larger is refused; under privacy it is clipped instead.
        robust: what takes the place of the mean of the clients' updates, where some may be hostile:
            "median", "trimmed-mean", "geometric-median", "krum" or "norm-bound". Without privacy,
            or for the unit "record"; where clients are protected, clipping bounds each of them.
        robust_share: part of the clients that may be hostile, as "trimmed-mean" and "krum" take it.
        hostile: clients of a simulation that send what does harm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tier: tuple[TierConfig, ...] = (
        TierConfig(name="gpu", share=0.2, placement="local"),
        TierConfig(name="laptop", placement="proxy"))
    sampling: Literal["all", "poisson", "turns", "fixed"] = "all"
    rate: float = Field(1.0, gt=0, le=1)
    cohorts: int = Field(1, ge=1)
    schedule: Literal["rounds", "async"] = "rounds"
    at_work: int | None = Field(None, ge=1)
    staleness: float = Field(0.5, ge=0, allow_inf_nan=False)
    contributions: int | None = Field(None, ge=1)
    preset: str | None = None
    max_norm: float = Field(1e4, gt=0)
    robust: RuleName | Literal["none"] = "none"
    robust_share: float = Field(0.2, ge=0, lt=0.5)
    hostile: HostileConfig = HostileConfig()

    @property
    def robust_rule(self) -> RobustRule | None:
        """What takes the place of the mean; None for the mean."""
        return None if self.robust == "none" else RobustRule(self.robust, self.robust_share)

    @property
    def asynchronous(self) -> bool:
        """Whether clients work at their own pace."""
        return self.schedule == "async"

    def drawn(self, clients: int) -> int:
        """How many of the clients that train are the share ``rate``, halves up; at least one where
        there are any."""
        return max(1, int(self.rate * clients + 0.5)) if clients else 0

    def planned(self, clients: int) -> int:
        """For how many of those who train a round's sum is planned: the same in all rounds, or else
        the noise of one would not take away that of another."""
        if self.sampling == "turns":
            return -(-clients // self.cohorts)  # of the largest cohort
        everybody = self.sampling == "all" and not self.asynchronous
        return clients if everybody else self.drawn(clients)

    @property
    def share(self) -> float:
        """Of the clients that train, how many take part in a round."""
        if self.sampling == "turns":
            return 1.0 / self.cohorts
        return 1.0 if self.sampling == "all" else self.rate

    def part(self, clients: int) -> float:
        """The part of so many clients that train that takes part in a round, as it is drawn: with
        "fixed" sampling a whole number of them."""
        fixed = self.sampling == "fixed" and clients > 0
        return self.drawn(clients) / clients if fixed else self.share

    def again(self, clients: int) -> tuple[float, float]:
        """Of a client that takes part in a round: the chance that it did so in the round before;
        and the chance that any other one did, if this one did.

        Args:
            clients: how many there are that train.
        """
        if self.sampling == "turns":
            return (1.0, 1.0) if self.cohorts == 1 else (0.0, 0.0)
        part = self.part(clients)
        if self.sampling == "fixed" and clients > 1:
            return part, (part * clients - 1.0) / (clients - 1.0)
        return part, part


def problems(federation: FederationConfig, compute: ComputeConfig, private: bool) -> list[str]:
    """What is wrong with the tiers, one line each."""
    tiers, found = federation.tier, []
    if not tiers:
        return ["federation.tier is empty; expected at least one [[federation.tier]] table"]
    labels = [tier.name for tier in tiers]
    if len(set(labels)) != len(labels):
        found.append(f"federation.tier names repeat: {labels}; give every tier its own name")
    if unnamed := [label for label in labels if not label.strip() or not label.isprintable()]:
        found.append(f"federation.tier has the name {unnamed[0]!r}; expected letters that can be "
                     "read; give the tier a name")
    for tier in tiers:
        found += _of_one(tier, private) + _of_cut(tier, compute)
    named = [tier.name for tier in tiers if tier.machine]
    if named and len(named) < len(tiers):
        found.append(
            f"federation.tier '{next(n for n in labels if n not in named)}' has no machine and "
            f"'{named[0]}' has one; give every tier a machine, or none (presets: "
                     + ", ".join(profiles.PRESETS) + ")")
    if not named and (compute.deadline_s or compute.over_selection):
        found.append(
            "compute.deadline_s and compute.over_selection need virtual time; give every "
            "federation.tier a machine")
    tiers = tuple(tier for tier in tiers if tier.clients is None)
    rest = [tier for tier in tiers if tier.share is None and tier.count is None]
    shares = sum(tier.share or 0.0 for tier in tiers)
    counted = any(tier.count is not None for tier in tiers)
    if len(rest) > 1:
        found.append(
            "more than one federation.tier has neither share nor count; only one may take the rest")
    if tiers and (shares > 1 + 1e-9 or (not rest and not counted and abs(shares - 1) > 1e-9)):
        found.append(
            f"the shares of federation.tier sum to {shares:g}; expected 1, or leave one tier's "
            "share out")
    return found + _of_sampling(federation, compute, private)


def _of_one(tier: TierConfig, private: bool) -> list[str]:
    found = []
    if tier.share is not None and tier.count is not None:
        found.append(f"federation.tier '{tier.name}' has share and count; expected one of them")
    if tier.clients is not None and (tier.share is not None or tier.count is not None):
        found.append(
            f"federation.tier '{tier.name}' names its clients and has a share or count too; "
            "expected one of them")
    if tier.placement == "split" and private:
        found.append(
            f"federation.tier '{tier.name}': placement = 'split' sends activations of single "
            "records, which no sum over clients can hide; use 'local' or 'proxy', or privacy.off "
            "= true")
    if tier.placement == "auto" and tier.machine is None:
        found.append(
            f"federation.tier '{tier.name}': placement = 'auto' needs to know the machine; set "
            f"machine to one of {', '.join(profiles.PRESETS)}, or to a profile saved by 'aulait "
            "probe --out'")
    if tier.machine is None and (tier.link or tier.availability < 1 or tier.dropout or tier.spread):
        found.append(
            f"federation.tier '{tier.name}': link, availability, dropout and spread belong to a "
            "machine; set machine too")
    try:
        profile = tier.profile()
    except ConfigError as error:
        return [*found, f"federation.tier '{tier.name}': {error}"]
    if profile is not None:
        found += [f"federation.tier '{tier.name}': {line}" for line in _unfit(profile)]
    return found


def _of_cut(tier: TierConfig, compute: ComputeConfig) -> list[str]:
    """What is wrong with where the model of a tier is cut."""
    if tier.placement not in ("split", "auto"):
        return [] if tier.cut is None else [
            f"federation.tier '{tier.name}' has cut = {tier.cut!r} and placement = "
            f"'{tier.placement}', which cuts nothing; remove cut, or set placement = 'split'"]
    if (tier.cut or compute.cut) == "auto" and tier.machine is None:
        return [f"federation.tier '{tier.name}': cut = 'auto' needs to know the machine; set "
                f"machine to one of {', '.join(profiles.PRESETS)}, or set cut to a number of "
                "blocks"]
    return []


def _unfit(profile: Profile) -> list[str]:
    """What a profile lacks to be planned by."""
    found = []
    if not profile.flop_per_s.get("float32"):
        found.append(
            f"machine '{profile.name}' has no speed in float32; measure it by 'aulait probe "
            "--dtype float32'")
    if not profile.up_bytes_per_s or not profile.down_bytes_per_s:
        found.append(
            f"machine '{profile.name}' has no link speed; set link to one of {', '.join(LINKS)}, "
            "or measure it: 'aulait probe --link'")
    return found


def _of_sampling(federation: FederationConfig, compute: ComputeConfig, private: bool) -> list[str]:
    found = []
    if federation.sampling == "fixed" and private and not federation.asynchronous:
        found.append(
            "federation.sampling = 'fixed' is not accounted under privacy; use 'poisson', 'turns' "
            "or 'all'")
    if (federation.sampling == "turns") != (federation.cohorts > 1):
        found.append(
            f"federation.sampling = '{federation.sampling}' with federation.cohorts = "
            f"{federation.cohorts} found, expected sampling = 'turns' with at least 2 cohorts, or "
            "neither; set both, or remove both")
    if compute.over_selection and federation.sampling != "fixed":
        found.append(
            "compute.over_selection needs federation.sampling = 'fixed', found "
            f"'{federation.sampling}' (whoever comes first decides who else counts, which no "
            "accountant covers); change it, or use compute.deadline_s")
    try:
        found += [f"compute.server: {line}"
                  for line in _unfit(profiles.find_profile(compute.server))
                  if "link" not in line]
    except ConfigError as error:
        found.append(f"compute.server: {error}")
    return found


def members(tiers: Sequence[TierConfig], clients: Sequence[str], seeds: Seeds) -> dict[str,
        tuple[str, ...]]:
    """Tier -> its clients, by the run's seed; a tier earlier in the file keeps its clients when its
    share grows.

    Raises:
        ConfigError: the tiers do not add up to the clients.
    """
    named = [name for tier in tiers for name in tier.clients or ()]
    unknown = sorted({*named} - {*clients})
    require(not unknown, ConfigError,
        f"federation.tier names client '{unknown[0] if unknown else ''}', which is not among the "
        f"{len(clients)} there are; {did_you_mean(unknown[0], clients) if unknown else ''}")
    require(len(set(named)) == len(named), ConfigError,
            f"a client is named by two tiers of federation.tier: {sorted(named)}; name it once")
    names = sorted({*clients} - {*named})
    open_tiers = [tier for tier in tiers if tier.clients is None]
    require(bool(open_tiers) or not names, ConfigError,
            f"client '{names[0] if names else ''}' is in no tier; name it in federation.tier "
            "'clients', or add a tier without them")
    order = [names[i]
             for i in torch.randperm(len(names), generator=seeds.generator("tiers")).tolist()]
    dealt, start = {tier.name: tuple(sorted(tier.clients)) for tier in tiers
                    if tier.clients is not None}, 0
    for tier, size in zip(open_tiers, sizes(open_tiers, len(names)) if open_tiers else [],
                          strict=True):
        dealt[tier.name] = tuple(order[start : start + size])
        start += size
    return {tier.name: dealt[tier.name] for tier in tiers}


def sizes(tiers: Sequence[TierConfig], clients: int) -> list[int]:
    """Clients of every tier: counts first, shares by rounding, the rest to the tier without either
    (or the last)."""
    found = [tier.count if tier.count is not None else round((tier.share or 0.0) * clients)
             for tier in tiers]
    taker = next((i for i, t in enumerate(tiers) if t.count is None and t.share is None), None)
    if taker is None and any(tier.share is not None for tier in tiers):
        taker = max((i for i, t in enumerate(tiers) if t.share), default=None)
    if taker is not None:
        found[taker] = clients - sum(size for i, size in enumerate(found) if i != taker)
    require(min(found) >= 0 and sum(found) == clients, ConfigError,
            f"federation.tier asks for {sum(max(s, 0) for s in found)} clients, the data has "
            f"{clients}; change count or share")
    return found
