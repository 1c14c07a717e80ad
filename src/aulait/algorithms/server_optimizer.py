"""What the server does with the merged update: add it, or treat it as a gradient.

The update d of a round is a mean of client updates (theta_k - theta), so theta + d is plain averaging.
Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2; momentum: Hsu et al., 2019.
All of it is post-processing of released values: it costs no privacy.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from aulait.types import Tensors


class ServerConfig(BaseModel):
    """The server optimiser.

    Attributes:
        server: "plain" (add the update), "momentum" or "adam".
        server_lr: its learning rate.
        momentum: beta of "momentum", beta_1 of "adam".
        beta2: of "adam".
        tau: of "adam": the update is lr · m / (sqrt v + tau), v starts at tau^2.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    server: Literal["plain", "momentum", "adam"] = "plain"
    server_lr: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)


def start(config: ServerConfig, like: Tensors) -> Tensors:
    """Moments before the first round, under the names ``m/...`` and ``v/...``."""
    moments: Tensors = {}
    if config.server != "plain":
        moments |= {f"m/{name}": torch.zeros_like(t) for name, t in like.items()}
    if config.server == "adam":
        moments |= {f"v/{name}": torch.full_like(t, config.tau**2) for name, t in like.items()}
    return moments


def apply(config: ServerConfig, theta: Tensors, update: Tensors, moments: Tensors) -> tuple[Tensors, Tensors]:
    """New parameters and new moments after one merged update."""
    after, kept = {}, dict(moments)
    for name, d in update.items():
        step = d
        if config.server == "momentum":
            step = kept[f"m/{name}"] = config.momentum * moments[f"m/{name}"] + d
        elif config.server == "adam":
            m = kept[f"m/{name}"] = config.momentum * moments[f"m/{name}"] + (1 - config.momentum) * d
            v = kept[f"v/{name}"] = config.beta2 * moments[f"v/{name}"] + (1 - config.beta2) * d.square()
            step = m / (v.sqrt() + config.tau)
        after[name] = theta[name] + config.server_lr * step
    return after, kept
