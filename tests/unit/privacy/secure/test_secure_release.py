"""Secure and server trust give one sum; the aggregator's own conditions under secure trust."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aulait.core.errors import PrivacyError
from aulait.core.types import ClientUpdate
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import BudgetSpent, KnownSites, PrivateAggregator, Release
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.privacy.noise_grid import grid
from aulait.privacy.secure import encoding, local_round
from aulait.privacy.secure.local_round import begin_round

DELTA = 1e-5
NAMES = tuple(f"c{i}" for i in range(8))
TEMPLATE = {"x.A": torch.zeros(2, 3), "x.B": torch.zeros(4, 2)}


class Silent(SystemNoise):
    """No noise at the server."""

    def gaussian(self, shape, std):
        return torch.zeros(shape, dtype=torch.float64)


def aggregator(trust: str, noise=None, ledger=None, budget=math.inf) -> PrivateAggregator:
    config = PrivacyConfig(noise_multiplier=1.0, delta=DELTA, trust=trust, clip=1.0,
                           relation="zero-out" if trust == "secure" else "add-remove",
                           noise_seed=None if noise is None or noise.private else 1)
    return PrivateAggregator(config, ledger or Ledger(None), Accountant(DELTA, {"local": budget}),
                             noise or SystemNoise(),
                             KnownSites(frozenset({"proxy-000"}), secure_sum=begin_round))


def told(z: float = 1.0, clients=NAMES, **changes) -> Release:
    return Release(**{**dict(stage="train", round=1, role="local", bound=1.0, noise_multiplier=z,
                             planned=len(NAMES), template=TEMPLATE, clients=clients), **changes})


def updates(seed: int, names=NAMES, scale: float = 1.0) -> list[ClientUpdate]:
    generator = torch.Generator().manual_seed(seed)
    return [ClientUpdate(name, {key: scale * torch.randn(value.shape, generator=generator)
                                for key, value in TEMPLATE.items()}) for name in names]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 20), st.floats(1e-3, 10), st.data())
def test_secure_and_server_trust_give_one_sum_to_the_last_bit(seed, z, scale, data):
    """Random federations, dropouts and noise multipliers; the noise of both is taken away."""
    gone = data.draw(st.sets(st.sampled_from(NAMES), max_size=1))
    some = [own for own in updates(seed, scale=scale) if own.client not in gone]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "discrete_gaussian",
                      lambda count, s, words: np.zeros(count, dtype=np.int64))
        securely = aggregator("secure").release(some, told(z))
    plainly = aggregator("server", Silent()).release(some, told(z))
    for name in TEMPLATE:
        assert torch.equal(securely.total[name], plainly.total[name])


def test_the_noise_is_what_the_survivors_add():
    """Of 7 of 8 clients: sqrt(7/7) of what the fewest must have, and sqrt(8/7) of all 8."""
    big = {"w": torch.zeros(20_000)}
    for there in (7, 8):
        nothing = [ClientUpdate(name, big) for name in NAMES[:there]]
        out = aggregator("secure").release(nothing, told(2.0, template=big))
        assert out.noise_std == pytest.approx(2.0 * math.sqrt(there / 7))
        assert float(out.total["w"].std()) == pytest.approx(out.noise_std, rel=0.03)


def test_values_lie_on_the_grid_of_the_plan():
    out = aggregator("secure").release(updates(1), told())
    steps = out.total["x.A"].double() / grid(1.0)
    assert torch.equal(steps, steps.round())


def test_the_line_is_on_disk_before_the_secrets_are_asked_for(tmp_path, monkeypatch):
    ledger, seen = Ledger(tmp_path / "ledger.jsonl"), []
    total = local_round.LocalRound.total

    def watched(self):
        seen.append((tmp_path / "ledger.jsonl").read_text().count("distributed-gaussian"))
        return total(self)

    monkeypatch.setattr(local_round.LocalRound, "total", watched)
    through = aggregator("secure", ledger=ledger)
    through.release(updates(1), told())
    through.release(updates(1), told(round=2))
    assert seen == [1, 2]
    line = ledger.lines[0]
    assert (line.mechanism, line.relation, line.unit, line.private) == (
        "distributed-gaussian", "zero-out", "client", True)


@pytest.mark.parametrize(("some", "word"), [
    (updates(1, NAMES[:6]), "6 clients take part"), ([], "0 clients"),
    (updates(1, (*NAMES[:6], "stranger")), "6 clients")])
def test_below_the_threshold_nothing_is_charged_and_nothing_comes_out(some, word):
    ledger = Ledger(None)
    with pytest.raises(PrivacyError, match=word):
        aggregator("secure", ledger=ledger).release(some, told())
    assert ledger.lines == ()


@pytest.mark.parametrize("tensors", [
    {"x.A": torch.full((2, 3), math.nan), "x.B": torch.zeros(4, 2)}, {"x.A": torch.zeros(2, 3)}])
def test_a_client_whose_update_cannot_be_counted_takes_part_with_its_noise(tensors):
    """Were it to drop out, the noise that is left would tell what is in its update."""
    wrong = ClientUpdate("c7", tensors)
    out = aggregator("secure").release([*updates(1, NAMES[:7]), wrong], told())
    assert out.noise_std == pytest.approx(math.sqrt(8 / 7))
    assert out.counted == {}
    assert out.refused == ()


def test_a_client_whose_transform_overflows_takes_part_with_its_noise():
    out = aggregator("secure").release(
        updates(1), told(), transform=lambda own: {
            name: value * (math.inf if own.client == "c3" else 1.0)
            for name, value in own.tensors.items()})
    assert out.noise_std == pytest.approx(math.sqrt(8 / 7))


def test_a_seed_gives_one_result_whatever_the_keys():
    one, two = (aggregator("secure", SeededNoise(1)).release(updates(3), told())
                for _ in range(2))
    assert all(torch.equal(one.total[name], two.total[name]) for name in TEMPLATE)
    assert not aggregator("secure", SeededNoise(1))._noise.private


def test_the_budget_and_the_relations_hold():
    with pytest.raises(BudgetSpent):
        aggregator("secure", budget=0.5).release(updates(1), told())
    with pytest.raises(PrivacyError, match="sampling hides nobody"):
        aggregator("secure").release(updates(1), told(sampling_rate=0.5))
    config = PrivacyConfig(noise_multiplier=1.0, delta=DELTA, relation="zero-out", trust="secure",
                           unit="record")
    with pytest.raises(PrivacyError, match="terms for records"):
        PrivateAggregator(config, Ledger(None), Accountant(DELTA, {"local": 1.0}), SystemNoise(),
                          KnownSites(frozenset(), secure_sum=begin_round))
