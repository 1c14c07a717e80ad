"""Paths that users write: what cannot be a path leads nowhere, and raises nothing.

``Path.expanduser`` raises ``RuntimeError`` for the home of nobody, and ``Path.is_file`` raises
``OSError`` for a name that is too long and ``ValueError`` for one with a zero byte. A setting that
names such a path is wrong in the same way as one that names a file that is not there, and is told
in the same words.
"""

from __future__ import annotations

import os
from pathlib import Path


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
