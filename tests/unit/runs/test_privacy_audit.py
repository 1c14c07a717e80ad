"""The audit: it finds nothing in this build, and every broken build."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from tests import tiny_run
from typer.testing import CliRunner

from aulait.cli import app
from aulait.core.errors import PrivacyError
from aulait.core.types import ClientUpdate
from aulait.privacy import aggregator, clipping
from aulait.privacy.accounting import Accountant
from aulait.privacy.audit_bounds import proven_mu
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SystemNoise
from aulait.privacy.plan import PrivacyPlan, ReleaseSchedule, plan_privacy
from aulait.privacy.secure import encoding
from aulait.runs.experiment_file import dump_settings
from aulait.runs.privacy_audit import Audited, audit
from aulait.synthesis import unit_votes

CASES = {  # relation, trust, unit, mechanism, stage, bound, rate
    "sums": ("add-remove", "server", "client", "gaussian", "train", 0.5, 1.0),
    "sums, replace": ("replace", "server", "client", "gaussian", "train", 0.5, 1.0),
    "sums, sampled": ("add-remove", "server", "client", "gaussian", "train", 0.5, 0.2),
    "votes": ("add-remove", "server", "client", "gaussian", "synthesis", 2.0, 1.0),
    "votes of sites": ("zero-out", "server", "record", "gaussian-votes", "synthesis", 2.0, 1.0),
    "secure sums": ("zero-out", "secure", "client", "distributed-gaussian", "train", 0.5, 1.0),
}
CANARIES = 2048


def attacked(case: str, epsilon: float = 4.0, canaries: int = CANARIES, rounds: int = 2) -> Audited:
    relation, trust, unit, mechanism, stage, bound, rate = CASES[case]
    config = PrivacyConfig(epsilon=epsilon, delta=1e-5, relation=relation, trust=trust, unit=unit,
                           clip=1.0)
    plan = plan_privacy(config, [ReleaseSchedule(
        stage=stage, rounds=rounds, role="local", mechanism=mechanism, bound=bound,
        sampling_rate=rate)])
    found = audit(config, plan.releases[0], canaries)
    assert found is not None
    return found


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_proven_against_this_build(case):
    secure = case == "secure sums"
    found = attacked(case, canaries=64 * 256 if secure else CANARIES, rounds=1 if secure else 2)
    assert found.holds
    assert found.proven_epsilon < found.claimed_epsilon
    if found.claimed_mu is not None and not secure:  # and the attack is a good one
        assert found.proven_mu > 0.5 * found.claimed_mu or case == "votes of sites"
        assert found.right > 0.6


@pytest.mark.parametrize("case", ["sums", "votes", "votes of sites", "sums, replace"])
def test_noise_that_is_halved_is_noticed(case, monkeypatch):
    gaussian = SystemNoise.gaussian
    monkeypatch.setattr(SystemNoise, "gaussian",
                        lambda self, shape, std: gaussian(self, shape, std) * 0.5)
    assert not attacked(case).holds


@pytest.mark.parametrize(("module", "name"), [(clipping, "clip_vector"),
                                              (unit_votes, "clipped_votes")])
def test_clipping_that_is_skipped_is_noticed(module, name, monkeypatch):
    monkeypatch.setattr(module, name, lambda values, *rest: values.to(torch.float64))
    assert not attacked("sums" if module is clipping else "votes of sites").holds


def proven_of_votes() -> float:
    """Over rounds of eight canaries, each of which votes for eight candidates of its own."""
    z, coins, scores = 2.0, [], []
    config = PrivacyConfig(noise_multiplier=z, delta=1e-5, relation="add-remove", clip=1.0)
    for _ in range(150):
        through = aggregator.PrivateAggregator(config, Ledger(None), Accountant(1e-5, {
            "local": math.inf}), SystemNoise(), aggregator.KnownSites())
        there = [random.random() < 0.5 for _ in range(8)]
        sent = [ClientUpdate(f"c{k}", {"votes": 1e6 * torch.eye(8)[k].repeat_interleave(8)})
                for k in range(8) if there[k]]
        out = through.release(sent, aggregator.Release(
            stage="synthesis", round=1, role="local", bound=1.0, noise_multiplier=z, planned=8,
            template={"votes": torch.zeros(64)}))
        scores += (out.total["votes"].view(8, 8).sum(1) / (z * 8**0.5)).tolist()
        coins += there
    return proven_mu(scores, coins, (0.25, 0.7), 0.9999)


def test_votes_that_are_clipped_label_by_label_are_noticed(monkeypatch):
    """A client's votes for one label clipped for themselves: it speaks at full length eight
    times."""
    assert proven_of_votes() <= 0.5
    monkeypatch.setattr(clipping, "clip_vector", lambda values, bound: values.clamp(-bound, bound))
    assert proven_of_votes() > 0.5


def test_clients_noise_that_is_halved_is_noticed(monkeypatch):
    drawn = encoding.discrete_gaussian
    monkeypatch.setattr(encoding, "discrete_gaussian",
                        lambda count, s, words: drawn(count, max(8.0, s / 3), words))
    assert not attacked("secure sums", epsilon=8.0, canaries=64 * 384, rounds=1).holds


def test_a_ledger_that_is_skipped_is_noticed_in_the_round(monkeypatch):
    monkeypatch.setattr(aggregator.Ledger, "append", lambda self, line: None)
    with pytest.raises((PrivacyError, ValueError)):
        attacked("sums")
    config = PrivacyConfig(noise_multiplier=1.0, delta=1e-5, relation="add-remove", clip=1.0)
    plan: PrivacyPlan = plan_privacy(config, [ReleaseSchedule(
        stage="train", rounds=1, role="local", mechanism="gaussian", bound=1.0)])
    with pytest.raises(PrivacyError, match="0 lines in the ledger"):
        plan.check("train", 1, ())


def told(*words: str):
    return CliRunner().invoke(app, ["audit", *words])


def test_the_command_audits_an_experiment_file(tmp_path):
    tiny_run.write_data(tmp_path)
    privacy = {"epsilon": 8.0, "delta": 1e-5, "relation": "add-remove", "clip": 0.5}
    file = tmp_path / "experiment.toml"
    file.write_text(dump_settings(tiny_run.settings(tmp_path, privacy=privacy)))
    done = told(str(file), "--quick", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["holds"]
    assert [stage["stage"] for stage in found["stages"]] == ["synthesis", "train"]
    assert all(stage["canaries"] == 4096 for stage in found["stages"])
    done = told(str(file), "--set", "privacy={off=true}")
    assert done.exit_code == 2
    assert "nothing to audit" in done.output
