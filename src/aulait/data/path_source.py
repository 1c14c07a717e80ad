"""Which files a path means: one file, those that match a pattern, or those of a folder; and whose
they are where their path tells it.

A pattern has ``*``, ``?``, ``[...]`` or ``**`` (any folders), and may have ``{client}`` once, which
matches one name (or a part of one) and says that it is the owner: ``notes/{client}/*.txt``. Files
that are each one text (.txt, .md) belong to the folder they lie in where no pattern says otherwise;
rows of tables name their owners themselves.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aulait.core.errors import DataError, require
from aulait.core.places import is_file, is_folder, user_path

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
DOCUMENTS = (".txt", ".md")
SUFFIXES = (*TABLES, *(f"{suffix}.gz" for suffix in TABLES[:-1]))
OWNER = "{client}"
_MARKS = re.compile(r"(\{client\}|\*\*/|\*|\?|\[[^\]/]+\])")
_MEANS = {OWNER: "([^/]+?)", "**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: where it lies.
        place: how it is called in messages.
        owner: whose it is, as the path tells; None: its rows say.
        document: it is one text.
    """

    path: Path
    place: str
    owner: str | None = None
    document: bool = False


def suffix(path: Path) -> str:
    """The last part of a name that says what a file is: ``.csv`` of ``a.CSV.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def is_pattern(source: str) -> bool:
    """Whether a source means several files by a pattern."""
    return not is_file(user_path(source)) and _MARKS.search(source) is not None


def is_several(source: str) -> bool:
    """Whether a source means a folder or a pattern, each of whose text files is one text."""
    return is_pattern(source) or is_folder(user_path(source))


def problem(source: str, suffixes: tuple[str, ...]) -> str | None:
    """What is wrong with a path, on one line, or None; no file is read."""
    try:
        if is_several(source):
            files(source)
            return None
    except DataError as error:
        return str(error)
    path = user_path(source)
    if not path.name.lower().endswith(suffixes):
        return (f"found '{source}', expected a path that ends in {', '.join(suffixes)}, a folder, "
                "a pattern such as 'notes/*.txt', or hf:<dataset>")
    return (
        None if is_file(path) else f"found no file '{source}'; give the path of an existing file"
    )


def files(source: str) -> list[SourceFile]:
    """The files that a path means, sorted by path.

    Raises:
        DataError: there is none, or tables and texts together.
    """
    root = user_path(source)
    if is_pattern(source):
        found = _matching(str(root))
    elif is_folder(root):
        found = [_file(path, root) for path in root.rglob("*") if _is_visible(path, root)]
    else:
        return [SourceFile(root, root.name)]
    kinds = (*SUFFIXES, *DOCUMENTS, ".txt.gz", ".md.gz")
    found = [file for file in found if file.path.name.lower().endswith(kinds)]
    require(bool(found), DataError,
            f"found no file at '{source}' that ends in {', '.join((*SUFFIXES, *DOCUMENTS))}; "
            "correct the path")
    _check_kinds(source, found)
    return sorted(found, key=lambda file: file.path.parts)


def _check_kinds(source: str, found: Iterable[SourceFile]) -> None:
    documents = {suffix(file.path) for file in found if file.document}
    tables = {suffix(file.path) for file in found if not file.document}
    require(not (documents and tables), DataError,
            f"found tables ({', '.join(sorted(tables))}) and single texts "
            f"({', '.join(sorted(documents))}) at '{source}', expected one kind; write a pattern "
            f"that ends in *{min(tables, default='')} or *{min(documents, default='')}")


def _matching(pattern: str) -> list[SourceFile]:
    """Files that match, with what stands for ``{client}`` as their owner."""
    require(pattern.count(OWNER) <= 1, DataError,
            f"found {OWNER} more than once in '{pattern}', expected it once; write * for the other")
    head = _MARKS.split(pattern)[0]
    root = Path(head if head.endswith("/") else Path(head).parent)
    form = re.compile("".join(_MEANS.get(part, part if part.startswith("[") else re.escape(part))
                              for part in _MARKS.split(pattern)))
    found = []
    for name in glob.iglob(pattern.replace(OWNER, "*"), recursive=True):
        match = form.fullmatch(name)
        if is_file(name) and (match or OWNER not in pattern):
            file = _file(Path(name), root)
            owner = match[1] if match and OWNER in pattern else file.owner
            found.append(SourceFile(file.path, file.place, owner, file.document))
    return found


def _file(path: Path, root: Path) -> SourceFile:
    """A file below a folder, as far as its own name tells."""
    document = suffix(path) in DOCUMENTS
    owner = path.absolute().parent.name if document else None
    return SourceFile(path, path.relative_to(root).as_posix(), owner, document)


def _is_visible(path: Path, root: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
