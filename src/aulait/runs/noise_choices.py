"""Which noise suits a run in which a part of the clients takes part in a round: independent,
independent on clients drawn in secret, or correlated."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from aulait.core.files import JsonObject
from aulait.methods.contract import noised_numbers
from aulait.privacy.accounting import Event, calibrate
from aulait.privacy.banded import Banded
from aulait.privacy.noise_ratio import NoiseRatio, times
from aulait.runs.prepared import PreparedRun


@dataclass(frozen=True)
class NoiseChoices:
    """The noise of the whole run beside its signal, at the run's epsilon and rounds, without
    proxies.

    Attributes:
        cohorts: of which one takes part in a round; where clients are drawn, as many as fit the
            share that is drawn.
        independent: the cohorts take turns, with independent noise.
        amplified: as many clients are drawn in secret (Poisson), with independent noise.
        correlated: the cohorts take turns, with noise that takes away its own.
    """

    cohorts: int
    independent: float
    amplified: float
    correlated: float

    def document(self) -> JsonObject:
        """As ``aulait plan --json`` prints it."""
        return dict(vars(self))

    @property
    def in_words(self) -> str:
        """The three in one sentence."""
        return (f"with {self.cohorts} cohorts that take turns the noise is "
                f"{times(self.independent)} the signal if independent, {times(self.correlated)} if "
                f"correlated (privacy.mechanism = 'banded'), and {times(self.amplified)} if as "
                "many are drawn in secret each round (federation.sampling = 'poisson')")


def noise_choices(run: PreparedRun) -> NoiseChoices | None:
    """The choices of a run; None where everybody takes part in every round, which is then the best
    there is, or where the noise is not one on sums over clients at the server."""
    release = next((own for own in run.privacy.releases if own.stage == "train"), None)
    settings, delta = run.settings, run.settings.privacy.delta
    share, target = settings.federation.share, run.privacy.epsilon.get("local", math.inf)
    if (release is None or share == 1.0 or delta is None or math.isinf(target)
            or settings.privacy.protects_records or settings.privacy.secure):
        return None
    cohorts, rounds = max(2, round(1.0 / share)), release.rounds
    clients = len(run.federation.trainers) / cohorts
    numbers = noised_numbers(settings.method, settings.method_config, run.context, "client")
    beside = sum((own.events for own in run.privacy.releases
                  if own is not release and "local" in own.roles), Counter[Event]())

    def ratio(multiplier: float) -> float:
        return NoiseRatio(numbers, clients, multiplier, rounds).ratio

    in_turns = calibrate(target, delta, math.ceil(rounds / cohorts), beside=beside)
    return NoiseChoices(
        cohorts, ratio(in_turns),
        ratio(calibrate(target, delta, rounds, 1.0 / cohorts, beside)),
        ratio(in_turns * Banded(cohorts).whole_run(rounds) / math.sqrt(rounds)))
