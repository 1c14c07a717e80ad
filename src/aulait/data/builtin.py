"""Built-in data: docstrings of Python packages and of Python itself, the same on every machine.

Sources: ``docstrings`` (a client is a public module of a package, such as
``scipy.special``; the modules stand for institutions with a subject and a style of their own) and
``stdlib`` (public texts from the standard library). The texts are packaged files of compressed JSON
lines, so that they do not change with the versions that are installed. The versions that they were
taken from, and the licences, are in LICENCES.txt beside them; ``scripts/make_builtin.py`` makes
these files.
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


def _rows(name: str) -> list[dict[str, str]]:
    packed = files("aulait").joinpath("data", "assets", f"{name}.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]
