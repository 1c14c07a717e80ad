"""The law of size for a prepared run: noise beside signal from its settings, the refusal of runs
that cannot learn, and the rank and the layers that it can afford."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from aulait.core.errors import ConfigError, require
from aulait.core.units import units
from aulait.methods.contract import noised_numbers
from aulait.methods.shared.mixture import MixtureConfig
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.privacy.banded import Banded
from aulait.privacy.mechanisms import find_mechanism
from aulait.privacy.noise_ratio import REFUSED, WARNED, NoiseRatio, ratio_in_words
from aulait.privacy.plan import PlannedRelease
from aulait.privacy.secure.quorum import Quorum
from aulait.runs.experiment_file import Settings
from aulait.runs.prepared import Federation, PreparedRun

MOST_RANK = 64  # beyond which "auto" goes no further
USUAL_RANK = 8  # of "auto" without privacy
# alpha over rank of "auto": that with which the learning rates of first experiments were measured
CLIENTS_ALPHA, USUAL_ALPHA = 4.0, 2.0
TURN = 0.3  # square of what local clients lack at which proxies weigh half of their share


def noise_ratio(run: PreparedRun, *, diluted: bool = True) -> NoiseRatio | None:
    """The noise of the training stage beside its signal; None where nothing is released under
    noise.

    Args:
        run: as prepared.
        diluted: whether proxies count, over whose updates the noise is spread.
    """
    release = next((own for own in run.privacy.releases if own.stage == "train"), None)
    if release is None:
        return None
    settings, federation = run.settings, run.federation
    clients = (_averaging_sites(settings, federation, release)
               if settings.privacy.protects_records
               else _summed_share(settings, release) * len(federation.trainers))
    numbers = noised_numbers(settings.method, settings.method_config, run.context,
                             settings.privacy.unit)
    if diluted:
        clients *= 1.0 + _diluting(run) / len(federation.trainers)
    return NoiseRatio(numbers, clients, _whole_noise(settings, federation, release),
                      release.rounds * release.steps)


def _whole_noise(settings: Settings, federation: Federation, release: PlannedRelease) -> float:
    """The noise multiplier of independent noise that would be as loud in the whole run, when all
    clients answer: under secure aggregation each adds its part, and the fewest that may stay have
    enough; correlated noise takes away its own; an adaptive bound leaves a part of the budget
    to its count."""
    privacy, multiplier = settings.privacy, release.noise_multiplier
    count = round(len(federation.trainers) / release.cohorts)
    mechanism = find_mechanism(release.mechanism)
    if isinstance(mechanism, Banded):
        return multiplier * mechanism.whole_run(release.rounds) / math.sqrt(release.rounds)
    if privacy.adaptive is not None:
        multiplier = privacy.adaptive.update_noise(multiplier)
    if not privacy.secure:
        return multiplier
    honest = Quorum.of(count, privacy.dropouts, privacy.colluders).honest
    return multiplier * math.sqrt(count / honest)


def _summed_share(settings: Settings, release: PlannedRelease) -> float:
    """Of the clients that train, how many are in one sum."""
    federation = settings.federation
    return (federation.share if federation.asynchronous
            else release.sampling_rate / release.cohorts)


def _averaging_sites(settings: Settings, federation: Federation,
                     release: PlannedRelease) -> float:
    """By what the noise is divided: as ``averaging_sites``, of the sites that a step asks; of one
    sum over all sites, all units that it expects."""
    expected = expected_units(federation, release.sampling_rate)
    if settings.privacy.secure:
        return sum(expected)
    return averaging_sites(expected, settings.federation.share)


def expected_units(federation: Federation, most: float) -> list[float]:
    """Of every site that trains, the units that one of its steps expects.

    Args:
        federation: its sites.
        most: the largest rate at which a unit may be in a step.
    """
    found = []
    for site in federation.training_sites:
        count = len(units(site.train))
        found.append(min(1.0, site.plan.batch / count, most) * count)
    return found


def averaging_sites(expected: Sequence[float], rate: float = 1.0) -> float:
    """By what the noise of steps is divided where sites add it: K / sqrt(sum of 1 / b_k²).

    Args:
        expected: b_k, units that a step of each site expects.
        rate: share of the sites that take part in a round.
    """
    sites = max(1.0, rate * len(expected))
    mean = sum(1 / each**2 for each in expected) / len(expected)
    return sites / math.sqrt(sites * mean)


def _diluting(run: PreparedRun) -> float:
    """Local clients' worth of proxies that learn beside them: their weight in the mean."""
    settings, federation = run.settings, run.federation
    if settings.synthesis.proxies not in ("synthetic", "public"):
        return 0.0
    config = settings.method_config
    weight = config.weight if isinstance(config, MixtureConfig) else 1.0
    return len(federation.roles["proxy"]) / weight


