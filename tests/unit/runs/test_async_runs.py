"""Runs whose clients work at their own pace, beside an oracle that keeps every version of the
factors; resumed, private, refused."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_run
from tests.oracle.asynchronous import fedbuff

from aulait.core import lora
from aulait.core.errors import ConfigError
from aulait.core.types import TrainRequest
from aulait.engines.inline import InlineEngine
from aulait.methods import METHODS
from aulait.methods.contract import find_method
from aulait.privacy.accounting import Event, epsilon
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import loop
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.runs.train_stage import TrainStage
from aulait.runs.virtual_time.round_time import RoundCosts
from aulait.training.trainer import learning_rate

CACHE = SharedCache()
TIERS = [
    {
        "name": "phone",
        "share": 0.5,
        "machine": "phone",
        "placement": "local",
        "dropout": 0.2,
        "spread": 0.3,
        "availability": 0.8,
    },
    {"name": "workstation", "machine": "workstation", "placement": "local"},
]
ASYNC = {"tier": TIERS, "sampling": "fixed", "rate": 0.25, "schedule": "async", "at_work": 4}
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "zero-out", "clip": 0.05}
TRAIN = {"rounds": 5, "lr": 1e-2}
PLAIN = {
    "rounds": 5,
    "lr": 0.5,
    "optimizer": "sgd",
}  # AdamW makes a rounding of nearly nothing a whole step
ABLE = sorted(name for name in METHODS.names() if find_method(name).TRAITS.asynchronous)


@pytest.fixture
def folder(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def made(folder, name="fedit", **tables):
    tables = {"federation": ASYNC, "train": TRAIN, "algorithm": {"name": name}} | tables
    return tiny_run.settings(folder, **tables)


def ran(folder, settings, name="run", **more):
    return loop.run(settings, folder / name, InlineEngine(), cache=tiny_run.fresh(CACHE), **more)


def adapter(folder, name="run"):
    return load_file(folder / name / "adapter" / "adapter_model.safetensors")


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def of_oracle(settings):
    """Factors after every buffer, by the paper's text: every client trains from its own version."""
    run = prepare(settings, tiny_run.fresh(CACHE))
    method, context = settings.method, run.context
    buffers = [own.filling for own in RoundCosts.of(run).buffers()]
    more = {
        key: getattr(settings.method_config, key)
        for key in ("proximal", "smoothing")
        if hasattr(settings.method_config, key)
    }

    def train(client, began, factors):
        tensors = context.leading(
            {name: torch.tensor(value).float() for name, value in factors.items()}, client
        )
        request = TrainRequest(
            client, began, tensors, {"lr": learning_rate(settings.train, began), **more}
        )
        update = method.answer(
            [request], [run.federation.sites[client]], context, run.models.learner
        )[0]
        return {name: value.double().numpy() for name, value in update.tensors.items()}

    first = {name: value.numpy() for name, value in run.first_state().factors.items()}
    return run, fedbuff(first, buffers, train, settings.federation.staleness)


@pytest.mark.parametrize(
    "name", [name for name in ABLE if name not in ("fedit", "fedavg", "dplora")]
)
def test_a_run_is_that_of_the_paper(folder, name):
    settings = made(folder, name, train=PLAIN)
    ran(folder, settings)
    _, versions = of_oracle(settings)
    found = RunFolder(folder / "run").restore()
    state = lora.under("state", found[0])
    for key, value in versions[-1].items():
        assert torch.allclose(state[key].double(), torch.tensor(value), atol=2e-7)
    stale = [line["clock"]["stalest"] for line in tiny_run.lines(folder)]
    assert max(stale) >= 1


def test_clients_of_unequal_ranks(folder):
    tiers = [TIERS[0] | {"rank": 1}, TIERS[1]]
    settings = made(
        folder,
        federation=ASYNC | {"tier": tiers, "staleness": 1.0},
        adapter={"rank": 3},
        train=PLAIN,
    )
    ran(folder, settings)
    _, versions = of_oracle(settings)
    state = lora.under("state", RunFolder(folder / "run").restore()[0])
    assert all(
        torch.allclose(state[key].double(), torch.tensor(value), atol=2e-7)
        for key, value in versions[-1].items()
    )


