"""Secure aggregation of single records: one sum over all sites, and the noise of one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import dp_accounting
import pytest
import torch
from tests import tiny_run

from aulait.cli.account import recount
from aulait.core.errors import ConfigError, PrivacyError
from aulait.core.factors import Trainable
from aulait.core.types import ClientUpdate, TrainRequest
from aulait.core.units import units
from aulait.engines.inline import InlineEngine
from aulait.methods import ffa
from aulait.methods.shared.private_answer import answer_privately
from aulait.privacy import aggregator as aggregator_module
from aulait.privacy.accounting import Event, calibrate, calibrate_events, epsilon
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise_grid import grid
from aulait.privacy.record_level import SiteNoise
from aulait.privacy.sampled_renyi import log_moments, renyi_epsilon
from aulait.runs import loop, size_law
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.training.record_gradients import gradients

DELTA = 1e-6


# --- the account ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("z", "rate", "count"), [(1.0, 0.1, 20), (0.7, 0.5, 4), (4.0, 0.02, 900),
                                                  (12.0, 0.3, 40)])
def test_sampled_releases_cost_what_another_accountant_says(z, rate, count):
    """At the same whole orders the moments are dp-accounting's; epsilon is no less than that of the
    exact Gaussian, of which the divergences are the same, and little more than its own."""
    other = dp_accounting.rdp.RdpAccountant(
        orders=list(range(2, 257)),
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    other.compose(dp_accounting.PoissonSampledDpEvent(
        rate, dp_accounting.GaussianDpEvent(z)), count)
    theirs = dict(zip(other._orders, other._rdp, strict=True))
    mine = log_moments(z, rate)
    for order in (2, 3, 5, 17, 64):
        assert count * mine[order - 1] / (order - 1) == pytest.approx(theirs[order], rel=1e-9)
    found = renyi_epsilon([(z, rate, count)], DELTA)
    assert found <= other.get_epsilon(DELTA) * (1 + 1e-9)
    exact = epsilon({Event(z, rate): count}, DELTA)
    assert exact < found < 1.3 * exact


def test_without_sampling_it_is_the_account_of_concentrated_privacy():
    events = Counter({Event(2.0, concentrated=True): 6})
    assert renyi_epsilon([(2.0, 1.0, 6)], DELTA) == pytest.approx(epsilon(events, DELTA), rel=2e-3)
    mixed = events + Counter({Event(1.0, 0.1, concentrated=True): 5})
    assert epsilon(mixed, DELTA) > max(epsilon(events, DELTA),
                                       epsilon(mixed - events, DELTA))
    assert math.isinf(renyi_epsilon([(0.0, 0.1, 1)], DELTA))


def test_at_one_epsilon_nine_sites_have_a_third_of_the_noise_of_their_own():
    """Noise of the mean step: sites of one size, an eighth of the records a step, eight steps."""
    rate, steps, target = 0.125, 8, 8.0
    own = calibrate(target, DELTA, steps, rate)
    together = calibrate_events(
        target, DELTA, lambda z: Counter({Event(z, rate, concentrated=True): steps}), own)
    ratio = (own / math.sqrt(9)) / (together / 9)
    assert 0.9 * 3 < ratio < 3


# --- the run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared():
    return SharedCache()


@pytest.fixture
def data(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def settings(data, federation=None, train=None, **privacy):
    return tiny_run.settings(
        data, federation=federation or {"tier": [{"name": "all", "placement": "local"}]},
        train={"rounds": 3, "steps": 1, "batch": 2, "lr": 0.05} | (train or {}),
        evaluate={"records_per_client": 1, "every": 9},
        privacy={"delta": 1e-3, "relation": "zero-out", "clip": 0.3, "trust": "secure",
                 "unit": "record", "dropouts": 0.1} | privacy)


def test_plan_run_and_account_agree_over_both_stages(data, shared):
    own = settings(data, {"tier": [{"name": "gpu", "count": 4, "placement": "local"},
                                   {"name": "laptop", "placement": "proxy"}]}, epsilon=20.0,
                   max_rate=0.5)
    planned = prepare(own, shared)
    result = loop.run(own, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    lines = Ledger(data / "run" / "ledger.jsonl").lines
    assert {line.mechanism for line in lines} == {"distributed-records"}
    assert [line.sampling.rate for line in lines if line.stage == "train"] == [0.5] * 3
    assert {line.sampling.kind for line in lines if line.stage == "synthesis"} == {"all"}
    for role in ("proxy", "local"):
        assert result["privacy"]["epsilon"][role] == planned.privacy.epsilon[role]
        assert 19.9 < result["privacy"]["epsilon"][role] <= 20.0
    assert all(row["agrees"] for row in recount(data / "run"))
    assert "step_noise_std" not in tiny_run.lines(data)[-1]
    page = (data / "run" / "report.html").read_text(encoding="utf-8")
    assert "only the sum over the cohort, with the noise that the clients added" in page


def test_the_step_is_that_of_all_records_in_one_place(data, shared, monkeypatch):
    """One round, every record in it and next to no noise: the state moves along the mean of all
    clipped gradients, and what the masks hide is their exact sum."""
    own = settings(data, train={"rounds": 1, "batch": 9}, noise_multiplier=1e-3)
    run = prepare(own, shared)
    sums, real = [], aggregator_module.PrivateAggregator.release

    def release(self, *args, **more):
        sums.append(real(self, *args, **more))
        return sums[-1]

    monkeypatch.setattr(aggregator_module.PrivateAggregator, "release", release)
    loop.run(own, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    state = run.first_state()
    start = own.method.result(run.context, state)
    total, count = None, 0
    for site in run.federation.sites.values():
        for record in site.train:
            found, _, _ = gradients(run.models.learner, start, [record], Trainable.B)
            flat = torch.cat([g.reshape(-1).double() for g in found])
            flat *= min(1.0, 0.3 / float(flat.norm()))
            total, count = flat if total is None else total + flat, count + 1
    released = torch.cat([value.double().reshape(-1) for value in sums[-1].total.values()])
    assert released == pytest.approx(total, abs=6 * sums[-1].noise_std + 1e-6)
    assert count == sum(len(units(site.train)) for site in run.federation.sites.values())


def test_the_noise_of_the_sum_does_not_grow_with_the_sites(data, shared):
    run = prepare(settings(data, epsilon=2.0, max_rate=0.5), shared)
    plan = summarise_plan(run)
    found = size_law.noise_ratio(run)
    local = size_law.noise_ratio(
        prepare(settings(data, epsilon=2.0, trust="server", max_rate=0.5), shared))
    counts = [len(units(site.train)) for site in run.federation.training_sites]
    expected = [min(2, count / 2) for count in counts]
    assert found.clients == pytest.approx(sum(expected))
    assert local.clients == pytest.approx(8 / math.sqrt(sum(1 / b**2 for b in expected)))
    assert local.ratio / found.ratio > 0.8 * math.sqrt(8)
    assert plan["noise"]["ratio"] == found.ratio


def asked(data, shared, noise, sites=None):
    """What sites answer to a request of the first round."""
    run = prepare(settings(data, epsilon=2.0), shared)
    state = run.first_state()
    sites = sites or list(run.federation.sites.values())
    requests = [TrainRequest(site.name, 1, dict(state.factors), {"lr": 0.1}) for site in sites]
    return answer_privately(ffa, requests, sites, run.context, run.models.learner, noise), run


NOISE = SiteNoise(mechanism="distributed-records", clip=0.3, sigma=0.5, most_rate=1.0, most_steps=1)


def test_one_record_moves_what_a_site_sends_by_no_more_than_the_bound(data, shared):
    whole, run = asked(data, shared, NOISE)
    site = next(iter(run.federation.sites.values()))
    # all records of a site are in the step, as its batch is as large
    plan = replace(site.plan, batch=9)
    one, less = (asked(data, shared, NOISE, [replace(site, plan=plan, train=train)])[0][0].tensors
                 for train in (site.train, site.train[1:]))
    moved = torch.cat([(one[name] - less[name]).reshape(-1) for name in one])
    assert 0.0 < float(moved.norm()) <= 0.3
    step = grid(0.5)
    for update in whole:
        for value in update.tensors.values():
            assert value.dtype == torch.float64
            assert torch.equal(value, (value / step).round() * step)


def test_a_method_that_answers_for_something_else_is_refused(data, shared, monkeypatch):
    run = prepare(settings(data, epsilon=2.0), shared)
    real = ffa.answer
    monkeypatch.setattr(ffa, "answer", lambda *args: [
        ClientUpdate(own.client, {"more": torch.ones(1)}) for own in real(*args)])
    with pytest.raises(PrivacyError, match="not of the factors it trains"):
        asked(data, shared, NOISE, list(run.federation.sites.values())[:1])


@pytest.mark.parametrize(("tables", "words"), [
    ({"train": {"steps": 2}}, "set train.steps = 1"),
    ({"dropouts": 0.4, "colluders": 3}, "clients that train, of whom"),
])
def test_what_it_cannot_do_is_refused_in_a_line(data, shared, tables, words):
    with pytest.raises((PrivacyError, ConfigError), match=words):
        prepare(settings(data, epsilon=2.0, **tables), shared)
