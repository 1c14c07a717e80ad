"""Whether this machine can have the workers that an experiment asks for."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from aulait.core.errors import ConfigError, install, require
from aulait.runs.experiment_file import EngineConfig


def check_workers(engine: EngineConfig, device: str) -> None:
    """Raise unless the workers can be had; nothing is started.

    Args:
        engine: how many, and where.
        device: the kind of device of the base, "cuda" or another.

    Raises:
        ConfigError: Ray is not installed, or there are too few GPUs.
    """
    if engine.name == "ray":
        require(find_spec("ray") is not None, ConfigError,
                "engine.name = 'ray' needs the package 'ray' and it is missing; "
                f"{install('ray')}")
    elif device == "cuda":
        gpus = torch.cuda.device_count()
        require(engine.workers <= gpus, ConfigError,
                f"engine.workers = {engine.workers} found with {gpus} "
                f"GPU{'' if gpus == 1 else 's'}, expected one for each worker; lower "
                "engine.workers, or set model.device = 'cpu'")
