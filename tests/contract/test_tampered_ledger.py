"""A run folder whose ledger somebody changed: --resume and ``aulait account`` end with 2 and one
line.

Counterparts of the review's attacks: cut, delete and edit the ledger of an interrupted run and go
on (the true cost was 50, told were 0.0 and 20.7, and ``account`` agreed); and die between ledger
line and noise.
"""

import json
import os
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from tests import tiny_run
from typer.testing import CliRunner

from aulait.cli import app
from aulait.engines.inline import InlineEngine
from aulait.privacy import ledger as ledgers
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.runs.loop import run
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer

PRIVATE = {"epsilon": 50.0, "delta": 1e-2, "relation": "add-remove", "clip": 1.0}


class Kill(BaseException):
    pass


def kill_at(stage, round):
    def watch(name, done, total, note):
        if (name, done) == (stage, round):
            raise Kill

    return Observer(watch=watch)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_run.write_data(folder)
    return tiny_run.settings(folder, privacy=PRIVATE)


@pytest.fixture(scope="module")
def killed(settings, tmp_path_factory):
    """Interrupted after two of three rounds of training: four releases."""
    path = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(Kill):
        run(settings, path, InlineEngine(), observer=kill_at("train", 2))
    assert len(Ledger(path / "ledger.jsonl").lines) == 4
    return path


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    assert run(settings, path, InlineEngine())["privacy"]["epsilon"]["max"] == pytest.approx(50,
        rel=1e-3)
    return path


@pytest.fixture(scope="module")
def other(settings, tmp_path_factory):
    """Another run of the very same settings."""
    path = tmp_path_factory.mktemp("other") / "run"
    run(settings, path, InlineEngine())
    return path


def rows(path):
    return (path / "ledger.jsonl").read_bytes().splitlines()


