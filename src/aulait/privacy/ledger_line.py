"""A line of the ledger: one release, checked, as it stands on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from aulait.core.cohort_turn import CohortTurn
from aulait.core.errors import PrivacyError, require
from aulait.core.parsing import parsed_json
from aulait.privacy.accounting import Event
from aulait.privacy.banded import Banded
from aulait.privacy.mechanisms import Relation, Unit, find_mechanism

WholeNumber = Annotated[int, Field(ge=1, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class UnitSampling(BaseModel):
    """Whether every unit takes part, each with probability ``rate`` on its own, or those of one of
    several fixed cohorts, whose turn it is: number ``turn``, from 0, of ``cohorts``; or those that
    a public schedule names, no unit in more than ``most`` rounds of the stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["all", "poisson", "turns", "schedule"]
    rate: Finite | None = None
    turn: Annotated[int, Field(ge=0, strict=True)] | None = None
    cohorts: Annotated[int, Field(ge=2, strict=True)] | None = None
    most: WholeNumber | None = None

    @classmethod
    def at_rate(cls, rate: float, turn: CohortTurn | None = None, most: int | None = None) -> Self:
        """Every unit with this probability, 1 is all of them; or those whose turn it is; or those
        of a schedule that names none more often than ``most``."""
        if most is not None:
            return cls(kind="schedule", most=most)
        if turn is not None:
            return cls(kind="turns", turn=turn.number, cohorts=turn.cohorts)
        return cls(kind="all") if rate == 1.0 else cls(kind="poisson", rate=rate)

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.rate is None) != (self.kind != "poisson"):
            raise ValueError("a rate belongs to the kind poisson and to no other")
        if {self.turn is None, self.cohorts is None} != {self.kind != "turns"}:
            raise ValueError("a turn and cohorts belong to the kind turns and to no other")
        if (self.most is None) != (self.kind != "schedule"):
            raise ValueError("the most belongs to the kind schedule and to no other")
        if self.turn is not None and self.cohorts is not None and self.turn >= self.cohorts:
            raise ValueError("the turn is one of the cohorts, counted from 0")
        return self


class LedgerLine(BaseModel):
    """One release.

    Attributes:
        release: number of the release, from 1, without gaps.
        stage: "synthesis" or "train".
        round: round of the stage.
        role: roles of the clients it may hold, as "proxy" or "proxy+local"; each of them is
            charged.
        mechanism: name of the mechanism: "gaussian", noise on a sum over clients; "banded:B", noise
            that remembers that of the last B - 1 rounds; for records, at
            every site: "dp-sgd", noise on the sum of clipped gradients of single records, or
            "gaussian-batch", noise on the clipped gradient of a whole batch; or a third party's.
        sensitivity: L2 sensitivity of what gets the noise, > 0; with relation "replace" it holds
            the factor 2. With noise that remembers: by how much one participation moves it in all
            rounds together.
        sigma: standard deviation of the noise on every coordinate of it; of the fresh part, where
            the noise remembers.
        noise_multiplier: sigma / sensitivity.
        planned: public number of clients it was planned for.
        sampling: of the unit.
        epsilon: role -> epsilon so far, this release included; inf in memory is null on disk.
        delta: delta of that epsilon.
        relation: "add-remove" or "replace".
        unit: what is protected: "client" or "record"; of the clients of a role the line is true of
            the worst one.
        time: when it was written, ISO 8601, UTC.
        private: false when the noise can be predicted (seeded) or is zero.
        steps: noised mechanisms in the release, each with its own sampling; 1 for the unit
            "client".
        previous: SHA-256 of the line before it as it stands on disk, without its line feed, in
            hexadecimal; of the first line: of the run's name (``ledger.first_link``). None in a
            ledger of an earlier version, and before a ledger has taken the line.

    Raises:
        PrivacyError: a value is missing, not finite, or contradicts another one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: WholeNumber
    stage: str
    round: Annotated[int, Field(strict=True)]
    role: str
    mechanism: str
    sensitivity: Annotated[Finite, Field(gt=0)]
    sigma: Finite
    noise_multiplier: Finite
    planned: Annotated[int, Field(strict=True)] | Finite
    sampling: UnitSampling
    epsilon: Mapping[str, Annotated[float, Field(ge=0)]]
    delta: Finite
    relation: Relation
    unit: Unit
    time: str
    private: Annotated[bool, Field(strict=True)]
    steps: WholeNumber = 1
    previous: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _a_fault_is_a_privacy_error(
        cls, values: object, handler: ModelWrapValidatorHandler[Self]
    ) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            number = values.get("release") if isinstance(values, Mapping) else None
            raise PrivacyError(
                f"release {number} of the ledger has impossible values "
                f"({'.'.join(map(str, fault['loc'])) or 'line'}: {fault['msg']}), expected a sound "
                "line; restore the file") from error

    @field_validator("epsilon", mode="before")
    @classmethod
    def _no_number_is_infinite(cls, epsilon: object) -> object:
        if not isinstance(epsilon, Mapping):
            return epsilon
        return {role: math.inf if spent is None else spent for role, spent in epsilon.items()}

    @field_serializer("epsilon")
    def _infinite_is_no_number(self, epsilon: Mapping[str, float]) -> dict[str, float | None]:
        return {role: None if spent == math.inf else spent for role, spent in epsilon.items()}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        mechanism = find_mechanism(self.mechanism, self.unit)
        sound = (
            math.isclose(self.sigma, self.noise_multiplier * self.sensitivity, rel_tol=1e-9)
            and (self.sampling.kind != "poisson" or mechanism.amplified)
            and (self.steps == 1 or self.unit == "record")
            and self.sampling.turn in (None, (self.round - 1) % (self.sampling.cohorts or 1))
            # with fewer cohorts than bands a client's releases would have noise in common
            and (not isinstance(mechanism, Banded)
                 or mechanism.band <= (self.sampling.cohorts or 1))
        )
        require(sound, PrivacyError, f"release {self.release} of the ledger contradicts itself, "
                "expected a sound line; restore the file")
        assert self.event is not None  # building it checks the noise multiplier and the rate
        return self

    @property
    def event(self) -> Event:
        """The release as the accountant counts it."""
        rate = 1.0 if self.sampling.rate is None else float(self.sampling.rate)
        mechanism = find_mechanism(self.mechanism)
        found = mechanism.event(float(self.noise_multiplier), rate, self.steps)
        return replace(found, turn=self.sampling.turn, most=self.sampling.most)

    @property
    def roles(self) -> tuple[str, ...]:
        """The single roles that are charged."""
        return tuple(self.role.split("+"))

    def encoded(self) -> bytes:
        """One JSON object and a line feed."""
        return json.dumps(self.model_dump(exclude_none=True), allow_nan=False).encode() + b"\n"

    @classmethod
    def decoded(cls, raw: bytes) -> Self:
        """The line that these bytes are.

        Raises:
            PrivacyError: they are none.
        """
        try:
            return cls.model_validate(parsed_json(raw, finite=True))
        except ValueError as error:
            raise PrivacyError(f"no ledger line: {error}") from error
