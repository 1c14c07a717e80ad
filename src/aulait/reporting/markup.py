"""What a page is made of: sections rendered from the templates, which escape every value.

A text that is safe as it is has the type `Markup`; only templates, and the few assets of the page,
make one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aulait.reporting.figures import PlotlyFigure

__all__ = ["Markup", "PageTable", "PlacedFigure", "Section", "embedded_json", "rendered", "section"]


@dataclass(frozen=True)
class PageTable:
    """A table that scrolls by itself when the page is narrow.

    Attributes:
        head: the column titles.
        rows: the cells, as text.
        words: the columns that hold words, set flush left; all others hold figures, set flush
            right.
        wide: the first column holds long names.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)
    wide: bool = False


@dataclass(frozen=True)
class PlacedFigure:
    """A plotly figure with its place on the page.

    Attributes:
        name: its key on the page: letters, digits and dashes.
        title: the line above it.
        figure: what plotly draws.
        height: pixels.
    """

    name: str
    title: str
    figure: PlotlyFigure
    height: int = 280


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        slug: its anchor.
        title: its heading.
        body: its markup.
        figures: plotly figures by name; the body has a place for each.
    """

    slug: str
    title: str
    body: Markup
    figures: Mapping[str, PlotlyFigure]


def section(slug: str, title: str, charts: Sequence[PlacedFigure] = (), *,
            package: str = "aulait.reporting", **values: object) -> Section:
    """A section from the template of its slug, which gets the values, and the figures as
    ``charts``."""
    body = rendered(f"{slug}.html.j2", package=package, charts=charts, **values)
    return Section(slug, title, body, {chart.name: chart.figure for chart in charts})


def rendered(template: str, *, package: str = "aulait.reporting", **values: object) -> Markup:
    """A template of a package with its values, each escaped unless it is `Markup`."""
    return Markup(_environment(package).get_template(template).render(values))


@cache
def _environment(package: str) -> Environment:
    """Templates of a package; the macros of the report are there for all."""
    packages = dict.fromkeys((package, "aulait.reporting"))
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True, loader=ChoiceLoader(list(map(PackageLoader, packages))))


def embedded_json(value: object) -> Markup:
    """A value as JSON that cannot close the script element it stands in; numbers that JSON lacks
    become null."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
