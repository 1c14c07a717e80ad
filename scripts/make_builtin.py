"""Make the built-in data again from the packages that are installed here.

    python scripts/make_builtin.py [OUT]

OUT is the folder of the packaged files (default: src/aulait/data/assets). Three files are written:
``docstrings.jsonl.gz`` (rows with ``client`` and ``text``; a client is a public module of a package
such as ``scipy.special``), ``stdlib.jsonl.gz`` (the same of Python's standard library) and
``LICENCES.txt`` (each package with version, licence, copyright notices and licence text).

Source files are read with ``ast``, never imported or run. The same versions of Python and of the
packages give the same files; other versions give other texts, and with them other results.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import importlib.util
import inspect
import json
import os
import platform
import re
import sys
import sysconfig
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src/aulait/data/assets"

# The licence of a package's own Python files. Its metadata must agree, otherwise it is left out.
PACKAGES = {
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "peft": "Apache-2.0",
    "datasets": "Apache-2.0",
    "safetensors": "Apache-2.0",
    "sentence_transformers": "Apache-2.0",
    "pydantic": "MIT",
    "rich": "MIT",
    "typer": "MIT",
    "plotly": "MIT",
    "dp_accounting": "Apache-2.0",
    "pandas": "BSD-3-Clause",
    "fsspec": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "huggingface_hub": "Apache-2.0",
    "jinja2": "BSD-3-Clause",
    "tokenizers": "Apache-2.0",
}
CLIENTS = 60
CLIENTS_PER_PACKAGE = 5  # otherwise three large packages would be the whole federation
TEXTS_PER_CLIENT = 100
MIN_CHARACTERS, MAX_CHARACTERS = 40, 500  # at most about 250 tokens of the built-in model
_FILE_BYTES = 300_000
_CLIENT_BYTES = 150_000  # source read for one client
_CANDIDATES_PER_PACKAGE = 8
_SKIPPED = {
    *("tests", "test", "testing", "conftest", "idlelib", "lib2to3", "turtledemo", "ensurepip"),
    *("pydoc_data", "site-packages", "dist-packages", "__pycache__", "antigravity", "this"),
}
_CODE = re.compile(r">>>|\.\. |Examples?\b")
_ENGLISH = re.compile(
    r"\b(?:the|a|an|of|to|is|are|in|for|and|with|that|this|from|by|if|or|on|be|as)\b",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"[A-Za-z ]")
_COPYRIGHT = re.compile(r"copyright.*(?:\d{4}|\(c\)|by )|\(c\) copyright", re.IGNORECASE)


class Harvest(NamedTuple):
    """Texts of a client, and the files that they come from."""

    texts: list[str]
    files: list[Path]


def packages() -> dict[str, Harvest]:
    """At most 60 clients of the permissively licensed packages, at most 5 of one package."""
    groups: dict[str, list[Path]] = {}
    for package in PACKAGES:
        wrong = objection(package)
        if wrong:
            print(f"left out: {package}: {wrong}", file=sys.stderr)
        else:
            groups.update(candidates(source_files(package_folder(package), package)))
    return largest(harvest(groups))


def standard_library() -> dict[str, Harvest]:
    """Every module of Python's standard library that has texts."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for name, files in source_files(Path(sysconfig.get_paths()["stdlib"]), "").items():
        groups[name.removeprefix(".")] += files
    return harvest(groups)


def objection(package: str) -> str | None:
    """Why a package cannot be used: not installed, or its metadata name another licence."""
    try:
        metadata = distribution(package).metadata
    except PackageNotFoundError:
        return "not installed"
    fields = ("License-Expression", "License", "Classifier")
    named = [value for field in fields for value in metadata.get_all(field) or ()]
    named = [value for value in named if not re.match(r"(?!License ::)[\w ]+ ::", value)]
    family = PACKAGES[package].partition("-")[0]  # "BSD", "MIT", "Apache": how metadata write it
    if any(re.search(rf"\b{family}\b", value) for value in named):
        return None
    return f"expected {PACKAGES[package]}, its metadata say {'; '.join(named)[:100] or 'nothing'}"


def package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is installed but has no folder; take it out of PACKAGES")
    return Path(spec.submodule_search_locations[0])


