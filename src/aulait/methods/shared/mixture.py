"""Who counts how much in a round: ``[algorithm]`` keys that most methods share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class MixtureConfig(BaseModel):
    """Who counts how much in a round.

    Attributes:
        local_weight: w, the public weight of a local client's update against a proxied client's.
        weights: "uniform" over clients, or "size" by their number of records (only when privacy is
            off).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    local_weight: float = Field(1.0, gt=0)
    weights: Literal["uniform", "size"] = "uniform"
