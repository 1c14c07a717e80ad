"""The words of a promise: what is protected, and by what neighbouring federations differ."""

from __future__ import annotations

from typing import Literal

Unit = Literal["client", "record"]
Relation = Literal["add-remove", "zero-out", "replace"]