def source_files(root: Path, package: str) -> dict[str, list[Path]]:
    """Source files by the first two parts of their dotted name, each list in path order."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in _SKIPPED)
        for name in sorted(names):
            if name.endswith(".py") and name[:-3] not in _SKIPPED:
                path = Path(folder, name)
                first = path.relative_to(root).with_suffix("").parts[0]
                groups[package if first == "__init__" else f"{package}.{first}"].append(path)
    return {name: sorted(files) for name, files in groups.items()}


def candidates(groups: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The public modules of a package with the most source, so that little is parsed in vain."""
    size_bytes = {
        name: sum(path.stat().st_size for path in files)
        for name, files in groups.items()
        if "._" not in name
    }
    order = sorted(size_bytes, key=lambda name: (-size_bytes[name], name))
    return {name: groups[name] for name in order[:_CANDIDATES_PER_PACKAGE]}


def harvest(groups: dict[str, list[Path]]) -> dict[str, Harvest]:
    """Texts by client, in the clients' order; a text that occurred before is not taken again."""
    found: dict[str, Harvest] = {}
    seen: set[str] = set()
    for client in sorted(groups):
        texts: list[str] = []
        files: list[Path] = []
        left_bytes = _CLIENT_BYTES
        for path in groups[client]:
            size_bytes = path.stat().st_size
            if size_bytes > min(_FILE_BYTES, left_bytes):
                continue
            left_bytes -= size_bytes
            fresh = [text for text in dict.fromkeys(documents(path)) if text not in seen]
            fresh = fresh[: TEXTS_PER_CLIENT - len(texts)]
            seen.update(fresh)
            texts += fresh
            files += [path] if fresh else []
            if len(texts) == TEXTS_PER_CLIENT:
                break
        if texts:
            found[client] = Harvest(texts, files)
    return found


def largest(found: dict[str, Harvest]) -> dict[str, Harvest]:
    """The clients with the most texts, at most ``CLIENTS_PER_PACKAGE`` of one package."""
    chosen: list[str] = []
    used: Counter[str] = Counter()
    for client in sorted(found, key=lambda name: (-len(found[name].texts), name)):
        package = client.partition(".")[0]
        if used[package] < CLIENTS_PER_PACKAGE and len(chosen) < CLIENTS:
            used[package] += 1
            chosen.append(client)
    return {client: found[client] for client in sorted(chosen)}


def documents(path: Path) -> Iterator[str]:
    """Shortened docstrings of a file's module, classes and functions, the nested ones included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    inner = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Module | inner):
            text = shorten(ast.get_docstring(node, clean=False) or "")
            if is_english(text):
                yield text
            waiting += [child for child in node.body if isinstance(child, inner)]


def shorten(docstring: str) -> str:
    """The first paragraphs, up to code or examples, that fit in 500 characters.

    A longer first paragraph is cut after a sentence or a word.
    """
    parts = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    paragraphs = [part.strip() for part in parts if part.strip()]
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
    """Whether a text of at least 40 characters is mostly letters and has common English words."""
    if len(text) < MIN_CHARACTERS or text.startswith(">>>"):
        return False
    letters = len(_LETTERS.findall(text))
    return letters >= 0.75 * len(text) and len(_ENGLISH.findall(text)) >= 2


def licences(clients: dict[str, Harvest], library: dict[str, Harvest]) -> str:
    """The text of LICENCES.txt: what the packaged texts come from and may be used under."""
    files: dict[str, set[Path]] = defaultdict(set)
    for client, found in clients.items():
        files[client.partition(".")[0]] |= set(found.files)
    python = Path(sysconfig.get_paths()["stdlib"])
    owners = [(name, distribution(name)) for name in sorted(files)]
    head = [
        "Licences of aulait's built-in texts",
        "",
        "docstrings.jsonl.gz and stdlib.jsonl.gz beside this file hold docstrings, shortened to",
        "at most 500 characters, of the packages below and of Python's standard library. They are",
        "used under the packages' licences, which follow with the copyright notices of the files",
        "that texts were taken from.",
        "Apache-2.0 is the licence of aulait itself; its text is in aulait's file LICENSE.",
        "scripts/make_builtin.py wrote this file together with the two others.",
        "",
        *(f"{name} {owner.version}: {PACKAGES[name]}" for name, owner in owners),
        f"Python {platform.python_version()}: PSF-2.0",
    ]
    sections = ["\n".join(head)]
    for name, owner in owners:
        heading = f"{name} {owner.version}, {PACKAGES[name]}"
        folder = package_folder(name)
        parts = [*own_texts(owner), *folder_texts(files[name], folder), *notices(files[name])]
        sections.append(section(heading, parts))
    used = {path for found in library.values() for path in found.files}
    heading = f"Python {platform.python_version()}, PSF-2.0"
    sections.append(section(heading, [read(python / "LICENSE.txt"), *notices(used)]))
    return "\n\n".join(sections) + "\n"


def section(heading: str, parts: Iterable[str]) -> str:
    """A package's part of LICENCES.txt, the texts divided by lines of dashes."""
    rule = "=" * 100
    return f"{rule}\n{heading}\n{rule}\n\n" + f"\n\n{'-' * 100}\n\n".join(dict.fromkeys(parts))


