"""scripts/methods_table.py: every method has a place, the rate is the best of the search, and what
was not measured is named."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from aulait.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]


@cache
def script() -> ModuleType:
    place = ROOT / "scripts" / "methods_table.py"
    sys.path.insert(0, str(place.parent))  # as it is when the script is run
    spec = importlib.util.spec_from_file_location("methods_table", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods_table"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def put(out: Path, cell: str, method: str, rate: float, seed: int, loss: float | None) -> None:
    folder = out / cell / f"{method}_lr={rate:g}-s{seed}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({
        "seed": seed, "eval": {"loss": loss}, "base_eval": {"loss": 5.0},
        "traffic": {"up_bytes": 10, "down_bytes": 20}, "time": {"train_s": 3.0}}))


def test_every_method_is_in_the_open_cell_or_left_out_with_a_reason() -> None:
    table = script()
    assert {*table.Cell("iid", "inf", "equal").methods} | {*table.LEFT_OUT} == {*METHODS.built_in}
    private = table.Cell("iid", "8", "equal").methods
    assert "ffa" in private
    assert "flora" not in private
    assert len(table.CELLS) == 14


def test_the_settings_of_every_cell_are_settings(tmp_path: Path) -> None:
    table = script()
    source = tmp_path / "some.jsonl"
    source.write_text('{"text": "a", "category": "b"}\n')
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "a", "response": "b", "client": "c"}\n')
    for cell in table.CELLS:
        files = table.DataFiles(str(source), str(tasks))
        for job in table.jobs(tmp_path, files, cell, [("fedit", 1e-2)], [0]):
            assert job.settings is not None, job.problem
            assert job.settings.data.source == str(
                tasks if cell.partition == "tasks" else source)
            assert job.path.parent.name == cell.name
            assert job.path.name == "fedit_lr=0.01-s0"


def test_the_best_rate_of_the_search_is_reported_and_the_rest_is_named(tmp_path: Path) -> None:
    table = script()
    cell = table.Cell("0.1", "inf", "equal")
    for rate, loss in zip(table.RATES, (4.0, 3.0, None, None), strict=True):
        put(tmp_path, cell.name, "fedit", rate, table.TUNING_SEED, loss)
        put(tmp_path, cell.name, "ffa", rate, table.TUNING_SEED, 4.5)
    assert table.best_rate(tmp_path, cell, "fedit") == table.RATES[1]
    assert table.best_rate(tmp_path, cell, "flora") is None
    put(tmp_path, cell.name, "fedit", table.RATES[1], 0, 3.5)
    put(tmp_path, cell.name, "ffa", table.RATES[0], 0, 5.5)
    table.write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| fedit | 0.01 | 3.500 (1) | - | 10 | 20 | 3 | no |" in page
    assert ("| ffa | 0.003, an end of the search | 5.500 (1) | +2.000 (one seed) | 10 | 20 | 3 | 1 |"
            in page)
    assert "- iid-inf-equal: all" in page
    said = " ".join(page.split())  # lines are broken anywhere
    assert "Of 10 runs at all rates" in said
    assert "`fedit` at 0.03, `fedit` at 0.1, `ffa` at 0.003." in said
    assert "`flora`" in page.partition("## Cells that were not measured")[2]
    found = json.loads((tmp_path / "page.json").read_text())
    assert [row["method"] for row in found[cell.name]] == ["fedit", "ffa"]


def test_cells_of_an_earlier_page_stay_where_their_runs_are_gone(tmp_path: Path) -> None:
    table = script()
    for cell, loss in (("iid-inf-equal", 3.0), ("0.1-inf-equal", 6.0)):
        for rate in table.RATES:
            put(tmp_path / "first", cell, "fedit", rate, table.TUNING_SEED, loss)
        put(tmp_path / "first", cell, "fedit", table.RATES[0], 0, loss)
    table.write_page(tmp_path / "first", tmp_path / "page.md")
    for rate in table.RATES:
        put(tmp_path / "second", "0.1-inf-equal", "fedit", rate, table.TUNING_SEED, 4.0)
    put(tmp_path / "second", "0.1-inf-equal", "fedit", table.RATES[0], 0, 4.0)
    table.write_page(tmp_path / "second", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| fedit | 0.003, an end of the search | 3.000 (1) |" in page
    assert "| fedit | 0.003, an end of the search | 4.000 (1) |" in page
    assert "6.000" not in page
    assert page.count("none ended worse than its base") == 2


def test_claims_are_read_from_paired_differences_and_ranks_are_means() -> None:
    reading = script().methods_reading
    rows = [{"method": "fedit", "personal": False, "seeds": [0, 1, 2], "loss": [4.0, 4.2, 4.1]},
            {"method": "ffa", "personal": False, "seeds": [0, 1, 2], "loss": [3.9, 4.3, 4.0]},
            {"method": "fedex", "personal": False, "seeds": [0, 1, 2], "loss": [3.5, 3.71, 3.6]},
            {"method": "rolora", "personal": False, "seeds": [0, 1, 2], "loss": [4.5, 4.7, 4.6]}]
    lines = reading.claims({"0.1-inf-equal": rows})
    assert any(line.startswith("| fedex | fedit |") and "-0.497" in line
               and "| holds here |" in line for line in lines)
    assert any(line.startswith("| rolora | fedit |") and "| does not hold here |" in line
               for line in lines)
    assert any(line.startswith("| ffa | fedit |") and "not measured" in line for line in lines)
    private = reading.claims({"0.1-8-equal": rows})
    assert any(line.startswith("| ffa | fedit |") and "cannot be told" in line for line in private)
    alone = {"method": "alone", "personal": True, "seeds": [0, 1, 2], "loss": [1.0, 1.0, 1.0]}
    ranks = reading.ranks({"0.1-inf-equal": [*rows, alone]})
    assert ranks[2].startswith("| fedex | 1.0 | 1.0 to 1.0 | 3 |")
    assert not any("alone" in line for line in ranks)


def test_every_claim_is_of_methods_of_the_table() -> None:
    reading = script().methods_reading
    for claim in reading.CLAIMS:
        assert {claim.method, *claim.than} <= {*METHODS.built_in} - {*script().LEFT_OUT}, claim
