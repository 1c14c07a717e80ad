"""Correlated noise: what it costs, that it takes itself away, and that no two share a past."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from scipy import stats
from tests import tiny_run
from tests.oracle import correlated_noise as oracle

from aulait.cli.account import recount
from aulait.core.cohort import cohort_of_turn
from aulait.core.cohort_turn import CohortTurn
from aulait.core.errors import ConfigError, PrivacyError
from aulait.core.seeds import Seeds
from aulait.core.types import ClientUpdate
from aulait.engines.inline import InlineEngine
from aulait.privacy import noise as noise_module
from aulait.privacy.accounting import Accountant, Event, calibrate, epsilon, of_worst_turn
from aulait.privacy.aggregator import KnownSites, PrivateAggregator, Release
from aulait.privacy.banded import Banded
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.mechanisms import find_mechanism
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.privacy.noise_grid import grid
from aulait.privacy.plan import PlannedRelease, ReleaseSchedule, plan_privacy
from aulait.runs import loop
from aulait.runs.noise_choices import noise_choices
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.planned_run import planned_run
from aulait.runs.prepared import SharedCache
from aulait.runs.privacy_audit import audit
from aulait.runs.progress import Progress
from aulait.runs.setup import prepare

PROMISE = {"delta": 1e-5, "relation": "zero-out", "clip": 1.0, "mechanism": "banded"}


@pytest.mark.parametrize(("cohorts", "times", "independent", "amplified", "correlated"), [
    (4, 6, .0032, .0023, .0019), (10, 6, .0050, .0028, .0021), (20, 6, .0071, .0034, .0023),
    (38, 4, .0097, .0049, .0026)])
def test_the_noise_of_the_sum_of_all_rounds_beside_380_clients(cohorts, times, independent,
                                                               amplified, correlated):
    """Epsilon 8, delta 1e-5; the table is of arithmetic apart from this code, to two digits."""
    clients, rounds = 380, cohorts * times
    z = calibrate(8.0, 1e-5, times)
    drawn = calibrate(8.0, 1e-5, rounds, 1 / cohorts)
    half = 0.00005  # the table is rounded
    assert z * math.sqrt(rounds) / (clients * times) == pytest.approx(independent, 0.02, half)
    assert drawn * math.sqrt(rounds) / (clients * times) == pytest.approx(amplified, 0.02, half)
    mine = z * Banded(cohorts).whole_run(rounds) / (clients * times)
    assert mine == pytest.approx(correlated, 0.02, half)
    dense = oracle.banded(rounds, cohorts)
    exact = (math.sqrt(times) / 1.66574 * oracle.noise_of_the_sum(dense)
             * np.linalg.norm(dense[:, 0]) / (clients * times))
    assert mine == pytest.approx(exact, 1e-3)


@pytest.mark.parametrize(("cohorts", "times"), [(1, 4), (2, 3), (3, 4), (7, 2), (5, 5)])
def test_sensitivity_and_noise_are_those_of_dense_matrices(cohorts, times):
    rounds, mechanism = cohorts * times, Banded(cohorts)
    dense = oracle.banded(rounds, cohorts)
    whole = mechanism.sensitivity(0.5, "zero-out") * math.sqrt(times)
    assert whole == pytest.approx(0.5 * oracle.sensitivity(dense, cohorts), 1e-5)
    assert mechanism.sensitivity(0.5, "replace") == 2 * mechanism.sensitivity(0.5, "zero-out")
    assert mechanism.whole_run(rounds) == pytest.approx(
        oracle.noise_of_the_sum(dense) * np.linalg.norm(dense[:, 0]), 1e-5)
    root = oracle.square_root(rounds)
    assert np.allclose(root @ root, np.tril(np.ones_like(root)))


@settings_of_hypothesis(max_examples=60, deadline=None)
@given(cohorts=st.integers(1, 9), rounds=st.integers(1, 30))
def test_no_cohort_moves_the_queries_by_more_than_it_is_charged_for(cohorts, rounds):
    """Whatever the rounds: fewer than bands, or no multiple of the cohorts."""
    mechanism, dense = Banded(cohorts), oracle.banded(rounds, cohorts)
    for first in range(min(cohorts, rounds)):
        own = np.arange(first, rounds, cohorts)
        charged = mechanism.sensitivity(1.0, "zero-out") * math.sqrt(len(own))
        gram = dense[:, own].T @ dense[:, own]
        assert np.array_equal(gram, np.diag(np.diag(gram)))  # no sign or direction matters
        assert math.sqrt(np.trace(gram)) <= charged * (1 + 1e-5)
    spread = oracle.noise_of_the_sum(dense) * mechanism.length
    assert mechanism.whole_run(rounds) == pytest.approx(spread, 1e-5)
    schedule = ReleaseSchedule(stage="train", rounds=rounds, role="local", mechanism="gaussian",
                               cohorts=cohorts)
    assert max(Counter(round % cohorts for round in range(rounds)).values()) == (
        schedule.participations)
    assert sum(of_worst_turn(schedule.all_events(2.0)).values()) == schedule.participations


def test_one_band_is_independent_noise_and_remembers_nothing():
    x, state = drawn(Banded(1), 3, SeededNoise(2), 40, 1.3)
    for t in range(3):
        assert torch.equal(x[t] * grid(1.3), SeededNoise(2).at(t + 1).gaussian((40,), 1.3))
    assert not state["past/w"].numel()
    assert Banded(1).sensitivity(0.7, "replace") == pytest.approx(1.4)


def drawn(mechanism, rounds, source, size=1, sigma=1.0):
    """x_1, ..., x_T, in steps of the grid."""
    state, found = {}, []
    for number in range(1, rounds + 1):
        noised, state = mechanism.add_noise({"w": torch.zeros(size, dtype=torch.float64)}, sigma,
                                            source.at(number), state)
        found.append(noised["w"] / grid(sigma))
    return torch.stack(found), state


@pytest.mark.parametrize(("cohorts", "times"), [(1, 12), (8, 7), (20, 3)])
def test_coefficients_length_and_noise_are_those_of_jax_privacy(cohorts, times):
    """The band and its inverse as streams, and the sensitivity of clients whose rounds are at least so far apart."""
    toeplitz = pytest.importorskip("jax_privacy.matrix_factorization.toeplitz")
    rounds, own = cohorts * times, Banded(cohorts)
    band = toeplitz.optimal_max_error_strategy_coefs(cohorts)
    assert own.coefficients == pytest.approx(np.asarray(band).tolist(), abs=2e-6)  # ours are multiples of 2^-20
    theirs = toeplitz.minsep_sensitivity_squared(band, cohorts, times, rounds, skip_checks=True)
    assert own.sensitivity(1.0, "zero-out") ** 2 * times == pytest.approx(float(theirs), rel=1e-5)
    released = np.cumsum(np.asarray(toeplitz.inverse_coef(band, rounds)))
    assert own.whole_run(rounds) == pytest.approx(float(np.linalg.norm(released) * np.linalg.norm(band)), rel=1e-5)


def test_the_noise_is_the_fresh_one_without_what_is_remembered_to_the_last_step():
    mechanism, sigma, source = Banded(4), 1.7, SeededNoise(5)
    x, state = drawn(mechanism, 9, source, 50, sigma)
    assert torch.equal(x, x.round())
    for t in range(9):
        fresh = torch.randn(50, generator=SeededNoise(5).at(t + 1)._generator,
                            dtype=torch.float64) * sigma / grid(sigma)
        past = sum(mechanism.coefficients[j] * x[t - j] for j in range(1, min(4, t + 1)))
        assert torch.equal(x[t], torch.round(fresh - past)), t
        whole = sum(mechanism.coefficients[j] * x[t - j] for j in range(min(4, t + 1)))
        assert float((whole - fresh).abs().max()) <= 0.5
    assert torch.equal(state["past/w"], torch.stack([x[8], x[7], x[6]]).long())


def test_what_an_attacker_can_free_of_memory_is_independent_normal_noise():
    mechanism = Banded(3)
    x, state = drawn(mechanism, 4, SystemNoise(), 4000)
    c = oracle.banded(4, 3)
    fresh = torch.from_numpy(c) @ x * grid(1.0)
    for row in fresh:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(fresh.numpy()) - np.eye(4)).max() < 0.08
    assert float(x[3].std()) * grid(1.0) == pytest.approx(mechanism.deviation(1.0, state), 0.06)
    assert float(x.sum(0).std()) * grid(1.0) == pytest.approx(
        mechanism.whole_run(4) / mechanism.length, 0.06)


def test_a_shifted_number_is_rounded_as_the_exact_one_is(monkeypatch):
    """Every number decided to 90 digits gives the law that float64 gives."""
    less = torch.full((1500,), 0.75, dtype=torch.float64)
    quick = SystemNoise().rounded(less, 1.9)
    monkeypatch.setattr(noise_module, "_DOUBT", 1.0)
    exact = SystemNoise().rounded(less[:300], 1.9)
    for found in (quick, exact):
        assert torch.equal(found, (found / grid(1.9)).round() * grid(1.9))
        assert stats.kstest(found.numpy() / 1.9, "norm").pvalue > 1e-4
    # one uniform in the middle: cos(pi) = -1, radius sqrt(-2 ln(1/2)); a shift moves the rounding
    word, half = 1 << 63, 1 << 63
    ratio = 1.9 / grid(1.9)
    value = -math.sqrt(2 * math.log(2)) * ratio
    decided = noise_module._decided(word, half, ratio)
    assert decided == round(value)
    for shift in (0.25, 0.5, 0.75):
        found = noise_module._decided(word, half, ratio, noise_module.Decimal(shift))
        assert found == round(value - shift)


def test_a_client_pays_for_its_own_turns_only():
    delta = 1e-5
    events = ReleaseSchedule(stage="train", rounds=60, role="local", mechanism="banded:10",
                             cohorts=10).all_events(3.0)
    assert sum(events.values()) == 60
    assert len(events) == 10
    assert epsilon(events, delta) == epsilon({Event(3.0): 6}, delta)
    again = events + Counter({Event(3.0, turn=4): 1})  # a round that was made again
    assert epsilon(again, delta) == epsilon({Event(3.0): 7}, delta)
    votes = Counter({Event(5.0): 2})
    assert epsilon(events + votes, delta) == epsilon({Event(3.0): 6, Event(5.0): 2}, delta)
    late = Counter({Event(3.0, turn=0): 3, Event(1.0, turn=1): 1})
    assert epsilon(late, delta) == epsilon({Event(1.0): 1}, delta)
    with pytest.raises(PrivacyError, match="its members are public"):
        Event(1.0, 0.5, turn=1)


def test_the_plan_meets_epsilon_with_the_participations_of_one_client():
    schedule = ReleaseSchedule(stage="train", rounds=23, role="local", mechanism="banded:5",
                               bound=0.5, cohorts=5)
    plan = plan_privacy(PrivacyConfig(epsilon=8.0, **PROMISE), [schedule])
    (release,) = plan.releases
    assert release.participations == 5
    assert release.noise_multiplier == pytest.approx(calibrate(8.0, 1e-5, 5))
    assert release.sensitivity == pytest.approx(0.5 * Banded(5).length)
    assert 7.999 < plan.epsilon["local"] <= 8.0


def through(ledger, noise=None):
    config = PrivacyConfig(noise_multiplier=1.0, noise_seed=None if noise is None else 1, **PROMISE)
    accountant = Accountant(1e-5, {"local": math.inf})
    ledger.replay(accountant)
    made = PrivateAggregator(config, ledger, accountant, noise or SystemNoise(), KnownSites())
    return made, accountant


def let_out(aggregator, round, clients=(), cohorts=3, bound=1.0):
    like = {"w": torch.zeros(6)}
    return aggregator.release(
        [ClientUpdate(name, {"w": torch.zeros(6)}) for name in clients],
        Release(stage="train", round=round, role="local", bound=bound, noise_multiplier=1.0,
                planned=2, template=like, turn=CohortTurn.of_round(round, cohorts))).total["w"]


def test_a_state_is_used_once():
    """A round that is made again is charged again, and its noise shares nothing with the first."""
    ledger = Ledger(None)
    first, accountant = through(ledger, SeededNoise(1))
    one = let_out(first, 1)
    kept = dict(first.noise_state["train"])
    two = let_out(first, 2)  # and then the machine is killed, before the checkpoint
    resumed, accountant = through(ledger, SeededNoise(1))
    resumed.noise_state["train"] = kept
    again = let_out(resumed, 2)
    sigma = ledger.lines[2].sigma
    anew = SeededNoise(1).at(3).gaussian((6,), sigma).float()
    assert torch.equal(again, anew)  # nothing of round 1 in it
    assert not torch.equal(two, SeededNoise(1).at(2).gaussian((6,), sigma).float())
    assert not torch.equal(one, two)
    assert accountant.spent("local") == epsilon({Event(1.0): 2}, 1e-5)  # the second cohort, twice
    third = let_out(resumed, 3)
    assert not torch.equal(third, SeededNoise(1).at(4).gaussian((6,), sigma).float())


def test_a_state_goes_on_where_nothing_was_released_since():
    whole, halves = Ledger(None), Ledger(None)
    one, _ = through(whole, SeededNoise(1))
    found = [let_out(one, round) for round in (1, 2, 3)]
    first, _ = through(halves, SeededNoise(1))
    other = [let_out(first, round) for round in (1, 2)]
    second, _ = through(halves, SeededNoise(1))
    second.noise_state["train"] = dict(first.noise_state["train"])
    other.append(let_out(second, 3))
    assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
    gone, _ = through(whole, SeededNoise(1))
    gone.noise_state["train"] = dict(one.noise_state["train"])
    assert torch.equal(let_out(gone, 5), SeededNoise(1).at(4).gaussian(
        (6,), whole.lines[0].sigma).float())  # a round lies between: anew


def test_what_would_break_the_sensitivity_is_refused():
    aggregator, _ = through(Ledger(None))
    let_out(aggregator, 1, ("ann",))
    with pytest.raises(PrivacyError, match="another cohort"):
        let_out(aggregator, 2, ("ann",))
    aggregator, _ = through(Ledger(None))
    let_out(aggregator, 1)
    with pytest.raises(PrivacyError, match="standard deviation"):
        let_out(aggregator, 2, bound=0.5)
    with pytest.raises(PrivacyError, match="take turns"):
        aggregator.release([], Release(
            stage="train", round=3, role="local", bound=1.0, noise_multiplier=1.0, planned=2,
            template={"w": torch.zeros(1)}, turn=CohortTurn(0, 3)))


@pytest.mark.parametrize("name", ["banded:x", "banded:0", "banded:5000", "banded:", "gaussian:2"])
def test_a_name_that_is_no_mechanism(name):
    with pytest.raises(PrivacyError, match="found, expected"):
        find_mechanism(name)


def test_every_client_is_in_one_cohort_and_stays_there():
    names = [f"c{k}" for k in range(23)]
    cohorts = [cohort_of_turn(names, CohortTurn.of_round(round, 5), Seeds(3))
               for round in range(1, 11)]
    assert cohorts[:5] == cohorts[5:]
    assert sorted(sum(cohorts[:5], ())) == sorted(names)
    assert {len(own) for own in cohorts} == {4, 5}
    assert cohorts[0] != cohort_of_turn(names, CohortTurn(0, 5), Seeds(4))


@pytest.fixture(scope="module")
def shared():
    return SharedCache()


@pytest.fixture
def data(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


TURNS = {"sampling": "turns", "cohorts": 2, "tier": [{"name": "all", "placement": "local"}]}


def settings(data, **privacy):
    return tiny_run.settings(
        data, federation=TURNS, train={"rounds": 4, "steps": 1},
        evaluate={"records_per_client": 1, "every": 9},
        privacy={"delta": 1e-3, "relation": "zero-out", "clip": 0.5, "mechanism": "banded"}
        | privacy)


def test_plan_run_and_account_agree_and_the_choices_are_told(data, shared):
    own = settings(data, epsilon=6.0)
    prepared = prepare(own, shared)
    planned = summarise_plan(prepared)
    result = loop.run(own, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    spent = result["privacy"]["epsilon"]["local"]
    assert planned["privacy"]["epsilon"]["local"] == spent
    assert 5.99 < spent <= 6.0
    assert all(row["agrees"] for row in recount(data / "run"))
    lines = Ledger(data / "run" / "ledger.jsonl").lines
    assert [line.mechanism for line in lines] == ["banded:2"] * 4
    assert [line.sampling.turn for line in lines] == [0, 1, 0, 1]
    choices = noise_choices(prepared)
    assert planned["noise"]["choices"] == choices.document()
    assert choices.correlated == pytest.approx(planned["noise"]["ratio"])
    assert choices.correlated < choices.independent
    assert "privacy.mechanism = 'banded'" in choices.in_words
    page = (data / "run" / "report.html").read_text(encoding="utf-8")
    assert "cohort 2 of 2" in page


@pytest.mark.parametrize("after", ["released", "charged"])
def test_a_kill_in_the_middle_of_a_round_begins_the_noise_anew(data, shared, monkeypatch, after):
    own = settings(data, noise_multiplier=2.0, noise_seed=4)
    saved, real = [], Progress.save

    def save(progress, folder):
        if progress.state is not None and progress.state.round == 3 and not saved:
            saved.append(3)
            raise KeyboardInterrupt
        real(progress, folder)

    def add_noise(self, *args):
        if int(args[3].get("steps", 0)) == 2 and not saved:
            saved.append(3)
            raise KeyboardInterrupt
        return noised(self, *args)

    noised = Banded.add_noise
    if after == "released":
        monkeypatch.setattr(Progress, "save", save)
    else:
        monkeypatch.setattr(Banded, "add_noise", add_noise)
    with pytest.raises(KeyboardInterrupt):
        loop.run(own, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    begun = []
    monkeypatch.setattr(Banded, "add_noise", lambda self, *args: (
        begun.append(int(args[3].get("steps", 0))), noised(self, *args))[1])
    result = loop.run(own, data / "run", InlineEngine(), cache=tiny_run.fresh(shared), resume=True)
    assert begun == [0, 1]
    lines = Ledger(data / "run" / "ledger.jsonl").lines
    assert [line.round for line in lines] == [1, 2, 3, 3, 4]
    assert result["privacy"]["epsilon"]["local"] == epsilon({Event(2.0): 3}, 1e-3)


@pytest.mark.parametrize(("tables", "words"), [
    ({"federation": {"sampling": "all", "cohorts": 1}}, "gains nothing"),
    ({"federation": {"sampling": "turns", "cohorts": 1}}, "at least 2 cohorts"),
    ({"federation": {"sampling": "all", "cohorts": 3}}, "at least 2 cohorts"),
    ({"privacy": {"relation": "add-remove"}}, "who is in which cohort is public"),
    ({"privacy": {"clip": "proxies"}}, "one size in all rounds"),
    ({"privacy": {"shrink": "whole"}}, "take away one another's noise"),
    ({"privacy": {"mechanism": "banded:4"}}, "federation.cohorts"),
    ({"privacy": {"trust": "secure"}}, "whose noise the server adds"),
    ({"engine": {"name": "flower"}}, "count every round"),
    ({"privacy": {"mechanism": "gaussian", "relation": "add-remove"}}, "write relation"),
])
def test_settings_that_contradict_each_other(data, tables, words):
    privacy = {"delta": 1e-3, "relation": "zero-out", "clip": 0.5, "mechanism": "banded",
               "epsilon": 6.0} | tables.get("privacy", {})
    with pytest.raises(ConfigError, match=words):
        tiny_run.settings(data, **{
            **tables, "federation": TURNS | tables.get("federation", {}), "privacy": privacy})


def canary_release(cohorts=4, rounds=12):
    mechanism = find_mechanism(f"banded:{cohorts}")
    z = calibrate(8.0, 1e-5, rounds // cohorts)
    return PlannedRelease(
        stage="train", rounds=rounds, role="local", mechanism=f"banded:{cohorts}", bound=1.0,
        cohorts=cohorts, noise_multiplier=z, sensitivity=mechanism.sensitivity(1.0, "zero-out"))


def test_an_attacker_who_knows_the_mechanism_comes_close_to_the_claim_and_not_beyond():
    found = audit(PrivacyConfig(epsilon=8.0, **PROMISE), canary_release(), 2048)
    assert found.claimed_mu == pytest.approx(1.6657, 1e-3)
    assert 0.7 * found.claimed_mu < found.proven_mu <= found.claimed_mu
    assert found.holds


def test_the_attacker_finds_a_sensitivity_that_forgets_what_is_remembered(monkeypatch):
    release = canary_release()
    monkeypatch.setattr(Banded, "sensitivity", lambda self, bound, relation: bound)
    found = audit(PrivacyConfig(epsilon=8.0, **PROMISE), release, 4096)
    assert not found.holds


def test_ledger_lines_hold_whose_turn_it_was_and_nothing_impossible():
    ledger = Ledger(None)
    let_out(through(ledger)[0], 1)
    written = json.loads(ledger.lines[0].encoded())
    assert written["sampling"] == {"kind": "turns", "turn": 0, "cohorts": 3}
    for wrong in ({"kind": "turns"}, {"kind": "all", "turn": 0, "cohorts": 3},
                  {"kind": "turns", "turn": 3, "cohorts": 3}, {"kind": "turns", "turn": 0},
                  {"kind": "turns", "turn": 1, "cohorts": 3},  # it is the first cohort's
                  {"kind": "turns", "turn": 0, "cohorts": 2}, {"kind": "all"}):  # three bands
        with pytest.raises(PrivacyError):
            type(ledger.lines[0]).model_validate(written | {"sampling": wrong})


def test_a_ledger_holds_turns_of_one_number_of_cohorts():
    """Else one client could pay under two numbers."""
    two, three = Ledger(None), Ledger(None)
    let_out(through(two)[0], 1, cohorts=2)
    let_out(through(three)[0], 1)
    let_out(through(three)[0], 2)
    with pytest.raises(PrivacyError, match="3 cohorts that take turns after 2"):
        two.append(three.lines[1])


def test_a_run_goes_on_with_its_own_clients_alone(data, shared, monkeypatch):
    """Cohorts are dealt by the names of all: with one more client many would change theirs, and
    be charged under two numbers."""
    own = settings(data, noise_multiplier=2.0)
    saved, real = [], Progress.save

    def save(progress, folder):
        real(progress, folder)
        if progress.state is not None and progress.state.round == 2 and not saved:
            saved.append(2)
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "save", save)
    with pytest.raises(KeyboardInterrupt):
        loop.run(own, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    rows = (data / "data.jsonl").read_text()
    more = [json.dumps({"client": "a", "text": f"Text {k}."}) + "\n" for k in range(4)]
    (data / "data.jsonl").write_text(rows + "".join(more))
    with pytest.raises(PrivacyError, match="other clients"):
        loop.run(own, data / "run", InlineEngine(), resume=True)
    (data / "data.jsonl").write_text(rows)
    loop.run(own, data / "run", InlineEngine(), resume=True)
    assert [line.round for line in Ledger(data / "run" / "ledger.jsonl").lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("federation", [
    TURNS, TURNS | {"cohorts": 3}, TURNS | {"sampling": "poisson", "cohorts": 1, "rate": 0.5}])
def test_the_plan_has_the_lines_that_the_run_writes(data, shared, federation):
    """But for hashes, times, and the epsilon of every line but the last. 8 clients are 2 cohorts,
    or 3 of unequal sizes, in 4 rounds."""
    own = tiny_run.settings(
        data, federation=federation, train={"rounds": 4, "steps": 1}, privacy=PROMISE | {
            "delta": 1e-3, "epsilon": 6.0,
            "mechanism": "banded" if federation["cohorts"] > 1 else "gaussian"},
        evaluate={"records_per_client": 1, "every": 9})
    planned = planned_run(prepare(own, shared), data / "data.jsonl").run.ledger
    loop.run(own, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    made = Ledger(data / "run" / "ledger.jsonl").lines
    for line, entry in zip(made, planned, strict=True):
        told = entry.model_dump(exclude_none=True, exclude={"epsilon", "release", "time"})
        assert {**json.loads(line.encoded()), **told} == json.loads(line.encoded())
