"""docs/published-epsilons.md: not stale, and its figures those of closed forms that know nothing
of the accountant."""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from tests.oracle import gaussian

ROOT = Path(__file__).resolve().parents[2]


@cache
def script() -> ModuleType:
    place = ROOT / "scripts" / "write_epsilons.py"
    spec = importlib.util.spec_from_file_location("write_epsilons", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules["write_epsilons"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def found(name: str, setting: str) -> float:
    (claim,) = [claim for work in script().WORKS if name in work.name for claim in work.claims
                if claim.setting == setting]
    return claim.true


def test_the_page_is_what_the_script_writes():
    assert script().PAGE.read_text(encoding="utf-8") == script().page(), (
        "run scripts/write_epsilons.py")


def test_there_are_ten_works():
    works = script().WORKS
    assert len(works) >= 10
    assert len({work.name for work in works}) == len(works)


@pytest.mark.parametrize("place", range(11))
def test_every_full_participation_figure_is_that_of_the_closed_form(place):
    for claim in script().WORKS[place].claims:
        if claim.events and all(event.sampling_rate == 1 for event, _ in claim.events):
            multipliers = [event.noise_multiplier for event, times in claim.events
                           for _ in range(times)]
            assert claim.true == pytest.approx(
                gaussian.epsilon_of(multipliers, claim.delta), rel=1e-6), claim.setting


def test_the_figures_that_are_quoted():
    assert [round(found("Aug-PE, ICML", f"Yelp, sigma {z}"), 4)
            for z in (15.34, 8.03, 4.24)] == [1.0045, 2.0024, 4.0053]
    assert round(found("PrE-Text", "sigma 2.31, as accounted"), 2) == 7.08
    assert round(found("PrE-Text", "sigma 2.31, with the noise that the code adds"), 2) == 2.90
    assert round(script().PRE_TEXT, 2) == 2.18
    assert round(found("DP-LoRA", "sigma 2, all 50 rounds"), 1) == 91.8
    assert round(found("Gboard", "rho 0.81"), 1) == 8.9
    assert found("LA-LoRA", "epsilon 1 as claimed, the bound as coded") == math.inf


def test_a_sampled_figure_lies_between_bounds_that_are_easy_to_see():
    """Above the central limit for many small steps less ten percent, below Rényi orders' 1.26."""
    q, z, steps, delta = 0.01, 4.0, 10_000, 1e-5
    mu = q * math.sqrt(steps * math.expm1(1 / z**2))
    assert 0.9 * gaussian.epsilon_of([1 / mu], delta) < found(
        "Abadi", "q 0.01, sigma 4, 10,000 steps") < 1.26


def test_the_verdict_follows_from_the_figures():
    claim, event = script().Claim, ((script().Event(1.0), 1),)
    true = claim("x", 1.0, event, 1e-5).true
    assert claim("x", true * 1.001, event, 1e-5).verdict == "right"
    assert claim("x", true * 2, event, 1e-5).verdict == "holds, 50% less is spent"
    assert claim("x", true / 2, event, 1e-5).verdict == "**wrong: 100% more is spent**"
    assert claim("x", None, event, 1e-5).verdict == "no epsilon is given"
