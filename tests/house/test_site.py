"""The site: it builds strictly (links, anchors, the navigation), and its pages fetch nothing from
elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FETCHED = re.compile(r"<(?:script|img|iframe|source)[^>]+src=\"(?:https?:)?//"
                     r"|<link[^>]+rel=\"(?:stylesheet|preload|preconnect|icon)\"[^>]+"
                     r"href=\"(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)], cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_pages_are_there_and_fetch_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    names = {path.relative_to(site).as_posix() for path in pages}
    assert {"index.html", "tutorial.html", "config.html", "results/index.html"} <= names
    assert [path.name for path in pages if FETCHED.search(path.read_text("utf-8"))] == []


def test_links_of_the_repository_are_links_of_the_site(site: Path) -> None:
    log = (site / "log.html").read_text("utf-8")
    assert 'href="results/cafe-commits.html"' in log
    assert "../results/" not in log
