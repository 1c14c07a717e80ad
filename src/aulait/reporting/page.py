"""Puts sections on one page that needs nothing from outside: style, script and figures are all in
it, and all of it can be read where no script runs.

The page carries a content security policy with the digests of its own scripts. A browser that
honours it runs no other script and fetches nothing, even if a text from a run folder should slip
through unescaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from aulait.core.files import PUBLIC, replace_file
from aulait.reporting.key_figure import KeyFigure
from aulait.reporting.markup import Markup, Section, rendered
from aulait.reporting.promise import Verdict


def whole_page(title: str, subtitle: str, opening: Markup, sections: Sequence[Section],
               version: str | None = None) -> str:
    """The whole page as text.

    Args:
        title: plain text.
        subtitle: plain text under the title.
        opening: what stands before the first section.
        sections: the sections in order; the names of their figures differ from one another.
        version: of a page that asks its own server whether there is a newer one; empty for one that
            shows a run which goes on and stands alone; None for any other.
    """
    scripts = [asset("page.js"), *([asset("watch.js")] if version else [])]
    return rendered(
        "page.html.j2",
        policy=_policy(scripts, "'self'" if version else "'none'"),
        version=version or "",
        growing=version is not None,
        title=title,
        subtitle=subtitle,
        style=rendered("style.css.j2"),
        opening=opening,
        sections=sections,
        scripts=scripts,
    )


def save_page(path: Path, text: str) -> Path:
    """Writes a page in one piece: readers see the old file or the new one, never half of it. A page
    is made to be handed on, so its mode is what the umask leaves."""
    return replace_file(path, text.encode("utf-8"), mode=PUBLIC, durable=False)


def opening_of(lead: Sequence[str], *, verdict: Verdict | None = None,
               banners: Sequence[tuple[str, str]] = (), tiles: Sequence[KeyFigure] = (),
               remarks: Sequence[str] = ()) -> Markup:
    """What stands before the first section.

    Args:
        lead: the sentences that open the page, a paragraph each.
        verdict: what is promised, above the sentences.
        banners: (kind, text): "alarm" or "remark", shown above everything else.
        tiles: the large figures under the sentences.
        remarks: set off below the sentences.
    """
    return rendered("opening.html.j2", lead=lead, verdict=verdict, banners=banners, tiles=tiles,
                    remarks=remarks)


def _policy(scripts: Sequence[str], connect: str) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
               for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; connect-src {connect}; {rest}"


def asset(name: str) -> Markup:
    """A style sheet or script of the templates, as it is."""
    return Markup((files("aulait.reporting") / "templates" / name).read_text(encoding="utf-8"))
