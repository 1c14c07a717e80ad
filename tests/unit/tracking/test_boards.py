"""Tracking: what is written, that a resume writes nothing twice, that a tracker never stops a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests import tiny_run
from tests.fixture_run import write_run

from aulait.core.errors import ConfigError
from aulait.engines.inline import InlineEngine
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import experiment_file, loop
from aulait.runs.experiment_file import build_settings
from aulait.tracking import boards
from aulait.tracking.boards import TrackConfig, Tracker, problems, released, scalars

LINES = [{"stage": "synthesis", "round": 1, "wall_s": 1.5, "epsilon": {"proxy": 2.0}},
         {"stage": "train", "round": 1, "wall_s": 2.0, "epsilon": {"proxy": 2.0}, "up_bytes": 10},
         {"stage": "train", "round": 2, "wall_s": 2.5, "epsilon": {"proxy": 3.0}, "eval": {"loss": 3.25}}]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """MLflow puts artifacts beside where the process stands."""
    monkeypatch.chdir(tmp_path)


def board(run):
    """tag -> [(step, value)] as TensorBoard itself reads the folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    found = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def store(run, tmp_path):
    """metric -> [(step, value)] as MLflow's own client reads them, and the run's status."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    client = mlflow.MlflowClient(tracking_uri=uri(tmp_path))
    number = json.loads((run / "track.json").read_text())["run"]
    found = client.get_run(number)
    history = {key: [(m.step, m.value) for m in client.get_metric_history(number, key)] for key in found.data.metrics}
    return history, found


def uri(tmp_path):
    pytest.importorskip("alembic", reason="sqlite needs alembic")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_scalars_are_the_numbers_of_a_line():
    line = {"stage": "train", "round": 3, "up_bytes": 7, "epsilon": {"proxy": None, "local": 1.5}, "reused": True, "note": "text",
            "eval": {"loss": 2.0, "task": {"a b/c": 1}}, "refused_clients": ["c1"], "odd": float("nan"), "large": float("inf")}
    assert scalars(line) == {"train/up_bytes": 7.0, "train/epsilon/local": 1.5, "train/eval/loss": 2.0, "train/eval/task/a b_c": 1.0}


def test_nothing_is_written_without_boards(tmp_path):
    with Tracker(TrackConfig(), tmp_path, "x", private=False) as tracker:
        tracker.kept(LINES)
    assert not [*tmp_path.iterdir()]


def test_tensorboard_holds_each_line_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with Tracker(TrackConfig(tensorboard=True), tmp_path, "x", private=False) as tracker:
        tracker.kept(LINES[:1])
        tracker.kept(LINES[:1])
        tracker.kept(LINES[:2])
    with Tracker(TrackConfig(tensorboard=True), tmp_path, "x", private=False) as tracker:
        tracker.kept(LINES[:2])
        tracker.kept(LINES)
    found = board(tmp_path)
    assert found["synthesis/epsilon/proxy"] == [(1, 2.0)]
    assert found["train/epsilon/proxy"] == [(1, 2.0), (2, 3.0)]
    assert found["train/eval/loss"] == [(2, 3.25)]


@pytest.mark.slow
def test_mlflow_holds_each_line_once_after_a_resume(tmp_path):
    settings, run = TrackConfig(mlflow=uri(tmp_path)), tmp_path / "run"
    run.mkdir()
    with Tracker(settings, run, "x", private=False) as tracker:
        tracker.kept(LINES[:2])
    assert store(run, tmp_path)[1].info.status == "FINISHED"
    tracker = Tracker(settings, run, "x", private=False)
    tracker.kept(LINES[:2])
    tracker.kept(LINES)
    tracker.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    found, facts = store(run, tmp_path)
    assert found["train/epsilon/proxy"] == [(1, 2.0), (2, 3.0)]
    assert found["synthesis/wall_s"] == [(1, 1.5)]
    assert found["lines"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert set(found) == {tag for line in LINES for tag in scalars(line)} | {"lines"}
    assert facts.info.status == "KILLED"
    assert facts.data.params == {}
    assert set(facts.data.tags) == {"mlflow.runName"}


def test_a_board_that_fails_is_told_once_and_catches_up(tmp_path, capsys):
    class Weak:
        def __init__(self):
            self.lines, self.broken = [], True

        def count(self):
            return len(self.lines)

        def write(self, number, line):
            if self.broken and number > 1:
                self.lines.append(line)  # it arrived, the answer did not
                raise TimeoutError("no answer\nin 10 s")
            self.lines.append(line)

        def close(self, status):
            raise OSError("gone")

    weak = Weak()
    with Tracker(TrackConfig(), tmp_path, "x", private=False) as tracker:
        tracker._makers["Weak"] = lambda: weak
        tracker.kept(LINES[:2])
        tracker.kept(LINES[:2])
        weak.broken = False
        tracker.kept(LINES)
    assert weak.lines == LINES
    told = capsys.readouterr().err
    assert told == "Weak does not take the rounds (no answer in 10 s); the run goes on, and tries again with each round\n"


def test_who_is_given_to_be_warned_is_in_place_of_the_terminal(tmp_path, capsys):
    told = []
    with Tracker(TrackConfig(), tmp_path, "x", told.append, private=False) as tracker:
        tracker._makers["Closed"] = lambda: 1 / 0
        tracker.kept(LINES)
    assert told == ["Closed does not take the rounds (division by zero); the run goes on, and tries again with each round"]
    assert capsys.readouterr().err == ""


def test_a_board_that_cannot_be_opened_stops_nothing(tmp_path, capsys):
    with Tracker(TrackConfig(), tmp_path, "x", private=False) as tracker:
        tracker._makers["Closed"] = lambda: 1 / 0
        tracker.kept(LINES)
        tracker.kept(LINES)
    assert capsys.readouterr().err.count("Closed does not take the rounds") == 1


@pytest.mark.parametrize(("given", "told"), [
    ("http://me:word@host", "holds a user or password"), ("mlruns", "no address"), ("file:///x", "no address"), ("http://[", "is not an address")])
def test_addresses_that_cannot_work(given, told):
    (found,) = problems(TrackConfig(mlflow=given))
    assert told in found
    assert "word@" not in found


def test_a_missing_package_is_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        build_settings({"privacy": {"off": True}, "track": {"tensorboard": True, "mlflow": "http://127.0.0.1:1"}})
    first, second = str(caught.value).splitlines()
    assert first.startswith("track.tensorboard = true needs the package tensorboard")
    assert second.startswith("track.mlflow needs the package mlflow-skinny")
    assert "pip install -e '.[track]'" in first
    assert build_settings({"privacy": {"off": True}}).track == TrackConfig()


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError):
        TrackConfig(wandb=True)
    with pytest.raises(ConfigError, match=r"unknown key 'track.tensorbord'; .*tensorboard"):
        build_settings({"track": {"tensorbord": True}})


def test_a_stopped_run_shows_no_dropped_line(tmp_path, monkeypatch):
    """Killed between the line and the checkpoint of a round: the line is dropped, made again, and shown once."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(tmp_path, track={"tensorboard": True}, train={"rounds": 3})
    run, real = tmp_path / "run", RunFolder.checkpoint

    def dying(folder, tensors, progress):
        last = folder.lines()[-1:]
        if last and last[0]["stage"] == "train" and last[0]["round"] == 2:
            raise KeyboardInterrupt
        real(folder, tensors, progress)

    monkeypatch.setattr(RunFolder, "checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        loop.run(settings, run, InlineEngine())
    lines = RunFolder(run).lines()
    assert (lines[-1]["stage"], lines[-1]["round"]) == ("train", 2)
    assert [step for step, _ in board(run)["train/wall_s"]] == [1]
    monkeypatch.setattr(RunFolder, "checkpoint", real)
    loop.run(settings, run, InlineEngine(), resume=True)
    found, lines = board(run), RunFolder(run).lines()
    assert [step for step, _ in found["train/wall_s"]] == [1, 2, 3]
    assert [step for step, _ in found["synthesis/wall_s"]] == [1, 2]
    assert {tag for line in lines for tag in scalars(line)} == set(found)
    for tag, values in found.items():
        kept = [(line["round"], scalars(line)[tag]) for line in lines if tag in scalars(line)]
        assert [step for step, _ in values] == [step for step, _ in kept]
        assert [value for _, value in values] == pytest.approx([value for _, value in kept], rel=1e-6)  # event files hold 32 bits
    assert "[track]" in experiment_file.dump_settings(settings)


# --- privacy --------------------------------------------------------------------------------------------------------

PRIVATE = {"epsilon": 50.0, "delta": 1e-2, "relation": "add-remove", "clip": 1.0}
PUBLIC_TAGS = {
    *(f"synthesis/{key}" for key in ("noise_std", "candidates", "kept", "up_bytes", "down_bytes", "epsilon/proxy", "epsilon/local")),
    *(f"train/{key}" for key in ("noise_std", "signal_to_noise", "update_norm", "clip_bound", "proxies", "up_bytes", "down_bytes",
                                 "epsilon/proxy", "epsilon/local"))}


def test_under_privacy_what_was_measured_on_private_text_stays_here():
    line = {"stage": "train", "round": 2, "wall_s": 2.5, "client_s": 1.0, "train_loss": 3.0, "own": 7.0, "epsilon": {"local": 3.0},
            "noise_std": 0.5, "eval": {"loss": 3.25, "worst_client_loss": 4.0, "unseen": {"loss": 5.0}}}
    assert scalars(released(line)) == {"train/epsilon/local": 3.0, "train/noise_std": 0.5}
    public = line | {"eval": {"loss": 3.25, "measured_on": "public texts"}}
    assert scalars(released(public)) == {"train/epsilon/local": 3.0, "train/noise_std": 0.5, "train/eval/loss": 3.25}


@pytest.mark.slow
def test_both_writers_get_released_values_only(tmp_path):
    """A private simulation that measures after every round: its losses stand in rounds.jsonl and on no board."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(tmp_path, privacy=PRIVATE, evaluate={"every": 1}, track={"tensorboard": True, "mlflow": uri(tmp_path)})
    loop.run(settings, tmp_path / "run", InlineEngine())
    lines = [json.loads(row) for row in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert all("loss" in line["eval"] for line in lines if line["stage"] == "train")
    metrics, _ = store(tmp_path / "run", tmp_path)
    shown = board(tmp_path / "run")
    assert set(metrics) - {"lines"} == set(shown)
    assert shown.keys() <= PUBLIC_TAGS, shown.keys() - PUBLIC_TAGS
    assert {"train/noise_std", "train/epsilon/local", "synthesis/epsilon/proxy"} <= shown.keys()
    private = {value for line in lines for key, table in line.items() if key == "eval" for value in table.values() if isinstance(value, float)}
    private |= {line["wall_s"] for line in lines}
    shown_values = {value for history in [*metrics.values(), *shown.values()] for _, value in history}
    assert private
    assert not private & shown_values


SETTINGS = {"run": {"name": "wards"}, "data": {"source": "/mnt/secret/notes.jsonl"}, "train": {"rounds": 3},
            "privacy": {"epsilon": 8.0, "noise_seed": 77, "clip": None}, "federation": {"tier": [{"name": "gpu", "clients": ["ward-a"]}]}}


def test_parameters_are_the_settings_and_under_privacy_the_public_ones():
    whole = boards.parameters(SETTINGS, private=False)
    assert whole["data.source"] == "/mnt/secret/notes.jsonl"
    assert whole["federation.tier.0.name"] == "gpu"
    assert "privacy.clip" not in whole
    assert boards.parameters(SETTINGS, private=True) == {"train.rounds": "3", "privacy.epsilon": "8.0"}


@pytest.mark.slow
@pytest.mark.parametrize("private", [False, True])
def test_mlflow_gets_parameters_and_the_report_that_may_be_handed_on(tmp_path, monkeypatch, private):
    """A whole run, as MLflow's own client reads it afterwards."""
    monkeypatch.chdir(tmp_path)
    tiny_run.write_data(tmp_path)
    promise = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 0.1} if private else {"off": True}
    settings = tiny_run.settings(tmp_path, track={"mlflow": uri(tmp_path)}, privacy=promise, train={"rounds": 1},
                                 federation={"tier": [{"name": "all", "placement": "local"}]}, synthesis={"proxies": "absent"})
    loop.run(settings, tmp_path / "run", InlineEngine())
    _, found = store(tmp_path / "run", tmp_path)
    assert found.info.status == "FINISHED"
    assert found.data.params["train.rounds"] == "1"
    assert ("data.source" in found.data.params) is not private
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri(tmp_path))
    (given,) = [item.path for item in client.list_artifacts(found.info.run_id)]
    assert given == ("report-release.html" if private else "report.html")
    page = Path(client.download_artifacts(found.info.run_id, given)).read_text(encoding="utf-8")
    assert page == (tmp_path / "run" / given).read_text(encoding="utf-8")
    measured = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["eval"]["loss"]
    assert (f"{measured:.3f}" in page) is not private


def test_values_without_a_guarantee_are_attached_nowhere(tmp_path):
    """A run with a known noise seed has none; there is no page of it to hand on."""
    tiny_run.write_data(tmp_path)
    settings = tiny_run.settings(tmp_path, track={"mlflow": uri(tmp_path)}, privacy={"off": True})
    page = write_run(tmp_path / "run", off=True) / "report.html"
    assert loop._page_for_boards(settings, page.parent, page) == page
    private = settings.model_copy(update={"privacy": settings.privacy.model_copy(update={"off": False})})
    assert loop._page_for_boards(private, page.parent, page) is None
    assert not (page.parent / "report-release.html").exists()