def test_all_together_and_a_buffer_for_all_is_the_run_in_rounds(folder):
    """With equal machines, all at work and a buffer that takes all, nobody is stale."""
    equal = [{"name": "laptop", "machine": "laptop", "placement": "local"}]
    rounds = made(folder, federation={"tier": equal, "sampling": "fixed", "rate": 1.0})
    paced = made(
        folder, federation={"tier": equal, "sampling": "fixed", "rate": 1.0, "schedule": "async"}
    )
    ran(folder, rounds, "rounds")
    ran(folder, paced, "paced")
    assert same(adapter(folder, "rounds"), adapter(folder, "paced"))
    both = [
        [line["clock"]["round_s"] for line in tiny_run.lines(folder, name=name)]
        for name in ("rounds", "paced")
    ]
    assert both[0] == pytest.approx(both[1])


def test_bytes_are_those_of_who_begins_and_who_answers_and_the_page_tells_the_pace(folder):
    settings = made(folder)
    ran(folder, settings)
    run = prepare(settings, tiny_run.fresh(CACHE))
    up, down = settings.method.travels(settings.method_config, run.context, 1, "c0", ("c0",))
    for line, own in zip(tiny_run.lines(folder), RoundCosts.of(run).buffers(), strict=True):
        assert (line["up_bytes"], line["down_bytes"]) == (
            up * len(own.filling),
            down * len(own.beginning),
        )
    page = (folder / "run" / "report.html").read_text()
    assert "Clients trained at their own pace: 2 updates filled a buffer" in page
    assert "The straggler was" not in page
    assert json.loads((folder / "run" / "result.json").read_text())["clock"]["idle_share"] == 0.0


class Killed(BaseException):
    """As sudden as a process that ends."""


def killed_in_round_four(monkeypatch, folder, settings, *name):
    real = TrainStage.step

    def step(self, state, cohort, server):
        found = real(self, state, cohort, server)
        if cohort.round == 4:
            raise Killed
        return found

    with monkeypatch.context() as until:
        until.setattr(TrainStage, "step", step)
        with pytest.raises(Killed):
            ran(folder, settings, *name)


def test_a_killed_run_goes_on_as_it_would_have(folder, monkeypatch):
    settings = made(folder)
    ran(folder, settings, "whole")
    killed_in_round_four(monkeypatch, folder, settings, "killed")
    ran(folder, settings, "killed", resume=True)
    assert same(adapter(folder, "whole"), adapter(folder, "killed"))
    told = [
        [
            (line["round"], line["eval"]["loss"], line["clock"]["staleness"])
            for line in tiny_run.lines(folder, name=name)
        ]
        for name in ("whole", "killed")
    ]
    assert told[0] == told[1]


def test_under_privacy_a_client_pays_for_its_own_contributions_alone(folder):
    settings = made(folder, "ffa", federation=ASYNC | {"contributions": 2}, privacy=PRIVATE)
    result = ran(folder, settings)
    ledger = tiny_run.lines(folder, "ledger.jsonl")
    z = ledger[0]["noise_multiplier"]
    assert [line["sampling"] for line in ledger] == [{"kind": "schedule", "most": 2}] * 5
    assert result["privacy"]["epsilon"]["local"] == pytest.approx(epsilon([Event(z)] * 2, 1e-3))
    assert result["privacy"]["epsilon"]["local"] <= 8.0
    run = prepare(settings, tiny_run.fresh(CACHE))
    taken = Counter(name for own in RoundCosts.of(run).buffers() for name in own.filling)
    assert max(taken.values()) <= 2


