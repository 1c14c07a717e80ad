"""What a simulation will take, said beforehand: its arithmetic against a count of the real run, its bytes and its time."""

from __future__ import annotations

import time

import pytest
from tests import tiny_run
from tests.oracle.flops import executed

from aulait.core.types import Profile
from aulait.engines.inline import InlineEngine
from aulait.methods.contract import Server
from aulait.resources.devices import measure_device
from aulait.runs import loop
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.runs.train_stage import draw_cohort
from aulait.runs.virtual_time.forecast import forecast, training_steps

CACHE = SharedCache()
MACHINE = Profile("toy", flop_per_s={"float32": 1e10}, memory_bytes=10**10, memory_bytes_per_s=1e10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("forecast")
    tiny_run.write_data(made)
    return made


def made(folder, placement="local", **tables):
    tables = {"adapter": {"rank": 2, "layers": "all"}, "algorithm": {"name": "fedit"},
              "federation": {"tier": [{"name": "all", "placement": placement, "machine": "laptop"}]}, **tables}
    return tiny_run.settings(folder, **tables)


@pytest.mark.parametrize("tables", [{}, {"train": {"rounds": 1, "steps": 3, "batch": 3}}, {"adapter": {"rank": 1, "layers": 2}},
                                    {"algorithm": {"name": "ffa"}}])
def test_arithmetic_of_a_round_is_that_of_the_real_round(folder, tables):
    """One round by a counter of torch's, which reads no padding; the plan does."""
    run = prepare(made(folder, **tables), CACHE)
    base, context = run.models.base, run.context
    method, config = run.settings.method, run.settings.method_config
    ask = InlineEngine().connect(run, run.federation.sites)
    state = method.init(config, context)
    cohort, _ = draw_cohort(run, 1, {}, None)
    if base.prefix is not None:
        base.prefix.most_bytes = 0  # what leading bare blocks said is remembered in a real run; the model counts it anew
    from aulait.privacy.aggregator import KnownSites, PrivateAggregator
    from aulait.privacy.config import PrivacyConfig
    from aulait.privacy.ledger import Ledger
    from aulait.privacy.noise import SystemNoise

    aggregator = PrivateAggregator(PrivacyConfig(off=True), Ledger(None), None, SystemNoise(), KnownSites(frozenset()))
    counted = executed(lambda: method.step(config, context, state, cohort, Server(ask, aggregator)))
    told = sum(cost.flop * times for cost, times in training_steps(run))
    assert 0.75 * told < counted < 1.05 * told


def test_more_rounds_and_slower_machines_take_longer(folder):
    short, long = (forecast(prepare(made(folder, train={"rounds": n}), CACHE), MACHINE) for n in (2, 4))
    assert long["train_s"] == pytest.approx(2 * short["train_s"])
    slow = forecast(prepare(made(folder, train={"rounds": 2}), CACHE), Profile("slow", flop_per_s={"float32": 1e8}, memory_bytes_per_s=1e8))
    assert slow["train_s"] > 20 * short["train_s"]
    assert short["synthesis_s"] == 0.0
    assert forecast(prepare(made(folder, "proxy"), CACHE), MACHINE)["synthesis_s"] > 0


@pytest.mark.slow
def test_seconds_on_this_machine_are_of_the_right_size(folder, tmp_path):
    """Within a factor of 3 on whatever machine runs the tests, however busy; docs/log.md has the figures of a quiet one (25 percent)."""
    settings = made(folder, train={"rounds": 3, "steps": 4, "batch": 4})
    told = forecast(prepare(settings, CACHE), measure_device(budget_s=1.0))
    started = time.perf_counter()
    result = loop.run(settings, tmp_path / "run", InlineEngine(), cache=CACHE)
    assert time.perf_counter() - started < 60
    assert told["train_s"] / 3 < result["time"]["train_s"] < 3 * told["train_s"]


def test_a_plan_of_sparse_rounds_counts_who_missed_the_round_before(folder):
    """FLoRA of eight clients, 0.4 of them a round and a tenth lost: by hand, the client's own stack and those of others, or the whole."""
    tier = {"name": "all", "placement": "local", "machine": "laptop", "dropout": 0.1}
    run = prepare(made(folder, algorithm={"name": "flora"}, federation={"tier": [tier], "sampling": "poisson", "rate": 0.4}), CACHE)
    sides = sum(m + n for m, n in run.context.shapes.values())
    whole = sum(m * n for m, n in run.context.shapes.values())
    seen = 0.4 * 0.9
    down = round(4 * (seen * 2 * (1 + 7 * 0.4 * 0.9) * sides + (1 - seen) * whole))
    (told,) = summarise_plan(run)["tiers"]
    rounds = run.settings.train.rounds
    assert told["train_down_bytes_round"] == round((rounds - 1) * down / rounds)  # nothing in the first
    assert told["down_bytes_run"] == round(0.4 * 8 * (rounds - 1) * down)


def test_a_fixed_share_is_a_whole_number_of_clients(folder):
    """A tenth of eight clients is one of them, an eighth."""
    config = {"tier": [{"name": "all", "placement": "local"}], "sampling": "fixed", "rate": 0.1}
    run = prepare(made(folder, federation=config), CACHE)
    (told,) = summarise_plan(run)["tiers"]
    assert told["up_bytes_run"] == told["train_up_bytes_round"] * run.settings.train.rounds
