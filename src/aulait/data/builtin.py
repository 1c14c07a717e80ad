"""Built-in data: docstrings of Python packages and of Python itself, and a corpus of mixed texts;
the same on every machine.

Sources: ``docstrings`` (a client is a public module of a package, such as
``scipy.special``; the modules stand for institutions with a subject and a style of their own),
``stdlib`` (public texts from the standard library) and ``mixed`` (public texts of many kinds, to
retrieve from). The texts are packaged files of compressed JSON lines, so that they do not change
with the versions that are installed. Where they were taken from, and the licences, are in
LICENCES.txt and MIXED-LICENCES.txt beside them; ``scripts/make_builtin.py`` and
``scripts/make_mixed.py`` make these files.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files


def docstrings() -> list[dict[str, str]]:
    """Docstrings of the packages installed with aulait: rows with the fields ``client`` and
    ``text``.

    60 clients, at most 5 of a package and 100 texts each; a text has 40 to 500 characters and
    occurs once.
    """
    return _rows("docstrings")


def standard_library() -> list[dict[str, str]]:
    """Docstrings of Python's standard library: rows with the fields ``client`` (a module) and
    ``text``.

    A text has 40 to 500 characters and occurs once.
    """
    return _rows("stdlib")


def mixed() -> list[dict[str, str]]:
    """Some 20,000 short texts of many kinds: docstrings, documentation, commit messages, fiction
    and essays, textbooks; rows with the fields ``kind``, ``source`` and ``text``.

    A text has 20 to 500 characters and occurs once.
    """
    return _rows("mixed")


def _rows(name: str) -> list[dict[str, str]]:
    packed = files("aulait").joinpath("data", "assets", f"{name}.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]