def own_texts(owner: Distribution) -> Iterator[str]:
    """Licence and notice files of a distribution.

    Left out are the text of Apache-2.0, which aulait carries itself, licences of software that is
    bundled in compiled form, and the licences in folders of such software.
    """
    for file in sorted(owner.files or (), key=str):
        named = re.match(r"LICEN[CS]E|COPYING|NOTICE", file.name.upper())
        outer = file.parts[0].endswith(".dist-info") and file.parts[1:-1] in ((), ("licenses",))
        if named and outer:
            text = read(Path(str(file.locate())))
            text = re.split(r"\n(?:-+\s+)*This binary distribution of ", text)[0].strip()
            if text := re.split(r"(?:^|\n) *Apache License\n", text)[0].strip():
                yield text


def folder_texts(files: Iterable[Path], package: Path) -> Iterator[str]:
    """Licence files that lie in the package's folders of the files used."""
    folders = {folder for path in files for folder in path.parents if folder != package}
    for folder in sorted(folder for folder in folders if package in folder.parents):
        for path in sorted(folder.glob("*LICEN[CS]E*")):
            yield f"{path.relative_to(package.parent)}:\n\n{read(path)}"


def notices(files: Iterable[Path]) -> Iterator[str]:
    """Comments and strings of modules from their first copyright notice on, each once."""
    seen: set[str] = set()
    for path in sorted(files):
        source = read(path)
        comments = re.findall(r"(?:^#.*\n)+", source, re.MULTILINE)
        comments = [re.sub(r"^#+(?:!.*\n| ?)", "", text, flags=re.MULTILINE) for text in comments]
        strings = [
            node.value.value
            for node in ast.parse(source).body
            if isinstance(node, ast.Expr | ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ]
        for text in (*comments, *strings):
            text = textwrap.dedent(text).strip()
            if found := _COPYRIGHT.search(text):
                start = text.rfind("\n\n", 0, found.start()) + 1
                text = text[start:].split("\nLicensed under the Apache License")[0].strip()
                seen.add(text)
    yield from sorted(seen)


def read(path: Path) -> str:
    """A text file without blanks at the ends of its lines."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def packed(found: dict[str, Harvest]) -> bytes:
    """Rows as compressed JSON lines; without a time, so that the same rows are the same bytes."""
    rows = [{"client": name, "text": text} for name, one in found.items() for text in one.texts]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return gzip.compress(lines.encode(), mtime=0)


def main(arguments: list[str] | None = None) -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, default=ASSETS, help="folder to write to")
    out: Path = parser.parse_args(arguments).out
    clients, library = packages(), standard_library()
    out.mkdir(parents=True, exist_ok=True)
    (out / "docstrings.jsonl.gz").write_bytes(packed(clients))
    (out / "stdlib.jsonl.gz").write_bytes(packed(library))
    (out / "LICENCES.txt").write_text(licences(clients, library), encoding="utf-8")
    for name, found in (("docstrings", clients), ("stdlib", library)):
        texts = sum(len(one.texts) for one in found.values())
        print(f"{name}: {len(found)} clients, {texts} texts")


if __name__ == "__main__":
    main()
