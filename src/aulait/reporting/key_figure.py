"""A large figure of a page's opening."""

from __future__ import annotations

from typing import NamedTuple


class KeyFigure(NamedTuple):
    """A large figure under the sentences that open a page; ``mark``: what must be seen of it."""

    name: str
    value: str
    remark: str
    mark: str = ""
