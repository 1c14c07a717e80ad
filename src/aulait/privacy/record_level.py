"""One record as the unit of privacy: who adds the noise, what it costs, and which settings
contradict each other.

Neighbouring federations differ in one record of one site's training set, as it stands after caps
and hold-outs. Every site adds its own noise before anything leaves it, so nobody else need be
trusted with its updates. The records of different sites are disjoint, hence parallel composition: a
role has spent what the worst of its clients has spent. The number of records of a site is treated
as public (it fixes the sampling rate), and a person with several records is protected only one
record at a time.

The built-in mechanisms, "dp-sgd" and "gaussian-batch", stand in ``aulait.privacy.mechanisms``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aulait.core.errors import PrivacyError, require
from aulait.privacy.accounting import Event
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.mechanisms import Relation, find_mechanism


@dataclass(frozen=True)
class RecordMechanism:
    """What one round may ask of any record of any client: public, fixed before the run, and a bound
    for every site.

    Attributes:
        mechanism: name of a mechanism of the unit "record".
        steps: the most noised steps of a client in a round.
        rate: the largest probability with which a record is in a step's batch; 1 for a mechanism
            without amplification by sampling.

    Raises:
        PrivacyError: sampling is claimed for a mechanism for which none is accounted.
    """

    mechanism: str
    steps: int
    rate: float = 1.0

    def __post_init__(self) -> None:
        mechanism = find_mechanism(self.mechanism, "record")
        require(mechanism.amplified or self.rate == 1.0, PrivacyError,
                f"sampling rate {self.rate} with mechanism '{self.mechanism}' found, expected 1: "
                "no amplification is proven for it")

    def event(self, noise_multiplier: float) -> Event:
        """A round as the accountant counts it."""
        mechanism = find_mechanism(self.mechanism)
        return mechanism.event(noise_multiplier, self.rate, self.steps)

    def sensitivity(self, bound: float, relation: Relation) -> float:
        """L2 distance by which one record moves what gets the noise, when ``bound`` is C."""
        return find_mechanism(self.mechanism).sensitivity(bound, relation)


def worst_case(mechanism: str, clients: Sequence[tuple[int, int, int]],
               most: float = 1.0) -> RecordMechanism:
    """What holds for every client: the most steps and the largest rate, be they of one client or of
    two.

    Args:
        mechanism: what the sites do.
        clients: (records, steps in a round, expected records in a step) of every one.
        most: the largest rate that any of them may use, in (0, 1].
    """
    rates = [min(most, batch / records) for records, _, batch in clients if records > 0]
    amplified = find_mechanism(mechanism, "record").amplified
    rate = max(rates, default=most) if amplified else 1.0
    return RecordMechanism(mechanism, max((steps for _, steps, _ in clients), default=1), rate)


def unit_problems(privacy: PrivacyConfig, method: str, unit: str, mechanism: str | None,
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
            "give every record its own protection" if unit == "record" else "protect whole clients")
        return [f"privacy.unit = '{privacy.unit}' found, but updates of '{method}' {offered}; set "
                f"privacy.unit = '{unit}', or choose a method of that unit (record: 'dplora'; "
                "client: 'ffa')"]
    if unit == "client":
        return []
    found = []
    if privacy.clip == "proxies":
        found.append(
            "privacy.clip = 'proxies' found, expected a number with privacy.unit = 'record', where "
            "it bounds gradients; set privacy.clip")
    if privacy.relation is not None and mechanism is not None:
        known = find_mechanism(mechanism, "record")
        if privacy.relation not in known.relations:
            reason = "batches are Poisson samples" if known.amplified else "it holds for no other"
            found.append(
                f"privacy.relation = '{privacy.relation}' found with mechanism '{mechanism}', "
                f"expected '{' or '.join(known.relations)}': {reason}; change it")
    if voting:
        found.append(
            "privacy.unit = 'record' found together with clients that vote, whose votes protect "
            "clients, not records; set synthesis.proxies = 'public' or 'absent', or make every "
            "tier local")
    if privacy.subspace or privacy.shrink != "none":
        found.append(
            "privacy.subspace or privacy.shrink found, expected neither with privacy.unit = "
            "'record': the noise is in the steps, not in the sum; remove them")
    return found
