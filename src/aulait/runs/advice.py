"""Advice before a run: whether it will learn, and what would change that.

All of it follows from the law of size (``size_law``) and the privacy plan, so from what is public
of the run; no text of a client is looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

from aulait.core.files import JsonObject
from aulait.core.units import units
from aulait.methods.contract import noised_numbers
from aulait.privacy.accounting import Event, calibrate, epsilon
from aulait.privacy.noise_ratio import REFUSED, WARNED, NoiseRatio, times
from aulait.privacy.plan import PlannedRelease
from aulait.reporting import numbers as n
from aulait.runs import size_law
from aulait.runs.noise_choices import noise_choices
from aulait.runs.prepared import PreparedRun

LARGEST_EPSILON: Final = 100.0  # beyond which an epsilon promises nothing
RATE_OF_A_STEP: Final = 8  # a step under the unit "record" takes one unit in so many


@dataclass(frozen=True)
class Advice:
    """What to know before a run begins.

    Attributes:
        verdict: whether it will learn, in one or two sentences.
        clients: trained numbers stay; so many clients that train bring the noise to the target.
            None without noise.
        epsilon: which does it with the clients there are; None without noise, or where only an
            epsilon beyond ``LARGEST_EPSILON`` would.
        record_ratio: noise over signal at the same epsilon, were the unit the record; None where
            it is already, without noise, or where nobody has several records.
        hints: what the three mean, and what else would help: (topic, sentence).
    """

    verdict: str
    clients: int | None = None
    epsilon: float | None = None
    record_ratio: float | None = None
    hints: tuple[tuple[str, str], ...] = ()

    def document(self) -> JsonObject:
        """As ``aulait plan --json`` prints it."""
        return {"verdict": self.verdict, "clients": self.clients, "epsilon": self.epsilon,
                "record_ratio": self.record_ratio,
                "hints": [{"topic": topic, "text": text} for topic, text in self.hints]}


def usual_batch(units_of_a_client: int) -> int:
    """Units in a step that suit the unit "record": noise falls with the batch."""
    return max(4, min(256, units_of_a_client // RATE_OF_A_STEP))


def advise(run: PreparedRun) -> Advice:
    """What to know of a prepared run before it begins."""
    found = size_law.noise_ratio(run)
    if found is None:
        return Advice(_without_noise(run))
    target = run.settings.privacy.target_ratio
    clients = clients_needed(run, found, target)
    enough = epsilon_needed(run, found, target)
    alternative = as_records(run)
    hints = [("clients", _clients_in_words(run, found, clients)),
             ("epsilon", _epsilon_in_words(run, found, enough))]
    if alternative is not None:
        hints.append(("unit", f"with privacy.unit = 'record' each record is protected instead of "
                              f"each client: at the same epsilon the noise is "
                              f"{times(alternative.ratio)} the signal; {alternative.outlook}"))
    if (choices := noise_choices(run)) is not None:
        hints.append(("noise", choices.in_words))
    if found.ratio > target:
        hints.append(("size", _size_in_words(run, found)))
    return Advice(_verdict(run, found), clients, enough,
                  None if alternative is None else alternative.ratio, tuple(hints))


def clients_needed(run: PreparedRun, found: NoiseRatio, target: float) -> int:
    """The fewest clients that train with which the ratio is at most a target, when the noise of a
    round, the numbers and the shares of the federation stay as they are."""
    more = found.ratio / target
    if run.settings.privacy.noised_at_sites:  # noises of sites average
        more = more**2
    return max(1, math.ceil(len(run.federation.trainers) * more - 1e-9))


def epsilon_needed(run: PreparedRun, found: NoiseRatio, target: float) -> float | None:
    """The epsilon at which the ratio is a target; None beyond ``LARGEST_EPSILON``. Votes of the
    same client get less or more noise in proportion."""
    events: Counter[Event] = Counter()
    for release in run.privacy.releases:
        if "local" in release.roles:
            multiplier = release.noise_multiplier * target / found.ratio
            events += release.all_events(multiplier)
    spent = epsilon(events, run.settings.privacy.delta or 0.0)
    return spent if spent <= LARGEST_EPSILON else None


def as_records(run: PreparedRun) -> NoiseRatio | None:
    """The law for the same run at the same epsilon, were every record protected instead of every
    client: DP-SGD in every step, with an eighth of a client's records in it."""
    settings = run.settings
    privacy, counts = settings.privacy, [len(units(site.train))
                                         for site in run.federation.training_sites]
    if privacy.protects_records or privacy.delta is None or max(counts) < 2 * RATE_OF_A_STEP:
        return None
    batch = usual_batch(max(counts))
    rate = min(1.0, max(1 / RATE_OF_A_STEP, batch / max(counts)))  # privacy.max_rate
    steps = settings.train.rounds * max(site.plan.steps for site in run.federation.training_sites)
    multiplier = calibrate(run.privacy.epsilon["local"], privacy.delta, steps, rate)
    clients = size_law.averaging_sites([min(batch, rate * count) for count in counts])
    numbers = noised_numbers(settings.method, settings.method_config, run.context, "record")
    return NoiseRatio(numbers, clients, multiplier, steps)


