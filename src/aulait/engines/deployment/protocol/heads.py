"""What all messages between coordinator and site bear, and the kinds of numbers and words in
them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from aulait.engines.deployment.protocol.receipts import Receipt

MOST_DEPTH: Final = 32  # of lists in lists: what is deeper cannot be written to a log again
LARGEST_NUMBER: Final = 1e30  # as a weight or in diagnostics: many can be summed
LARGEST_SUM: Final = 1e15  # of a site's scores
HexKey = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # 32 bytes: a key, or a hash
SumStage = Literal["synthesis", "train", "search"]  # releases that may be secure sums


def _finite(value: JsonValue, depth: int = 0) -> JsonValue:
    """Values that a later hand can write down and compute with."""
    if depth > MOST_DEPTH:
        raise ValueError(f"lists more than {MOST_DEPTH} deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite")
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("a whole number of too many digits")
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _finite(item, depth + 1)
    return value


Json = Annotated[JsonValue, AfterValidator(_finite)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Round = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Name = Annotated[str, Field(max_length=200)]
WireNumber = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Sum = Annotated[float, Field(ge=0, le=LARGEST_SUM)]
Positive = Annotated[float, Field(ge=0)]


class StampFields(TypedDict):
    """The fields of a stamp in a head."""

    run: str
    epoch: int
    number: int


class RunFields(StampFields):
    """The fields that every message of a run bears."""

    client: str
    terms: str


@dataclass(frozen=True)
class Stamp:
    """Which message of which run this is.

    Attributes:
        run: 32 hexadecimal digits, one run folder.
        epoch: how often the coordinator has been started for it.
        number: of the message within the epoch and its client, counted from 1.
    """

    run: str
    epoch: int
    number: int

    @property
    def fields(self) -> StampFields:
        """As a head bears it."""
        return {"run": self.run, "epoch": self.epoch, "number": self.number}


class Head(BaseModel):
    """What every message bears: its stamp."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    run: str = Field(pattern=r"^[0-9a-f]{32}$")
    epoch: Count
    number: Count

    @property
    def stamp(self) -> Stamp:
        """Run, epoch and number."""
        return Stamp(self.run, self.epoch, self.number)


class RequestHead(Head):
    """A message of the coordinator.

    Attributes:
        client: whom it is for.
        receipt: the newest one that the coordinator has of this site's account.
    """

    client: Name
    receipt: Receipt | None = None


class AnswerHead(Head):
    """An answer of a site that is no refusal.

    Attributes:
        client: who answers.
        receipt: the state of the site's account after the answer; None from a site without a key.
    """

    client: Name
    receipt: Receipt | None = None


class RunHead(RequestHead):
    """A message that belongs to a run whose terms the site knows.

    Attributes:
        terms: digest of these terms.
        round: of the stage; 0 before the first.
        stage: that the message belongs to.
    """

    terms: Name
    round: Round
    stage: ClassVar[str] = "train"
