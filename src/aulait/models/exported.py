"""A finished run's adapters on its base, as plain Hugging Face models: to copy them, to fold them
in, to write with them.

adapter/ is the shared adapter; where the method makes personal adapters, that of a client lies in
personal/ under the client's name, quoted as in an address; personal/clients.json tells the names
that are too long for that.

Nothing here uses the batched layers of ``model.py``: it is the way any other program would load the
adapter folder.
"""

from __future__ import annotations

import difflib
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

import torch

from aulait.core import hub
from aulait.core.errors import ConfigError, DataError, ModelError, require
from aulait.core.files import private_folder
from aulait.core.parsing import parsed_toml, reason
from aulait.core.reading import read_json_object
from aulait.models import gguf_export
from aulait.models.merged_export import write_merged
from aulait.models.named import folder_of

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def settings(run: Path, table: str = "model") -> dict[str, object]:
    """A table of a finished run's settings.

    Raises:
        DataError: the folder holds no finished run.
    """
    finished = (
        (run / "config.toml").is_file() and (run / "adapter" / "adapter_config.json").is_file()
    )
    require(
        finished,
        DataError,
        f"found no finished run in {run}, expected a folder with config.toml and adapter/; finish "
        "the run",
    )
    try:
        found = parsed_toml((run / "config.toml").read_bytes()).get(table, {})
    except ValueError as error:
        raise DataError(f"{run / 'config.toml'} is not TOML ({reason(error)}), expected the "
                        "settings of the run; restore it from a copy") from error
    require(isinstance(found, dict), DataError,
            f"{table} in {run / 'config.toml'} is no table; restore that file from a copy")
    return dict(found)


def clients(run: Path) -> dict[str, Path]:
    """Client -> folder of its personal adapter; empty where the method makes none."""
    found = sorted(path.parent for path in (run / "personal").glob("*/adapter_config.json"))
    index = run / "personal" / "clients.json"  # names too long for a folder's
    told = read_json_object(
        index, DataError, "the names of clients; restore it from a copy") if index.is_file() else {}
    return {str(told.get(path.name) or unquote(path.name)): path for path in found}


def adapter(run: Path, client: str | None = None) -> Path:
    """The folder of the shared adapter, or of a client's personal one.

    Raises:
        ConfigError: the client has none; the message names the nearest client that has.
    """
    if client is None:
        return run / "adapter"
    known = clients(run)
    require(bool(known), ConfigError,
        f"--client '{client}': {run} holds no personal adapters, expected a run of a method that "
        "makes them (aulait list); leave --client out for the shared adapter")
    nearest = difflib.get_close_matches(client, known, n=1, cutoff=0.0)
    require(client in known, ConfigError,
            f"--client '{client}' has no personal adapter in {run}, {len(known)} clients have; did "
            f"you mean '{nearest[0] if nearest else ''}'?")
    return known[client]


def load_exported(run: Path, *, adapted: bool = True, client: str | None = None,
         device: str | torch.device = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model of a run, with an adapter folded in unless ``adapted`` is false, and its
    tokenizer.

    Args:
        run: a finished run.
        adapted: False for the base alone.
        client: whose personal adapter; None takes the shared one.
        device: where to.

    Raises:
        DataError: the folder holds no finished run.
        ConfigError: the client has no adapter.
        ModelError: the base cannot be loaded, or the adapter does not fit it.
    """
    # takes seconds to import
    import transformers

    model, folder = settings(run), adapter(run, client)
    name = str(model.get("name", "brew"))
    auto = (
        transformers.AutoModelForSeq2SeqLM if model.get("kind") == "seq2seq"
        else transformers.AutoModelForCausalLM
    )
    where = folder_of(name)
    hub.settle(str(where))
    transformers.utils.logging.disable_progress_bar()
    try:
        base = auto.from_pretrained(where, dtype=getattr(torch, str(model.get("dtype", "float32"))))
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        whole = _folded(base, folder) if adapted else base
    except (OSError, ValueError, RuntimeError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"model '{name}' with the adapter {folder} cannot be loaded ({cause}); expected the "
            "base of the run"
        ) from error
    return whole.to(device).eval(), tokenizer


def load_worn(run: Path, *, client: str | None = None, device: str | torch.device = "cpu",
              ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base of a run with an adapter beside it, as a ``peft.PeftModel``, and its tokenizer; the
    arguments are those of `load_exported`."""
    # takes seconds to import
    from peft import PeftModel

    base, tokenizer = load_exported(run, adapted=False, device=device)
    return PeftModel.from_pretrained(base, str(adapter(run, client))), tokenizer


def _folded(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with every weight W replaced by W + (alpha / R) · B A."""
    # takes seconds to import
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


@dataclass(frozen=True)
class ExportForm:
    """What an export writes.

    Attributes:
        kind: "adapter" in PEFT's format; "merged": the whole model with the adapter folded in, as
            transformers loads it; "gguf": the same as one file for llama.cpp and Ollama.
        precision: of the matrices in a GGUF file; None: what suits the model's size
            (``gguf_export.default_precision``).
    """

    kind: Literal["adapter", "merged", "gguf"]
    precision: gguf_export.Precision | None = None


@dataclass(frozen=True)
class ExportedFiles:
    """What an export wrote.

    Attributes:
        names: of the files, sorted.
        precision: of the matrices of a GGUF file; None for the other forms.
    """

    names: list[str]
    precision: gguf_export.Precision | None = None


def export(run: Path, to: Path, form: ExportForm, *, client: str | None = None) -> ExportedFiles:
    """Write an adapter, or the whole model with it folded in, and read back what was written.

    Args:
        run: a finished run.
        to: a folder that is empty or does not exist; where the export fails it is removed.
        form: what is written.
        client: whose personal adapter; None takes the shared one.

    Raises:
        ConfigError: ``to`` is not empty, or is a file, or the client has no adapter.
        DataError: as ``load_exported``.
        ModelError: likewise, or the model cannot be written in this form, or does not read back.
    """
    settings(run)
    folder = adapter(run, client)
    taken = to.exists() and (not to.is_dir() or any(to.iterdir()))
    require(
        not taken, ConfigError,
        f"--to {to} already holds something; expected a new or empty folder; choose another"
    )
    if form.kind == "adapter":
        shutil.copytree(folder, to, dirs_exist_ok=True)
        return ExportedFiles(sorted(path.name for path in to.iterdir()))
    if form.kind == "gguf":
        _check_gguf_form(run)
    model, tokenizer = load_exported(run, client=client)
    if client is not None:  # a client's own adapter is as sensitive as its text
        private_folder(to)
    to.mkdir(parents=True, exist_ok=True)
    precision = None
    try:
        if form.kind == "merged":
            write_merged(model, tokenizer, to)
        else:
            name = str(settings(run, "run").get("name", run.resolve().name))
            precision = form.precision or gguf_export.default_precision(model)
            gguf_export.write_gguf(model, tokenizer, to, precision, name)
    except ModelError:
        shutil.rmtree(to)
        raise
    return ExportedFiles(sorted(path.name for path in to.iterdir()), precision)


def _check_gguf_form(run: Path) -> None:
    """Refuse in one line what cannot be a GGUF file, before the base is loaded."""
    # takes seconds to import
    from transformers import AutoConfig

    gguf_export.require_writer()
    name = str(settings(run).get("name", "brew"))
    try:
        problems = gguf_export.gguf_problems(AutoConfig.from_pretrained(folder_of(name)))
    except (OSError, ValueError):  # loading the base says it better
        return
    require(not problems, ModelError, "; ".join(problems))
