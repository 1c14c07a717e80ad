"""Paths that users write, and the folder of what can be made again.

What cannot be a path leads nowhere, and raises nothing: ``Path.expanduser`` raises
``RuntimeError`` for the home of nobody, and ``Path.is_file`` raises ``OSError`` for a name that is
too long and ``ValueError`` for one with a zero byte. A setting that names such a path is wrong in
the same way as one that names a file that is not there, and is told in the same words.

Converted models and vectors of public corpora are kept in a cache. ``AULAIT_CACHE`` names its
folder; without it, it is ``aulait`` in ``XDG_CACHE_HOME``, and without that ``~/.cache/aulait``.
Whatever lies there may be deleted at any time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "AULAIT_CACHE"


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, with ``~`` for a home; as it is where nobody has that name."""
    try:
        return Path(os.path.expanduser(text))
    except ValueError:  # a zero byte
        return Path(text)


def is_file(path: str | Path) -> bool:
    """Whether a file is there."""
    return os.path.isfile(path)


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there."""
    return os.path.isdir(path)


def is_there(path: str | Path) -> bool:
    """Whether anything is there."""
    return os.path.exists(path)


def user_cache() -> Path:
    """The folder; it need not exist."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return user_path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # a relative path there is to be ignored (XDG Base Directory Specification)
    root = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return root / "aulait"
