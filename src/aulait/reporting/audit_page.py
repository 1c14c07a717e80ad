"""The page of an audit: what an attacker proves, beside what is claimed, and what he can do in
words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aulait.reporting import numbers, page, promise
from aulait.reporting.chart import Chart, ChartAxis, ChartBars
from aulait.reporting.guarantee import gaussian_success, success
from aulait.reporting.key_figure import KeyFigure
from aulait.reporting.markup import PageTable, PlacedFigure, Section, section


@dataclass(frozen=True)
class StageAttack:
    """What the attack on one stage's releases found.

    Attributes:
        stage: "synthesis", "train" or "search".
        mechanism: name of the mechanism.
        rounds: that were attacked.
        canaries: how many.
        right: share of them about which the attacker was right.
        proven_epsilon, claimed_epsilon: at delta.
        proven_mu, claimed_mu: of full participation; None with sampling.
        holds: whether nothing was proven beyond the claim.
    """

    stage: str
    mechanism: str
    rounds: int
    canaries: int
    right: float
    proven_epsilon: float
    claimed_epsilon: float
    proven_mu: float | None
    claimed_mu: float | None
    holds: bool

    def allowed(self, delta: float) -> float:
        """The largest share of right guesses that the claim allows, from an even prior."""
        general = success(self.claimed_epsilon, delta)
        return general if self.claimed_mu is None else min(general,
                                                           gaussian_success(self.claimed_mu))


@dataclass(frozen=True)
class MemberAttack:
    """What can be guessed of single records from something that was released.

    Attributes:
        what: as "the final adapter, by its loss".
        members, others: records that were used, and that were not.
        area: under the attacker's curve; 0.5 is guessing.
        caught: share of members found at one false alarm in a hundred.
    """

    what: str
    members: int
    others: int
    area: float
    caught: float


@dataclass(frozen=True)
class AuditFigures:
    """What an audit is of, and what it found.

    Attributes:
        name: of the run.
        unit: "client" or "record".
        delta: of every epsilon.
        confidence: of the bounds on epsilon, and of those on mu.
        stages: that were attacked.
        left: stages that were not.
        members: attacks on what was released, where they were asked for.
    """

    name: str
    unit: str
    delta: float
    confidence: tuple[float, float]
    stages: Sequence[StageAttack]
    left: Sequence[str] = ()
    members: Sequence[MemberAttack] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing was proven beyond a claim."""
        return all(stage.holds for stage in self.stages)


def audit_page(found: AuditFigures) -> str:
    """The page, as text."""
    banners = () if found.holds else (("alarm", BROKEN),)
    opening = page.opening_of(_lead(found), banners=banners, tiles=_tiles(found))
    parts = [_attacks(found)] if found.stages or found.left else []
    parts += [_members(found)] if found.members else []
    return page.whole_page(f"Audit of {found.name}", "what an attacker proves, beside what is "
                           "claimed", opening, parts)


BROKEN = ("More was proven than is claimed. The noise, the clipping or the account of this "
          "installation is broken: do not run it on private data.")


def _lead(found: AuditFigures) -> list[str]:
    """What was done, in words."""
    if not found.stages:
        return ["Nothing is promised of this run, or nothing of it was attacked by canaries."]
    return [
        f"Made-up {found.unit}s, so-called canaries, went by fair coins into made-up rounds, "
        "through the code that clips, adds noise and accounts, with the noise and the rounds of "
        "this run. An attacker who knows everything but the coins and the noise says of each "
        "whether it was in. No real record was looked at for this.",
        f"What his guesses prove is spent at the least: epsilon with confidence "
        f"{found.confidence[0]:.0%}, mu with {found.confidence[1]:.2%}. A build that keeps its "
        "promise stays below the claim; that it stays below does not show that it keeps it.",
        *(_in_words(stage, found) for stage in found.stages)]


def _in_words(stage: StageAttack, found: AuditFigures) -> str:
    """The attacker's success on one stage."""
    compared = "and" if stage.right <= stage.allowed(found.delta) + 0.02 else "but"
    return (f"{stage.stage}: the attacker was right about {promise.rate(stage.right)} of "
            f"{numbers.count(stage.canaries)} canaries, {compared} the claim allows "
            f"{promise.rate(stage.allowed(found.delta))}; a coin would be right about half.")


def _tiles(found: AuditFigures) -> list[KeyFigure]:
    """The large figures: the worst stage."""
    if not found.stages:
        return []
    worst = max(found.stages, key=lambda stage: stage.proven_epsilon)
    return [KeyFigure("ε at least", numbers.significant(worst.proven_epsilon),
                      f"proven, {worst.stage}"),
            KeyFigure("ε at most", numbers.epsilon(worst.claimed_epsilon), "claimed"),
            KeyFigure("attacker right", promise.rate(worst.right), "about a canary")]


def _attacks(found: AuditFigures) -> Section:
    """Bound beside claim, by stage."""
    rows = [[stage.stage, stage.mechanism, numbers.count(stage.rounds),
             numbers.count(stage.canaries), promise.rate(stage.right),
             numbers.significant(stage.proven_epsilon), numbers.epsilon(stage.claimed_epsilon),
             *(("–", "–") if stage.proven_mu is None or stage.claimed_mu is None else
               (numbers.significant(stage.proven_mu), numbers.significant(stage.claimed_mu))),
             "holds" if stage.holds else "broken"] for stage in found.stages]
    table = PageTable(["stage", "mechanism", "rounds", "canaries", "attacker right", "ε proven",
                       "ε claimed", "μ proven", "μ claimed", "verdict"], rows, words=(0, 1, 9))
    return section("audit", "Proven beside claimed", [PlacedFigure(
        "bounds", "Share of what is claimed that was proven", _chart(found), 180)],
        table=table, left=list(found.left), delta=f"{found.delta:g}")


def _chart(found: AuditFigures) -> Chart:
    """Bars of proven over claimed: of mu where it is known, which is close, else of epsilon."""
    names, values, tips = [], [], []
    for stage in found.stages:
        which, proven, claimed = (("ε", stage.proven_epsilon, stage.claimed_epsilon)
                                  if stage.proven_mu is None or not stage.claimed_mu else
                                  ("μ", stage.proven_mu, stage.claimed_mu))
        names.append(f"{stage.stage}, {which}")
        values.append(proven / claimed)
        tips.append(f"{stage.stage}: {numbers.percent(proven / claimed, 0)} of the claimed {which}")
    return Chart(
        ChartAxis("proven / claimed; above 1 the promise is broken", zero=True,
                  high=max([1.05, *(1.05 * value for value in values)])),
        ChartAxis(names=names, downwards=True),
        bars=[ChartBars("", list(range(len(names))), values, tips=tips)], lying=True,
        summary="; ".join(tips))


def _members(found: AuditFigures) -> Section:
    """What can be guessed of real records."""
    rows = [[attack.what, numbers.count(attack.members), numbers.count(attack.others),
             numbers.significant(attack.area), promise.rate(attack.caught)]
            for attack in found.members]
    return section("members", "Guessing at real records", table=PageTable(
        ["from", "members", "others", "area (0.5 is guessing)", "found at 1 % false alarms"],
        rows))
