"""What noise a release gets, how far one protected unit can move what gets it, and what it costs.

A mechanism is an object under a name in the registry ``MECHANISMS``; a third party adds one by
an entry point of the group ``aulait.mechanism``. ``[privacy] mechanism = "NAME"`` chooses one for
the unit "client"; for the unit "record" the method names the one that its sites use. The plan
(``aulait.privacy.plan``), the aggregator, the ledger and a site's own account all ask the same
object. It must provide what ``Mechanism`` lists:

    unit         "client" or "record": what it protects
    relations    the neighbouring relations for which its sensitivity holds
    amplified    whether Poisson sampling of the unit may be counted in favour of privacy
    sensitivity  (bound, relation) -> L2 distance by which one unit moves what gets the noise
    event        (noise_multiplier, sampling_rate, steps) -> the Gaussian it is accounted as; the
                 mechanism must be at least as private as that event says
    add_noise    (total, sigma, source, state) -> (noised total, state after it)

``noise_multiplier`` is sigma / sensitivity. Nothing but ``add_noise`` sees a sum, and it may draw
from ``source`` only. ``total`` lies on the public grid of noise of standard deviation sigma
(``aulait.privacy.noise``), its summands were rounded toward zero, and ``source`` draws multiples of
the grid of the standard deviation it is asked for: drawn with at most sigma, the noise hides the
last bits of the sum as well as the first. Drawn with more it lies on a coarser grid, between whose
points they show. What comes after the noise is post-processing and may be anything. ``state`` holds
what a mechanism with correlated noise remembers of its own earlier noise, tensors by name; it is
empty before the first release of a stage, it is as secret as the noise, and it is saved with the
run's checkpoint until the run is done. A state is used once: where a release may have been made
from it already, because its round was interrupted, or where rounds lie between, the next one begins
with an empty state, so that no two noises share a past. It is accounted again. Under the unit
"record" the sites add the noise step by step (``aulait.training.record_gradients``) and the
aggregator adds none.

A mechanism of a family has a method ``of``: for ``find_mechanism("NAME:PARAMETER")`` the object
NAME is asked ``of("PARAMETER")``, as "banded:10" is for ten cohorts.

A toy, whole: coordinates that the noise alone explains are set to zero, which is post-processing
and costs nothing.

    from aulait.privacy.mechanisms import Gaussian

    class Thresholded(Gaussian):
        def add_noise(self, total, sigma, source, state):
            noised, state = super().add_noise(total, sigma, source, state)
            kept = {name: value * (value.abs() > 2 * sigma) for name, value in noised.items()}
            return kept, state

    thresholded = Thresholded()

    # pyproject.toml
    [project.entry-points."aulait.mechanism"]
    thresholded = "my_package:thresholded"
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from aulait.core.errors import ConfigError, PrivacyError, require
from aulait.core.registry import Registry, missing_names
from aulait.privacy.accounting import Event
from aulait.privacy.relations import Relation as Relation
from aulait.privacy.relations import Unit as Unit

if TYPE_CHECKING:  # the plan and the command line need no torch
    from aulait.core.types import Tensors
    from aulait.privacy.noise_source import NoiseSource

DISTRIBUTED: Final = "distributed-gaussian"  # what privacy.trust = "secure" uses
DISTRIBUTED_RECORDS: Final = "distributed-records"  # what it uses for the unit "record"
DISTRIBUTED_SHARE: Final = 1.0 - 1e-12  # of its noise multiplier that is accounted

BANDED_NOISE: Final = "banded"


class Mechanism(Protocol):
    """What a mechanism provides; the head of this file says it with a toy.

    Attributes:
        unit: what it protects.
        relations: neighbouring relations for which the sensitivity holds.
        amplified: whether Poisson sampling of the unit may be counted.
    """

    unit: Unit
    relations: tuple[Relation, ...]
    amplified: bool

    def sensitivity(self, bound: float, relation: Relation) -> float:
        """L2 distance by which one unit moves what gets the noise; ``bound`` is finite and > 0."""

    def event(self, noise_multiplier: float, sampling_rate: float, steps: int) -> Event:
        """The release as the accountant counts it."""

    def add_noise(
        self, total: Tensors, sigma: float, source: NoiseSource, state: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The sum with noise, float64, and what the mechanism remembers.

        Args:
            total: the sum, float64, on the grid of noise of this sigma; sensitive.
            sigma: standard deviation of the noise; at most this may be asked of ``source``.
            source: the only source of noise.
            state: what the mechanism remembers.
        """


