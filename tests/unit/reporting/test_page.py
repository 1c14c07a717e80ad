"""The report page as a browser meets it: whole, alone, unharmed by hostile texts and by missing or broken files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from tests.fixture_run import personal, refuse, virtual, write_run

from aulait.core.errors import DataError
from aulait.reporting import numbers, report
from aulait.reporting.folder import read_run
from aulait.reporting.markup import PageTable, rendered, section

NASTY = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>'


KEYWORDS = {"synthesis", "train", "proxy", "local", "split", "rank", "client", "add-remove"}


class Reader(HTMLParser):
    """Collects what a browser would run or fetch, and checks that every element is closed in order."""

    VOID = ("meta", "input", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.open_ids: set[str | None] = set()
        self.outside: list[str] = []
        self.handlers: list[str] = []
        self.policy = ""
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open_ids.add(dict(attrs).get("id"))
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster", "formaction") and not (
                value or ""
            ).startswith("#"):
                self.outside.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.handlers.append(name)
        self.policy = (
            dict(attrs).get("content") or "" if ("http-equiv", "Content-Security-Policy") in attrs else self.policy
        )
        if tag not in self.VOID:
            self.open.append(f"{tag}#{dict(attrs).get('id')}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().split("#")[0] == tag

    def handle_data(self, data: str) -> None:
        if not any(part.startswith(("script", "style")) for part in self.open):
            self.text += data


def parsed(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


# the page


def poison(tree: Any) -> Any:
    """Puts the nasty text in place of every text of a tree that is not a keyword of the format."""
    if isinstance(tree, dict):
        return {key: poison(value) for key, value in tree.items()} | {NASTY: NASTY}
    if isinstance(tree, list):
        return [poison(item) for item in tree]
    return NASTY if isinstance(tree, str) and tree not in KEYWORDS else tree


def test_every_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for path in folder.iterdir():
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines()
            path.write_text("\n".join(json.dumps(poison(json.loads(line))) for line in lines), encoding="utf-8")
    (folder / "config.toml").write_text(
        f"[run]\nname = '''{NASTY}'''\n[model]\nname = '''{NASTY}'''\n", encoding="utf-8"
    )
    for page in (report.write_report(folder), report.write_comparison([folder], tmp_path / "compare.html")):
        reader = parsed(page)
        assert reader.tags.count("script") == 1
        assert "img" not in reader.tags
        assert reader.outside == []
        assert reader.handlers == []
        assert NASTY in reader.text


def test_the_page_fetches_nothing_and_runs_only_its_own_scripts(tmp_path: Path) -> None:
    page = report.write_report(write_run(tmp_path / "run"))
    reader = parsed(page)
    text = page.read_text(encoding="utf-8")
    assert page.name == "report.html"
    assert reader.outside == []
    assert "url(" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "@import" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert len(text.encode()) < 1_500_000
    assert "default-src 'none'" in reader.policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", reader.policy)) == 1
    assert "http://example.org/docstrings" in reader.text


def test_every_chart_is_drawn_and_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", seed=1, off=True, arm="off")
    for page in (report.write_report(first), report.write_comparison([first, second], tmp_path / "compare.html")):
        text = page.read_text(encoding="utf-8")
        plots = re.findall(r'data-figure="([^"]+)" role="img" aria-label="([^"]+)"', text)
        assert len(plots) == len(dict(plots)) == text.count('class="plot"') > 2
        assert all(re.search(r"\d", label) for _, label in plots)
        assert "NaN" not in text.partition("<script>")[0]
        assert "nan%" not in text


def test_colours_of_charts_exist_in_both_themes(tmp_path: Path) -> None:
    style = rendered("style.css.j2")
    text = report.write_report(virtual(write_run(tmp_path / "run"), deadline_s=30.0)).read_text(encoding="utf-8")
    for name in {*re.findall(r'class="k-(\w+)', text), *(f"c{i}" for i in range(8))}:
        assert style.count(f"--{name}:") == 3, name
        assert f".k-{name} {{ --k: var(--{name}); }}" in style, name
    assert 'id="theme"' in text


# missing and broken files


FILES = ("config.toml", "machine.json", "result.json", "rounds.jsonl", "ledger.jsonl", "synthetic.jsonl")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, "", "{\n[1]\n3\n", '[[["a"]]]'])
def test_a_missing_or_broken_file_is_tolerated(tmp_path: Path, name: str, content: str | None) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, encoding="utf-8")
    text = parsed(report.write_report(folder)).text
    assert "not recorded" in text
    parsed(report.write_comparison([folder], tmp_path / "compare.html"))


def test_a_lonely_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    text = parsed(report.write_report(tmp_path)).text
    assert "What the run brought is not recorded." in text
    assert "The ledger: not recorded." in text


def test_wrong_kinds_everywhere_are_tolerated(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")

    def twist(tree: Any, value: Any) -> Any:
        if isinstance(tree, dict):
            return {key: twist(item, value) for key, item in tree.items()}
        return value if not isinstance(tree, str) else tree

    originals = {name: (folder / name).read_text(encoding="utf-8") for name in FILES if name != "config.toml"}
    for value in (None, "text", [], {}, -1, True, 1e308, [None, "a", {}], 10**400):
        for name, text in originals.items():
            lines = [json.dumps(twist(json.loads(line), value)) for line in text.splitlines()[:20]]
            (folder / name).write_text("\n".join(lines), encoding="utf-8")
        parsed(report.write_report(folder))
        parsed(report.write_comparison([folder, folder], tmp_path / "compare.html"))


def test_a_cut_line_is_counted_and_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"stage": "tra')
    assert read_run(folder).remarks == ("rounds.jsonl: 1 of 16 lines could not be read.",)
    assert "1 of 16 lines could not be read" in parsed(report.write_report(folder)).text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no folder"):
        report.write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found no run in"):
        report.write_report(tmp_path)
    with pytest.raises(DataError, match="found no run to compare"):
        report.write_comparison([], tmp_path / "out.html")


def test_a_run_without_proxies_has_no_stage_one_sections(tmp_path: Path) -> None:
    def local(result: dict[str, Any]) -> None:
        result["tiers"] = result["tiers"][:1]
        del result["synthesis"]

    folder = write_run(tmp_path / "run", change=local)
    lines = [line for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines() if '"train"' in line]
    (folder / "rounds.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "synthetic.jsonl").unlink()
    text = report.write_report(folder).read_text(encoding="utf-8")
    assert 'id="votes"' not in text
    assert 'id="learning"' in text


def test_tables_escape_their_cells() -> None:
    body = section("runs", "The runs", runs=PageTable(["<b>"], [["<i>"]])).body
    assert 'class="words">&lt;b&gt;</th>' in body
    assert 'data-head="&lt;b&gt;">&lt;i&gt;</td>' in body


def test_a_value_that_a_template_asks_for_and_does_not_get_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="runs"):
        section("runs", "The runs")


@pytest.mark.parametrize("text", [NASTY, "\"' onmouseover=alert(1) x='", "{{ 7 * 7 }}{% raw %}", "</style><style>", "]]>--><!--", "&lt;&amp;"])
def test_hostile_texts_pass_through_every_section(tmp_path: Path, text: str) -> None:
    """Every text of every file, in a run that has every section: also as tier, client, reason, sample and parent."""

    def hostile(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: hostile(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [hostile(item) for item in tree]
        return text if isinstance(tree, str) and tree not in KEYWORDS else tree

    folder = virtual(write_run(tmp_path / "run", off=True, change=personal), deadline_s=30.0)
    refuse(folder, {2: [f"{text}: {text}"]})
    for path in folder.iterdir():
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines()
            path.write_text("\n".join(json.dumps(hostile(json.loads(line))) for line in lines), encoding="utf-8")
    (folder / "config.toml").write_text(f"[model]\nname = {json.dumps(text)}\n", encoding="utf-8")
    plain, found = tmp_path / "plain", {}
    virtual(write_run(plain, off=True, change=personal), deadline_s=30.0)
    refuse(plain, {2: ["a: b"]})
    for name, path in (("hostile", folder), ("plain", plain)):
        found[name] = [parsed(report.write_report(path)), parsed(report.write_comparison([path, path], tmp_path / f"{name}.html"))]
    sections = ("tiers", "learning", "privacy", "votes", "samples", "clock", "cost", "settings")
    assert {tag for tag in found["hostile"][0].open_ids if tag in sections} == set(sections)
    for hostile_page, plain_page in zip(found["hostile"], found["plain"], strict=True):
        assert set(hostile_page.tags) <= set(plain_page.tags)
        assert hostile_page.tags.count("script") == 1
        assert (hostile_page.outside, hostile_page.handlers) == ([], [])
        assert " ".join(text.split()) in " ".join(hostile_page.text.split())


# figures in text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.count(1234567), "1,234,567"),
        (numbers.count("7"), "not recorded"),
        (numbers.count(True), "not recorded"),
        (numbers.counted(1, "client"), "1 client"),
        (numbers.significant(5.4772), "5.48"),
        (numbers.significant(12345.6), "12,346"),
        (numbers.significant(0.00031), "0.000310"),
        (numbers.significant(2.5e-7), "2.5 × 10⁻⁷"),
        (numbers.delta(1e-5), "10⁻⁵"),
        (numbers.size(999), "999 B"),
        (numbers.size(999_800), "1.00 MB"),
        (numbers.size(12_345_678), "12.3 MB"),
        (numbers.size(2.5e12), "2,500 GB"),
        (numbers.duration(0.21), "210 ms"),
        (numbers.duration(59.96), "1 min 0 s"),
        (numbers.duration(3_599.6), "1 h 0 min"),
        (numbers.duration(7_325), "2 h 2 min"),
        (numbers.percent(0.35255), "35.3 %"),
        (numbers.spread(3.2, None, numbers.loss), "3.200"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown.replace("\u00a0", " ") == expected
