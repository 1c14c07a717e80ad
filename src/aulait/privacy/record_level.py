"""One record as the unit of privacy: who adds the noise, what it costs, and which settings
contradict each other.

Neighbouring federations differ in one unit of one site's training set, as it stands after caps and
hold-outs: a record, or with ``privacy.unit_field`` all records of one value. In its place stands a
null unit, which adds nothing ("zero-out"): the number of units of a site is public, since it fixes
the sampling rate. Every site adds its own noise before anything leaves it, so nobody else need be
trusted with its updates; under secure aggregation it adds its part of the noise of the sum of all
sites, which alone is seen. The units of different sites are disjoint, hence parallel composition: a
role has spent what the worst of its clients has spent.

The built-in mechanisms, "dp-sgd", "gaussian-batch", "gaussian-votes" and "distributed-records",
stand in ``aulait.privacy.mechanisms``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aulait.core.errors import PrivacyError, require
from aulait.privacy.accounting import Event
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.mechanisms import DISTRIBUTED_RECORDS, Relation, find_mechanism

DP_SGD: Final = "dp-sgd"
VOTES: Final = "gaussian-votes"
PRECISION: Final = "float32"  # narrower weights round what records leave in common
PRIVATE: Final = "private"  # setting of a request under which ``SiteNoise`` stands


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


class SiteNoise(BaseModel):
    """What a site is asked to do to its own training; all of it public. It stands in the settings
    of a request under ``PRIVATE``, put there by the training stage; methods do not know of it.

    Attributes:
        mechanism: what the steps are: "dp-sgd" or "gaussian-batch"; "distributed-records" for one
            sum of clipped gradients that gets its part of the noise where it is masked.
        clip: C, the bound of what is clipped, > 0.
        sigma: standard deviation of the noise, under secure aggregation of the sum of all sites; 0
            is a control, not private.
        most_rate: the largest probability with which a unit may be in a batch.
        most_steps: the most noised steps of this client in a round.
        noise_seed: makes noise and batches reproducible (not private); None takes the operating
            system's entropy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    mechanism: str
    clip: float = Field(gt=0)
    sigma: float = Field(ge=0, allow_inf_nan=False)
    most_rate: float = Field(gt=0, le=1)
    most_steps: int = Field(ge=1)
    noise_seed: int | None = None

    @property
    def summed(self) -> bool:
        """Whether the site adds no noise here, as it does so where its sum is masked."""
        return self.mechanism == DISTRIBUTED_RECORDS

    def setting(self) -> dict[str, str | float | int]:
        """As it stands in a request; a seed only where there is one."""
        return self.model_dump(exclude_none=True)

    def of_steps(self, steps: int) -> SiteNoise:
        """The same for a client of so many steps, where these are fewer."""
        return self.model_copy(update={"most_steps": min(self.most_steps, steps)})

    @classmethod
    def read(cls, settings: Mapping[str, object]) -> SiteNoise | None:
        """What a request asks for; None where it asks for training without noise.

        Raises:
            PrivacyError: it holds something else.
        """
        if (told := settings.get(PRIVATE)) is None:
            return None
        try:
            return cls.model_validate(told)
        except ValidationError as error:
            raise PrivacyError(
                f"a request with an unreadable setting '{PRIVATE}' found, expected "
                f"{', '.join(cls.model_fields)}; refused") from error


def vote_mechanism(privacy: PrivacyConfig) -> str:
    """Name of what protects the votes of single units."""
    return DISTRIBUTED_RECORDS if privacy.secure else VOTES


def unit_vote_bound(neighbours: int, records_per_unit: int = 1) -> float:
    """S: the votes of a unit of so many records that vote apart are not clipped.

    The smallest float64 whose square is at least neighbours · records_per_unit, so that the votes
    of one record are never shortened.
    """
    square = neighbours * records_per_unit
    root = math.sqrt(square)
    return root if Fraction(root) ** 2 >= square else math.nextafter(root, math.inf)


def same_relation(unit: str, one: Relation | None, other: Relation | None) -> bool:
    """Whether two relations are the same promise. Earlier ledgers and settings call "add-remove"
    what is "zero-out" for the unit "record"; it was accounted as it is now."""
    if unit == "record":
        one, other = ("zero-out" if name == "add-remove" else name for name in (one, other))
    return one == other


def worst_case(mechanism: str, clients: Sequence[tuple[int, int, int]],
               most: float = 1.0) -> RecordMechanism:
    """What holds for every client: the most steps and the largest rate, be they of one client or of
    two.

    Args:
        mechanism: what the sites do.
        clients: (units, steps in a round, expected units in a step) of every one.
        most: the largest rate that any of them may use, in (0, 1].
    """
    rates = [min(most, batch / count) for count, _, batch in clients if count > 0]
    amplified = find_mechanism(mechanism, "record").amplified
    rate = max(rates, default=most) if amplified else 1.0
    return RecordMechanism(mechanism, max((steps for _, steps, _ in clients), default=1), rate)


def precision_problems(dtype: str, quant: str | None) -> list[str]:
    """What is wrong with a base of this precision where single records are protected, one line
    each."""
    found = []
    if dtype != PRECISION:
        found.append(
            f"model.dtype is '{dtype}' with privacy.unit = 'record', expected '{PRECISION}': "
            f"narrower weights let records move one another; set model.dtype = '{PRECISION}'")
    if quant is not None:
        found.append(
            f"model.quant is '{quant}' with privacy.unit = 'record', expected none: narrower "
            "weights let records move one another; remove model.quant")
    return found


def unit_problems(privacy: PrivacyConfig, method: str, units: Sequence[str],
                  mechanism: str) -> list[str]:
    """One line for every contradiction between the unit of privacy and the rest of the experiment.

    Args:
        privacy: the promise.
        method: name of the method.
        units: the units that the method offers (its ``TRAITS.units``).
        mechanism: what its sites do under the unit "record".
    """
    if privacy.off:
        return []
    if privacy.unit not in units:
        offered = {"client": "protect whole clients",
                   "record": "give every record its own protection"}
        text = " or ".join(offered[unit] for unit in units) or "cannot be protected"
        other = f"set privacy.unit = '{units[0]}', or " if units else ""
        return [f"privacy.unit = '{privacy.unit}' found, but updates of '{method}' {text}; {other}"
                f"choose a method of that unit, as 'fedit' or 'ffa'"]
    if privacy.unit == "client":
        return []
    found = []
    if isinstance(privacy.clip, str):
        found.append(
            f"privacy.clip = '{privacy.clip}' found, expected a number with privacy.unit = "
            "'record', where it bounds gradients; set privacy.clip")
    relations = find_mechanism(mechanism, "record").relations
    if privacy.relation in ("zero-out", "replace") and privacy.relation not in relations:
        found.append(
            f"privacy.relation = '{privacy.relation}' found with mechanism '{mechanism}', "
            f"expected '{' or '.join(relations)}': batches are Poisson samples; change it")
    if privacy.subspace or privacy.shrink != "none":
        found.append(
            "privacy.subspace or privacy.shrink found, expected neither with privacy.unit = "
            "'record': the noise is in the steps, not in the sum; remove them")
    return found