def test_a_private_round_that_is_made_again_is_charged_to_everybody(folder, monkeypatch):
    settings = made(
        folder,
        "ffa",
        federation=ASYNC | {"contributions": 2},
        privacy={"noise_multiplier": 2.0, "delta": 1e-3, "relation": "zero-out", "clip": 0.05},
    )
    killed_in_round_four(monkeypatch, folder, settings)
    result = ran(folder, settings, resume=True)
    ledger = tiny_run.lines(folder, "ledger.jsonl")
    assert [line["round"] for line in ledger] == [1, 2, 3, 4, 4, 5]
    assert [line["sampling"]["kind"] for line in ledger] == ["schedule"] * 4 + ["all", "schedule"]
    assert result["privacy"]["epsilon"]["local"] == pytest.approx(epsilon([Event(2.0)] * 3, 1e-3))


def test_single_records_are_protected_as_in_rounds(folder):
    """Every buffer counts for every record, whoever fills it."""
    privacy = {"epsilon": 8.0, "delta": 1e-3, "relation": "zero-out", "clip": 0.5, "unit": "record"}
    result = ran(folder, made(folder, "dplora", privacy=privacy, train={"rounds": 3}))
    assert len(tiny_run.lines(folder, "ledger.jsonl")) == 3
    assert 0 < result["privacy"]["epsilon"]["local"] <= 8.0


def test_the_plan_tells_the_schedule(folder):
    told = summarise_plan(prepare(made(folder), tiny_run.fresh(CACHE)))["schedule"]
    assert (told["buffers"], told["buffer"], told["at_work"]) == (5, 2, 4)
    assert told["virtual_s"] > 0
    assert told["stalest"] >= 1
    rounds = made(folder, federation={"tier": TIERS, "sampling": "fixed", "rate": 0.25})
    assert summarise_plan(prepare(rounds, tiny_run.fresh(CACHE)))["schedule"] is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"algorithm": {"name": "scaffold"}},
            "algorithm 'scaffold', which reads single updates, or whose clients or rounds remember",
        ),
        ({"algorithm": {"name": "flexlora"}}, "algorithm 'flexlora'"),
        ({"algorithm": {"name": "rolora"}}, "algorithm 'rolora'"),
        ({"federation": {"sampling": "all", "rate": 1.0}}, "sampling = 'all', expected 'fixed'"),
        (
            {"federation": {"tier": [{"name": "a", "placement": "local"}]}},
            "a tier without a machine",
        ),
        (
            {"federation": {"tier": [TIERS[0], TIERS[1] | {"placement": "auto"}]}},
            r"set compute.allowed = \['local', 'proxy'\]",
        ),
        ({"compute": {"deadline_s": 3.0}}, "where no round waits for anybody"),
        ({"federation": {"robust": "median"}}, "robust = 'median', which weighs all alike"),
        ({"engine": {"name": "flower"}}, "engine.name = 'flower', whose rounds wait for the sites"),
        ({"privacy": PRIVATE | {"relation": "add-remove"}}, "write relation = 'zero-out'"),
        ({"privacy": PRIVATE | {"clip": "adaptive"}}, "set privacy.clip to a number"),
        ({"privacy": PRIVATE | {"trust": "secure"}}, "whose clients share keys in rounds"),
        (
            {"federation": {"schedule": "rounds"}},
            "federation.at_work = 4 found with schedule = 'rounds'",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, change, text):
    tables = {
        key: (ASYNC | value if key == "federation" else value) for key, value in change.items()
    }
    with pytest.raises(ConfigError, match=text):
        made(folder, **tables)


def test_buffers_that_cannot_be_filled_are_refused_before_any_work(folder):
    settings = made(folder, federation=ASYNC | {"contributions": 1, "rate": 0.5})
    with pytest.raises(ConfigError, match=r"raise federation\.contributions"):
        ran(folder, settings)


def test_a_search_for_the_step_is_refused(folder):
    with pytest.raises(
        ConfigError, match=r"algorithm\.server = 'search' found with federation\.sampling = 'fixed'"
    ):
        ran(folder, made(folder, algorithm={"name": "ffa", "server": "search"}))
