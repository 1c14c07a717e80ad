"""What the server does with the merged update: add it, or treat it as a gradient.

The update d of a round is a mean of client updates (theta_k - theta), so theta + d is plain
averaging. Everything here is post-processing of released values: it costs no privacy.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2 (FedAdagrad,
FedAdam, FedYogi); FedAvgM: Hsu et al., 2019; Nesterov momentum as the outer step of DiLoCo,
Douillard et al., 2023; AdamW: decoupled decay.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from aulait.core import lora
from aulait.core.types import Tensors
from aulait.methods.contract import State

STEPPING = ("plain", "search", "auto")  # these remember no moments
ADAPTIVE = ("adagrad", "adam", "adamw", "yogi")
ADAPTIVE_LR = 0.01


ServerName = Literal["plain", "momentum", "nesterov", "adagrad", "adam", "adamw", "yogi", "search",
                     "auto"]


class ServerConfig(BaseModel):
    """The server optimiser.

    Attributes:
        server: "plain" (add the update), "momentum" (FedAvgM), "nesterov" (as DiLoCo and FDLoRA),
            "adagrad", "adam", "adamw" or "yogi"; or "search": the clients that train measure a few
            steps along the round's means and the best is taken (``methods.shared.line_search``);
            or "auto": "search" without privacy, where the run allows it, else "plain".
        server_lr: its learning rate; of the adaptive ones 0.01 unless given, since they step by
            about so much in every entry, whatever the size of the update.
        momentum: beta of "momentum" and "nesterov", beta_1 of the adaptive ones; of "adagrad" 0
            unless given, as in the paper.
        beta2: of "adam", "adamw" and "yogi".
        tau: of the adaptive ones: the update is lr · m / (sqrt v + tau), v starts at tau^2.
        server_decay: of "adamw": theta shrinks by lr · server_decay · theta in every round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    server: ServerName = "plain"
    server_lr: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)
    server_decay: float = Field(0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _of_the_optimiser(cls, given: object) -> object:
        """What is not given follows from the optimiser."""
        if not isinstance(given, dict) or given.get("server") not in ADAPTIVE:
            return given
        fitting = {"server_lr": ADAPTIVE_LR} | (
            {"momentum": 0.0} if given["server"] == "adagrad" else {})
        return {**{key: value for key, value in fitting.items() if key in cls.model_fields},
                **given}


def initial_state(config: ServerConfig, theta: Tensors) -> State:
    """The state before the first round: the parameters, and moments under the tags m and v."""
    tensors = dict(theta)
    if config.server not in STEPPING:
        tensors |= lora.tagged("m", {n: torch.zeros_like(t) for n, t in theta.items()})
    if config.server in ADAPTIVE:
        tensors |= lora.tagged("v", {n: torch.full_like(t, config.tau**2)
                                     for n, t in theta.items()})
    return State(0, tensors)


def server_step(config: ServerConfig, state: State, mean_update: Tensors) -> Tensors:
    """The state's tensors after one merged update: new parameters and new moments. Parameters that
    are not in the update stay as they are."""
    after = dict(state.tensors)
    for name, d in mean_update.items():
        if config.server in ADAPTIVE:
            m = after[f"m/{name}"] = (
                config.momentum * after[f"m/{name}"] + (1 - config.momentum) * d)
            v = after[f"v/{name}"] = _second_moment(config, after[f"v/{name}"], d)
            step = m / (v.sqrt() + config.tau)
        elif config.server in STEPPING:
            step = d
        else:
            m = after[f"m/{name}"] = config.momentum * after[f"m/{name}"] + d
            step = m if config.server == "momentum" else d + config.momentum * m
        decay = config.server_lr * config.server_decay if config.server == "adamw" else 0.0
        after[name] = (1 - decay) * after[name] + config.server_lr * step
    return after


def _second_moment(config: ServerConfig, v: Tensor, d: Tensor) -> Tensor:
    """The second moment of the adaptive optimisers."""
    square = d.square()
    if config.server == "adagrad":
        return v + square
    if config.server == "yogi":
        return v - (1 - config.beta2) * square * torch.sign(v - square)
    return config.beta2 * v + (1 - config.beta2) * square
