"""The run folder: what it refuses, what a torn file costs, what it says when there is no space."""

from __future__ import annotations

import errno
import json
import math
import os
from collections import namedtuple

import pytest
import torch

from aulait.core.errors import AulaitError, ConfigError
from aulait.core.files import plain_json
from aulait.runfolder import run_folder
from aulait.runfolder.run_folder import RunFolder

CONFIG = 'seed = 1\nname = "x"\n'


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    assert made.begin(CONFIG, {"processors": 2}, resume=False) is False
    return made


def test_a_new_folder_holds_settings_and_machine(folder):
    assert (folder.path / "config.toml").read_text() == CONFIG
    assert json.loads((folder.path / "machine.json").read_text()) == {"processors": 2}
    assert folder.lines() == []
    assert folder.restore() is None
    assert folder.result() is None


def test_a_folder_with_a_run_is_refused_without_resume(folder):
    with pytest.raises(ConfigError, match=r"already holds a run; add --resume"):
        folder.begin(CONFIG, {}, resume=False)
    assert folder.begin(CONFIG, {}, resume=True) is True


def test_resume_of_nothing_is_a_beginning(tmp_path):
    assert RunFolder(tmp_path / "new").begin(CONFIG, {}, resume=True) is False


@pytest.mark.parametrize(("config", "named"), [
    ('seed = 2\nname = "x"\n', "seed = 1 -> seed = 2"), ('seed = 1\nname = "x"\nrank = 3\n', "nothing -> rank = 3"),
    ("seed = 1\n", 'name = "x" -> nothing')])
def test_resume_with_other_settings_names_the_line(folder, config, named):
    with pytest.raises(ConfigError, match="other settings") as caught:
        folder.begin(config, {}, resume=True)
    assert named in str(caught.value)
    assert (folder.path / "config.toml").read_text() == CONFIG


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder(tmp_path / "run").begin(CONFIG, {}, resume=False)


def test_a_run_may_begin_in_an_empty_or_foreign_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder(tmp_path).begin(CONFIG, {}, resume=False) is False
    assert (tmp_path / "notes.txt").read_text() == "mine"


# -- lines and checkpoints ---------------------------------------------------------------------------------------


def test_lines_in_order_with_numbers_that_json_lacks_as_null(folder):
    folder.append({"round": 1, "loss": math.nan, "epsilon": {"a": math.inf}, "é": (1, 2)})
    folder.append({"round": 2})
    assert folder.lines() == [{"round": 1, "loss": None, "epsilon": {"a": None}, "é": [1, 2]}, {"round": 2}]


@pytest.mark.parametrize("torn", ['{"round": 2, "lo', '{"round": 2}', "\x00\x00"])
def test_a_torn_last_line_is_left_out_and_cut_on_resume(folder, torn):
    folder.append({"round": 1})
    folder.checkpoint({"x": torch.ones(2)}, {"stage": "train"})
    with (folder.path / "rounds.jsonl").open("a") as file:
        file.write(torn)
    assert folder.lines() == [{"round": 1}]
    folder.restore()
    folder.append({"round": 2, "again": True})
    assert folder.lines() == [{"round": 1}, {"round": 2, "again": True}]


def test_a_checkpoint_brings_back_tensors_and_progress(folder):
    tensors = {"layer.B": torch.randn(3, 2), "m/layer.B": torch.randn(2, 3).T, "empty": torch.zeros(0)}
    folder.checkpoint(tensors, {"stage": "train", "texts": [["é", None]], "totals": {"up": 1.5}})
    found, progress = folder.restore()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], tensors[n]) for n in tensors)
    assert progress == {"stage": "train", "texts": [["é", None]], "totals": {"up": 1.5}, "lines": 0}


def test_lines_after_the_checkpoint_are_dropped_on_resume(folder):
    folder.append({"round": 1})
    folder.checkpoint({"x": torch.ones(1)}, {})
    folder.append({"round": 2})
    folder.restore()
    assert folder.lines() == [{"round": 1}]


def test_lines_without_a_checkpoint_are_dropped_on_resume(folder):
    folder.append({"round": 1})
    assert folder.restore() is None
    assert folder.lines() == []


def test_a_checkpoint_that_failed_leaves_the_one_before(folder, monkeypatch):
    folder.checkpoint({"x": torch.ones(1)}, {"round": 1})

    def no(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", no)
    with pytest.raises(KeyboardInterrupt):
        folder.checkpoint({"x": torch.zeros(1)}, {"round": 2})
    monkeypatch.undo()
    tensors, progress = folder.restore()
    assert (float(tensors["x"]), progress["round"]) == (1.0, 1)


def test_clean_leaves_plain_values_alone():
    assert plain_json({"a": [1, 2.5, None, True, "x"], 3: -math.inf}) == {"a": [1, 2.5, None, True, "x"], "3": None}


# -- no space, no permission -------------------------------------------------------------------------------------


def refuse(monkeypatch, code):
    def fsync(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("write", [
    lambda f: f.append({"round": 1}), lambda f: f.checkpoint({"x": torch.ones(1)}, {}), lambda f: f.write_json("result.json", {}),
    lambda f: f.write_lines("synthetic.jsonl", [])])
@pytest.mark.parametrize(("code", "said"), [
    (errno.ENOSPC, "no space left in the run folder"), (errno.EDQUOT, "no space left"), (errno.EROFS, "cannot write to the run folder")])
def test_a_refused_write_is_one_line(folder, monkeypatch, write, code, said):
    refuse(monkeypatch, code)
    with pytest.raises(AulaitError, match=said) as caught:
        write(folder)
    assert "\n" not in str(caught.value)


def test_other_faults_are_not_dressed_up(folder, monkeypatch):
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        folder.append({})


def test_too_little_space_is_found_before_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: usage(100, 99, 2**20))
    with pytest.raises(AulaitError, match=r"no space left \(1 MiB free\); expected at least 64 MiB") as caught:
        RunFolder(tmp_path / "run").begin(CONFIG, {}, resume=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.toml").exists()
