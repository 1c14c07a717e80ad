"""The site: it builds strictly (links, anchors, the navigation), and its pages fetch nothing from
elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("site")  # built once
FETCHED = re.compile(r"<(?:script|img|iframe|source)[^>]+src=\"(?:https?:)?//"
                     r"|<link[^>]+rel=\"(?:stylesheet|preload|preconnect|icon)\"[^>]+"
                     r"href=\"(?:https?:)?//")


def test_the_pages_are_there_and_fetch_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    names = {path.relative_to(site).as_posix() for path in pages}
    assert {"index.html", "tutorial.html", "config.html", "results/index.html"} <= names
    assert [path.name for path in pages if FETCHED.search(path.read_text("utf-8"))] == []


def test_links_of_the_repository_are_links_of_the_site(site: Path) -> None:
    log = (site / "log.html").read_text("utf-8")
    assert 'href="results/cafe-commits.html"' in log
    assert "../results/" not in log
