"""The pages of runs in a browser: at three widths, light and dark, by keyboard, on paper, without JavaScript."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.browser.looking import OVERFLOWING, SCROLLERS, faults, findings, looking, unreached
from tests.fixture_run import personal, refuse, virtual, write_run

from aulait.reporting import report

pytestmark = pytest.mark.xdist_group("browser")  # one browser


def named(method: str) -> Callable[[dict[str, Any]], None]:
    return lambda result: result.update(algorithm=method)


def few_texts(folder: Path) -> Path:
    """The run with fewer texts, so that looking at every element of its page is quick."""
    path = folder / "synthetic.jsonl"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:40]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> address of a page."""
    place = tmp_path_factory.mktemp("pages")
    full = few_texts(virtual(write_run(place / "full", stopped_early=True), deadline_s=30.0))
    bare = few_texts(write_run(place / "bare", off=True, change=personal))
    refuse(bare, {2: ["client 1: holds a number that is not finite"]})
    arms = [write_run(place / f"{method}{seed}", seed=seed, arm=f"name={method} a longer name of this arm", loss=loss + 0.02 * seed,
                      off=method == "fedit", change=named(method))
            for method, loss in (("fedit", 3.2), ("ffa", 3.4), ("flora", 3.5)) for seed in (0, 1)]
    otherwise = write_run(place / "otherwise", arm="otherwise")
    config = otherwise / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace('source = "docstrings"', 'source = "others"'), encoding="utf-8")
    found = {"report": report.write_report(full), "bare": report.write_report(bare),
             "compare": report.write_comparison(arms, place / "compare.html", remark="Together the runs have spent ε = 4.1."),
             "differing": report.write_comparison([*arms, otherwise], place / "differing.html")}
    return {name: path.as_uri() for name, path in found.items()}


@pytest.mark.parametrize("name", ["report", "bare", "compare"])
def test_a_page_is_whole_at_every_width_in_both_schemes(browser: Any, pages: dict[str, str], name: str) -> None:
    assert faults(browser, pages[name], [(390, "dark"), (1400, "light")]) == []


def test_no_line_of_a_chart_is_filled(browser: Any, pages: dict[str, str]) -> None:
    """A dotted line once bore the class of a dot, and hid its chart under a polygon."""
    for name in ("report", "compare"):
        with looking(browser, pages[name]) as seen:
            fills = seen.page.eval_on_selector_all("polyline", "(all) => all.map((one) => getComputedStyle(one).fill)")
            assert set(fills) == {"none"}, name


@pytest.mark.parametrize("name", ["report", "compare"])
def test_the_keyboard_reaches_everything(browser: Any, pages: dict[str, str], name: str) -> None:
    with looking(browser, pages[name]) as seen:
        assert unreached(seen.page) == []


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_is_readable_without_javascript(browser: Any, pages: dict[str, str], name: str) -> None:
    with looking(browser, pages[name], 768, java_script_enabled=False) as seen:
        assert seen.page.locator(".plot").count() > 2
        heights = [box["height"] for plot in seen.page.locator(".plot").all() if (box := plot.bounding_box()) is not None]
        assert len(heights) == seen.page.locator(".plot").count()
        assert min(heights) > 60
        assert seen.page.locator(".explorer form").is_hidden() if name == "report" else True
        assert seen.page.locator(".picker").is_hidden() if name == "report" else True


def test_texts_are_searched_filtered_and_sorted(browser: Any, pages: dict[str, str]) -> None:
    with looking(browser, pages["report"]) as seen:
        page, rows = seen.page, seen.page.locator(".explorer tbody tr")
        shown = page.locator(".explorer tbody tr:not([hidden])")
        every = rows.count()
        assert page.locator(".explorer output").inner_text() == f"{every} texts"
        page.get_by_label("where").select_option("won votes")
        assert 0 < shown.count() < every
        votes = page.locator("th:has-text('votes')")
        votes.get_by_role("button").click()
        assert votes.get_attribute("aria-sort") == "descending"
        falling = [float(cell) for cell in page.eval_on_selector_all(".explorer tbody tr:not([hidden]) td:last-child", "(cells) => cells.map((cell) => cell.dataset.sort)")]
        assert falling == sorted(falling, reverse=True)
        votes.get_by_role("button").press("Enter")
        assert votes.get_attribute("aria-sort") == "ascending"
        page.get_by_label("where").select_option("")
        page.get_by_label("search").fill("MATRIX sorted")
        assert 0 < shown.count() < every
        assert all("matrix" in text.lower() and "sorted" in text.lower() for text in shown.all_inner_texts())
        page.get_by_label("search").fill("nothing like it")
        assert (shown.count(), page.locator(".explorer output").inner_text()) == (0, f"0 of {every} texts")


def test_a_slider_shows_the_votes_of_one_round(browser: Any, pages: dict[str, str]) -> None:
    with looking(browser, pages["report"]) as seen:
        panels = seen.page.locator("[data-panel]")
        assert [panel.is_visible() for panel in panels.all()] == [False] * 4 + [True]
        slider = seen.page.get_by_label("round", exact=True)
        slider.first.press("Home")
        assert [panel.is_visible() for panel in panels.all()] == [True] + [False] * 4
        assert seen.page.locator(".picker output").inner_text() == "1"


def test_a_point_tells_its_values_and_the_theme_can_be_chosen(browser: Any, pages: dict[str, str]) -> None:
    with looking(browser, pages["report"]) as seen:
        seen.page.locator("[data-figure='curve-loss'] circle").last.hover()
        assert "round" in seen.page.locator("#tip").inner_text()
        seen.page.locator("#theme").click()
        assert seen.page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert findings(seen.page) == []


@pytest.mark.parametrize("name", ["report", "compare"])
def test_on_paper_everything_is_light_unfolded_and_within_the_page(browser: Any, pages: dict[str, str], name: str) -> None:
    with looking(browser, pages[name], 720, "dark") as seen:
        seen.page.emulate_media(media="print")
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert seen.page.evaluate("document.documentElement.dataset.theme") == "light"
        assert seen.page.locator("details:not([open])").count() == 0
        assert seen.page.locator("#theme").is_hidden()
        assert seen.page.evaluate(OVERFLOWING, SCROLLERS) == []


def test_runs_that_were_measured_on_other_things_are_marked(browser: Any, pages: dict[str, str]) -> None:
    with looking(browser, pages["differing"]) as seen:
        alarm = seen.page.locator(".banner.alarm")
        assert "data.source is others" in alarm.inner_text()
        red, green, blue = seen.page.evaluate("(place) => getComputedStyle(place).color.match(/\\d+/g).map(Number)", alarm.element_handle())
        assert red > 2 * max(green, blue)
        assert "not comparable" in seen.page.locator("thead").first.inner_text()
