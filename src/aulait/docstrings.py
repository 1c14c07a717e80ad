"""Built-in data that every installation already has: the docstrings of the installed packages and of Python itself.

Sources registered here: ``docstrings`` (a client is a public module of a package, such as ``scipy.stats``; the modules
stand for institutions with a subject and a style of their own) and ``stdlib`` (public texts from the standard library).
Files are read with ``ast``, never imported or run. The texts are the same for the same versions of Python and of the
packages; they are cached as JSON lines in $AULAIT_CACHE (default ~/.cache/aulait).

Arrow on this floor: none.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import platform
import re
import sysconfig
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aulait.registry import register

Texts = dict[str, list[str]]

PACKAGES = [
    "numpy",
    "scipy",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "safetensors",
    "sentence_transformers",
    "pydantic",
    "rich",
    "typer",
    "plotly",
    "dp_accounting",
    "pandas",
    "fsspec",
    "sympy",
    "networkx",
    "huggingface_hub",
    "jinja2",
    "tokenizers",
]
CLIENTS = 60
CLIENTS_PER_PACKAGE = 5  # otherwise three large packages would be the whole federation
TEXTS_PER_CLIENT = 100
MIN_CHARACTERS, MAX_CHARACTERS = 40, 500  # at most about 250 tokens of the built-in model
_FILE_BYTES = 300_000
_CLIENT_BYTES = 150_000  # source read for one client, so that the first run takes seconds
_CANDIDATES_PER_PACKAGE = 8
_SKIPPED = {"tests", "test", "testing", "conftest", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data"} | {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "antigravity",
    "this",
}
_CODE = re.compile(r">>>|\.\. |Examples?\b")
_ENGLISH = re.compile(r"\b(?:the|a|an|of|to|is|are|in|for|and|with|that|this|from|by|if|or|on|be|as)\b", re.IGNORECASE)
_LETTERS = re.compile(r"[A-Za-z ]")


@register("source", "docstrings")
def installed() -> list[dict[str, str]]:
    """Docstrings of the packages installed with aulait: rows with the fields ``client`` and ``text``.

    At most 60 clients, at most 5 of a package and 100 texts each; a text has 40 to 500 characters and occurs once.
    """
    versions = {name: found for name in PACKAGES if (found := _version(name)) is not None}

    def build() -> Texts:
        groups: dict[str, list[Path]] = {}
        for package in versions:
            for root in _roots(package):
                groups.update(_candidates(_groups(root, package)))
        return _largest(_read(groups))

    return _cached("docstrings", json.dumps(versions), build)


@register("source", "stdlib")
def standard_library() -> list[dict[str, str]]:
    """Docstrings of Python's standard library: rows with the fields ``client`` (a module) and ``text``."""

    def build() -> Texts:
        groups: dict[str, list[Path]] = defaultdict(list)
        for name, files in _groups(Path(sysconfig.get_paths()["stdlib"]), "").items():
            groups[name.removeprefix(".")] += files
        return _read(groups)

    return _cached("stdlib", "", build)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _roots(package: str) -> list[Path]:
    """Folders of a top-level package; finding its specification does not import it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or [])][:1] if spec else []


def _groups(root: Path, package: str) -> dict[str, list[Path]]:
    """Source files by the first two parts of their dotted name, each list in the order of the paths."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in _SKIPPED)
        for name in sorted(names):
            if name.endswith(".py") and name[:-3] not in _SKIPPED:
                path = Path(folder, name)
                first = path.relative_to(root).with_suffix("").parts[0]
                groups[package if first == "__init__" else f"{package}.{first}"].append(path)
    return {name: sorted(files) for name, files in groups.items()}


def _candidates(groups: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The public modules of a package with the most source, so that little is parsed in vain."""
    size_bytes = {name: sum(path.stat().st_size for path in groups[name]) for name in groups if "._" not in name}
    largest = sorted(size_bytes, key=lambda name: (-size_bytes[name], name))[:_CANDIDATES_PER_PACKAGE]
    return {name: groups[name] for name in largest}


def _read(groups: dict[str, list[Path]]) -> Texts:
    texts: Texts = {}
    seen: set[str] = set()
    for client in sorted(groups):
        kept: list[str] = []
        left_bytes = _CLIENT_BYTES
        for path in groups[client]:
            size_bytes = path.stat().st_size
            if size_bytes > min(_FILE_BYTES, left_bytes):
                continue
            left_bytes -= size_bytes
            for text in _documents(path):
                if text not in seen and len(kept) < TEXTS_PER_CLIENT:
                    seen.add(text)
                    kept.append(text)
            if len(kept) == TEXTS_PER_CLIENT:
                break
        if kept:
            texts[client] = kept
    return texts


def _largest(texts: Texts) -> Texts:
    chosen: list[str] = []
    used: Counter[str] = Counter()
    for client in sorted(texts, key=lambda name: (-len(texts[name]), name)):
        package = client.partition(".")[0]
        if used[package] < CLIENTS_PER_PACKAGE and len(chosen) < CLIENTS:
            used[package] += 1
            chosen.append(client)
    return {client: texts[client] for client in sorted(chosen)}


def _documents(path: Path) -> Iterator[str]:
    """Cleaned docstrings of a file's module, classes and functions, the nested ones included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = shorten(ast.get_docstring(node, clean=False) or "")
            if is_english(text):
                yield text
            waiting += [n for n in node.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]


def shorten(docstring: str) -> str:
    """The first paragraphs, up to code or examples, that fit in 500 characters.

    A longer first paragraph is cut after a sentence or a word.
    """
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", inspect.cleandoc(docstring)) if part.strip()]
    text = ""
    for paragraph in paragraphs:
        longer = f"{text}\n\n{paragraph}" if text else paragraph
        if len(longer) > MAX_CHARACTERS or (text and _CODE.match(paragraph)):
            break
        text = longer
    if text or not paragraphs:
        return text
    start = paragraphs[0][:MAX_CHARACTERS]
    end = max(start.rfind(". ") + 1, start.rfind(".\n") + 1)
    return start[: end or max(start.rfind(" "), start.rfind("\n")) + 1 or MAX_CHARACTERS].strip()


def is_english(text: str) -> bool:
    """Whether a text of at least 40 characters is mostly letters and holds common English words."""
    if len(text) < MIN_CHARACTERS or text.startswith(">>>"):
        return False
    return len(_LETTERS.findall(text)) >= 0.75 * len(text) and len(_ENGLISH.findall(text)) >= 2


def _cached(name: str, versions: str, build: Callable[[], Texts]) -> list[dict[str, str]]:
    """Rows from the cache, or built and then cached; a cache that cannot be read or written is no error."""
    rules = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()  # other rules, other texts
    key = hashlib.sha256(f"{platform.python_version()}|{versions}|{rules}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("AULAIT_CACHE") or os.path.expanduser("~/.cache/aulait"))
    path = folder / f"{name}-{key}.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        if rows and all(set(row) == {"client", "text"} for row in rows):
            return rows
    except (OSError, ValueError, TypeError):
        pass
    rows = [{"client": client, "text": text} for client, texts in build().items() for text in texts]
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _write(path: Path, text: str) -> None:
    # Written beside its place and then renamed: another process never reads half a file.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder, path.name)
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)
    except OSError:
        return