def _verdict(run: PreparedRun, found: NoiseRatio) -> str:
    """Whether noise leaves anything to learn."""
    outlook = f"{found.outlook[:1].upper()}{found.outlook[1:]}"
    if found.ratio > REFUSED and not run.settings.privacy.noise_acknowledged:
        outlook += ", and aulait run refuses it"
    release = _training(run)
    who = n.counted(len(run.federation.trainers), "client")
    if release.sampling_rate < 1 and not run.settings.privacy.protects_records:
        who += f" ({n.percent(release.sampling_rate, 0)} in a round)"
    return (f"{outlook}: at epsilon {run.privacy.epsilon['local']:.3g} the noise of the whole run "
            f"is {times(found.ratio)} what the {who} that train can say together.")


def _without_noise(run: PreparedRun) -> str:
    """The verdict where no update of training is released under noise."""
    federation = run.federation
    trained = n.counted(len(federation.trainers), "client")
    if run.privacy.config.off:
        return (f"It can learn: privacy is off, so no noise drowns what {trained} that train say, "
                "and nothing is promised to anybody.")
    if not federation.trainers:
        return (f"No client trains: the base learns from {run.settings.synthesis.texts:,} texts "
                f"that stand for {n.counted(len(federation.roles['proxy']), 'client')}, no better "
                "than these texts are. Read them in the report.")
    return (f"The updates of {trained} that train stay with them: each learns from its own text "
            "alone.")


def _training(run: PreparedRun) -> PlannedRelease:
    return next(own for own in run.privacy.releases if own.stage == "train")


def _clients_in_words(run: PreparedRun, found: NoiseRatio, enough: int) -> str:
    """The smallest useful number of clients."""
    count, target = len(run.federation.trainers), run.settings.privacy.target_ratio
    least = clients_needed(run, found, WARNED)
    if found.ratio <= target:
        return (f"{count:,} train; {enough:,} would do (noise {times(target)} the signal), below "
                f"{least:,} the noise is louder than the signal")
    return (f"{count:,} train; from {least:,} on the signal is as loud as the noise, from "
            f"{enough:,} on the noise is {times(target)} the signal")


def _epsilon_in_words(run: PreparedRun, found: NoiseRatio, enough: float | None) -> str:
    """What another epsilon would give."""
    target, own = run.settings.privacy.target_ratio, run.privacy.epsilon["local"]
    there = f"the noise is {times(target)} the signal"
    if enough is None:
        return (f"{own:.3g} now; no epsilon up to {LARGEST_EPSILON:g} is enough for noise "
                f"{times(target)} the signal, and above some 20 it promises next to nothing")
    if found.ratio <= target:
        return f"{own:.3g} now; at {enough:.3g} it would still learn ({there})"
    warned = ", which promises next to nothing" if enough > 20 else ""
    return f"{own:.3g} now; at {enough:.3g}{warned}, {there}"


def _size_in_words(run: PreparedRun, found: NoiseRatio) -> str:
    """Fewer trained numbers, the cheapest help."""
    target, own = run.settings.privacy.target_ratio, run.settings
    ways = ["fewer modules (adapter.targets)" if own.adapter.layers == 1
            else "fewer layers (adapter.layers)"]
    if own.adapter.rank > 1:
        ways.insert(0, "a smaller adapter.rank, or 'auto'")
    if own.algorithm["name"] != "cores" and not own.privacy.protects_records:
        ways.insert(0, "algorithm.name = 'cores'")
    return (f"{found.numbers:,} numbers are trained under noise; {found.affordable(target):,} "
            f"would keep it at {times(target)} the signal: {', or '.join(ways)}")
