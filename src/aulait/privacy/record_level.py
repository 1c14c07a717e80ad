"""One record as the unit of privacy: who adds the noise, what it costs, and which settings
contradict each other.

Neighbouring federations differ in one record of one site's training set, as it stands after caps
and hold-outs. Every site adds its own noise before anything leaves it, so nobody else need be
trusted with its updates. The records of different sites are disjoint, hence parallel composition: a
role has spent what the worst of its clients has spent. The number of records of a site is treated
as public (it fixes the sampling rate), and a person with several records is protected only one
record at a time.

Two mechanisms, both at the site:

``dp-sgd``: every record of the site is in a step's batch with probability q, on its own (Poisson).
The gradient of each
    of them is clipped to C, the sum gets N(0, z² C² I). Adding or removing a record moves the sum
    by at most C: a Poisson sampled Gaussian mechanism with noise multiplier z. Abadi et al., "Deep
        Learning with Differential Privacy", CCS 2016.
``gaussian-batch``: the gradient of the mean loss of one batch, its A part and its B part clipped to
C each *as a whole*, each
    with N(0, sigma² C² I). Whatever changes, each part stays in its ball of radius C, so it moves
    by at most 2C, the two together by at most 2√2 C: z = sigma / (2√2), the same as two releases of
    sigma/2. It holds for both relations. It is not an average over records: the batch does not make
    the noise smaller. No amplification by sampling is counted: for secret, independent Poisson
    batches it could be proven (the divergence of Gaussian mixtures is jointly convex), but the rule
    says only "a mini-batch", which in practice is a pass in an order that need not be secret.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aulait.core.errors import PrivacyError, require
from aulait.privacy.accounting import Event, PrivacyConfig

Mechanism = Literal["dp-sgd", "gaussian-batch"]


@dataclass(frozen=True)
class RecordMechanism:
    """What one round may ask of any record of any client: public, fixed before the run, and a bound
    for every site.

    Attributes:
        mechanism: "dp-sgd" or "gaussian-batch".
        steps: the most noised steps of a client in a round.
        rate: the largest probability with which a record is in a step's batch; 1 for
            "gaussian-batch".

    Raises:
        PrivacyError: sampling is claimed for a mechanism for which none is accounted.
    """

    mechanism: Mechanism
    steps: int
    rate: float = 1.0

    def __post_init__(self) -> None:
        text = (
            f"sampling rate {self.rate} with mechanism 'gaussian-batch' found, expected 1: no "
            "amplification is proven for it"
        )
        require(self.mechanism == "dp-sgd" or self.rate == 1.0, PrivacyError, text)

    def event(self, noise_multiplier: float) -> Event:
        """A round as the accountant counts it."""
        return Event(noise_multiplier, self.rate, self.steps)

    def sensitivity(self, bound: float) -> float:
        """L2 distance by which one record moves what gets the noise, when ``bound`` is C."""
        return bound if self.mechanism == "dp-sgd" else 2.0 * math.sqrt(2.0) * bound


def worst(mechanism: Mechanism, clients: Sequence[tuple[int, int, int]],
          most: float = 1.0) -> RecordMechanism:
    """RecordMechanism that hold for every client: the most steps and the largest rate, be they of
    one client or of two.

    Args:
        mechanism: what the sites do.
        clients: (records, steps in a round, expected records in a step) of every one.
        most: the largest rate that any of them may use, in (0, 1].
    """
    rates = [min(most, batch / records) for records, _, batch in clients if records > 0]
    rate = max(rates, default=most) if mechanism == "dp-sgd" else 1.0
    return RecordMechanism(mechanism, max((steps for _, steps, _ in clients), default=1), rate)


def problems(privacy: PrivacyConfig, method: str, unit: str, mechanism: Mechanism | None,
             voting: bool) -> list[str]:
    """One line for every contradiction between the unit of privacy and the rest of the experiment.

    Args:
        privacy: the promise.
        method: name of the method.
        unit: the unit that the method offers (its ``TRAITS.unit``).
        mechanism: what its sites do under the unit "record"; None for a method of the unit
            "client".
        voting: whether clients vote in stage 1, which protects clients.
    """
    if privacy.off:
        return []
    if privacy.unit != unit:
        offered = (
            "give every record its own protection" if unit == "record" else "protect whole clients"
        )
        text = (
            f"privacy.unit = '{privacy.unit}' found, but updates of '{method}' {offered}; set "
            f"privacy.unit = '{unit}'"
        )
        return [f"{text}, or choose a method of that unit (record: 'dplora'; client: 'ffa')"]
    if unit == "client":
        return []
    found = []
    if privacy.clip == "proxies":
        found.append(
            "privacy.clip = 'proxies' found, expected a number with privacy.unit = 'record', where "
            "it bounds gradients; "
                     "set privacy.clip")
    if mechanism == "dp-sgd" and privacy.relation == "replace":
        found.append(
            "privacy.relation = 'replace' found, expected 'add-remove': batches are Poisson "
            "samples; change it")
    if voting:
        found.append(
            "privacy.unit = 'record' found together with clients that vote, whose votes protect "
            "clients, not records; "
                     "set synthesis.proxies = 'public' or 'absent', or make every tier local")
    if privacy.subspace or privacy.shrink != "none":
        found.append(
            "privacy.subspace or privacy.shrink found, expected neither with privacy.unit = "
            "'record': the noise is in the steps, "
                     "not in the sum; remove them")
    return found
