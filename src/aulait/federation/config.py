"""The settings of planner and virtual clock."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from aulait.core.types import Placement
from aulait.training.activation_codec import Wire

CutPlace = Annotated[int, Field(ge=1)] | Literal["auto"]  # blocks at a split client


class ComputeConfig(BaseModel):
    """``[compute]``: what the planner and the virtual clock go by.

    Attributes:
        round_s: the dial: seconds a round may take on a client's machine; None for no limit.
        deadline_s: virtual seconds after which a round is closed with those who answered; None
            waits for everybody.
        over_selection: clients asked beyond the planned number, as a share of it; the round closes
            when the planned number has answered. With federation.sampling = "fixed" only.
        allowed: placements that "auto" may choose; "split" lets activations of single records leave
            a site.
        least_steps: fewer steps than this in a round are not worth a local or split placement.
        tokens: tokens of a record as the planner takes them; None measures public texts under
            privacy and the clients' own without.
        server: machine of the server: a preset or the path of a saved profile.
        cut: blocks at the client of a split placement; "auto": the planner chooses them for every
            tier, by its machine and link and what the server has to do.
        wire: how activations travel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    round_s: float | None = Field(None, gt=0)
    deadline_s: float | None = Field(None, gt=0)
    over_selection: float = Field(0.0, ge=0)
    allowed: tuple[Placement, ...] = Field(("local", "split", "proxy"), min_length=1)
    least_steps: int = Field(1, ge=1)
    tokens: int | None = Field(None, ge=1)
    server: str = "a100"
    cut: CutPlace = 2
    wire: Wire = "float32"

    @property
    def usual_cut(self) -> int:
        """Blocks at a split client as the file says; where the planner chooses, the fewest."""
        return 1 if self.cut == "auto" else self.cut


WIRE_BYTES = {"float32": 4, "float16": 2, "int8": 1}
