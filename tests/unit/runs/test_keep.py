"""``train.keep``: whose adapter is written, and the line about a run that harms."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_run

from aulait.core.errors import ConfigError
from aulait.engines.inline import InlineEngine
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer, Progress

CACHE = SharedCache()
LOCAL = {"tier": [{"name": "gpu", "placement": "local"}]}
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 1.0}


@pytest.fixture
def folder(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def run(folder, name, lr, keep, **tables):
    told = []
    settings = tiny_run.settings(folder, federation=LOCAL, algorithm={"name": "fedit"}, train={
        "rounds": 4, "steps": 2, "batch": 2, "lr": lr, "keep": keep}, **tables)
    result = loop.run(settings, folder / name, InlineEngine(), cache=tiny_run.fresh(CACHE),
                      observer=Observer(warn=told.append))
    return result, told


def losses(folder, name):
    return [line["eval"]["loss"] for line in RunFolder(folder / name).lines()]


def factors(folder, name):
    return load_file(folder / name / "adapter" / "adapter_model.safetensors")


def test_a_run_that_explodes_says_so_and_keeps_the_best_round(folder):
    last, told = run(folder, "last", 3.0, "last")
    assert last["eval"]["loss"] > last["base_eval"]["loss"] + 0.1
    assert "kept_round" not in last
    assert any("train.keep = 'best'" in line and "harms" in line for line in told)
    best, told = run(folder, "best", 3.0, "best")
    assert best["rounds"] == 4
    every = [best["base_eval"]["loss"], *losses(folder, "best")]
    assert best["eval"]["loss"] == min(every)
    assert best["kept_round"] == every.index(min(every))
    assert not told


def test_where_no_round_is_better_the_base_is_written(folder):
    best, _ = run(folder, "base", 300.0, "best")
    assert best["kept_round"] == 0
    assert best["eval"]["loss"] == best["base_eval"]["loss"]
    assert not any(bool(t.any()) for n, t in factors(folder, "base").items() if "lora_B" in n)


def test_a_run_that_only_learns_keeps_its_last_round_bit_for_bit(folder):
    last, told = run(folder, "last", 1e-3, "last")
    best, _ = run(folder, "best", 1e-3, "best")
    assert best["kept_round"] == 4
    assert not told
    assert best["eval"] == last["eval"]
    one, other = factors(folder, "last"), factors(folder, "best")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_under_privacy_only_public_text_may_choose(folder):
    with pytest.raises(ConfigError, match=r"evaluate\.on = 'public'"):
        tiny_run.settings(folder, privacy=PRIVATE, train={"keep": "best"})
    settings = tiny_run.settings(folder, privacy=PRIVATE, train={"keep": "best"},
                                 evaluate={"on": "public"})
    assert settings.train.keep == "best"
    with pytest.raises(ConfigError, match="adapters of the last round"):
        tiny_run.settings(folder, train={"keep": "best"}, algorithm={"name": "fedsa"})


def test_a_loss_that_is_no_number_is_never_the_best():
    progress = Progress(base_eval={"loss": 5.0}, last_eval={"loss": math.nan})
    progress.choose(None)
    assert progress.best_eval == {"loss": 5.0}


def test_held_out_losses_of_a_private_run_are_not_told(folder):
    settings = tiny_run.settings(folder, privacy=PRIVATE)
    harmed = Progress(base_eval={"loss": 5.0}, last_eval={"loss": 9.0})
    assert loop.harm(settings, harmed) == ""
    public = tiny_run.settings(folder, privacy=PRIVATE, evaluate={"on": "public"})
    assert "harms" in loop.harm(public, harmed)