@runtime_checkable
class Family(Protocol):
    """Mechanisms that differ by a parameter, one of which stands for all."""

    def of(self, parameter: str) -> Mechanism:
        """The one with that parameter.

        Raises:
            PrivacyError: there is none.
        """


class Gaussian:
    """N(0, sigma²) on every coordinate of the sum over clients, each clipped to the bound C.

    One client more or less, or one in whose place stands another that adds nothing, moves the sum
    by at most C; another client in its place by at most 2 C.
    """

    unit: Unit = "client"
    relations: tuple[Relation, ...] = ("add-remove", "zero-out", "replace")
    amplified = True

    def sensitivity(self, bound: float, relation: Relation) -> float:
        """C, or 2 C with the relation "replace"."""
        return (2.0 if relation == "replace" else 1.0) * bound

    def event(self, noise_multiplier: float, sampling_rate: float, steps: int) -> Event:
        """Exactly a (Poisson sampled) Gaussian."""
        return Event(noise_multiplier, sampling_rate, steps)

    def add_noise(
        self, total: Tensors, sigma: float, source: NoiseSource, state: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Independent noise, tensor by tensor in the order of ``total``, on its grid; nothing is
        remembered."""
        noised = {name: value + source.gaussian(tuple(value.shape), sigma)
                  for name, value in total.items()}
        return noised, state


class DistributedGaussian(Gaussian):
    """Discrete Gaussian noise, a part from every client, on the sum that secure aggregation shows.

    The coordinator sees who takes part, so it is no secret whether a client does: in the place of
    a client stands one that adds its noise alone, or another one. With the relation "zero-out" one
    client moves the sum by at most C, with "replace" by at most 2 C. Sampling hides nobody from the
    coordinator, so none is counted. It is accounted by its Rényi divergences, which those of a
    Gaussian of the same multiplier bound but for a part in 10^12
    (``aulait.privacy.secure.discrete_gaussian``; the aggregator checks it in every release).
    """

    relations: tuple[Relation, ...] = ("zero-out", "replace")
    amplified = False

    def event(self, noise_multiplier: float, sampling_rate: float, steps: int) -> Event:
        """A Gaussian of which only the Rényi divergences are claimed.

        Raises:
            PrivacyError: sampling or several steps are to be counted, and the mechanism has none.
        """
        require(sampling_rate == 1.0 or self.amplified, PrivacyError,
                f"sampling rate {sampling_rate} of a sum of clients that the server sees come and "
                "go found, expected 1: sampling hides nobody from it")
        require(steps == 1, PrivacyError,
                f"{steps} noised steps in a release of a secure sum found, expected 1; set "
                "train.steps = 1")
        return Event(noise_multiplier * DISTRIBUTED_SHARE, sampling_rate, steps, concentrated=True)

    def add_noise(
        self, total: Tensors, sigma: float, source: NoiseSource, state: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Never: the clients add it.

        Raises:
            PrivacyError: always.
        """
        raise PrivacyError("mechanism 'distributed-gaussian' is asked for noise at the server, "
                           "expected it at the clients; set privacy.trust = \"secure\"")


class DistributedRecords(DistributedGaussian):
    """Discrete Gaussian noise, a part from every site, on the sum over all records of all sites.

    A site adds up the clipped gradients (or votes) of single units, each rounded toward zero onto
    the grid of the noise, so that one of them moves the sum of all sites by at most C; a null unit
    stands in its place. The units of a step are drawn one by one and in secret within the site
    (Poisson), which the coordinator does not see. A release is one step.
    """

    unit: Unit = "record"
    relations: tuple[Relation, ...] = ("zero-out",)
    amplified = True


class DpSgd(Gaussian):
    """Noise on the sum of clipped gradients of single records, in every step of a site.

    Every record of the site is in a step's batch with probability q, on its own (Poisson). The
    gradient of each of them is clipped to C, the sum gets N(0, z² C² I): a Poisson sampled Gaussian
    mechanism. Abadi et al., "Deep Learning with Differential Privacy", CCS 2016.
    """

    unit: Unit = "record"
    relations: tuple[Relation, ...] = ("zero-out",)


class GaussianBatch(Gaussian):
    """Noise on the clipped gradient of a whole batch, in every step of a site.

    The gradient of the mean loss of one batch, its A part and its B part clipped to C each *as a
    whole*, each with N(0, sigma² C² I). Whatever changes, each part stays in its ball of radius C,
    so it moves by at most 2C, the two together by at most 2√2 C: z = sigma / (2√2), the same as two
    releases of sigma/2. It holds for both relations. It is not an average over records: the batch
    does not make the noise smaller. No amplification by sampling is counted: for secret,
    independent Poisson batches it could be proven (the divergence of Gaussian mixtures is jointly
    convex), but the rule says only "a mini-batch", which in practice is a pass in an order that
    need not be secret.
    """

    unit: Unit = "record"
    relations: tuple[Relation, ...] = ("zero-out", "replace")
    amplified = False

    def sensitivity(self, bound: float, relation: Relation) -> float:
        """2√2 C for both relations."""
        return 2.0 * math.sqrt(2.0) * bound


class GaussianVotes(Gaussian):
    """Noise on the sum of a site's votes, each unit's votes clipped to the bound S.

    A null unit in the place of another moves the sum by at most S, another unit by at most 2 S.
    Every unit votes in every round, so nothing is counted for sampling.
    """

    unit: Unit = "record"
    relations: tuple[Relation, ...] = ("zero-out", "replace")
    amplified = False


GAUSSIAN, DP_SGD, GAUSSIAN_BATCH = Gaussian(), DpSgd(), GaussianBatch()
GAUSSIAN_VOTES, DISTRIBUTED_GAUSSIAN = GaussianVotes(), DistributedGaussian()
RECORDS_TOGETHER = DistributedRecords()
MECHANISMS: Registry[Mechanism] = Registry(
    "mechanism",
    {"gaussian": f"{__name__}:GAUSSIAN", BANDED_NOISE: "aulait.privacy.banded:BANDED",
     DISTRIBUTED: f"{__name__}:DISTRIBUTED_GAUSSIAN", "dp-sgd": f"{__name__}:DP_SGD",
     DISTRIBUTED_RECORDS: f"{__name__}:RECORDS_TOGETHER",
     "gaussian-batch": f"{__name__}:GAUSSIAN_BATCH",
     "gaussian-votes": f"{__name__}:GAUSSIAN_VOTES"},
    lambda thing: missing_names(thing, ("sensitivity", "event", "add_noise"),
                                ("unit", "relations", "amplified")))


def find_mechanism(name: str, unit: str | None = None) -> Mechanism:
    """The mechanism of that name.

    Args:
        name: in the registry; or "NAME:PARAMETER", of a family.
        unit: what it must protect; None: anything.

    Raises:
        PrivacyError: nothing has that name, or it protects another unit.
    """
    family, colon, parameter = name.partition(":")
    try:
        mechanism = MECHANISMS.find(family)
    except ConfigError as error:
        raise PrivacyError(str(error)) from error
    if colon:
        require(isinstance(mechanism, Family), PrivacyError,
                f"mechanism '{name}' found, expected '{family}', which has no parameter")
        assert isinstance(mechanism, Family)
        mechanism = mechanism.of(parameter)
    require(unit is None or mechanism.unit == unit, PrivacyError,
            f"mechanism '{name}' protects a {mechanism.unit}, expected one for privacy.unit = "
            f"'{unit}'; choose another")
    return mechanism
