"""Who counts how much in a round: ``[algorithm]`` keys that most methods share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class MixtureConfig(BaseModel):
    """Who counts how much in a round.

    Attributes:
        local_weight: w, the public weight of a local client's update against a proxied client's;
            "auto" follows from public numbers before the run (``runs.size_law``): proxies then
            weigh as much as the local clients' own noise and their small number make good.
        weights: "uniform" over clients, or "size" by their number of records (only when privacy is
            off).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    local_weight: Annotated[float, Field(gt=0)] | Literal["auto"] = 1.0
    weights: Literal["uniform", "size"] = "uniform"

    @property
    def weight(self) -> float:
        """w as a number: "auto" counts everybody alike until a run has settled it."""
        return 1.0 if self.local_weight == "auto" else self.local_weight
