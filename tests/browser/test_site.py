"""Pages of the site in a browser: at three widths, light and dark, with nothing asked for outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.browser.looking import faults

pytestmark = pytest.mark.xdist_group("site")  # built once


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="session")
def address(browser: Any, site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["index.html", "config.html", "methods.html", "results/index.html",
                                  "results/methods-table.html"])
def test_a_page_of_the_site_is_whole(browser: Any, address: str, name: str) -> None:
    assert faults(browser, address + name, [(390, "light"), (1400, "dark")]) == []


def test_a_table_of_results_is_sorted_by_its_heads(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address + "results/methods-table.html")
    table = page.locator(".md-typeset table", has=page.locator("button", has_text="rate")).first

    def column(place: int) -> list[str]:
        return table.locator(f"tbody tr td:nth-child({place})").all_inner_texts()

    before = column(3)
    table.locator("button", has_text="method").focus()
    page.keyboard.press("Enter")
    assert column(1) == sorted(column(1))
    table.locator("button", has_text="loss").click()
    assert [text.split()[0] for text in column(3)] == sorted(text.split()[0] for text in before)
    table.locator("button", has_text="loss").click()
    assert table.locator("th").nth(2).get_attribute("aria-sort") == "descending"
    assert column(3)[0] == max(before)
    page.close()
