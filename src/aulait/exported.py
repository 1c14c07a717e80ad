"""A finished run's adapter on its base, as plain Hugging Face models: to copy it, to fold it in, to write with it.

Nothing here uses the batched layers of ``model.py``: it is the way any other program would load the adapter folder.
Arrow on this floor: ``model`` (where the built-in base lies).
"""

from __future__ import annotations

import shutil
import tomllib
import warnings
from pathlib import Path
from typing import Any

import torch

from aulait.errors import ConfigError, DataError, ModelError
from aulait.model import BREW
from aulait.registry import require


def settings(run: Path) -> dict[str, Any]:
    """The table ``[model]`` of a finished run.

    Raises:
        DataError: the folder holds no finished run.
    """
    finished = (run / "config.toml").is_file() and (run / "adapter" / "adapter_config.json").is_file()
    require(
        finished,
        DataError,
        f"found no finished run in {run}, expected a folder with config.toml and adapter/; finish the run",
    )
    tree: dict[str, Any] = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = tree.get("model", {})
    return found


def load(run: Path, *, adapted: bool = True, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """The base model of a run, with the adapter folded in unless ``adapted`` is false, and its tokenizer.

    Raises:
        DataError: the folder holds no finished run.
        ModelError: the base cannot be loaded, or the adapter does not fit it.
    """
    import transformers

    model = settings(run)
    name = str(model.get("name", "brew"))
    auto = transformers.AutoModelForSeq2SeqLM if model.get("kind") == "seq2seq" else transformers.AutoModelForCausalLM
    where = BREW if name == "brew" else name
    transformers.utils.logging.disable_progress_bar()
    try:
        base = auto.from_pretrained(where, dtype=getattr(torch, str(model.get("dtype", "float32"))))
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        whole = _folded(base, run / "adapter") if adapted else base
    except (OSError, ValueError, RuntimeError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"model '{name}' with the adapter of {run} cannot be loaded ({cause}); expected the base of the run"
        ) from error
    return whole.to(device).eval(), tokenizer


def _folded(base: Any, adapter: Path) -> Any:
    """The base with every weight W replaced by W + (alpha / R) · B A."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def export(run: Path, to: Path, *, merge: bool) -> list[str]:
    """Write the adapter (PEFT format) or the whole model with the adapter folded in.

    Args:
        run: a finished run.
        to: a folder that is empty or does not exist.
        merge: write the whole model and its tokenizer.

    Returns:
        The names of the files written, sorted.

    Raises:
        ConfigError: ``to`` is not empty, or is a file.
        DataError, ModelError: as ``load``.
    """
    settings(run)
    taken = to.exists() and (not to.is_dir() or any(to.iterdir()))
    require(
        not taken, ConfigError, f"--to {to} already holds something; expected a new or empty folder; choose another"
    )
    if merge:
        model, tokenizer = load(run)
        to.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
    else:
        shutil.copytree(run / "adapter", to, dirs_exist_ok=True)
    return sorted(path.name for path in to.iterdir())
