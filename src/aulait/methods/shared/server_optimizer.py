"""What the server does with the merged update: add it, or treat it as a gradient.

The update d of a round is a mean of client updates (theta_k - theta), so theta + d is plain
averaging.
Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2 (FedAdagrad,
FedAdam, FedYogi); FedAvgM:
Hsu et al., 2019; Nesterov momentum as the outer step of DiLoCo, Douillard et al., 2023; AdamW:
decoupled decay. All of it is post-processing of released values: it costs no privacy.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from aulait.core.types import Tensors

ADAPTIVE = ("adagrad", "adam", "adamw", "yogi")

class ServerConfig(BaseModel):
    """The server optimiser.

    Attributes:
        server: "plain" (add the update), "momentum" (FedAvgM), "nesterov" (as DiLoCo and FDLoRA),
            "adagrad", "adam", "adamw" or "yogi".
        server_lr: its learning rate.
        momentum: beta of "momentum" and "nesterov", beta_1 of the adaptive ones.
        beta2: of "adam", "adamw" and "yogi".
        tau: of the adaptive ones: the update is lr · m / (sqrt v + tau), v starts at tau^2.
        server_decay: of "adamw": theta shrinks by lr · server_decay · theta in every round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    server: Literal["plain", "momentum", "nesterov", "adagrad", "adam", "adamw", "yogi"] = "plain"
    server_lr: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)
    server_decay: float = Field(0.0, ge=0)


def start(config: ServerConfig, template: Tensors) -> Tensors:
    """Moments before the first round, under the names ``m/...`` and ``v/...``."""
    moments: Tensors = {}
    if config.server != "plain":
        moments |= {f"m/{name}": torch.zeros_like(t) for name, t in template.items()}
    if config.server in ADAPTIVE:
        moments |= {f"v/{name}": torch.full_like(t, config.tau**2) for name, t in template.items()}
    return moments


def apply(config: ServerConfig, theta: Tensors, mean_update: Tensors,
          moments: Tensors) -> tuple[Tensors,
        Tensors]:
    """New parameters and new moments after one merged update; parameters that are not in it stay as
    they are."""
    after, kept = dict(theta), dict(moments)
    for name, d in mean_update.items():
        if config.server in ADAPTIVE:
            m = kept[f"m/{name}"] = (
                config.momentum * moments[f"m/{name}"] + (1 - config.momentum) * d
            )
            v = kept[f"v/{name}"] = _second(config, moments[f"v/{name}"], d)
            step = m / (v.sqrt() + config.tau)
        elif config.server == "plain":
            step = d
        else:
            m = kept[f"m/{name}"] = config.momentum * moments[f"m/{name}"] + d
            step = m if config.server == "momentum" else d + config.momentum * m
        decay = config.server_lr * config.server_decay if config.server == "adamw" else 0.0
        after[name] = (1 - decay) * theta[name] + config.server_lr * step
    return after, kept


def _second(config: ServerConfig, v: Tensor, d: Tensor) -> Tensor:
    """The second moment of the adaptive optimisers."""
    square = d.square()
    if config.server == "adagrad":
        return v + square
    if config.server == "yogi":
        return v - (1 - config.beta2) * square * torch.sign(v - square)
    return config.beta2 * v + (1 - config.beta2) * square
