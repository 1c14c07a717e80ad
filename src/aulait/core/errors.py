"""Every error that aulait raises on purpose, drawn as a tree.

    AulaitError
    ├── ConfigError    the experiment file or a command-line value is wrong; nothing has started
    ├── DataError      a data source is missing, malformed or too small
    ├── ModelError     a base model, tokenizer or adapter cannot be loaded or does not fit
    ├── WireError      a message between server and site is not what it claims to be
    ├── PrivacyError   going on would break the promised guarantee
    ├── DeviceError    a machine cannot do what it was asked
    └── NobodyTrained  all was well asked, and in the end there was nothing and nobody to train on

Each message says what was found, what was expected and what to do, on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def install(extra: str) -> str:
    """How to get what an optional part needs."""
    return f"in the checkout run: pip install -e '.[{extra}]'"


class AulaitError(Exception):
    """Root of the tree; the command line prints it as one line and exits with ``exit_code``."""

    exit_code = 2


class ConfigError(AulaitError):
    """A setting is unknown, missing, of the wrong kind or in conflict with another one."""


class DataError(AulaitError):
    """A data source is missing, malformed or too small for the run."""


class ModelError(AulaitError):
    """A base model, tokenizer or adapter cannot be loaded or does not fit."""


class WireError(AulaitError):
    """A message between server and site is not what it claims to be."""


class PrivacyError(AulaitError):
    """Going on would break the promised guarantee."""


class DeviceError(AulaitError):
    """A machine cannot do what it was asked."""


class NobodyTrained(AulaitError):  # noqa: N818
    """A run in which no client trains and no proxy has a text to train on."""

    exit_code = 3


def require(condition: bool, error: type[AulaitError], message: str) -> None:
    """Raise ``error(message)`` unless the condition holds."""
    if not condition:
        raise error(message)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known word that is spelt most like a name; None where none is."""
    match = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return match[0] if match else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A phrase that names the nearest known word, or all of them: ``did you mean 'rank'?``."""
    known = sorted(known)
    if match := nearest(name, known):
        return f"did you mean '{match}'?"
    return f"expected one of: {', '.join(known)}"
