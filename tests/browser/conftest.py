"""A browser for the tests of pages: Chromium as the system has it, driven by playwright. Where one of them is missing, the tests
are skipped with a line that says which."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # --no-sandbox: CI may be root
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A running Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install '.[test]'")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed; pip install '.[test]'")
    path = os.environ.get("AULAIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium); AULAIT_CHROMIUM names one elsewhere")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()