def write(path, lines):
    (path / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def with_head(path, lines):
    """Lines chained anew for the folder's own run, with a head that fits them: all that a local
    file can be made to say."""
    name = json.loads((path / "ledger.head").read_text())["run"]
    link, made = ledgers.first_link(name), []
    for line in lines:
        made.append(json.dumps(json.loads(line) | {"previous": link}).encode())
        link = ledgers.hashlib.sha256(made[-1]).hexdigest()
    write(path, made)
    (path / "ledger.head").write_text(json.dumps({"run": name, "lines": len(made), "hash": link}))


def cheaper(line):
    """An edit that agrees with itself: a thousand times the noise, epsilon next to nothing."""
    own = json.loads(line)
    return json.dumps(own | {"noise_multiplier": own["noise_multiplier"] * 1000,
                             "sigma": own["sigma"] * 1000,
                             "epsilon": dict.fromkeys(own["epsilon"], 0.01)}).encode()


def without_chain(path):
    write(path, [json.dumps({k: v for k, v in json.loads(line).items() if k != "previous"}).encode()
                 for line in rows(path)])
    (path / "ledger.head").unlink()


def swapped(path, other, names):
    for name in names:
        shutil.copy(other / name, path / name)


TAMPERING = {
    "cut": lambda path, other: write(path, rows(path)[:2]),
    "cut, head too": lambda path, other: with_head(path, rows(path)[:2]),
    "deleted": lambda path, other: (path / "ledger.jsonl").unlink(),
    "deleted, head too": lambda path, other:
        [(path / name).unlink() for name in ("ledger.jsonl", "ledger.head")],
    "edited": lambda path, other: write(path, [cheaper(line) for line in rows(path)]),
    "edited, chain and head too": lambda path, other:
        with_head(path, [cheaper(line) for line in rows(path)]),
    "last line edited": lambda path, other:
        write(path, [*rows(path)[:-1], cheaper(rows(path)[-1])]),
    "reordered": lambda path, other: with_head(path, [
        json.dumps(json.loads(rows(path)[i]) | {"release": k}).encode()
        for k, i in enumerate([1, 0, *range(2, len(rows(path)))], start=1)]),
    "swapped": lambda path, other: swapped(path, other, ["ledger.jsonl"]),
    "swapped, head too": lambda path, other: swapped(path, other, ["ledger.jsonl", "ledger.head"]),
    "chain taken out": lambda path, other: without_chain(path),
}


def ends_with_two_and_one_line(words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    told = [line for line in result.stderr.splitlines()
            if line.strip() and not line.startswith("preparing")]
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert len(told) == 1, told
    assert "ledger" in told[0]
    return told[0]


def experiment(settings_path, to):
    to.write_text((settings_path / "config.toml").read_text())
    return to


@pytest.mark.parametrize("how", TAMPERING)
def test_resume_refuses_a_ledger_that_was_changed(killed, other, tmp_path, how):
    path = tmp_path / "run"
    shutil.copytree(killed, path)
    TAMPERING[how](path, other)
    before = (path / "ledger.jsonl").read_bytes() if (path / "ledger.jsonl").exists() else None
    ends_with_two_and_one_line(["run", experiment(killed, tmp_path / "e.toml"), "--out", path,
                                "--resume"])
    assert not (path / "adapter").exists()
    assert not (path / "result.json").exists()
    assert before == ((path / "ledger.jsonl").read_bytes() if (path / "ledger.jsonl").exists()
                      else None)


@pytest.mark.parametrize("how", TAMPERING)
@pytest.mark.parametrize("command", ["account", "resume"])
def test_a_finished_run_whose_ledger_was_changed_is_refused(finished, other, tmp_path, how,
        command):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    TAMPERING[how](path, other)
    ends_with_two_and_one_line(
        ["account", path] if command == "account" else
        ["run", experiment(finished, tmp_path / "e.toml"), "--out", path, "--resume"])


def account(path):
    result = CliRunner().invoke(app, ["account", str(path), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_account_agrees_with_a_run_that_nobody_changed(finished, tmp_path):
    found = account(finished)
    assert found["agrees"]
    assert found["chained"]
    path = tmp_path / "run"
    shutil.copytree(finished, path, ignore=shutil.ignore_patterns("checkpoint"))  # as one is shared
    assert account(path)["chained"]


def edit_json(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("change", [
    lambda path: (path / "rounds.jsonl").write_text(
        "".join((path / "rounds.jsonl").read_text().splitlines(keepends=True)[:-1])),
    lambda path: (path / "rounds.jsonl").write_text(
        "".join((path / "rounds.jsonl").read_text().splitlines(keepends=True)[1:])),
    lambda path: (path / "rounds.jsonl").unlink(),
    lambda path: edit_json(path / "result.json", lambda tree: tree.update(rounds=2)),
    lambda path: edit_json(path / "result.json", lambda tree: tree["privacy"].pop("ledger")),
    lambda path: edit_json(path / "result.json",
                           lambda tree: tree["privacy"]["ledger"].update(lines=4)),
    lambda path: edit_json(path / "result.json",
                           lambda tree: tree["privacy"]["ledger"].update(hash="0" * 64)),
    lambda path: edit_json(path / "result.json",
                           lambda tree: tree["privacy"]["ledger"].update(releases={"train": 3})),
])
def test_account_compares_the_rounds_done_with_the_lines_found(finished, tmp_path, change):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    change(path)
    result = CliRunner().invoke(app, ["account", str(path)])
    assert result.exit_code == 2, result.output
    assert len([line for line in result.stderr.splitlines() if line.strip()]) == 1


def test_a_round_without_its_line_is_missed_even_if_every_head_was_made_to_fit(finished, tmp_path):
    """Ledger, head and result.json changed alike, without the checkpoint: the rounds still tell."""
    path = tmp_path / "run"
    shutil.copytree(finished, path, ignore=shutil.ignore_patterns("checkpoint"))
    with_head(path, rows(path)[:-1])
    edit_json(path / "result.json",
        lambda tree: tree["privacy"]["ledger"].update(
            json.loads((path / "ledger.head").read_text())))
    assert "train round 3" in ends_with_two_and_one_line(["account", path])


def test_a_folder_of_an_earlier_version_is_said_to_be_unchained(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished, path, ignore=shutil.ignore_patterns("checkpoint"))
    without_chain(path)
    edit_json(path / "result.json", lambda tree: tree["privacy"].pop("ledger"))
    assert "no head of the ledger" in ends_with_two_and_one_line(["account", path])
    edit_json(path / "result.json", lambda tree: tree.update(schema_version=1))
    found = account(path)
    assert found["agrees"]
    assert not found["chained"]
    assert "unchained" in CliRunner().invoke(app, ["account", str(path)]).output


def test_the_checkpoint_of_a_finished_run_tells_its_version_too(finished, tmp_path):
    """The chain was taken out of ledger, head, checkpoint and result.json, and result.json calls
    itself older: the checkpoint still knows."""
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    without_chain(path)
    edit_progress(path, lambda progress: progress.pop("ledger"))
    edit_json(path / "result.json", lambda tree: [tree["privacy"].pop("ledger"),
                                                  tree.pop("schema_version")])
    assert "no head of the ledger" in ends_with_two_and_one_line(["account", path])
    edit_progress(path, lambda progress: progress.pop("schema_version"))
    assert not account(path)["chained"], "every trace is gone: docs/sharp-edges.md says so"


def edit_progress(path, change):
    """Change what the checkpoint says of the run; what the change returns."""
    state = path / "checkpoint" / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = change(progress)
    save_file(tensors, state, metadata={"progress": json.dumps(progress)})
    return found


def test_a_run_that_an_earlier_version_began_goes_on_and_is_said_to_be_unchained(killed, settings,
        tmp_path):
    path = tmp_path / "run"
    shutil.copytree(killed, path)
    without_chain(path)
    assert edit_progress(path, lambda progress: progress.pop("ledger"))["lines"] == 4
    assert "no head of the ledger" in ends_with_two_and_one_line(
        ["run", experiment(path, tmp_path / "e.toml"), "--out", path, "--resume"])
    edit_progress(path, lambda progress: progress.pop("schema_version"))
    before = rows(path)
    result = run(settings, path, InlineEngine(), resume=True)
    assert result["privacy"]["epsilon"]["max"] == pytest.approx(50, rel=1e-3)
    assert rows(path)[:4] == before
    assert [json.loads(line).get("previous") is None for line in rows(path)] == [True] * 4 + [False]
    assert account(path) | {"roles": []} == {"agrees": True, "chained": False, "roles": [],
                                             "selection": None}
    write(path, [cheaper(before[0]), *rows(path)[1:]])
    ends_with_two_and_one_line(["account", path])


def test_a_kill_between_ledger_line_and_noise_is_charged_and_stays_legal(settings, tmp_path,
        monkeypatch):
    """The line is on disk, nothing was released: the resumed run pays for it and stops before the
    budget is crossed."""
    drawn = {"count": 0}
    gaussian = SystemNoise.gaussian

    def dying(self, shape, std):
        drawn["count"] += len(shape) == 2
        if drawn["count"] == 5:
            raise Kill
        return gaussian(self, shape, std)

    monkeypatch.setattr(SystemNoise, "gaussian", dying)
    with pytest.raises(Kill):
        run(settings, tmp_path / "run", InlineEngine())
    monkeypatch.undo()
    held = [(line.stage, line.round) for line in Ledger(tmp_path / "run" / "ledger.jsonl").lines]
    assert held[:2] == [("synthesis", 1), ("synthesis", 2)]
    assert held[-1][0] == "train"
    result = run(settings, tmp_path / "run", InlineEngine(), resume=True)
    lines = [(line.stage, line.round) for line in Ledger(tmp_path / "run" / "ledger.jsonl").lines]
    assert lines[: len(held)] == held
    assert lines.count(held[-1]) == 2, "the interrupted round is released again, and both count"
    assert result["privacy"]["stopped_early"]
    assert result["privacy"]["epsilon"]["max"] <= 50
    assert account(tmp_path / "run")["agrees"]


@pytest.mark.parametrize("keeps_head", [True, False])
def test_a_line_after_the_checkpoint_cannot_be_cut_unless_the_head_is_cut_too(settings, tmp_path,
        monkeypatch, keeps_head):
    """Of the lines after the checkpoint ledger.head knows; that somebody changes both, only a
    witness outside can see."""
    real = Ledger.append

    def dying(self, line):
        real(self, line)
        if (line.stage, line.round) == ("train", 1):
            raise Kill

    monkeypatch.setattr(Ledger, "append", dying)
    path = tmp_path / "run"
    with pytest.raises(Kill):
        run(settings, path, InlineEngine())
    monkeypatch.undo()
    if keeps_head:
        write(path, rows(path)[:-1])
        ends_with_two_and_one_line(["run", experiment(path, tmp_path / "e.toml"), "--out", path,
                                    "--resume"])
    else:
        with_head(path, rows(path)[:-1])
        assert run(settings, path, InlineEngine(), resume=True)["privacy"]["stopped_early"] is None


def test_a_run_killed_before_its_first_release_misses_a_deleted_ledger(settings, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Kill):
        run(settings, path, InlineEngine(), observer=kill_at("synthesis", 0))
    (path / "ledger.head").unlink()
    ends_with_two_and_one_line(["run", experiment(path, tmp_path / "e.toml"), "--out", path,
                                "--resume"])


def test_a_first_stage_taken_over_from_another_run_is_chained_to_the_new_one(settings, tmp_path):
    cache = SharedCache()
    for name in ("one", "two"):
        run(settings, tmp_path / name, InlineEngine(), cache=cache)
    one, two = (Ledger(tmp_path / name / "ledger.jsonl") for name in ("one", "two"))
    assert [line.sigma for line in one.lines[:2]] == [line.sigma for line in two.lines[:2]]
    assert one.head.run != two.head.run
    assert account(tmp_path / "two")["chained"]


# --- modes
# ----------------------------------------------------------------------------------------------------------


def modes(path):
    """Private files and folders of a run folder that somebody else may enter or read."""
    private = [path, *(p for p in path.rglob("*") if p.relative_to(path).parts[0] not in ("adapter", "report.html", "tensorboard"))]
    return {str(p.relative_to(path)): oct(p.stat().st_mode & 0o777) for p in private
            if p.stat().st_mode & 0o777 != (0o700 if p.is_dir() else 0o600)}


@pytest.fixture
def open_umask():
    before = os.umask(0o000)
    yield
    os.umask(before)


def test_a_run_folder_is_its_owners_alone_whatever_the_umask(tmp_path, open_umask):
    tiny_run.write_data(tmp_path)
    personal = tiny_run.settings(tmp_path, algorithm={"name": "fedsa"})
    path = tmp_path / "run"
    with pytest.raises(Kill):
        run(personal, path, InlineEngine(), observer=kill_at("train", 1))
    assert modes(path) == {}
    for file in path.rglob("*"):  # as an earlier version left it
        file.chmod(0o777 if file.is_dir() else 0o666)
    run(personal, path, InlineEngine(), resume=True)
    assert any((path / "personal").iterdir())
    left = modes(path)
    # what the resumed run does not write again keeps its mode, within a folder that nobody else can enter
    assert left.keys() <= {"config.toml", "machine.json", "synthetic.jsonl", "log.jsonl", "lock"}, left
    assert path.stat().st_mode & 0o777 == 0o700


def test_an_existing_folder_keeps_its_mode_and_what_is_private_in_it_is_closed(tmp_path, open_umask):
    tiny_run.write_data(tmp_path)
    path = tmp_path / "run"
    path.mkdir(mode=0o755)
    run(tiny_run.settings(tmp_path, algorithm={"name": "fedsa"}), path, InlineEngine())
    assert modes(path) == {".": "0o755"}


def test_an_exported_personal_adapter_stays_private(tmp_path, open_umask):
    tiny_run.write_data(tmp_path)
    path = tmp_path / "run"
    run(tiny_run.settings(tmp_path, algorithm={"name": "fedsa"}), path, InlineEngine())
    client = sorted(p.name for p in (path / "personal").iterdir())[0]
    for merge in ([], ["--merge"]):
        to = tmp_path / f"out{len(merge)}"
        result = CliRunner().invoke(app, ["export", str(path), "--to", str(to), "--client", client, *merge])
        assert result.exit_code == 0, result.output
        assert to.stat().st_mode & 0o777 == 0o700
