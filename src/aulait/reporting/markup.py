"""What a page is made of: sections rendered from the templates, which escape every value.

A text that is safe as it is has the type `Markup`; only templates, and the few assets of the page,
make one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aulait.reporting.chart import Chart
from aulait.reporting.drawing import Drawing, drawn

__all__ = ["Markup", "PageTable", "PlacedFigure", "Section", "rendered", "section"]


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
    """A chart with its place on the page.

    Attributes:
        name: its key on the page: letters, digits and dashes.
        title: the line above it.
        chart: what is drawn.
        height: of the field between the axes, in pixels.
    """

    name: str
    title: str
    chart: Chart
    height: int = 220

    @cached_property
    def drawing(self) -> Drawing:
        """The chart with every place settled, for the template."""
        return drawn(self.chart)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        slug: its anchor.
        title: its heading.
        body: its markup.
        charts: what is drawn in the body, by name.
    """

    slug: str
    title: str
    body: Markup
    charts: Mapping[str, Chart]


def section(slug: str, title: str, charts: Sequence[PlacedFigure] = (), *,
            package: str = "aulait.reporting", **values: object) -> Section:
    """A section from the template of its slug, which gets the values, and the figures as
    ``charts``."""
    body = rendered(f"{slug}.html.j2", package=package, charts=charts, **values)
    return Section(slug, title, body, {placed.name: placed.chart for placed in charts})


def rendered(template: str, *, package: str = "aulait.reporting", **values: object) -> Markup:
    """A template of a package with its values, each escaped unless it is `Markup`."""
    # the template has escaped every value
    return Markup(_environment(package).get_template(template).render(values))  # nosec B704


@cache
def _environment(package: str) -> Environment:
    """Templates of a package; the macros of the report are there for all."""
    packages = dict.fromkeys((package, "aulait.reporting"))
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True, loader=ChoiceLoader(list(map(PackageLoader, packages))))

