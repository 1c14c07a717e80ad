"""The section on virtual time: how long a real federation would have taken, who was at work, and
who waited for whom.

All of it comes from the cost model of the tiers' machines and the run's seed; nothing here was
measured. Seconds and joules of a tier are summed over its clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Final

from aulait.reporting import clock_figures, markup, numbers, story
from aulait.reporting.folder import RunFiles
from aulait.reporting.markup import PageTable, PlacedFigure, Section
from aulait.reporting.stage_names import STAGE_NAMES
from aulait.reporting.values import number
from aulait.reporting.virtual import (
    OUTCOMES,
    SUMMED,
    VirtualTime,
    deadline_s,
    requests_received,
    round_outcome,
    tier_sums,
    timed_rounds,
    virtual_time_of,
)
from aulait.runfolder.schema import TierResult, VirtualClock

ALIKE: Final = 0.98
"""Two tiers whose clients' mean times differ by less than this share are equally slow."""


def virtual_time_section(run: RunFiles) -> Section | None:
    """Virtual time in words, by tier, by round, and the loss over it; None where no tier names a
    machine."""
    found = virtual_time_of(run)
    if found is None:
        return None
    low, high = 12 + 34 * len(found.tiers), 220
    shown = [
        ("tier-time", "A client's round, mean: at work and waiting", low,
         clock_figures.tier_time(found)),
        ("tier-replies", "Who answered: shares of the clients' rounds", low,
         clock_figures.tier_replies(found)),
        ("round-time", "Length of every round, and how it ended", high,
         clock_figures.round_time(run)),
        ("loss-time", "Loss on held-out text over virtual time", high,
         clock_figures.loss_time(run)),
    ]
    charts = [PlacedFigure(name, title, figure, height)
              for name, title, height, figure in shown if figure]
    return markup.section(
        "clock", "Virtual time", charts, sentences=virtual_time_sentences(run, found),
        tiers=_tiers_table(run, found),
        unknown_power=any(own["energy_j"] == 0 < own["busy_s"] for own in found.tiers.values()))


def virtual_time_sentences(run: RunFiles, found: VirtualTime) -> list[str]:
    """What the clock says, in two paragraphs: length, waiting, energy; the straggler, rounds that
    did not go well."""
    stages = [line.stage for line, _ in timed_rounds(run)]
    each = [f"{numbers.counted(stages.count(stage), 'round')} of {name}"
            for stage, name in STAGE_NAMES.items() if stage in stages]
    text = f"A federation of these machines would have taken {numbers.duration(found.total_s)}"
    text += f" for {' and '.join(each)}" if each else ""
    text += (
        f"; its clients spent {numbers.percent(found.idle_share)} of their time in rounds waiting"
    )
    text += f" and used {energy_if_known(found.energy_j)}, links included" if found.energy_j else ""
    paced = _pace(run)
    return [f"{text}. This is modelled, not measured.",
            " ".join((*(paced or _straggler(run)), *_incidents(run)))]


def _pace(run: RunFiles) -> list[str]:
    """How clients that work at their own pace filled the buffers; empty where they worked in
    rounds."""
    told = [(clock, clock.staleness) for _, clock in timed_rounds(run)
            if clock.staleness is not None]
    if not told:
        return []
    answered = fmean(clock.answered or 0.0 for clock, _ in told)
    return [f"Clients trained at their own pace: {numbers.count(answered)} updates filled a "
            f"buffer, on average after {numbers.duration(fmean(c.round_s or 0.0 for c, _ in told))}"
            "; an update began "
            f"{numbers.significant(fmean(age for _, age in told))} buffers before on average, "
            f"{numbers.count(max(clock.stalest or 0.0 for clock, _ in told))} at most."]


def energy_if_known(value: object, busy_s: float = 1.0) -> str:
    """Joules as text; none after work stands for a machine whose power is not known."""
    if number(value) == 0:
        return "not known" if busy_s > 0 else "–"
    return numbers.energy(value)


