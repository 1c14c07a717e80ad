"""Adaptive clipping: the account of the paper, the bound of the paper, and one release for both."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests import tiny_run
from tests.oracle import adaptive_clip as oracle

from aulait.cli.account import recount
from aulait.core.errors import ConfigError, PrivacyError
from aulait.core.types import ClientUpdate
from aulait.engines.inline import InlineEngine
from aulait.privacy import aggregator as aggregator_module
from aulait.privacy.accounting import Accountant, Event, epsilon
from aulait.privacy.adaptive_clip import AdaptiveClip
from aulait.privacy.adaptive_sum import with_answer
from aulait.privacy.aggregator import KnownSites, PrivateAggregator, Release
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.privacy.secure.local_round import begin_round
from aulait.runs import loop
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Progress
from aulait.runs.setup import prepare

RULE = AdaptiveClip(start=0.5, quantile=0.3, rate=0.4, fraction=0.2)


def through(relation="zero-out", multiplier=1.0, seed=None, rule=RULE, **more):
    config = PrivacyConfig(
        noise_multiplier=multiplier, delta=1e-5, relation=relation, noise_seed=seed,
        clip="adaptive", clip_start=rule.start, clip_quantile=rule.quantile, clip_rate=rule.rate,
        count_fraction=rule.fraction, **more)
    return PrivateAggregator(config, Ledger(None), Accountant(1e-5, {"local": math.inf}),
                             SystemNoise() if seed is None else SeededNoise(seed),
                             KnownSites(secure_sum=begin_round))


def let_out(aggregator, vectors, multiplier, *, round=1, planned=None, rate=1.0):
    """What a round releases of clients with these vectors."""
    size = len(vectors[0]) if vectors else 3
    names = tuple(f"c{k}" for k in range(len(vectors)))
    updates = [ClientUpdate(name, {"w": torch.tensor(vector, dtype=torch.float64)})
               for name, vector in zip(names, vectors, strict=True)]
    return aggregator.release(updates, Release(
        stage="train", round=round, role="local", bound=77.0, noise_multiplier=multiplier,
        planned=planned or len(vectors), template={"w": torch.zeros(size)}, sampling_rate=rate,
        clients=names))


@pytest.mark.parametrize("z", [0.3, 1.0, 12.0])
@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5, 0.95])
def test_updates_and_count_share_the_budget_of_a_release_as_in_the_paper(z, fraction):
    rule = AdaptiveClip(0.1, 0.5, 0.2, fraction)
    sigma_b = rule.count_noise(z)
    assert rule.update_noise(z) == pytest.approx(oracle.noise_on_updates(z, sigma_b), rel=1e-12)
    assert rule.count_noise(z, "replace") == 2 * sigma_b
    both = Counter({Event(rule.update_noise(z)): 7})
    both += Counter({Event(2 * sigma_b): 7})  # one client moves the sum of b - 1/2 by 1/2
    assert epsilon(both, 1e-5) == pytest.approx(epsilon({Event(z): 7}, 1e-5), rel=1e-9)
    bound = 3.0
    assert math.hypot(bound, rule.answer(bound)) == pytest.approx(rule.joint_bound(bound), 1e-12)


def rounds_of(generator, number, clients, spread=1.0):
    return [[(torch.randn(5, generator=generator, dtype=torch.float64)
              * math.exp(spread * float(torch.randn(1, generator=generator)))).tolist()
             for _ in range(clients)] for _ in range(number)]


@pytest.mark.parametrize("relation", ["add-remove", "zero-out", "replace"])
def test_without_noise_bounds_and_sums_are_those_of_the_paper(relation):
    through_, rounds = through(relation), rounds_of(torch.Generator().manual_seed(3), 6, 9)
    expected = oracle.bounds(rounds, RULE.start, RULE.quantile, RULE.rate, 11)
    for number, vectors in enumerate(rounds):
        assert through_.adaptive_bound == pytest.approx(expected[number], rel=1e-6)
        out = let_out(through_, vectors, 0.0, round=number + 1, planned=11)
        assert out.total.keys() == {"w"}
        assert out.total["w"].tolist() == pytest.approx(
            oracle.clipped_sum(vectors, expected[number]), rel=1e-4, abs=1e-6)
    assert through_.adaptive_bound == pytest.approx(expected[6], rel=1e-6)


def test_the_bound_finds_the_quantile_from_far_below_and_far_above():
    vectors = [[float(k + 1), 0.0] for k in range(20)]
    for start in (0.05, 900.0):
        own = through(rule=AdaptiveClip(start, 0.25, 0.5, 0.05))
        for number in range(60):
            let_out(own, vectors, 0.0, round=number + 1)
        assert 4.5 < own.adaptive_bound < 6.6  # five or six of the twenty are within


@pytest.mark.parametrize(("relation", "factor"), [("add-remove", 1), ("zero-out", 1),
                                                  ("replace", 2)])
def test_the_noise_is_what_is_accounted_on_updates_and_on_the_count(relation, factor, monkeypatch):
    seen = []
    real = aggregator_module.parted
    monkeypatch.setattr(aggregator_module, "parted", lambda total: seen.append(real(total)) or
                        real(total))
    z, counts = 1.5, []
    for number in range(400):
        own = through(relation, z, seed=number)
        out = let_out(own, [[0.0] * 50], z, planned=1)
        counts.append(seen[-1][1] / (2 * RULE.answer(RULE.start)) - 0.5)
    (line,) = own._ledger.lines
    assert line.noise_multiplier == z
    assert line.event == Event(z)
    assert line.sensitivity == pytest.approx(factor * RULE.joint_bound(RULE.start))
    values = torch.cat([total["w"].double() for total, _ in seen])
    deviation = factor * RULE.update_noise(z) * RULE.start
    assert out.noise_std == pytest.approx(deviation) == pytest.approx(line.sigma)
    assert float(values.std()) == pytest.approx(deviation, rel=5 / math.sqrt(2 * len(values)))
    assert float(torch.tensor(counts).std()) == pytest.approx(
        RULE.count_noise(z, relation), rel=5 / math.sqrt(2 * 400))


def test_noisy_counts_move_the_bound_as_the_paper_says_and_never_by_more_than_the_rate():
    z = 4.0
    own, rounds = through(multiplier=z, seed=8), rounds_of(torch.Generator().manual_seed(1), 5, 4)
    drawn, real = [], own._noise.at

    def at(release):
        source = real(release)
        gaussian = source.gaussian
        source.gaussian = lambda shape, std: drawn.append(gaussian(shape, std)) or drawn[-1]
        return source

    own._noise.at = at
    bounds = [own.adaptive_bound]
    for number, vectors in enumerate(rounds):
        let_out(own, vectors, z, round=number + 1)
        bounds.append(own.adaptive_bound)
    answers = [float(value) for value in drawn if value.shape == (1,)]
    noise = [value / (2 * RULE.answer(bound))
             for value, bound in zip(answers, bounds, strict=False)]
    assert bounds == pytest.approx(oracle.bounds(
        rounds, RULE.start, RULE.quantile, RULE.rate, 4, noise), rel=1e-5)
    moves = [abs(math.log(b / a)) for a, b in itertools.pairwise(bounds)]
    assert max(moves) <= RULE.rate


@hypothesis_settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=5),
       st.floats(1e-3, 1e3), st.floats(0.01, 0.99), st.data())
def test_one_client_moves_the_joint_sum_by_no_more_than_it_is_charged_for(
        vectors, start, fraction, data):
    """Also one whose norm is exactly the bound, and for all relations."""
    rule = AdaptiveClip(start, 0.5, 0.2, fraction)
    if data.draw(st.booleans()):
        vectors[0] = [start, 0.0, 0.0]
    join = with_answer(rule, start, None)
    own = [torch.cat([value.double().reshape(-1) for _, value in sorted(join(ClientUpdate(
        "c", {"w": torch.tensor(vector, dtype=torch.float64)})).items())]) for vector in vectors]
    most = rule.joint_bound(start)
    for vector in own:
        assert float(vector.norm()) <= most * (1 + 1e-12)
        assert max(float((vector - other).norm()) for other in own) <= 2 * most * (1 + 1e-12)


@pytest.mark.parametrize("broken", [False, True])
def test_an_attacker_who_reads_updates_and_bound_proves_no_more_than_one_release(broken,
                                                                                 monkeypatch):
    """The best test there is looks along the joint vector. Where the answer is released beside the
    updates without being charged for, it proves more."""
    z, rule, seen, times = 1.0, AdaptiveClip(0.5, 0.5, 0.2, 0.9), [], 100
    real = aggregator_module.parted
    monkeypatch.setattr(aggregator_module, "parted",
                        lambda total: seen.append(real(total)) or real(total))
    if broken:
        monkeypatch.setattr(AdaptiveClip, "joint_bound", lambda self, bound: bound)
        monkeypatch.setattr(AdaptiveClip, "answer", lambda self, bound: bound * 3.0)
        monkeypatch.setattr("aulait.privacy.clipping.clip_vector", lambda values, bound: values)
    scores = {True: [], False: []}
    for there, found in scores.items():
        own = through("zero-out", z, rule=rule)
        for number in range(times):
            vectors = [[9.0, 0.0], [0.1, 0.2]] if there else [[0.1, 0.2]]
            bound = own.adaptive_bound
            own.noise_state.clear()
            let_out(own, vectors, z, round=number + 1, planned=2)
            total, answers = seen[-1]
            own_rule = own.config.adaptive
            h = own_rule.answer(bound)
            score = (float(total["w"][0]) * bound - answers * h) / math.hypot(bound, h)
            found.append(score / own._ledger.lines[-1].sigma)
    mu = (sum(scores[True]) - sum(scores[False])) / times
    doubt = 5 * math.sqrt(2 / times)
    if broken:
        assert mu > 1.0 / z + doubt  # it is 3.2
    else:
        assert abs(mu - 1.0 / z) < doubt


def test_updates_that_are_not_counted_tell_nothing_by_the_count():
    own = through()
    vectors = [[math.nan, 0.0, 0.0], [0.1, 0.0, 0.0]]
    out = let_out(own, vectors, 0.0, planned=2)
    assert out.total["w"].tolist() == pytest.approx([0.1, 0.0, 0.0])
    assert own.adaptive_bound == pytest.approx(RULE.start * math.exp(-RULE.rate * (0.75 - 0.3)))
    assert out.refused == ()
    assert out.counted == {}


def test_votes_and_searches_have_their_own_bounds():
    own = through()
    assert own.adaptive_bound == RULE.start
    own.release([], Release(stage="search", round=1, role="local", bound=0.1, noise_multiplier=1.0,
                            planned=2, template={"w": torch.zeros(2)}))
    assert own._ledger.lines[0].sensitivity == 0.1
    assert own.adaptive_bound == RULE.start


def test_clients_that_mask_and_add_noise_send_their_answers_too():
    own = through(multiplier=0.5, trust="secure", seed=3)
    vectors = [[0.1, 0.0, 0.0]] * 5 + [[0.0, 5.0, 0.0]] * 5
    out = let_out(own, vectors, 0.5)
    (line,) = own._ledger.lines
    assert line.mechanism == "distributed-gaussian"
    assert line.sensitivity == pytest.approx(RULE.joint_bound(RULE.start))
    expected = torch.tensor([0.5, 2.5, 0.0])
    assert float((out.total["w"] - expected).abs().max()) < 6 * out.noise_std
    assert own.adaptive_bound != RULE.start


@pytest.fixture(scope="module")
def shared():
    return SharedCache()


@pytest.fixture
def data(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def settings(data, federation=None, **privacy):
    return tiny_run.settings(
        data, federation={"tier": [{"name": "all", "placement": "local"}], **(federation or {})},
        train={"rounds": 4, "steps": 1}, evaluate={"records_per_client": 1, "every": 9},
        privacy={"delta": 1e-3, "relation": "add-remove", "clip": "adaptive", "clip_start": 0.02}
        | privacy)


@pytest.mark.parametrize(("federation", "privacy"), [
    ({}, {}), ({"sampling": "poisson", "rate": 0.5}, {}), ({}, {"relation": "replace"}),
    ({"sampling": "turns", "cohorts": 2}, {"relation": "zero-out"}),
    ({}, {"relation": "zero-out", "trust": "secure"})])
def test_plan_run_and_account_agree(data, shared, federation, privacy):
    own = settings(data, federation, epsilon=6.0, **privacy)
    planned = summarise_plan(prepare(own, shared))
    result = loop.run(own, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    spent = result["privacy"]["epsilon"]["local"]
    assert planned["privacy"]["epsilon"]["local"] == spent
    assert 5.9 < spent <= 6.0
    assert all(row["agrees"] for row in recount(data / "run"))
    bounds = [line["clip_bound"] for line in tiny_run.lines(data) if line["stage"] == "train"]
    assert bounds[0] == 0.02
    # two that are apart may be the same
    assert all(bound != after for bound, after in itertools.pairwise(bounds))
    told = planned["privacy"]["adaptive_clip"]
    (z,) = [row["noise_multiplier"] for row in planned["releases"] if row["stage"] == "train"]
    assert told["update_noise_multiplier"] == pytest.approx(z / math.sqrt(0.95))
    assert "begins at 0.02" in told["in_words"]


def test_a_resumed_run_goes_on_with_the_bound_that_it_had(data, shared, monkeypatch):
    own = settings(data, noise_multiplier=2.0, noise_seed=4)
    whole = loop.run(own, data / "whole", InlineEngine(), cache=tiny_run.fresh(shared))
    real = Progress.save

    def save(progress, folder):
        real(progress, folder)
        if progress.state is not None and progress.state.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "save", save)
    with pytest.raises(KeyboardInterrupt):
        loop.run(own, data / "cut", InlineEngine(), cache=tiny_run.fresh(shared))
    monkeypatch.setattr(Progress, "save", real)
    cut = loop.run(own, data / "cut", InlineEngine(), cache=tiny_run.fresh(shared), resume=True)
    bounds = [[line["clip_bound"] for line in tiny_run.lines(data, name=name)]
              for name in ("whole", "cut")]
    assert bounds[0] == bounds[1]
    assert whole["eval"] == cut["eval"]


@pytest.mark.parametrize(("privacy", "words"), [
    ({"off": True}, "not clipped to it"),
    ({"clip_scale": 2.0}, "privacy.clip_start"),
    ({"clip_quantile": 1.0}, "between 0 and 1"),
    ({"count_fraction": 0.0}, "between 0 and 1"),
    ({"clip_start": 0.0}, "finite number > 0"),
    ({"clip_rate": math.inf}, "finite number > 0"),
    ({"mechanism": "banded"}, "one size in all rounds"),
    ({"unit": "record", "relation": "zero-out"}, "bounds gradients"),
])
def test_what_it_cannot_be_had_with_is_refused_in_a_line(data, shared, privacy, words):
    told = {} if privacy.get("off") else {"epsilon": 3.0}
    with pytest.raises((ConfigError, PrivacyError), match=words):
        prepare(settings(data, **told, **privacy), shared)
