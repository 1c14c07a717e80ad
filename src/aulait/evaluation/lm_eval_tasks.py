"""Tasks of lm-eval (the Language Model Evaluation Harness), on the base and on the merged model.

A task is a YAML file: which texts, how they become prompts, which metric. What is found is a
function of the released adapter and of the task's own texts, so it costs no privacy as long as
those are not a client's.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from aulait.core import lora
from aulait.core.errors import ConfigError, did_you_mean, require
from aulait.core.places import user_path
from aulait.core.types import Adapter
from aulait.evaluation.config import RunEvaluateConfig
from aulait.models.loading import Base, folded
from aulait.models.read_back import unwrapped

if TYPE_CHECKING:  # optional, and takes seconds to import
    from lm_eval.tasks import TaskManager

TaskScores = dict[str, dict[str, float]]  # task -> metric -> value
_DATA_FAULTS: Final = Exception  # a task's own code and data fail as they happen to be


def check_tasks(config: RunEvaluateConfig) -> None:
    """Raise in one line where a task is unknown.

    Raises:
        ConfigError: lm-eval and the folder have no task of that name.
    """
    if config.tasks:
        _manager(config)


def _manager(config: RunEvaluateConfig) -> TaskManager:
    """Knows the folder's tasks; those of lm-eval too, where a name is not the folder's."""
    from lm_eval.tasks import TaskManager  # optional, and takes seconds to import

    folder = None if config.tasks_folder is None else str(user_path(config.tasks_folder))
    with _silent():
        own = TaskManager(include_path=folder, include_defaults=False) if folder else None
        if own is not None and set(config.tasks) <= set(own.all_tasks):
            return own
        found = TaskManager(include_path=folder)
    for name in config.tasks:
        require(name in found.all_tasks, ConfigError,
                f"evaluate.tasks names '{name}', which is no task of "
                f"{'evaluate.tasks_folder or of ' if folder else ''}lm-eval; "
                f"{did_you_mean(name, own.all_tasks if own else found.all_tasks)}")
    return found


def measure_tasks(base: Base, adapter: Adapter, config: RunEvaluateConfig, rows: int,
                  ) -> dict[str, TaskScores]:
    """The scores of the tasks under "base", and of the merged model under "adapted".

    The base is not loaded again: its weights hold the update for a while, and are bit for bit as
    before when this returns. So are the states of the random number generators.

    Args:
        base: with its layers wrapped.
        adapter: what is merged.
        config: which tasks.
        rows: sequences in one pass.

    Raises:
        ConfigError: a task cannot be run.
    """
    manager = _manager(config)
    found = {}
    for which, updates in (("base", None), ("adapted", lora.dense(adapter))):
        with folded(base, updates):
            found[which] = _measure(base, manager, config, rows)
    return found


def _measure(base: Base, manager: TaskManager, config: RunEvaluateConfig, rows: int) -> TaskScores:
    from lm_eval import simple_evaluate  # optional, and takes seconds to import
    from lm_eval.models.huggingface import HFLM  # optional

    try:
        with unwrapped(base) as model, _same_dice(), _silent():
            harness = HFLM(pretrained=model, tokenizer=base.tokenizer, batch_size=rows,
                           max_length=base.config.context)
            found = simple_evaluate(
                model=harness, tasks=list(config.tasks), task_manager=manager,
                limit=config.tasks_limit, bootstrap_iters=0, log_samples=False)
    except _DATA_FAULTS as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ConfigError(
            f"evaluate.tasks cannot be measured ({type(error).__name__}: {cause}); expected tasks "
            "whose texts are on this machine; try them with lm-eval's own command") from error
    return {str(task): _numbers(scores) for task, scores in sorted(found["results"].items())}


def _numbers(scores: Mapping[str, object]) -> dict[str, float]:
    """Metric -> value, without lm-eval's standard errors and its mark of the filter "none"."""
    return {str(key).removesuffix(",none"): float(value) for key, value in sorted(scores.items())
            if isinstance(value, int | float) and "_stderr" not in str(key)
            and key not in ("sample_len",)}


@contextmanager
def _same_dice() -> Iterator[None]:
    """Generators of random numbers go on as if nothing had drawn from them."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on standard error, whoever writes there: lm-eval's bars, its log, the programs it
    starts. What fails is still raised."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