def _straggler(run: RunFiles) -> list[str]:
    """Which tier the others waited for, and when it was no tier that they waited for."""
    told = [(means, clock.round_s or 0.0) for _, clock in timed_rounds(run)
            if (means := _means(clock))]
    several = [means for means, _ in told if len(means) > 1]
    slow = [(name, means) for means in several if (name := _slowest(means)) is not None]
    found = []
    if slow:
        names = [name for name, _ in slow]
        name = max(dict.fromkeys(names), key=names.count)
        among = [means for slowest, means in slow if slowest == name]
        tiers_there = dict.fromkeys(tier for means in among for tier in means)
        each = {tier: fmean(means[tier] for means in among if tier in means)
                for tier in tiers_there}
        quick = min(each, key=lambda tier: each[tier])
        found.append(
            f"The straggler was “{name}”: in {names.count(name)} of "
            f"{numbers.counted(len(several), 'round')} with several tiers its clients were the "
            f"slowest, on average {numbers.duration(each[name])} at work against "
            f"{numbers.duration(each[quick])} in “{quick}”.")
    elif several:
        found.append("No tier held up the others: their clients were equally slow.")
    elif told:
        found.append("In every round only one tier was at work, so no tier waited for another.")
    behind = sum(max(means.values()) < 0.5 * round_s for means, round_s in told)
    if behind:
        found.append(
            f"In {numbers.counted(behind, 'round')} even the slowest tier was at work for less "
            "than half of the time on average: there clients waited for the server (new "
            "candidates, proxies) or for a few slow ones among themselves.")
    return found


def _incidents(run: RunFiles) -> list[str]:
    states = [round_outcome(clock, deadline_s(run)) for _, clock in timed_rounds(run)]
    late, bare = states.count("closed at the deadline"), states.count("nobody answered")
    found = []
    if late:
        limit = numbers.duration(deadline_s(run))
        closed = numbers.counted(late, "round")
        found.append(
            f"The deadline of {limit} closed {closed} before all had answered; in a longer round "
            "the server was still at work.")
    return (
        [*found, f"In {numbers.counted(bare, 'round')} nobody answered in time."] if bare else found
    )


def _means(clock: VirtualClock) -> dict[str, float]:
    """Tier -> seconds that a client of it was at work in this round, on average; tiers that were
    not asked are left out."""
    sums = {name: tier_sums(own) for name, own in clock.tiers.items()}
    return {name: own["busy_s"] / requests_received(own) for name, own in sums.items()
            if requests_received(own) > 0}


def _slowest(means: Mapping[str, float]) -> str | None:
    """The tier whose clients were at work longest; None where two are equally slow."""
    first, second = sorted(means, key=lambda name: -means[name])[:2]
    return first if means[second] < ALIKE * means[first] else None


def _tiers_table(run: RunFiles, found: VirtualTime) -> PageTable:
    tiers = {str(tier.name): tier for tier in run.result.tiers}
    everyone = sum(own["busy_s"] for own in found.tiers.values())
    head = ["tier", "clients", "machine", "placement", *OUTCOMES, "at work", "waiting", "energy",
            "link energy"]
    rows = []
    for name in dict.fromkeys((*tiers, *found.tiers)):
        tier = tiers.get(name, TierResult())
        own = found.tiers.get(name, dict.fromkeys(SUMMED, 0.0))
        busy_s, idle_s = own["busy_s"], own["idle_s"]
        rows.append([
            name, numbers.or_dash(tier.clients, numbers.count),
            story.machine_name(tier.machine) or "–", tier.placement or "–",
            *(numbers.count(own[key]) for key in OUTCOMES), _part(busy_s, everyone),
            _part(idle_s, busy_s + idle_s),
            energy_if_known(own["energy_j"], busy_s), energy_if_known(own["link_j"], 0.0)])
    return PageTable(head, rows, words=(0, 2, 3))


def _part(part_s: float, whole_s: float) -> str:
    """Seconds, and their share of a whole."""
    return (
        f"{numbers.duration(part_s)} ({numbers.percent(part_s / whole_s, 0)})"
        if part_s > 0 and whole_s > 0 else "–"
    )
