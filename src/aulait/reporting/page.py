"""Puts sections on one page that needs nothing from outside: style, script, plotly.js and the
figures are all in it.

The page carries a content security policy with the digests of its own scripts. A browser that
honours it runs no other script and fetches nothing, even if a text from a run folder should slip
through unescaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from aulait.core.files import replace_file
from aulait.reporting import markup
from aulait.reporting.markup import Html, Section


def page(title: str, subtitle: str, opening: Html, sections: Sequence[Section]) -> str:
    """The whole page as text.

    Args:
        title: plain text.
        subtitle: plain text under the title.
        opening: what stands before the first section.
        sections: the sections in order; the names of their figures differ from one another.
    """
    charts = {name: figure for section in sections for name, figure in section.figures.items()}
    plotly, script = _plotly(), _asset("page.js")
    return Template(_asset("page.html")).substitute(
        policy=_policy(plotly, script),
        title=markup.safe(title),
        subtitle=markup.safe(subtitle),
        style=_asset("style.css"),
        contents="".join(f'<a href="#{s.slug}">{markup.safe(s.title)}</a>' for s in sections),
        opening=opening,
        sections="\n".join(
            f'<section id="{s.slug}"><h2>{markup.safe(s.title)}</h2>{s.body}</section>'
            for s in sections
        ),
        figures=markup.embedded(charts),
        plotly=plotly,
        script=script,
    )


def save(path: Path, text: str) -> Path:
    """Writes a page in one piece: readers see the old file or the new one, never half of it."""
    return replace_file(path, text.encode("utf-8"), durable=False)


def banners(found: Sequence[tuple[str, str]]) -> Html:
    """Warnings and remarks above everything else."""
    return Html("".join(f'<p class="banner {kind}" role="alert">{markup.safe(text)}</p>' for kind,
                        text in found))


def tiles(found: Sequence[tuple[str, str, str]]) -> Html:
    """A strip of key figures: name, value, remark."""
    items = "".join(
        f"<div><dt>{markup.safe(name)}</dt><dd>{markup.safe(value)}<small>{markup.safe(remark)}</small></dd></div>"
        for name, value, remark in found
    )
    return Html(f'<dl class="tiles">{items}</dl>')


def _policy(*scripts: str) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
               for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


@cache
def _plotly() -> str:
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("</script", "<\\/script")


def _asset(name: str) -> str:
    return (files("aulait.reporting") / "templates" / name).read_text(encoding="utf-8")
