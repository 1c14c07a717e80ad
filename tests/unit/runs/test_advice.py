"""Advice before a run: what it says would help does help, to the figure."""

from __future__ import annotations

import pytest
from tests import tiny_run

from aulait.resources.devices import measure_device
from aulait.runs import advice, size_law
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.runs.virtual_time.forecast import forecast, rough_seconds

CACHE = SharedCache()
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 0.1}
LOCAL = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "synthesis": {"proxies": "absent"}}


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def prepared(places, algorithm="ffa", privacy=None, **more):
    return prepare(tiny_run.settings(places, algorithm={"name": algorithm}, privacy=PRIVATE | (privacy or {}), **{**LOCAL, **more}),
                   tiny_run.fresh(CACHE))


@pytest.mark.parametrize("algorithm", ["ffa", "cores"])
def test_the_epsilon_that_it_names_brings_the_noise_to_the_target(places, algorithm):
    run = prepared(places, algorithm, {"target_ratio": 0.9 if algorithm == "cores" else 1.9})
    found, target = size_law.noise_ratio(run), run.settings.privacy.target_ratio
    enough = advice.epsilon_needed(run, found, target)
    assert (enough > 8.0) == (found.ratio > target)
    again = prepared(places, algorithm, {"target_ratio": target, "epsilon": enough})
    assert size_law.noise_ratio(again).ratio == pytest.approx(target, rel=0.01)


def test_an_epsilon_that_promises_nothing_is_not_advised(places):
    run = prepared(places, privacy={"target_ratio": 0.05})
    assert advice.advise(run).epsilon is None
    assert "no epsilon up to 100" in dict(advice.advise(run).hints)["epsilon"]


def test_so_many_clients_bring_the_noise_to_the_target(places):
    """More of the same clients, one by one, until the law is met."""
    run = prepared(places)
    found, enough = size_law.noise_ratio(run), advice.advise(run).clients
    per_client = found.ratio * len(run.federation.trainers)  # the noise on a mean of n falls like 1 / n
    assert per_client / enough <= 0.5 < per_client / (enough - 1)
    record = prepared(places, privacy={"unit": "record", "relation": "zero-out"}, data={"holdout": 0.0, "records_per_client": 4})
    found, enough = size_law.noise_ratio(record), advice.advise(record).clients
    spread = found.ratio * len(record.federation.trainers) ** 0.5  # independent noises of sites
    assert spread / enough**0.5 <= 0.5 < spread / (enough - 1) ** 0.5


def test_the_verdict_follows_the_law(places):
    for epsilon, said in ((0.5, "It will not learn"), (8.0, "It will hardly learn and may do harm"), (90.0, "It can learn")):
        run = prepared(places, privacy={"epsilon": epsilon, "noise_acknowledged": True})
        assert advice.advise(run).verdict.startswith(said)
    assert "aulait run refuses it" in advice.advise(prepared(places, privacy={"epsilon": 0.5, "noise_acknowledged": False})).verdict
    off = prepare(tiny_run.settings(places, **LOCAL), tiny_run.fresh(CACHE))
    assert "privacy is off" in advice.advise(off).verdict
    assert advice.advise(off).hints == ()


def test_nobody_trains_is_said(places):
    run = prepared(places, federation={"tier": [{"name": "all", "placement": "proxy"}]}, synthesis={"proxies": "synthetic"})
    assert advice.advise(run).verdict.startswith("No client trains")


def test_the_record_is_advised_as_a_run_of_that_unit_has_it(tmp_path):
    """Forty records a client: what is foretold of DP-SGD is what the law says of such a run."""
    tiny_run.write_data(tmp_path)
    words = tiny_run.WORDS
    rows = [f'{{"client": "c{k}", "text": "{words[i % 16]} {words[(i + k) % 16]} {i}."}}' for k in range(6) for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    data = {"records_per_client": 100, "holdout": 0.0}
    client = prepared(tmp_path, data=data, train={"rounds": 2, "steps": 3, "batch": 5})
    record = prepared(tmp_path, data=data, train={"rounds": 2, "steps": 3, "batch": 5},
                      privacy={"unit": "record", "relation": "zero-out"})
    foretold, law = advice.as_records(client), size_law.noise_ratio(record)
    assert foretold.ratio == pytest.approx(law.ratio, rel=0.02)
    assert advice.as_records(record) is None
    assert "unit" in dict(advice.advise(client).hints)


def test_few_records_are_no_unit_to_advise(places):
    assert advice.advise(prepared(places)).record_ratio is None


def test_a_rough_time_is_near_the_forecast_by_the_records(places):
    run = prepared(places)
    machine = measure_device(budget_s=0.5)
    exact = forecast(run, machine)
    whole = exact["synthesis_s"] + exact["train_s"] + exact["evaluate_s"]
    assert whole / 4 < rough_seconds(run, machine) < 4 * whole
