"""Releases whose clients a public schedule names: what they cost, and that a discount never
lengthens what a client adds."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from aulait.core.cohort import Buffer, Cohort
from aulait.core.errors import PrivacyError
from aulait.core.types import ClientUpdate
from aulait.privacy.accounting import Accountant, Event, epsilon
from aulait.privacy.aggregator import KnownSites, PrivateAggregator, Release
from aulait.privacy.clipping import ClippedSum, norm
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.privacy.plan import ReleaseSchedule, plan_privacy
from aulait.runs.privacy_audit import audit

DELTA = 1e-5
TEMPLATE = {"a": torch.zeros(3, 2), "b": torch.zeros(4)}
PROMISE = PrivacyConfig(noise_multiplier=2.0, delta=DELTA, relation="zero-out", clip=1.0)


def test_a_client_pays_for_as_many_as_it_takes_part_in():
    kind = Event(2.0, most=3)
    assert epsilon({kind: 10}, DELTA) == epsilon({Event(2.0): 3}, DELTA)
    assert epsilon({kind: 2}, DELTA) == epsilon({Event(2.0): 2}, DELTA)
    # whatever is not of the schedule is everybody's
    assert epsilon({kind: 10, Event(2.0): 1, Event(3.0): 2}, DELTA) == epsilon(
        {Event(2.0): 4, Event(3.0): 2}, DELTA
    )


@pytest.mark.parametrize(
    "wrong", [{"most": 0}, {"most": 2, "sampling_rate": 0.5}, {"most": 2, "turn": 1}]
)
def test_no_sampling_and_no_turns_are_counted_beside(wrong):
    with pytest.raises(PrivacyError, match="participations at sampling rate"):
        Event(1.0, **wrong)


def test_the_plan_calibrates_for_the_participations():
    own = ReleaseSchedule(
        stage="train", rounds=10, role="local", mechanism="gaussian", bound=1.0, most=3
    )
    assert own.participations == 3
    assert own.all_events(2.0) == Counter({Event(2.0, most=3): 10})
    assert (
        ReleaseSchedule(
            stage="train", rounds=2, role="local", mechanism="gaussian", bound=1.0, most=3
        ).participations
        == 2
    )


def aggregator(folder):
    accountant = Accountant(DELTA, {"local": float("inf")})
    return PrivateAggregator(
        PROMISE, Ledger(folder / "ledger.jsonl"), accountant, SystemNoise(), KnownSites()
    ), accountant


def release(keeper, round, clients, most=2):
    cohort = Cohort(
        round=round,
        local=clients,
        proxies={},
        planned=2,
        noise_multiplier=2.0,
        buffer=Buffer(frozenset(clients), dict.fromkeys(clients, 0), 0.5, most),
    )
    ask = keeper.sealing(
        lambda requests: [
            ClientUpdate(name, {key: torch.ones_like(t) for key, t in TEMPLATE.items()})
            for name in clients
        ],
        True,
    )
    return keeper.release(
        ask([]), Release.of_cohort(cohort, stage="train", bound=1.0, template=TEMPLATE)
    )


def test_a_client_that_answers_more_often_than_it_is_charged_for_is_noticed(tmp_path):
    keeper, accountant = aggregator(tmp_path)
    release(keeper, 1, ("a", "b"))
    release(keeper, 2, ("a", "c"))
    release(keeper, 3, ("b", "c"))
    assert accountant.spent("local") == epsilon({Event(2.0): 2}, DELTA)
    with pytest.raises(PrivacyError, match="client 'a' answers in more than 2 rounds"):
        release(keeper, 4, ("a", "d"))


def test_a_round_that_is_made_again_is_everybodys_also_after_reading_the_ledger(tmp_path):
    keeper, accountant = aggregator(tmp_path)
    for round in (1, 2, 2, 3):
        release(keeper, round, (f"c{round}",), most=1)
    assert accountant.spent("local") == epsilon({Event(2.0): 2}, DELTA)
    again = Accountant(DELTA, {"local": float("inf")})
    Ledger(tmp_path / "ledger.jsonl").replay(again)
    assert again.events("local") == accountant.events("local")


@pytest.mark.parametrize("step", [0.0, 2.0**-8])
@pytest.mark.parametrize("size", [0.01, 1.0, 300.0])
def test_what_a_stale_client_adds_is_clipped_before_it_is_shortened(step, size):
    """A client that sends more gains nothing by being stale, and none adds more than C."""
    update = ClientUpdate(
        "a",
        {
            name: size * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
            for name, t in TEMPLATE.items()
        },
    )
    whole, stale = (ClippedSum.zero(TEMPLATE, step) for _ in range(2))
    whole.add(update, update.tensors, 0.5, 1.0)
    stale.add(update, update.tensors, 0.5, 1.0, 0.5)
    assert norm(stale.total) <= 0.25
    for name, value in stale.total.items():
        assert torch.allclose(value, whole.total[name] / 2, atol=step)
        assert not step or bool((value / step == (value / step).round()).all())


@pytest.mark.parametrize("wrong", [0.0, -0.5, 1.5, float("nan")])
def test_a_discount_that_is_none_is_refused(wrong):
    update = ClientUpdate("a", dict(TEMPLATE))
    with pytest.raises(PrivacyError, match="discount"):
        ClippedSum.zero(TEMPLATE).add(update, update.tensors, 1.0, 1.0, wrong)


@pytest.mark.parametrize("relation", ["zero-out", "replace"])
def test_the_audit_finds_no_more_than_is_claimed_and_nearly_that(relation):
    config = PrivacyConfig(epsilon=4.0, delta=DELTA, relation=relation, clip=1.0)
    plan = plan_privacy(
        config,
        [
            ReleaseSchedule(
                stage="train", rounds=6, role="local", mechanism="gaussian", bound=0.5, most=2
            )
        ],
    )
    found = audit(config, plan.releases[0], 2048)
    assert found is not None
    assert found.holds
    assert found.claimed_mu is not None
    assert found.proven_mu > 0.5 * found.claimed_mu
