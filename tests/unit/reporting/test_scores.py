"""Scores beside one another, refused updates, unequal ranks, and comparisons of methods."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.fixture_run import personal, refuse, write_run

from aulait.reporting import (
    arms,
    columns,
    dots,
    drawing,
    measures,
    numbers,
    report,
    scores,
    sections,
    story,
)
from aulait.reporting.folder import RunFiles, read_run


def cells(markup: str) -> list[list[str]]:
    """The text of every row of the tables."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", markup, re.S)
    return [[html.unescape(text).replace("\u00a0", " ") for text in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.fixture
def own(tmp_path: Path) -> RunFiles:
    return read_run(write_run(tmp_path / "own", off=True, change=personal))


def method(name: str, arm: str = "", accuracy: float | None = None) -> Any:
    def change(result: dict[str, Any]) -> None:
        result["algorithm"] = name
        result["arm"] = arm or f"name={name}"
        if accuracy is not None:
            result["eval"]["accuracy"], result["base_eval"]["accuracy"] = accuracy, 0.01

    return change


# one run


def test_a_row_for_each_adapter_and_only_measured_columns(own: RunFiles) -> None:
    shown = scores.scores_table(own)
    head, *rows = [list(map(plain, line)) for line in (shown.head, *shown.rows)]
    assert head[:3] == ["scored with", "accuracy", "loss"]
    assert "ROUGE-L" not in head
    assert [row[:3] for row in rows] == [
        ["base model", "1.3 %", "4.207"],
        ["shared adapter", "31.0 %", "4.000"],
        ["personal adapters", "62.0 %", "3.412"],
        ["base model, unseen clients", "1.0 %", "4.300"],
        ["shared adapter, unseen clients", "27.0 %", "4.100"],
    ]
    assert rows[3][head.index("worst client's loss")] == "–"


def test_without_personal_adapters_the_scores_are_those_of_the_shared_one(tmp_path: Path) -> None:
    shown = scores.scores_table(read_run(write_run(tmp_path / "run")))
    assert [row[:2] for row in shown.rows] == [["base model", "4.207"], ["shared adapter", "3.412"]]


def test_the_opening_tells_the_task_and_whose_adapters(own: RunFiles) -> None:
    gain = story.lead_sentences(own)[1].replace("\u00a0", " ")
    assert "the accuracy in the task rose from 1.3 % to 62.0 %, each client under its own adapter" in gain
    name, value, remark, mark = story.key_figures(own)[2]
    assert mark == "not private"
    assert (name, value.replace("\u00a0", " ")) == ("accuracy", "62.0 %")
    assert "shared adapter 31.0" in remark
    assert ("remark", True) in [(kind, "No ε covers a personal adapter" in text) for kind, text in story.warning_banners(own)]


def test_curves_have_the_task_and_an_open_circle_for_the_shared_adapter(own: RunFiles) -> None:
    lines = [json.loads(line) for line in (own.path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if "eval" in line:
            line["eval"]["accuracy"] = 0.5
    (own.path / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    charts = sections.learning_section(read_run(own.path)).charts
    assert set(charts) == {"curve-loss", "curve-token_accuracy", "curve-accuracy"}
    line, circle = charts["curve-loss"].lines
    assert (circle.x, circle.y, circle.hollow) == ([10], [4.0], (True,))
    assert line.y[-1] == pytest.approx(3.412)
    axis = drawing.drawn(charts["curve-loss"]).y
    assert axis.low < 3.412 < 4.207 < axis.high


def test_refused_replies_are_named_only_without_privacy(tmp_path: Path) -> None:
    told = {2: ["c 1: holds a number that is not finite"], 5: ["c 1: holds a number that is not finite", "<b>: replied twice"]}
    folder = write_run(tmp_path / "off", off=True)
    refuse(folder, told)
    body = sections.learning_section(read_run(folder)).body.partition("Refused replies: 3")[2].partition("</details>")[0]
    assert "<b>" not in body
    assert cells(body)[1:] == [["c 1", "holds a number that is not finite", "2, 5"], ["<b>", "replied twice", "5"]]
    assert "3 replies were refused and left out" in report.write_report(folder).read_text(encoding="utf-8")
    private = write_run(tmp_path / "on")
    refuse(private, told)
    assert scores.refusals(read_run(private)) == {}
    assert "Refused replies" not in sections.learning_section(read_run(private)).body
    assert "replied twice" not in report.write_report(private).read_text(encoding="utf-8")


def test_unequal_ranks_are_said_with_those_of_attention(tmp_path: Path) -> None:
    def unequal(result: dict[str, Any]) -> None:
        result["tiers"] = [{**result["tiers"][0], "name": name, "rank": rank} for name, rank in (("big", 8), ("type 3", 8), ("small", 1))]

    folder = write_run(tmp_path / "run", change=unequal)
    assert "unequal" not in sections.tiers_section(read_run(write_run(tmp_path / "equal"))).body
    with (folder / "config.toml").open("a", encoding="utf-8") as file:
        file.write('[adapter]\nrank = 8\n[federation]\ntier = [{ name = "type 3", rank = 8, attention_rank = 2 }]\n')
    body = sections.tiers_section(read_run(folder)).body
    assert [row[3] for row in cells(body)[1:]] == ["8", "8 (attention 2)", "1"]
    assert "Ranks are unequal: where a tier's rank is smaller than the adapter's of 8" in body


# several runs


def test_rows_are_ranked_by_the_task_where_all_arms_have_it(tmp_path: Path) -> None:
    low = write_run(tmp_path / "low", off=True, loss=3.0, change=method("fedit", accuracy=0.5))
    high = write_run(tmp_path / "high", off=True, loss=3.5, change=method("ffa", accuracy=0.7))
    half = write_run(tmp_path / "half", off=True, change=lambda result: result.pop("eval"), arm="half")
    rows = report.comparison_rows([half, low, high])
    assert [row["arm"] for row in rows] == ["name=ffa", "name=fedit", "half"]
    assert rows[0]["base_accuracy"] == 0.01
    assert "accuracy" not in rows[2]
    plain = write_run(tmp_path / "plain", off=True, loss=3.2, change=method("flora"))
    rows = report.comparison_rows([low, high, plain])
    assert measures.ranking_measure(rows) is measures.LOSS
    assert [row["arm"] for row in rows] == ["name=fedit", "name=flora", "name=ffa"]
    page = report.write_comparison([low, high], tmp_path / "page.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "The highest accuracy on held-out text is that of ffa: 70.0 % over 1 run." in page


def test_columns_hold_shared_and_unseen_scores_and_costs_in_megabytes(own: RunFiles, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", off=True, arm="fedit", change=method("fedit", arm="fedit", accuracy=0.4))
    rows = report.comparison_rows([own.path, other])
    assert (rows[0]["personal"], rows[0]["shared_accuracy"], rows[0]["unseen_loss"]) == (True, 0.31, 4.1)
    found = {column.title: column.cells for column in columns.comparison_columns(rows)}
    assert list(found)[:7] == ["arm", "method", "n", "accuracy", "loss", "behind the first",
                               "shared accuracy"]
    assert [cell.replace("\u00a0", " ") for cell in found["shared accuracy"]] == ["31.0 %", "–"]
    assert found["MB up"][0] == f"{rows[0]['up_bytes'] / 1e6:.1f}"
    assert found["seconds"] == (numbers.significant(rows[0]["rounds_s"]),) * 2
    assert rows[0]["rounds_s"] < rows[0]["wall_s"]
    assert "method" not in [column.title for column in columns.comparison_columns(report.comparison_rows([other]))]


def test_dots_are_methods_by_setting(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{name}{preset}{seed}", off=True, seed=seed, loss=3.0 + 0.1 * seed,
                  change=method(name, f"x name={name} preset={preset}"))
        for name in ("fedit", "ffa") for preset in ("uniform", "normal") for seed in (0, 1)
    ]
    rows = report.comparison_rows(folders)
    assert {name: len(group) for name, group in dots.rows_by_setting(rows).items()} == {"preset=uniform": 2, "preset=normal": 2}
    figure = dots.arm_dots(rows, measures.LOSS)
    assert [line.name for line in figure.lines] == ["preset=uniform", "preset=normal"]
    assert figure.y.names == ["fedit", "ffa"]
    assert [high - low for low, high in figure.lines[0].x_bars] == [pytest.approx(2 * 0.0707, abs=1e-4)] * 2
    axis = drawing.drawn(figure).x
    assert axis.low < 2.98
    assert axis.high > 4.207


def test_dots_are_arms_where_the_labels_do_not_tell(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, arm=name, loss=loss) for name, loss in (("votes", 3.0), ("no votes", 3.1))]
    figure = dots.arm_dots(report.comparison_rows(folders), measures.LOSS)
    assert figure.y.names == ["votes", "no votes"]
    assert [line.y for line in figure.lines] == [[0], [1]]


def test_runs_of_one_label_are_told_apart_by_method_and_by_settings_that_differ(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", off=True)
    ffa = [first, write_run(tmp_path / "again", off=True), write_run(tmp_path / "seed", seed=1, off=True)]
    other = write_run(tmp_path / "other", off=True, change=lambda result: result.update(algorithm="fedit"))
    assert list(arms.runs_by_arm(map(read_run, ffa))) == ["cafe"]
    assert list(arms.runs_by_arm(map(read_run, [*ffa, other]))) == ["cafe ffa", "cafe fedit"]
    text = (first / "config.toml").read_text(encoding="utf-8")
    (first / "config.toml").write_text(text.replace("lr = 0.001", "lr = 0.01"), encoding="utf-8")
    groups = arms.runs_by_arm(map(read_run, ffa))
    assert {name: len(members) for name, members in groups.items()} == {"cafe lr=0.01": 1, "cafe lr=0.001": 2}


def test_an_epsilon_of_records_is_told_from_one_of_clients(tmp_path: Path) -> None:
    record = write_run(tmp_path / "record", arm="record", change=lambda result: result["privacy"].update(unit="record"))
    rows = report.comparison_rows([write_run(tmp_path / "client"), record])
    assert [row["unit"] for row in rows] == ["client", "record"]
    (epsilon,) = [column.cells for column in columns.comparison_columns(rows) if column.title.startswith("epsilon")]
    assert epsilon == ("2.65", "2.65 a record")
