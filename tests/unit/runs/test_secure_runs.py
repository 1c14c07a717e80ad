"""Whole runs under privacy.trust = "secure"."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests import tiny_run

from aulait.core.errors import ConfigError
from aulait.engines.inline import InlineEngine
from aulait.privacy.accounting import Event, epsilon
from aulait.privacy.mechanisms import DISTRIBUTED_SHARE
from aulait.privacy.noise import SystemNoise
from aulait.privacy.secure import encoding
from aulait.runs.loop import run
from aulait.runs.prepared import SharedCache

SECURE = {"epsilon": 50.0, "delta": 1e-5, "relation": "zero-out", "trust": "secure", "clip": 0.5}
LINEAR = ["ffa", "fedit", "rolora", "cores", "fedsa"]


@pytest.fixture(scope="module")
def shared():
    return SharedCache()


@pytest.fixture
def folder(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def ran(folder, name, shared, **tables):
    out, cache = folder / name, tiny_run.fresh(shared)
    result = run(tiny_run.settings(folder, **tables), out, InlineEngine(), cache=cache)
    shared.kept |= {key: thing for key, thing in cache.kept.items() if key.startswith("base")}
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    return result, lines, out


@pytest.mark.parametrize("method", LINEAR)
def test_every_linear_method_gives_what_it_gives_under_server_trust(method, folder, shared,
                                                                    monkeypatch):
    """Without either's noise; votes and updates both."""
    monkeypatch.setattr(encoding, "discrete_gaussian",
                        lambda count, s, words: np.zeros(count, dtype=np.int64))
    monkeypatch.setattr(SystemNoise, "gaussian",
                        lambda self, shape, std: torch.zeros(shape, dtype=torch.float64))
    tables = {"algorithm": {"name": method}, "train": {"rounds": 1, "steps": 1},
              "synthesis": {"rounds": 1}}
    if method != LINEAR[0]:  # the others without votes, which are the same for all
        tables["federation"] = {"tier": [{"name": "gpu", "placement": "local"}]}
    privacy = {"noise_multiplier": 1.0, **{k: v for k, v in SECURE.items() if k != "epsilon"}}
    one, lines, _ = ran(folder, "secure", shared, privacy=privacy, **tables)
    other, _, _ = ran(folder, "server", shared, privacy=privacy | {
        "trust": "server", "relation": "add-remove"}, **tables)
    assert {line["mechanism"] for line in lines} == {"distributed-gaussian"}
    assert {line["role"] for line in lines} == (
        {"local"} if "federation" in tables else {"proxy", "local"})
    assert one["eval"] == other["eval"]


def test_a_run_keeps_its_budget_and_says_who_adds_the_noise(folder, shared):
    result, lines, out = ran(folder, "run", shared, privacy=SECURE, train={"rounds": 2})
    assert 0.9 * 50 < result["privacy"]["epsilon"]["max"] <= 50
    assert all(line["private"] for line in lines)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "only the sum over the cohort, with the noise that the clients added" in page


@pytest.mark.parametrize(("tables", "word"), [
    ({"algorithm": {"name": "flora"}}, "algorithm 'flora'"),
    ({"privacy": SECURE | {"relation": "add-remove"}}, "the server sees who takes part"),
    ({"privacy": SECURE | {"unit": "record", "clip": 1.0, "relation": "zero-out"},
      "algorithm": {"name": "rolora"}}, "more than the step of a sum of gradients"),
    ({"privacy": SECURE | {"unit": "record", "clip": 1.0, "relation": "replace"}},
     "the numbers of records are public"),
    ({"privacy": SECURE | {"dropouts": 0.5}}, "privacy.dropouts is 0.5"),
    ({"privacy": SECURE | {"colluders": -1}}, "privacy.colluders is -1"),
    ({"privacy": {"off": True, "trust": "secure"}}, "privacy.off = true"),
    ({"federation": {"sampling": "poisson", "rate": 0.5}}, "sampling hides nobody"),
    ({"synthesis": {"votes": "exact"}}, "synthesis.votes = 'exact'"),
    ({"engine": {"name": "flower"}, "algorithm": {"name": "fedplora"}},
     "a site cannot make its part of the sum alone"),
])
def test_what_it_cannot_do_is_refused_in_one_line(folder, tables, word):
    with pytest.raises(ConfigError) as raised:
        tiny_run.settings(folder, **{"privacy": SECURE, **tables})
    found = [line for line in str(raised.value).splitlines() if word in line]
    assert len(found) == 1


def test_cohorts_that_take_turns_mask_among_themselves(folder, shared):
    turns = {"sampling": "turns", "cohorts": 2, "tier": [{"name": "all", "placement": "local"}]}
    result, lines, _ = ran(folder, "turns", shared, privacy=SECURE | {"dropouts": 0.0},
                           federation=turns, train={"rounds": 4, "steps": 1})
    assert [line["sampling"]["turn"] for line in lines] == [0, 1, 0, 1]
    assert [line["planned"] for line in lines] == [4] * 4
    once = [Event(line["noise_multiplier"] * DISTRIBUTED_SHARE, concentrated=True)
            for line in lines[:2]]
    assert result["privacy"]["epsilon"]["local"] == pytest.approx(
        epsilon(once, lines[0]["delta"]), rel=1e-9)
    with pytest.raises(ConfigError, match="found with 2 clients in the smallest cohort"):
        ran(folder, "few", shared, privacy=SECURE, federation=turns | {"cohorts": 4})


@pytest.mark.parametrize("change", [{"colluders": 2}, {"dropouts": 0.4}])
def test_too_few_clients_are_refused_before_any_work(folder, shared, change):
    with pytest.raises(ConfigError, match=r"clients that (train|vote), of whom \d must stay"):
        ran(folder, "few", shared, privacy=SECURE | change)
