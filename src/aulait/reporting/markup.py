"""The few pieces of HTML that the page is made of. Every text is escaped here, so sections need not
remember to.

A `Html` is text that is already safe; a plain `str` never is. `cell` and `paragraph` escape the one
and keep the other.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aulait.reporting.numbers import NOT_RECORDED


class Html(str):
    """Markup that is safe to put on the page as it is."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        slug: its anchor.
        title: its heading.
        body: its markup.
        figures: plotly figures by name (letters and dashes); the body places them with `chart`.
    """

    slug: str
    title: str
    body: Html
    figures: Mapping[str, Any] = field(default_factory=dict)


def safe(text: Any) -> Html:
    """Escapes a text; leaves `Html` as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text), quote=True))


def join(*parts: str) -> Html:
    """Puts pieces of the page behind one another; plain texts among them are escaped."""
    return Html("\n".join(safe(part) for part in parts if part))


def paragraph(text: str, style: str = "") -> Html:
    """A paragraph, with a class of the style sheet when given."""
    return (
        Html(f'<p class="{safe(style)}">{safe(text)}</p>') if style
        else Html(f"<p>{safe(text)}</p>")
    )


def note(text: str) -> Html:
    """A remark in small type."""
    return paragraph(text, "note")


def absent(what: str) -> Html:
    """Says that the run folder does not hold something."""
    return paragraph(f"{what}: {NOT_RECORDED}.", "absent")


def subtitle(text: str) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{safe(text)}</h3>")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,),
          wide: bool = False) -> Html:
    """A table that scrolls by itself when the page is narrow.

    Args:
        head: the column titles.
        rows: the cells, as text.
        words: the columns that hold words, set flush left; all others hold figures, set flush
            right.
        wide: the first column holds long names.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="{"words" if index in words else "figure"}">{safe(text)}</{tag}>'
            for index, text in enumerate(cells)
        )

    kind = ' class="wide"' if wide else ""
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table{kind}>'
        f"<thead><tr>{line('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def pairs(rows: Sequence[tuple[str, str]]) -> Html:
    """A list of names and values."""
    items = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name,
                    value in rows)
    return Html(f'<dl class="pairs">{items}</dl>')


def folded(title: str, body: str, unfolded: bool = False) -> Html:
    """Something the reader opens when wanted."""
    mark = " open" if unfolded else ""
    return Html(f"<details{mark}><summary>{safe(title)}</summary>{safe(body)}</details>")


def verbatim(text: str) -> Html:
    """A text set as it stands in its file."""
    return Html(f'<pre tabindex="0">{safe(text)}</pre>')


def quotation(text: str, caption: str = "") -> Html:
    """A synthetic text, with a line about it below when given."""
    foot = f"<figcaption>{safe(caption)}</figcaption>" if caption else ""
    return Html(f'<figure class="text"><blockquote>{safe(text)}</blockquote>{foot}</figure>')


def columns(*parts: str) -> Html:
    """Pieces side by side, one above the other on narrow pages."""
    return Html(
        f'<div class="columns">{"".join(f"<div>{safe(part)}</div>" for part in parts)}</div>')


def chart(name: str, title: str, height: int = 280) -> Html:
    """The place of a figure; `name` is its key in `Section.figures`, `height` is in pixels."""
    return Html(
        f'<figure class="chart"><figcaption>{safe(title)}</figcaption>'
        f'<div class="plot" data-figure="{safe(name)}" role="img" aria-label="{safe(title)}" '
        f'style="height:{int(height)}px"></div></figure>'
    )


def embedded(value: Any) -> Html:
    """A value as JSON that cannot close the script element it stands in; numbers that JSON lacks
    become null."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