def with_settled_weight(run: PreparedRun) -> Settings:
    """The settings with the weight of local clients against proxies, where it is "auto".

    Proxies are there to make good what the local clients' mean lacks, l = r² + 1/n: its noise, r²
    of the signal (the law without proxies), and that n clients are few. Of the mean they get the
    part l² / (l² + 0.3) of the share of clients that they stand for: next to nothing where many
    clients train with little noise, and nearly their share where noise drowns the local ones. How
    far the proxies' text is from the clients' nobody knows before the run; so the part turns from
    one to the other quickly, at l about a half (results/two-stages.md has what that is read off).
    """
    settings, federation = run.settings, run.federation
    config = settings.method_config
    if not isinstance(config, MixtureConfig) or config.local_weight != "auto":
        return settings
    local, proxied = len(federation.trainers), len(federation.roles["proxy"])
    weight = 1.0
    if local and proxied:
        found = noise_ratio(run, diluted=False)
        lacking = (found.ratio**2 if found is not None else 0.0) + 1.0 / local
        part = proxied / (local + proxied) * lacking**2 / (lacking**2 + TURN)
        weight = float(f"{proxied * (1.0 - part) / (part * local):.4g}")
    return settings.model_copy(
        update={"algorithm": {**settings.algorithm, "local_weight": weight}})


def law_in_words(run: PreparedRun) -> str:
    """The law of a run as a sentence; empty where nothing is released under noise."""
    found = noise_ratio(run)
    if found is None:
        return ""
    count = len(run.federation.trainers)
    who = f"{count:,} client{'' if count == 1 else 's'}"
    if run.settings.privacy.protects_records:
        who += ", noise on each one's steps"
    if dilution := _diluting(run):
        who += f", diluted by proxies worth {dilution:,.0f} more"
    epsilon = run.privacy.epsilon["local"]
    return ratio_in_words(found, run.settings.privacy.target_ratio, who,
                          f"epsilon {epsilon:.3g}")


def warning(run: PreparedRun) -> str | None:
    """What to tell before a run whose noise is louder than its signal; None for others.

    Raises:
        ConfigError: the noise is so loud that nothing can be learnt, and nobody said that this is
            meant.
    """
    found, privacy = noise_ratio(run), run.settings.privacy
    if found is None or found.ratio <= WARNED:
        return None
    refused = (found.ratio > REFUSED and not privacy.noise_acknowledged
               and privacy.noise_seed is None)
    require(not refused, ConfigError,
            f"{law_in_words(run)}; use algorithm 'cores', adapter.rank = 'auto', fewer layers or "
            "more clients, or set privacy.noise_acknowledged = true to run it all the same")
    return law_in_words(run)


def with_affordable_adapter(run: PreparedRun) -> Settings:
    """The settings with rank and layers that the run can afford, and an alpha that follows the
    rank, where they are "auto".

    The rank goes first: as large as all layers allow. Where even rank 1 is too large and the layers
    are "auto" too, the last blocks are kept that fit. Proxies do not count: they spread the noise
    by making the local clients' signal as small.
    """
    adapter, found = run.settings.adapter, noise_ratio(run, diluted=False)
    most = math.inf if found is None else found.affordable(run.settings.privacy.target_ratio)
    if "rank" in adapter.auto:
        rank = USUAL_RANK
        if found is not None:
            rank = max((r for r in range(1, MOST_RANK + 1) if _numbers(run, r, adapter) <= most),
                       default=1)
        adapter = adapter.model_copy(update={"rank": rank})
    if "layers" in adapter.auto and _numbers(run, adapter.rank, adapter) > most:
        blocks = loading.block_count(run.models.base)
        fits = [own for count in range(1, blocks + 1)
                if _numbers(run, adapter.rank, own := adapter.model_copy(update={"layers": count}))
                <= most]
        adapter = fits[-1] if fits else adapter.model_copy(update={"layers": 1})
    if "alpha" in adapter.auto:
        privacy = run.settings.privacy
        whole = not privacy.off and privacy.unit == "client"
        a_rank = CLIENTS_ALPHA if whole else USUAL_ALPHA
        adapter = adapter.model_copy(update={"alpha": a_rank * adapter.rank})
    return run.settings.model_copy(update={"adapter": adapter})


def _numbers(run: PreparedRun, rank: int, adapter: AdapterConfig) -> int:
    """Trained numbers under noise at a rank, on an adapter's layers."""
    shapes = loading.targets(run.models.base, adapter)
    context = replace(run.context, shapes=shapes, rank=rank, ranks={})
    return noised_numbers(run.settings.method, run.settings.method_config, context,
                          run.settings.privacy.unit)
