"""``model.dtype = "auto"`` before the base is loaded: where the experiment, or the run folder that
goes on, leaves no choice."""

from __future__ import annotations

from pathlib import Path

from aulait.core.parsing import parsed_toml
from aulait.runs.experiment_file import Settings


def precision_settled(settings: Settings) -> Settings:
    """The settings with "auto" replaced where a narrower base would break a promise: gradients of
    single records, dense updates that are folded into the base."""
    if settings.privacy.protects_records or settings.method.TRAITS.folds:
        return _with_dtype(settings, "float32")
    return settings


def as_begun(settings: Settings, held: Path) -> Settings:
    """The settings with "auto" replaced by what a file of resolved settings says: a run goes on in
    the precision in which it began, on whatever machine.

    Args:
        settings: of the experiment file.
        held: config.toml of the run folder; it may be missing, or not to be read.
    """
    try:
        model = parsed_toml(held.read_bytes()).get("model", {})
    except (OSError, ValueError):
        return settings
    # before there was a choice, all were in float32
    return _with_dtype(settings, str(model.get("dtype", "float32")))


def _with_dtype(settings: Settings, dtype: str) -> Settings:
    if settings.model.dtype != "auto":
        return settings
    model = settings.model.model_validate(settings.model.model_dump() | {"dtype": dtype})
    return settings.model_copy(update={"model": model})
