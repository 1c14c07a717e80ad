"""``import aulait``: each name with a run of seconds; torch is not there before one is used."""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from tests import tiny_run

import aulait
from aulait.core.errors import ConfigError, DataError
from aulait.core.version import installed_version
from aulait.runs import experiment_file

SMALL = {"train.rounds": 1, "synthesis.proxies": "absent"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    tiny_run.write_data(folder)
    path = folder / "tiny.toml"
    path.write_text(experiment_file.dump_settings(tiny_run.settings(folder)))
    return path


@pytest.fixture(scope="module")
def done(file: Path) -> aulait.FinishedRun:
    return aulait.run(file, SMALL, out=file.parent / "run")


def test_import_is_light_and_wrong_names_are_no_attributes() -> None:
    code = ("import sys, aulait; assert aulait.__version__; "
            "assert not {'torch', 'pydantic', 'transformers'} & set(sys.modules); "
            "assert aulait.Settings().run.name; assert 'torch' in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aulait.nothing  # noqa: B018
    assert all(getattr(aulait, name) is not None for name in aulait.__all__)
    assert dir(aulait) == sorted(aulait.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    assert aulait.__version__ == importlib.metadata.version("aulait")
    assert installed_version("no-distribution-of-this-name") == "0+unknown"


def test_run_gives_its_folder_and_typed_result(done: aulait.FinishedRun) -> None:
    assert (done.path / "report.html").is_file()
    assert done.result.name == "tiny"
    assert done.result.rounds == 1
    assert done.result.eval.loss is not None
    assert done.result.privacy.off is True


def test_an_interrupted_run_goes_on_and_a_finished_one_is_not_run_again(
        file: Path, done: aulait.FinishedRun) -> None:
    with pytest.raises(ConfigError, match="already holds a run"):
        aulait.run(file, SMALL, out=done.path)
    assert aulait.run(file, SMALL, out=done.path, resume=True) == done


def test_settings_are_an_experiment_too(file: Path, tmp_path: Path,
                                        done: aulait.FinishedRun) -> None:
    settings = experiment_file.read_settings(file, ["train.rounds=1", "synthesis.proxies=absent"])
    assert isinstance(settings, aulait.Settings)
    assert aulait.run(settings, out=tmp_path / "run").result.eval == done.result.eval
    with pytest.raises(ConfigError, match="settings together with overrides"):
        aulait.run(settings, {"train.rounds": 2})


def test_the_default_folder_is_named_after_the_run(
        file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = aulait.run(file, [*(f"{key}={value}" for key, value in SMALL.items()),
                              "train.rounds=0", "run.name=a b"])
    assert found.path.parent == Path("runs")
    assert found.path.name.startswith("a-b-2")


def test_load_run_reads_what_run_gave(done: aulait.FinishedRun, tmp_path: Path) -> None:
    assert aulait.load_run(str(done.path)) == done
    with pytest.raises(DataError, match=r"no result\.json"):
        aulait.load_run(tmp_path)
    for text, message in (("{", "is not JSON"), ("[]", "no JSON object")):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(DataError, match=message):
            aulait.load_run(tmp_path)


def test_plan_foretells_the_bytes_of_the_run(file: Path, done: aulait.FinishedRun) -> None:
    found = aulait.plan(file, SMALL)
    assert found["rounds"]["train"] == 1
    assert found["total"]["up_bytes"] == done.result.traffic.up_bytes
    privacy = {"epsilon": 8.0, "delta": 1e-2, "relation": "add-remove", "clip": 0.1}
    private = aulait.plan(file, {**SMALL, "privacy": privacy})
    assert private["privacy"]["epsilon"]["local"] == pytest.approx(8.0, rel=1e-2)


def test_sweep_and_compare(file: Path, tmp_path: Path) -> None:
    outcomes = aulait.sweep(file, {"train.lr": [1e-3, 1e-2], "algorithm": [{"name": "fedit"}]},
                            seeds=[0, 1], overrides=SMALL, out=tmp_path / "runs")
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    again = aulait.sweep(file, {"train.lr": [1e-3, 1e-2], "algorithm": [{"name": "fedit"}]},
                         seeds=[0, 1], overrides=SMALL, out=tmp_path / "runs")
    assert [outcome.status for outcome in again] == ["skipped"] * 4
    rows = aulait.compare([outcome.path for outcome in outcomes], page=tmp_path / "page.html")
    assert sorted(row["n"] for row in rows) == [2, 2]
    assert (tmp_path / "page.html").is_file()
    single = aulait.compare([aulait.load_run(outcomes[0].path)])
    assert [row["n"] for row in single] == [1]


def test_a_finished_run_has_its_figures_rounds_and_adapter(done: aulait.FinishedRun) -> None:
    assert done.loss == done.result.eval.loss
    assert done.base_loss == done.result.base_eval.loss
    assert done.epsilon == math.inf
    table = done.rounds
    assert list(table["stage"]) == ["train"]
    assert table["eval.loss"].iloc[-1] == pytest.approx(done.loss)
    assert (done.adapter / "adapter_config.json").is_file()


def test_the_models_of_a_run_agree_merged_and_worn(done: aulait.FinishedRun) -> None:
    merged, tokenizer = done.model()
    worn, _ = done.model(merged=False)
    words = tokenizer("a text of some words", return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(merged(**words).logits, worn(**words).logits, atol=1e-4)
    assert type(worn).__name__.startswith("Peft")


def test_progress_hears_of_every_stage(file: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    aulait.run(file, SMALL, out=tmp_path / "run",
               progress=lambda stage, done, total, note: heard.append((stage, done, total)))
    assert heard[0] == ("prepare", 0, 1)
    assert ("train", 0, 1) in heard
    assert heard[-1] == ("finish", 2, 2)


def test_records_of_any_kind_are_one_source(file: Path) -> None:
    rows = [{"client": f"c{k % 8}", "text": f"Read file {k}, then close it."} for k in range(32)]
    wanted = {**SMALL, "train.rounds": 0}
    counts = {aulait.plan(file, wanted, records=given)["clients"] for given in (rows, iter(rows))}
    assert counts == {8}
    first = aulait.run(file, wanted, records=rows, out=file.parent / "given")
    source = tomllib.loads((first.path / "config.toml").read_text())["data"]["source"]
    assert source.startswith("records-")
    assert not any("Read file" in path.read_text(errors="ignore") for path in first.path.rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="started with other settings"):
        aulait.run(file, wanted, records=[*rows, rows[0]], out=first.path, resume=True)


@pytest.mark.parametrize(("records", "words"), [([], "found no records"), (["a text"], "record 1 is of type str")])
def test_records_that_are_none_are_one_line(file: Path, records: list[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        aulait.plan(file, SMALL, records=records)


def test_records_stay_in_this_process(file: Path) -> None:
    with pytest.raises(ConfigError, match="expected jobs = 1"):
        aulait.sweep(file, {"algorithm.name": ["ffa"]}, out=file.parent / "s", records=[{"text": "a"}], jobs=2)


def test_a_notebook_shows_a_finished_run(done: aulait.FinishedRun) -> None:
    shown = done._repr_html_()
    assert "<table>" in shown
    assert "∞" in shown


def test_progress_elsewhere_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    watch = aulait.NotebookProgress()
    for done, note in ((0, ""), (0, ""), (1, "voting")):
        watch("train", done, 2, note)
    assert capsys.readouterr().out.splitlines() == ["training 0/2", "training 1/2 voting"]
