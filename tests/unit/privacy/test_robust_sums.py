"""Robust sums: what they are, what hostile clients can do to them, and where they are refused."""

from __future__ import annotations

import math
import random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny_run
from tests.oracle import robust as oracle

from aulait.core.errors import ConfigError, PrivacyError
from aulait.core.seeds import Seeds
from aulait.core.types import ClientRequest, ClientUpdate, Plan, Record, Site, VoteRequest
from aulait.engines.inline import InlineEngine
from aulait.federation.tiers import HostileConfig
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import KnownSites, PrivateAggregator, Release
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.privacy.robust_sums import RobustRule, RuleName
from aulait.runs.hostile_clients import flipped, hostile, poisoned
from aulait.runs.loop import run
from aulait.runs.prepared import SharedCache

RULES = get_args(RuleName)
NUMBERS = st.integers(-40, 40).map(lambda value: value / 8)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_rule_is_what_it_says(rule, data):
    clients, hostile_share = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([0, .2, .45]))
    row = st.lists(NUMBERS, min_size=2, max_size=2)
    updates = data.draw(st.lists(row, min_size=clients, max_size=clients))
    rows = torch.tensor(updates, dtype=torch.float64)
    found = RobustRule(rule, hostile_share).of(rows).tolist()
    if rule == "geometric-median":  # the sum of distances decides; the point may not be unique
        def far(at):
            return sum(math.dist(own, at) for own in updates)

        assert far(found) <= 1.001 * far(oracle.mean_like(rule, updates, hostile_share)) + 1e-6
        return
    if rule == "krum" and clients > 1:  # of equal scores any
        tried = [oracle.mean_like(rule, updates[k:] + updates[:k], hostile_share)
                 for k in range(clients)]
        assert min(math.dist(found, own) for own in tried) < 1e-9
        return
    if rule == "norm-bound" and any(not any(own) for own in updates):
        return  # no length to shorten: the slow one divides by it
    assert found == pytest.approx(oracle.mean_like(rule, updates, hostile_share), abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attack", ["sign-flip", "scale"])
def test_a_fifth_of_hostile_clients_does_not_turn_a_robust_mean(rule, attack):
    source = torch.Generator().manual_seed(1)
    honest = torch.ones(16, 30) + 0.3 * torch.randn(16, 30, generator=source)
    factor = -10.0 if attack == "sign-flip" else 1000.0
    rows = torch.cat([honest, factor * honest[:4]]).double()
    robust = RobustRule(rule, 0.2).of(rows)
    middle = honest.double().mean(0)
    assert float((robust - middle).norm() / middle.norm()) < 0.6
    assert float((rows.mean(0) - middle).norm() / middle.norm()) > 1.5


def summed(rule, updates, privacy=None, stage="train"):
    config = privacy or PrivacyConfig(off=True)
    through = PrivateAggregator(config, Ledger(None), None if config.off else Accountant(
        1e-5, {"local": math.inf}), SystemNoise(), KnownSites(robust=rule))
    return through.release(updates, Release(
        stage=stage, round=1, role="local", bound=math.inf if config.off else 1.0,
        noise_multiplier=1.0, planned=len(updates), template={"b": torch.zeros(2),
                                                              "a": torch.zeros(1)}))


def sent(*rows):
    return [ClientUpdate(f"c{k}", {"a": torch.tensor(row[:1]), "b": torch.tensor(row[1:])})
            for k, row in enumerate(rows)]


def test_the_aggregator_sums_by_the_rule_in_training_and_only_there():
    updates = sent([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [900.0, -900.0, math.nan], [3.0, 0.0, 7.0])
    released = summed(RobustRule("median", 0.2), updates)
    assert released.total["a"].tolist() == [6.0]  # the median of 1, 2, 3, three times
    assert released.total["b"].tolist() == [6.0, 9.0]
    assert released.planned == 3
    assert [client for client, _ in released.refused] == ["c2"]
    votes = summed(RobustRule("median", 0.2), updates, stage="synthesis")
    assert votes.total["a"].tolist() == [6.0]
    assert votes.total["b"].tolist() == [4.0, 12.0]
    assert summed(RobustRule("krum", 0.2), []).total["a"].tolist() == [0.0]


def test_no_rule_where_clients_are_protected():
    config = PrivacyConfig(noise_multiplier=1.0, delta=1e-5, relation="add-remove", clip=1.0)
    with pytest.raises(PrivacyError, match="no noise covers what it gives"):
        summed(RobustRule("median", 0.2), [], config)


CLIENT = {"epsilon": 6.0, "delta": 1e-3, "relation": "add-remove", "clip": 0.5}


@pytest.mark.parametrize(("tables", "words"), [
    ({"privacy": CLIENT}, "privacy.clip bounds what one client can do"),
    ({"privacy": CLIENT | {"relation": "zero-out", "trust": "secure"}}, "nobody sees an update"),
    ({"algorithm": {"name": "flora"}}, "algorithm 'flora'"),
    ({"algorithm": {"name": "ffa", "weights": "size"}}, "algorithm.weights"),
    ({"federation": {"tier": [{"name": "a", "rank": 1, "count": 4}, {"name": "b", "rank": 2}]},
      "adapter": {"rank": 2}, "algorithm": {"name": "fedit"}}, "different ranks"),
    ({"engine": {"name": "flower"}, "federation": {"hostile": {"share": 0.1}, "robust": "none"}},
     "whose clients are real"),
])
def test_settings_that_are_refused(tmp_path, tables, words):
    tiny_run.write_data(tmp_path)
    federation = {"robust": "median"} | tables.get("federation", {})
    with pytest.raises(ConfigError, match=words):
        tiny_run.settings(tmp_path, **{**tables, "federation": federation})


def test_hostile_clients_are_a_share_by_the_seed_and_do_what_they_are_told():
    names = [f"c{k}" for k in range(20)]
    config = HostileConfig(share=0.2, attack="scale", factor=5.0)
    bad = hostile(names, config, Seeds(1))
    assert len(bad) == 4
    assert bad == hostile(reversed(names), config, Seeds(1)) != hostile(names, config, Seeds(2))
    assert hostile(names, HostileConfig(), Seeds(1)) == frozenset()
    (one,), update = sorted(bad)[:1], torch.tensor([1.0, 0.0, 2.0])
    asked = {}

    def ask(requests):
        asked["n"] = len(requests)
        return [ClientUpdate(r.client, {"v": update}) for r in requests]

    train = [ClientRequest(name, 1, {}) for name in names]
    got = {u.client: u.tensors["v"].tolist() for u in poisoned(ask, bad, config)(train)}
    assert got[one] == [5.0, 0.0, 10.0]
    assert sum(own == [1.0, 0.0, 2.0] for own in got.values()) == 16
    flip = HostileConfig(share=0.2)
    got = {u.client: u.tensors["v"].tolist() for u in poisoned(ask, bad, flip)(train)}
    assert got[one] == [-1.0, 0.0, -2.0]
    votes = [VoteRequest(name, 1, {}) for name in names]
    got = {u.client: u.tensors["v"].tolist() for u in poisoned(ask, bad, flip)(votes)}
    assert got[one] == [1.0, 2.0, 0.0]
    site = Site("s", Plan("t", "local", 1, 1, 1), [Record("a b c"), Record("x", "p"),
                                                   Record("y", "q")])
    assert [r.text for r in flipped(site).train] == ["c b a", "y", "a b c"]


def test_a_poisoned_run_is_mended_by_a_robust_rule(tmp_path):
    """Turned around eight times as long; the median takes no notice, the mean does."""
    tiny_run.write_data(tmp_path)
    shared, loss = SharedCache(), {}
    for name, robust, share in (("clean", "none", 0.0), ("mean", "none", 0.25),
                                ("median", "median", 0.25)):
        own = tiny_run.settings(
            tmp_path, algorithm={"name": "ffa"}, train={"rounds": 2, "steps": 3, "lr": 1e-2},
            federation={"tier": [{"name": "gpu", "placement": "local"}], "robust": robust,
                        "hostile": {"share": share, "attack": "sign-flip", "factor": 8.0}})
        result = run(own, tmp_path / name, InlineEngine(), cache=shared)
        loss[name] = result["eval"]["loss"]
    assert loss["clean"] < loss["median"] < loss["mean"]
    assert loss["median"] - loss["clean"] < 0.5 * (loss["mean"] - loss["clean"])


def test_random_updates_of_many_clients_stay_between_the_honest_ones():
    """However hostile fewer than the assumed are, no coordinate leaves the range of the honest."""
    draw = random.Random(5)
    for _ in range(20):
        honest = torch.tensor([[draw.gauss(0, 1) for _ in range(4)] for _ in range(9)])
        bad = torch.tensor([[draw.choice([-1e9, 1e9]) for _ in range(4)] for _ in range(2)])
        rows = torch.cat([honest, bad]).double()
        for rule in ("median", "trimmed-mean"):
            found = RobustRule(rule, 0.2).of(rows)
            assert bool((found >= honest.min(0).values.double()).all())
            assert bool((found <= honest.max(0).values.double()).all())
