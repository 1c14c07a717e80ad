"""Virtual time on the pages, in the comparison and in the terminal, against clocks that are counted by hand."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixture_run import virtual, write_run
from typer.testing import CliRunner

from aulait import cli
from aulait.cli import compare as comparing
from aulait.cli import ending
from aulait.cli import plan as planning
from aulait.reporting import (
    clock,
    clock_figures,
    columns,
    numbers,
    pace,
    privacy,
    report,
    sections,
    story,
)
from aulait.reporting import virtual as reading
from aulait.reporting.folder import RunFiles, read_run
from aulait.runfolder.schema import VirtualClock

TIERS = ({"name": "quick", "placement": "local", "clients": 2, "machine": "server"},
         {"name": "slow", "placement": "split", "clients": 1, "machine": "/home/x/profiles/old phone.json"},
         {"name": "still", "placement": "proxy", "clients": 3, "machine": None})


def tier(busy_s: float, idle_s: float, answered: int = 1, **more: float) -> dict[str, float]:
    return {"answered": answered, "late": 0, "lost": 0, "away": 0, "busy_s": busy_s, "idle_s": idle_s, "energy_j": busy_s, "link_j": 0.5, **more}


def told(round_s: float, total_s: float, **tiers: dict[str, float]) -> dict[str, Any]:
    counts = {kind: sum(own[kind] for own in tiers.values()) for kind in ("answered", "late", "lost", "away")}
    return {"round_s": round_s, "total_s": total_s, **counts, "energy_j": 7.0, "tiers": tiers}


ROUNDS = [
    ("synthesis", 1, told(30.0, 30.0, quick=tier(10.0, 50.0, 2))),  # one tier, and less than half of the round: the server
    ("train", 1, told(10.0, 40.0, quick=tier(4.0, 16.0, 2), slow=tier(10.0, 0.0))),
    ("train", 2, told(20.0, 60.0, quick=tier(4.0, 36.0, 2), slow=tier(20.0, 0.0, 0, late=1))),  # the deadline of 20 s
    ("train", 3, told(12.0, 72.0, quick=tier(24.0, 0.0, 1, lost=1), slow=tier(3.0, 9.0, away=1))),
    ("train", 4, told(20.0, 92.0, quick=tier(40.0, 0.0, 0, late=2))),
    ("train", 5, told(5.0, 97.0)),
]
LOSSES = {1: 4.0, 2: 3.5, 4: 3.6, 5: 3.2}


def counted(folder: Path, *, result: dict[str, Any] | None = None, change: Callable[[dict[str, Any]], None] | None = None) -> RunFiles:
    """A run whose clock is ROUNDS; with ``result`` as the clock of result.json."""

    def tiers(tree: dict[str, Any]) -> None:
        tree["tiers"] = [dict(row) for row in TIERS]
        tree["clock"] = result
        if change is not None:
            change(tree)

    write_run(folder, off=True, change=tiers)
    lines = [{"stage": stage, "round": r, "clock": tick, **({"eval": {"loss": LOSSES[r]}} if stage == "train" and r in LOSSES else {})}
             for stage, r, tick in ROUNDS]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with (folder / "config.toml").open("a", encoding="utf-8") as file:
        file.write("\n[compute]\ndeadline_s = 20.0\n")
    return read_run(folder)


def cells(markup: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", markup, re.S)
    return [[html.unescape(text).replace("\u00a0", " ") for text in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def plain(text: str) -> str:
    return html.unescape(text).replace("\u00a0", " ")


# one run


def test_totals_are_those_of_the_result_or_else_of_the_rounds(tmp_path: Path) -> None:
    found = reading.virtual_time_of(counted(tmp_path / "half"))
    assert found is not None
    assert (found.total_s, found.energy_j) == (97.0, 42.0)
    assert found.tiers["quick"] == {"answered": 7, "late": 2, "lost": 1, "away": 0, "busy_s": 82.0, "idle_s": 102.0, "energy_j": 82.0, "link_j": 2.5}
    assert found.idle_share == pytest.approx((102 + 9) / (82 + 102 + 33 + 9))
    whole = reading.virtual_time_of(counted(tmp_path / "done", result={"total_s": 500.0, "energy_j": 9.0, "idle_share": 0.25, "tiers": {"quick": tier(1.0, 3.0)}}))
    assert whole is not None
    assert (whole.total_s, whole.energy_j, whole.idle_share, set(whole.tiers)) == (500.0, 9.0, 0.25, {"quick"})
    assert reading.virtual_time_of(read_run(write_run(tmp_path / "without"))) is None


def test_words_tell_length_waiting_straggler_and_what_went_wrong(tmp_path: Path) -> None:
    run = counted(tmp_path / "run")
    found = reading.virtual_time_of(run)
    assert found is not None
    first, second = map(plain, clock.virtual_time_sentences(run, found))
    assert first.startswith("A federation of these machines would have taken 1 min 37 s for 1 round of synthesis and 5 rounds of training;")
    assert "49.1 % of their time in rounds waiting and used 42.0 J" in first
    assert "modelled, not measured" in first
    # slow is slowest in rounds 1 and 2, quick in round 3: 10 and 20 s against 2 and 2
    assert "“slow”: in 2 of 3 rounds with several tiers its clients were the slowest, on average 15.0 s at work against 2.0 s in “quick”" in second
    assert "In 1 round even the slowest tier was at work for less than half" in second
    assert "The deadline of 20.0 s closed 1 round before all" in second
    assert "In 1 round nobody answered in time." in second


def test_equal_tiers_have_no_straggler_and_single_ones_wait_for_none(tmp_path: Path) -> None:
    run = counted(tmp_path / "run")
    alike = told(10.0, 10.0, a=tier(9.0, 1.0), b=tier(9.1, 0.9))
    alone = told(10.0, 10.0, a=tier(9.0, 1.0))
    for tick, expected in ((alike, "No tier held up the others"), (alone, "only one tier was at work")):
        (run.path / "rounds.jsonl").write_text(json.dumps({"stage": "train", "round": 1, "clock": tick}), encoding="utf-8")
        again = read_run(run.path)
        found = reading.virtual_time_of(again)
        assert found is not None
        text = " ".join(clock.virtual_time_sentences(again, found))
        assert expected in text
        assert "straggler" not in text


def test_rounds_are_told_apart_by_how_they_ended(tmp_path: Path) -> None:
    run = counted(tmp_path / "run")
    ends = [reading.round_outcome(VirtualClock(**tick), 20.0) for _, _, tick in ROUNDS]
    assert ends == ["everybody answered", "everybody answered", "closed at the deadline", "some were lost", "nobody answered", "no client at work"]
    assert reading.round_outcome(VirtualClock(**ROUNDS[2][2]), None) == "closed when enough had answered"
    figure = clock_figures.round_time(run)
    assert figure is not None
    assert {bars.name for bars in figure.bars} == set(ends)
    assert set(ends) <= set(clock_figures.STATES)
    heights = [[bars.values[i] for bars in figure.bars if bars.values[i] is not None] for i in range(len(ROUNDS))]
    assert heights == [[30.0], [10.0], [20.0], [12.0], [20.0], [5.0]]
    assert figure.rules[0].at == 20.0
    assert "2 answered, 0 late, 1 lost, 1 away" in figure.bars[0].tips[3]


def test_the_table_has_every_tier_with_machine_placement_and_shares(tmp_path: Path) -> None:
    section = clock.virtual_time_section(counted(tmp_path / "run"))
    assert section is not None
    head, *rows = cells(section.body)
    assert head == ["tier", "clients", "machine", "placement", "answered", "late", "lost", "away", "at work", "waiting", "energy", "link energy"]
    # 82 of 115 s of all work, 102 of 184 s waited
    assert rows[0] == ["quick", "2", "server", "local", "7", "2", "1", "0", "1 min 22 s (71 %)", "1 min 42 s (55 %)", "82.0 J", "2.50 J"]
    assert rows[1][:8] == ["slow", "1", "old phone.json", "split", "2", "1", "0", "1"]
    assert rows[2] == ["still", "3", "–", "proxy", "0", "0", "0", "0", "–", "–", "–", "–"]


def test_bars_are_means_of_a_clients_round_and_shares_of_answers(tmp_path: Path) -> None:
    found = reading.virtual_time_of(counted(tmp_path / "run"))
    assert found is not None
    time, updates = clock_figures.tier_time(found), clock_figures.tier_replies(found)
    assert time is not None
    assert updates is not None
    # quick was asked 10 times, slow 3 times
    assert [bars.values for bars in time.bars] == [[pytest.approx(82 / 10), pytest.approx(33 / 3)], [pytest.approx(102 / 10), pytest.approx(9 / 3)]]
    assert {bars.name: bars.values for bars in updates.bars}["answered"] == [pytest.approx(7 / 10), 0.5]
    assert [sum(bars.values[i] for bars in updates.bars) for i in range(2)] == [pytest.approx(1.0)] * 2


def test_loss_is_drawn_over_seconds_since_the_start_after_synthesis(tmp_path: Path) -> None:
    run = counted(tmp_path / "run")
    assert reading.losses_over_time(run) == [(1.0, 40.0, 4.0), (2.0, 60.0, 3.5), (4.0, 92.0, 3.6), (5.0, 97.0, 3.2)]
    figure = clock_figures.loss_time(run)
    assert figure is not None
    (line,) = figure.lines
    assert line.x == [40.0, 60.0, 92.0, 97.0]
    assert [tip.partition("round ")[2][0] for tip in line.tips] == ["1", "2", "4", "5"]
    assert [(band.low, band.high, band.upright) for band in figure.bands] == [(0, 30.0, True)]
    assert [reading.time_unit(s) for s in (119.0, 120.0, 7199.0, 7200.0)] == [("s", 1.0), ("min", 60.0), ("min", 60.0), ("h", 3600.0)]


def test_pages_with_and_without_a_clock(tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare")
    assert 'id="clock"' not in report.write_report(bare).read_text(encoding="utf-8")
    assert "own machines the federation" not in story.lead_sentences(read_run(bare))[2]
    folder = virtual(write_run(tmp_path / "run"), deadline_s=30.0)
    text = plain(report.write_report(folder).read_text(encoding="utf-8"))
    assert 'id="clock"' in text
    length = numbers.duration(json.loads((folder / "result.json").read_text(encoding="utf-8"))["clock"]["total_s"])
    assert f"on its own machines the federation would have taken {plain(length)}, by the cost model." in text
    assert "The straggler was “laptop”" in text


def test_a_broken_clock_breaks_no_page(tmp_path: Path) -> None:
    folder = virtual(write_run(tmp_path / "run"), deadline_s=30.0)
    originals = {name: (folder / name).read_text(encoding="utf-8") for name in ("rounds.jsonl", "result.json")}

    def leaves(tree: Any) -> Any:
        return {key: leaves(item) for key, item in tree.items()} if isinstance(tree, dict) else "<b>"

    def twist(line: dict[str, Any], value: Any) -> dict[str, Any]:
        return {**line, "clock": leaves(line.get("clock")) if value == "leaves" else value}

    for value in (None, "text", [], {}, {"tiers": []}, {"tiers": {"a": 3}}, {"tiers": {"<b>": {}}}, {"total_s": -1, "tiers": 1}, "leaves", 3):
        for name, text in originals.items():
            (folder / name).write_text("\n".join(json.dumps(twist(json.loads(line), value)) for line in text.splitlines()), encoding="utf-8")
        page = report.write_report(folder).read_text(encoding="utf-8")
        assert ('id="clock"' in page) == (isinstance(value, dict) or value == "leaves")
        assert "<b>" not in page.partition('id="clock"')[2].partition("</section>")[0]
        report.write_comparison([folder, folder], tmp_path / "compare.html")


def test_tiers_name_machines_and_split_is_said_to_leak(tmp_path: Path) -> None:
    run = counted(tmp_path / "run")
    head, *rows = cells(sections.tiers_section(run).body)
    assert head[6:] == ["machine", "reason"]
    assert [row[6] for row in rows] == ["server", "old phone.json", "–"]
    assert 'class="split"' in sections.tiers_section(run).body
    body = plain(privacy.privacy_section(run).body)
    assert "Split: activations leave the site." in body
    assert "of 1 client and the tokens" in body
    assert "never leave it as they are; of split clients activations and labels do" in body
    other = read_run(write_run(tmp_path / "other"))
    assert "Split" not in privacy.privacy_section(other).body
    assert "which never leave it<" in privacy.privacy_section(other).body
    assert cells(sections.tiers_section(other).body)[0][5:] == ["batch", "reason"]


# several runs


@pytest.fixture
def arms(tmp_path: Path) -> list[Path]:
    """Two arms of two seeds with clocks counted by hand (quick: 10 s a round, slow: 30 s), and one arm without."""
    folders = [write_run(tmp_path / "none", arm="none")]
    for arm, each_s, floor in (("quick", 10.0, 3.4), ("slow", 30.0, 3.0)):
        for seed in (0, 1):
            folder = write_run(tmp_path / f"{arm}{seed}", seed=seed, arm=arm, loss=floor + 0.1 * seed)
            lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
            lines = [line for line in lines if line["stage"] == "train"]
            for line in lines:
                line["clock"] = told(each_s, (each_s + seed) * line["round"], all=tier(each_s - 1, 1.0))
            (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            result["clock"] = {"total_s": 10 * (each_s + seed), "idle_share": 0.1 + 0.1 * seed, "energy_j": 50.0, "tiers": {}}
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
            folders.append(folder)
    return folders


def first_at(folder: Path, target: float) -> float | None:
    """The oracle: scan the file."""
    for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        if "eval" in one and one["eval"]["loss"] <= target:
            return float(one["clock"]["total_s"])
    return None


def test_the_default_target_is_reached_by_every_run_at_a_measured_round(arms: list[Path]) -> None:
    rows = {row["arm"]: row for row in report.comparison_rows(arms)}
    assert "time_to_target_s" not in rows["none"]
    assert rows["quick"]["target_loss"] == rows["slow"]["target_loss"] == pytest.approx(3.5)  # the worse seed of the worse arm
    target = rows["quick"]["target_loss"]
    for arm in ("quick", "slow"):
        expected = [first_at(folder, target) for folder in arms if folder.name.startswith(arm)]
        assert None not in expected
        own = rows[arm]["time_to_target_s"]
        assert own == {"mean": sum(expected) / 2, "min": min(expected), "max": max(expected), "reached": 2, "of": 2}  # type: ignore[arg-type, type-var]
    assert rows["quick"]["time_to_target_s"]["max"] == 110.0  # round 10 of the seed that ends at 3.5
    assert (rows["quick"]["virtual_s"], rows["slow"]["virtual_s"]) == (105.0, 305.0)
    assert rows["quick"]["idle_share"] == pytest.approx(0.15)
    assert rows["quick"]["energy_j"] == 50.0


def test_a_given_target_that_some_or_none_reach(arms: list[Path]) -> None:
    rows = {row["arm"]: row for row in report.comparison_rows(arms, 3.05)}
    assert rows["quick"]["time_to_target_s"] == {"mean": None, "min": None, "max": None, "reached": 0, "of": 2}
    assert rows["slow"]["time_to_target_s"]["reached"] == 1
    found = {column.title: column.cells for column in columns.comparison_columns(list(rows.values()))}
    cell = dict(zip(found["arm"], found["virtual seconds to loss 3.050"], strict=True))
    assert cell["none"] == "–"
    assert cell["quick"] == "not reached"
    assert cell["slow"].endswith(", 1 of 2 seeds")
    assert "which not every run reaches" in pace.target_explained(list(rows.values()))
    assert "virtual seconds" not in {column.title for column in columns.comparison_columns(list(rows.values()), timed=False)}


def test_a_line_is_the_mean_over_seeds_in_time_and_loss(arms: list[Path], tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in arms]
    figure = pace.loss_over_time({"none": runs[:1], "quick": runs[1:3]}, 3.5)
    assert figure is not None
    (line,) = figure.lines
    assert line.x == [10.5, 21.0, 42.0, 63.0, 84.0, 105.0]  # rounds 1, 2, 4, 6, 8, 10 at 10 and 11 s
    assert line.x_bars == [(x - half, x + half) for x, half in zip(line.x, [0.5, 1.0, 2.0, 3.0, 4.0, 5.0], strict=True)]
    assert line.y[-1] == pytest.approx(3.45)
    assert line.y_bars[-1] == (pytest.approx(3.4), pytest.approx(3.5))
    page = plain(report.write_comparison(arms, tmp_path / "page.html", 3.3).read_text(encoding="utf-8"))
    assert "Virtual seconds to loss 3.300" in page
    assert "target 3.300" in page
    without = report.write_comparison(arms[:1], tmp_path / "without.html").read_text(encoding="utf-8")
    assert 'id="virtual"' not in without


def test_runs_whose_tiers_differ_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, off=True) for name in ("a", "b")]
    for folder, placement in zip(folders, ("local", "proxy"), strict=True):
        tiers = '{ name = "big", machine = "server" }, { name = "small", machine = "phone", placement = "' + placement + '" }'
        with (folder / "config.toml").open("a", encoding="utf-8") as file:
            file.write(f"[federation]\ntier = [{tiers}]\n")
    assert [row["arm"] for row in report.comparison_rows(folders)] == ["cafe placement=local", "cafe placement=proxy"]


def test_compare_in_the_terminal_and_as_json(arms: list[Path], tmp_path: Path) -> None:
    runner = CliRunner()
    names = [str(folder) for folder in arms]
    found = json.loads(runner.invoke(cli.app, ["compare", *names, "--json"]).stdout)
    assert found["target_loss"] == pytest.approx(3.5)
    assert {row["arm"] for row in found["rows"] if "time_to_target_s" in row} == {"quick", "slow"}
    given = runner.invoke(cli.app, ["compare", *names, "--target-loss", "3.05", "--out", str(tmp_path / "page.html")])
    assert given.exit_code == 0
    assert "virtual seconds to loss 3.050" in given.stdout
    assert "not reached" in given.stdout
    assert "target 3.050" in (tmp_path / "page.html").read_text(encoding="utf-8")
    vain = runner.invoke(cli.app, ["compare", names[0], "--target-loss", "3.0"])
    assert "no finished run has virtual time" in vain.stderr
    assert comparing.run_folders([arms[0]]) == [arms[0]]


# the terminal


def test_the_end_of_a_run_tells_virtual_time_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((write_run(tmp_path / "run") / "result.json").read_text(encoding="utf-8"))
    result["privacy"]["noise_seeded"] = False
    ending.ending(result, tmp_path / "run")
    assert "virtual" not in capsys.readouterr().out
    ending.ending({**result, "clock": {"total_s": 3700.0, "idle_share": 0.417}}, tmp_path / "run")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "virtual" in line]
    assert plain(line).split("  ")[-1].strip() == "1 h 2 min, clients waiting 42 %"


def test_plan_prints_machines_and_what_the_simulation_takes_here(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"name": "slow", "machine": "x/phone.json", "compute_s_round": 65.0, "transfer_s_round": None, "memory_bytes": 2.1e9,
             "machine_memory_bytes": 16e9, "energy_j_round": 1545.0}
    found: dict[str, Any] = {"tiers": [known, {**known, "name": "unnamed", "machine": None}], "server": {"machine": "a100"}}
    planning._print_machines({**found, "here": {"synthesis_s": 60.0, "train_s": 30.0, "evaluate_s": 5.0, "peak_bytes": 2e9}})
    out = plain(capsys.readouterr().out)
    (line,) = [line for line in out.splitlines() if line.startswith("slow")]
    assert re.split(r"\s{2,}", line) == ["slow", "phone.json", "1 min 5 s", "not known", "2.10 GB of 16.0 GB", "1.54 kJ"]
    assert "unnamed" not in out
    assert "here  1 min 35 s: synthesis 1 min 0 s, training 30.0 s, evaluation 5.0 s; peak memory 2.00 GB" in out
    planning._print_machines({**found, "tiers": found["tiers"][1:], "here": None})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0 J"), (12.345, "12.3 J"), (999.9, "1.00 kJ"), (4.2e6, "4.20 MJ"), (None, "not recorded")])
def test_energies(value: float | None, shown: str) -> None:
    assert plain(numbers.energy(value)) == shown
    assert clock.energy_if_known(0.0) == "not known"


def test_stages_by_turns_are_told_in_their_order(tmp_path: Path) -> None:
    """Two rounds of synthesis, one of training, the rest of synthesis, the rest of training: two bands, of the stretches alone."""
    folder = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    made, trained = ([line for line in lines if line["stage"] == stage] for stage in ("synthesis", "train"))
    turns = [*made[:2], *trained[:1], *made[2:], *trained[1:]]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in turns))
    run = read_run(virtual(folder))
    assert [line.stage for line in run.rounds] == [line["stage"] for line in turns]
    ends = [told.total_s for _, told in reading.timed_rounds(run)]
    bands = clock_figures._synthesis_times(run)
    assert bands == [(0.0, ends[1]), (ends[2], ends[len(made)])]
    assert len(clock_figures.loss_time(run).bands) == 2
    groups = clock_figures.round_time(run).x.groups
    assert list(groups) == ["synthesis"] * 2 + ["training"] + ["synthesis"] * (len(made) - 2) + ["training"] * (len(trained) - 1)
    usual = read_run(write_run(tmp_path / "usual"))
    assert [line.stage for line in usual.rounds] == ["synthesis"] * len(made) + ["train"] * len(trained)
