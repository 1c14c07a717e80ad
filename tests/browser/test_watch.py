"""The page of a run that goes on, in a browser: it renews itself, keeps what the reader has opened, and ends with the run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.browser.looking import faults, looking, unreached
from tests.unit.cli.test_watch import go_on, going_on

from aulait.cli.page_server import PageServer
from aulait.cli.watch import RunLook
from aulait.reporting.folder import read_run

pytestmark = pytest.mark.xdist_group("browser")


def test_the_page_follows_the_run_until_it_ends(browser: Any, tmp_path: Path) -> None:
    rest = going_on(tmp_path, 7)
    with PageServer(lambda: RunLook(tmp_path, read_run(tmp_path)).served) as server, looking(browser, server.address, 768) as seen:
        page = seen.page
        assert "round 2 of 10 of training" in page.locator(".banner").first.inner_text()
        page.get_by_text("The ledger: 7 releases").click()
        page.get_by_label("search").fill("matrix")
        next_round = {name: lines[:1] for name, lines in rest.items()}
        go_on(tmp_path, next_round, ("rounds.jsonl", "ledger.jsonl"))
        page.get_by_text("round 3 of 10 of training").wait_for(timeout=15_000)
        assert page.get_by_label("search").input_value() == "matrix"
        assert re.match(r"\d+ of \d+ texts", page.locator(".explorer output").inner_text())
        go_on(tmp_path, {name: lines[1:] if name != "result.json" else lines for name, lines in rest.items()})
        page.get_by_text("The run has finished: round 10 of 10 of training.").wait_for(timeout=15_000)
        assert page.locator(".tiles").get_by_text("3.412").is_visible()
        assert server.seen.wait(10)
        assert seen.said == []
        assert seen.elsewhere() == []


def test_the_page_of_a_run_that_goes_on_is_whole(browser: Any, tmp_path: Path) -> None:
    going_on(tmp_path, 7)
    with PageServer(lambda: RunLook(tmp_path, read_run(tmp_path)).served) as server:
        assert faults(browser, server.address, [(390, "light"), (390, "dark")]) == []
        with looking(browser, server.address) as seen:
            assert unreached(seen.page) == []


def test_a_page_says_that_nobody_watches_any_more(browser: Any, tmp_path: Path) -> None:
    going_on(tmp_path, 7)
    with PageServer(lambda: RunLook(tmp_path, read_run(tmp_path)).served) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.address)
    page.get_by_text("Nobody watches the run any more").wait_for(timeout=15_000)
    context.close()
