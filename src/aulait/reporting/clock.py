"""The section on virtual time: how long a real federation would have taken, who was at work, and
who waited for whom.

All of it comes from the cost model of the tiers' machines and the run's seed; nothing here was
measured. Seconds and joules of a tier are summed over its clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, Final

from aulait.reporting import clock_figures, markup, numbers, story
from aulait.reporting.folder import Run, Table, number, words
from aulait.reporting.markup import Html, Section
from aulait.reporting.virtual import (
    KEYS,
    STAGES,
    Spent,
    asked,
    deadline_s,
    spent,
    state,
    ticks,
    tiers,
)

ALIKE: Final = 0.98
"""Two tiers whose clients' mean times differ by less than this share are equally slow."""


def section(run: Run) -> Section | None:
    """Virtual time in words, by tier, by round, and the loss over it; None where no tier names a
    machine."""
    found = spent(run)
    if found is None:
        return None
    low, high = 110 + 34 * len(found.tiers), 300
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
    places = [markup.chart(name, title, height) for name, title, height, figure in shown if figure]
    body = markup.join(*map(markup.paragraph, sentences(run, found)), _table(run, found),
                       markup.columns(*places) if places else "", markup.note(_legend(found)))
    return Section("clock", "Virtual time", body, {name: figure for name, _, _, figure in shown
        if figure})


def sentences(run: Run, found: Spent) -> list[str]:
    """What the clock says, in two paragraphs: length, waiting, energy; the straggler, rounds that
    did not go well."""
    stages = [line["stage"] for line, _ in ticks(run)]
    each = [f"{numbers.counted(stages.count(stage), 'round')} of {name}" for stage, name in STAGES
            if stage in stages]
    text = f"A federation of these machines would have taken {numbers.duration(found.total_s)}"
    text += f" for {' and '.join(each)}" if each else ""
    text += (
        f"; its clients spent {numbers.percent(found.idle_share)} of their time in rounds waiting"
    )
    text += f" and used {energy(found.energy_j)}, links included" if found.energy_j else ""
    return [f"{text}. This is modelled, not measured.",
            " ".join((*_straggler(run), *_incidents(run)))]


def energy(value: Any, busy_s: float = 1.0) -> str:
    """Joules as text; none after work stands for a machine whose power is not known."""
    if number(value) == 0:
        return "not known" if busy_s > 0 else "–"
    return numbers.energy(value)


def _straggler(run: Run) -> list[str]:
    """Which tier the others waited for, and when it was no tier that they waited for."""
    told = [(means, number(clock.get("round_s")) or 0.0) for _, clock in ticks(run)
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
            f"{numbers.counted(len(several), 'round')} with several tiers "
                     f"its clients were the slowest, on average {numbers.duration(each[name])} at "
                     "work against "
                     f"{numbers.duration(each[quick])} in “{quick}”.")
    elif several:
        found.append("No tier held up the others: their clients were equally slow.")
    elif told:
        found.append("In every round only one tier was at work, so no tier waited for another.")
    behind = sum(max(means.values()) < 0.5 * round_s for means, round_s in told)
    if behind:
        found.append(
            f"In {numbers.counted(behind, 'round')} even the slowest tier was at work for less "
            "than half of the time on average: "
                     "there clients waited for the server (new candidates, proxies) or for a few "
                     "slow ones among themselves.")
    return found


def _incidents(run: Run) -> list[str]:
    states = [state(clock, deadline_s(run)) for _, clock in ticks(run)]
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


def _means(clock: Table) -> dict[str, float]:
    """Tier -> seconds that a client of it was at work in this round, on average; tiers that were
    not asked are left out."""
    return {name: own["busy_s"] / asked(own) for name, own in tiers(clock).items()
            if asked(own) > 0}


def _slowest(means: Mapping[str, float]) -> str | None:
    """The tier whose clients were at work longest; None where two are equally slow."""
    first, second = sorted(means, key=lambda name: -means[name])[:2]
    return first if means[second] < ALIKE * means[first] else None


def _table(run: Run, found: Spent) -> Html:
    rows = {str(tier.get("name")): tier for tier in run.tiers}
    everyone = sum(own["busy_s"] for own in found.tiers.values())
    head = ["tier", "clients", "machine", "placement", *KEYS[:4], "at work", "waiting", "energy",
            "link energy"]
    lines = []
    for name in dict.fromkeys((*rows, *found.tiers)):
        tier, own = rows.get(name, {}), found.tiers.get(name, dict.fromkeys(KEYS, 0.0))
        busy_s, idle_s = own["busy_s"], own["idle_s"]
        clients = number(tier.get("clients"))
        lines.append([
            name, "–" if clients is None else numbers.count(clients), story.machine(tier) or "–",
            words(tier.get("placement")) or "–",
            *(numbers.count(own[key]) for key in KEYS[:4]), _part(busy_s, everyone),
            _part(idle_s, busy_s + idle_s),
            energy(own["energy_j"], busy_s), energy(own["link_j"], 0.0)])
    return markup.table(head, lines, words=(0, 2, 3))


def _part(part_s: float, whole_s: float) -> str:
    """Seconds, and their share of a whole."""
    return (
        f"{numbers.duration(part_s)} ({numbers.percent(part_s / whole_s, 0)})"
        if part_s > 0 and whole_s > 0 else "–"
    )


def _legend(found: Spent) -> str:
    text = (
        "At work and waiting are times of all clients of the tier in all rounds, summed; time on "
        "the link is at work. In brackets: the "
    )
    text += (
        "tier's share of all clients' work, and the share of its own time that it waited. Energy "
        "is that of computing and waiting, "
    )
    text += (
        "without the link's. Waiting is from a client's own end to the end of the round, and costs "
        "the machine's idle power. Late: "
    )
    text += (
        "still at work when the round was closed, so that the work was in vain; lost: failed on "
        "the way; away: not there at the start "
    )
    text += "and not asked."
    unknown = any(own["energy_j"] == 0 < own["busy_s"] for own in found.tiers.values())
    return (
        text + (" Where the power of a machine is not known its energy counts as none in the total."
                if unknown else "")
    )
