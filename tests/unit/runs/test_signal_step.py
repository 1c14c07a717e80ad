"""A server step that follows the signal: by its formula, from public and released quantities alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tests import tiny_run

from aulait.core.cohort import Cohort
from aulait.engines.inline import InlineEngine
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.runs.signal_step import PublicSites, RoundMove, signal_step

CACHE = SharedCache()
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "step": "signal"}
LOCAL = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "synthesis": {"proxies": "absent"}}


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def bowl(target, curvature=4.0):
    """A loss with its least at ``target``, the same on any text."""
    def loss(state, records):
        return 3.0 + curvature / 2 * sum(float((state.tensors[name] - target[name]).square().sum()) for name in target)

    return loss


def moved(places, std, weight=1.0, stands=0.0):
    """A run of eight clients, a state at zero, a released mean with noise of this deviation, one public site."""
    run = prepare(tiny_run.settings(places, algorithm={"name": "ffa", "local_weight": weight}, privacy=PRIVATE | {"clip": 1.0}, **LOCAL),
                  tiny_run.fresh(CACHE))
    before = run.first_state()
    generator = torch.Generator().manual_seed(0)
    unit = {name: torch.randn(t.shape, generator=generator) for name, t in sorted(before.factors.items())}
    size = sum(float(t.square().sum()) for t in unit.values()) ** 0.5
    signal = {name: t / size for name, t in unit.items()}
    public = {name: 0.5 * t for name, t in signal.items()}
    whole = weight * 8 + stands
    noise = {name: std * torch.randn(t.shape, generator=generator) for name, t in signal.items()}
    mean = {name: (weight * (8 * signal[name] + noise[name]) + stands * public[name]) / whole for name in signal}
    after = replace(before, round=1, tensors={**before.tensors, **{name: before.tensors[name] + mean[name] for name in mean}})
    cohort = Cohort(round=1, local=tuple(run.federation.trainers), planned=8, proxies={"proxy-000": stands}, noise_multiplier=1.0, lr=0.1,
                    population=run.federation.trainers)
    sites = {"proxy-000": run.federation.training_sites[0]}
    move = RoundMove(before, after, cohort, {"noise_std": std, "clip_bound": 1.0})
    return run, move, PublicSites(sites, {"proxy-000": public}), signal


@pytest.mark.parametrize(("weight", "stands"), [(1.0, 0.0), (2.0, 4.0)])
def test_the_part_of_the_step_is_that_of_the_formula(places, weight, stands):
    run, move, public, signal = moved(places, 0.4, weight, stands)
    found, told = signal_step(run, move, public, bowl(signal))
    d = sum(t.numel() for t in signal.values())
    whole = weight * 8 + stands
    share, std = weight * 8 / whole, weight * 0.4 / whole
    known = {name: stands / whole * own for name, own in public.answered["proxy-000"].items()}
    local = {name: move.after.tensors[name] - move.before.tensors[name] - known[name] for name in signal}
    square = sum(float(t.square().sum()) for t in local.values())
    agreement = min(1.0, max(0.0, square - d * std**2) / share**2)
    drop = 2.0 * (1.0 - 0.25)  # of the bowl, half of the way
    assert told["agreement"] == pytest.approx(agreement**0.5, rel=1e-4)
    assert told["public_gain"] == pytest.approx(0.5 * agreement * share * drop, rel=1e-4)
    assert told["noise_cost"] == pytest.approx(2.0 * d * std**2, rel=0.15)  # half the curvature times the noise drawn
    assert told["step"] == pytest.approx(min(1.0, told["public_gain"] / (2 * told["noise_cost"])), rel=1e-6)
    assert 0 < told["step"] < 1
    for name in signal:
        wanted = move.before.tensors[name] + known[name] + told["step"] * local[name]
        assert torch.allclose(found.tensors[name], wanted, atol=1e-6)
    assert found.round == 1


def test_little_noise_is_no_reason_to_go_slowly_and_noise_alone_goes_nowhere(places):
    run, move, public, signal = moved(places, 0.02)
    found, told = signal_step(run, move, public, bowl(signal))
    assert told["step"] == 1.0
    for name in signal:
        assert torch.allclose(found.tensors[name], move.after.tensors[name], atol=1e-6)
    run, move, public, signal = moved(places, 20.0)
    _, told = signal_step(run, move, public, bowl(signal))
    assert told["step"] < 0.02


def test_without_noise_or_public_updates_the_round_stays_as_it_is(places):
    run, move, public, signal = moved(places, 0.4)
    for other, heard in ((replace(move, info={"noise_std": 0.0, "clip_bound": 1.0}), public), (move, PublicSites(public.sites, {})),
                         (move, PublicSites(public.sites, {"proxy-000": {"other.B": torch.ones(1)}}))):
        found, told = signal_step(run, other, heard, bowl(signal))
        assert found is move.after
        assert told == {}


@pytest.mark.parametrize("name", ["cores", "ffa"])
def test_a_run_tells_how_far_it_went_and_is_charged_as_ever(places, name):
    told = {}
    for step in ("full", "signal"):
        settings = tiny_run.settings(places, algorithm={"name": name}, privacy=PRIVATE | {"step": step}, train={"rounds": 2, "steps": 1}, **LOCAL)
        result = loop.run(settings, places / step, InlineEngine(), cache=tiny_run.fresh(CACHE))
        told[step] = result["privacy"]["epsilon"]["local"]
    lines = [json.loads(line) for line in (places / "signal" / "rounds.jsonl").read_text().splitlines()]
    assert all(0 <= line["step"] <= 1 and 0 <= line["agreement"] <= 1 for line in lines)
    assert told["full"] == told["signal"]
    assert "step" not in json.loads((places / "full" / "rounds.jsonl").read_text().splitlines()[0])
