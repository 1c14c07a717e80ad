"""Voters who send what no voter may: nobody moves the released counts by more than the bound, in a
vote on clusters as in one on texts, and the round goes on."""

from __future__ import annotations

import math

import pytest
import torch
from tests.contract.federation import ZeroNoise

from aulait.core.cohort import Cohort
from aulait.core.errors import PrivacyError
from aulait.core.types import ClientUpdate
from aulait.methods.contract import Server
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.synthesis.voting import VoteRule, take_vote

CELLS, BOUND = 5, math.sqrt(3)
VOTERS = ("ann", "bob", "eve")
ON = PrivacyConfig(noise_multiplier=1.0, delta=1e-5, relation="add-remove",
                   noise_seed=1)
HONEST = {"ann": [1.0, 1.0, 1.0, 0.0, 0.0], "bob": [0.0, 1.0, 1.0, 1.0, 0.0]}
EVIL = {
    "nan": {"votes": torch.full((CELLS,), math.nan)},
    "infinite": {"votes": torch.tensor([math.inf, 0.0, 0.0, 0.0, 0.0])},
    "longer": {"votes": torch.ones(CELLS + 1)},
    "a table": {"votes": torch.ones(CELLS, 2)},
    "another name": {"counts": torch.ones(CELLS)},
    "one more": {"votes": torch.ones(CELLS), "embeddings": torch.ones(CELLS, 8)},
    "nothing": {},
}


def vote(evil, privacy=ON, voters=VOTERS, repeated=()):
    ledger = Ledger(None)
    accountant = None if privacy.off else Accountant(1e-5, {"proxy": math.inf})
    door = PrivateAggregator(privacy, ledger, accountant, ZeroNoise(), KnownSites(frozenset()))

    def ask(requests):
        for request in [*requests, *repeated]:
            name = request if isinstance(request, str) else request.client
            yield ClientUpdate(name, {"votes": torch.tensor(HONEST[name])}
                               if name in HONEST else evil, 3.0)

    cohort = Cohort(round=1, local=tuple(voters), proxies={}, planned=len(VOTERS),
                    noise_multiplier=0.0 if privacy.off else 1.0, role="proxy")
    found, _, _ = take_vote(VoteRule(1, BOUND), torch.eye(CELLS), cohort,
                            Server(door.sealing(ask, planned=True), door))
    return found, ledger


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("private", [True, False])
def test_what_is_no_vote_is_left_out_and_the_others_count(kind, private):
    privacy = ON if private else PrivacyConfig(off=True)
    found, ledger = vote(EVIL[kind], privacy)
    alone, _ = vote({}, privacy, voters=("ann", "bob"))
    assert found == pytest.approx(alone, abs=1e-6)
    assert len(ledger.lines) == private, "one release, whoever sent what"


@pytest.mark.parametrize("sent", [
    [1e9, 0.0, 0.0, 0.0, 0.0], [-1e9, -1e9, 0.0, 0.0, 0.0], [1e30, -1e30, 1e30, 0.0, 0.0],
    [1e-30, 0.0, 0.0, 0.0, 3.0]])
def test_votes_beyond_the_bound_move_the_sum_by_the_bound_at_most(sent):
    found, _ = vote({"votes": torch.tensor(sent)})
    honest, _ = vote({}, voters=("ann", "bob"))
    moved = float((found - honest).norm())
    assert moved <= BOUND * (1 + 1e-6)
    assert moved == pytest.approx(min(BOUND, float(torch.tensor(sent).double().norm())), rel=1e-5)


def test_a_voter_counts_once_however_often_it_answers():
    once, _ = vote({"votes": torch.zeros(CELLS)})
    try:
        twice, _ = vote({"votes": torch.zeros(CELLS)}, repeated=("ann", "ann"))
    except PrivacyError:
        return
    assert twice == pytest.approx(once, abs=1e-6)


def test_a_stranger_among_the_answers_does_not_count():
    HONEST["mallory"] = [5.0] * CELLS
    try:
        found, _ = vote({"votes": torch.zeros(CELLS)}, repeated=("mallory",))
    except PrivacyError:
        return
    finally:
        del HONEST["mallory"]
    honest, _ = vote({}, voters=("ann", "bob"))
    assert found == pytest.approx(honest, abs=1e-6)
