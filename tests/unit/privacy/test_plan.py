"""The privacy plan: what it foretells is what runs spend, and a round that strays is stopped."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from tests import tiny_run

from aulait.cli.account import recount
from aulait.core.errors import PrivacyError
from aulait.core.types import ReleasedSum
from aulait.engines.inline import InlineEngine
from aulait.methods import METHODS
from aulait.privacy.accounting import Accountant, Event, epsilon
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.ledger_line import LedgerLine
from aulait.privacy.mechanisms import MECHANISMS, Gaussian, find_mechanism
from aulait.privacy.plan import ReleaseSchedule, plan_privacy
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import loop
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer
from aulait.runs.setup import prepare

CLIENT = {"epsilon": 6.0, "delta": 1e-3, "relation": "add-remove", "clip": 0.5}
RECORD = CLIENT | {"unit": "record", "relation": "zero-out"}
LOCAL = {"tier": [{"name": "all", "placement": "local"}]}
SAMPLINGS = {"all": {}, "poisson": {"sampling": "poisson", "rate": 0.5}}
METHODS_FOR_CLIENTS = [name for name in METHODS.names() if "client" in METHODS.find(name).TRAITS.units]
METHODS_FOR_RECORDS = [name for name in METHODS.names() if "record" in METHODS.find(name).TRAITS.units]


@pytest.fixture(scope="module")
def shared():
    return SharedCache()


@pytest.fixture
def data(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def agreed(data, shared, rounds=2, **tables):
    """Run, and compare what plan, run, ledger and ``aulait account`` say of every role."""
    settings = tiny_run.settings(data, train={"rounds": rounds, "steps": 1}, evaluate={"records_per_client": 1, "every": 9}, **tables)
    planned = summarise_plan(prepare(settings, shared))
    result = loop.run(settings, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    ledger = Ledger(data / "run" / "ledger.jsonl")
    accountant = Accountant(settings.privacy.delta, dict.fromkeys(("proxy", "local", "split"), math.inf))
    ledger.replay(accountant)
    for role, foretold in planned["privacy"]["epsilon"].items():
        assert foretold == accountant.spent(role) == result["privacy"]["epsilon"][role], role
    assert all(row["agrees"] for row in recount(data / "run"))
    assert len(ledger.lines) == sum(release["releases"] for release in planned["releases"])
    for release in planned["releases"]:
        lines = [line for line in ledger.lines if line.stage == release["stage"]]
        for line in lines:
            assert line.noise_multiplier == release["noise_multiplier"]
            assert (line.sensitivity, line.sigma) == pytest.approx((release["sensitivity"], release["sigma"]))
    return planned["privacy"]["epsilon"]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("method", METHODS_FOR_CLIENTS)
def test_plan_run_and_ledger_agree_for_clients(data, shared, method, sampling):
    spent = agreed(data, shared, algorithm={"name": method}, federation=LOCAL | SAMPLINGS[sampling], privacy=CLIENT)
    assert spent["local"] == 0 if method == "alone" else 5.9 < spent["local"] <= 6.0


FOR_RECORDS = [*({"name": name} for name in METHODS_FOR_RECORDS), {"name": "dplora", "mode": "ffa"}, {"name": "dplora", "mode": "literal"}]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("algorithm", FOR_RECORDS, ids=lambda own: "-".join(own.values()))
def test_plan_run_and_ledger_agree_for_records(data, shared, algorithm, sampling):
    spent = agreed(data, shared, algorithm=algorithm, federation=LOCAL | SAMPLINGS[sampling], privacy=RECORD)
    assert 5.9 < spent["local"] <= 6.0


@pytest.mark.parametrize("unit_field", [None, "patient"])
@pytest.mark.parametrize("voters", ["proxy", "all"])
def test_plan_run_and_ledger_agree_for_records_in_both_stages(data, shared, voters, unit_field):
    """Strong clients train with DP-SGD, weak ones vote with noise of their own: one plan, one ledger, and each role pays for its own."""
    privacy = RECORD if unit_field is None else RECORD | {"unit_field": unit_field, "records_per_unit": 3, "delta_acknowledged": True}
    rows = [json.loads(line) for line in (data / "data.jsonl").read_text().splitlines()]
    rows = [row | {"patient": "p1" if number % 4 in (1, 2) else f"q{number % 4}"} for number, row in enumerate(rows)]
    (data / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spent = agreed(data, shared, algorithm={"name": "fedit"}, synthesis={"voters": voters}, privacy=privacy)
    votes = {line.role for line in Ledger(data / "run" / "ledger.jsonl").lines if line.stage == "synthesis"}
    assert votes == {"proxy+local" if voters == "all" else "proxy"}
    assert 5.9 < spent["local"] <= 6.0
    assert spent["proxy"] <= 6.0 if voters == "proxy" else spent["proxy"] < 4.5
    mechanisms = {(line.stage, line.mechanism, line.unit) for line in Ledger(data / "run" / "ledger.jsonl").lines}
    assert mechanisms == {("synthesis", "gaussian-votes", "record"), ("train", "dp-sgd", "record")}


def test_a_client_that_votes_and_samples_its_records_is_calibrated_for_both():
    config = PrivacyConfig(**RECORD | {"delta": 1e-5})
    votes = ReleaseSchedule(stage="synthesis", rounds=5, role="proxy+local", mechanism="gaussian-votes", bound=1.0)
    training = ReleaseSchedule(stage="train", rounds=4, role="local", mechanism="dp-sgd", bound=0.5, sampling_rate=0.05, steps=10)
    plan = plan_privacy(config, [votes, training])
    both = [*[Event(plan.noise_multiplier("synthesis"))] * 5, *[Event(plan.noise_multiplier("train"), 0.05, 10)] * 4]
    assert 5.9 < epsilon(both, 1e-5) == plan.epsilon["local"] <= 6.0
    assert plan.epsilon["proxy"] == epsilon(both[:5], 1e-5) < plan.epsilon["local"]
    whole = plan_privacy(config, [votes, replace(training, sampling_rate=1.0, steps=1)])
    assert whole.noise_multiplier("synthesis") == plan.noise_multiplier("synthesis"), "votes get the same part of the budget"


@pytest.mark.parametrize("relation", ["add-remove", "replace"])
@pytest.mark.parametrize("voters", ["proxy", "all"])
def test_plan_run_and_ledger_agree_where_clients_vote(data, shared, voters, relation):
    spent = agreed(data, shared, synthesis={"voters": voters}, privacy=CLIENT | {"relation": relation})
    assert (spent["proxy"] < spent["local"]) == (voters == "all")


def test_the_measured_case_of_the_questions_and_answers():
    # 1400 records, 4 rounds of 3 steps of 32: counted as full participation it would be above 20.
    config = PrivacyConfig(**RECORD | {"epsilon": 8.0, "delta": 1e-5})
    schedule = ReleaseSchedule(stage="train", rounds=4, role="local", mechanism="dp-sgd", bound=0.5, sampling_rate=32 / 600, steps=3)
    plan = plan_privacy(config, [schedule])
    assert 7.9 < plan.epsilon["local"] <= 8.0
    assert epsilon([Event(plan.noise_multiplier("train"))] * 12, 1e-5) > 12


def test_roles_whose_votes_are_exact_are_promised_nothing(data, shared):
    settings = tiny_run.settings(data, synthesis={"votes": "exact", "voters": "all"}, privacy=CLIENT)
    plan = summarise_plan(prepare(settings, shared))
    result = loop.run(settings, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    assert plan["privacy"]["epsilon"] == {"proxy": None, "local": None}
    assert result["privacy"]["epsilon"] == {"proxy": None, "local": None, "split": None, "max": None}
    assert not result["privacy"]["private"]
    assert all(row["agrees"] for row in recount(data / "run"))


def test_without_privacy_nothing_is_planned():
    plan = plan_privacy(PrivacyConfig(off=True), [])
    assert plan.noise_multiplier("train") == 0.0
    assert set(plan.epsilon.values()) == {math.inf}
    plan.check("train", 1, [])


# -- the check after a round ---------------------------------------------------------------------------------------


def three_rounds(**changes):
    return plan_privacy(PrivacyConfig(**CLIENT | changes), [ReleaseSchedule(stage="train", rounds=3, role="local", mechanism="gaussian", bound=0.5)])


def line_of(plan, round=1, **changes):
    (release,) = plan.releases
    values = dict(release=round, stage="train", round=round, role="local", mechanism="gaussian", sensitivity=0.5,
                  sigma=0.5 * release.noise_multiplier, noise_multiplier=release.noise_multiplier, planned=3, sampling={"kind": "all"},
                  epsilon={"local": 1.0}, delta=1e-3, relation="add-remove", unit="client", time="2026-01-01T00:00:00+00:00", private=True)
    return LedgerLine(**values | changes)


def test_a_round_of_the_plan_passes():
    plan = three_rounds()
    plan.check("train", 1, [line_of(plan)])
    plan.check("train", 4, [])
    plan.check("synthesis", 1, [])


@pytest.mark.parametrize("count", [0, 2])
def test_a_missing_or_an_extra_line_stops_the_run(count):
    plan = three_rounds()
    with pytest.raises(PrivacyError, match=f"{count} lines in the ledger, expected 1"):
        plan.check("train", 2, [line_of(plan, 2)] * count)
    with pytest.raises(PrivacyError, match="expected 0"):
        plan.check("train", 4, [line_of(plan, 4)])
    with pytest.raises(PrivacyError, match="expected 0"):
        plan_privacy(PrivacyConfig(off=True), []).check("train", 1, [line_of(plan)])


@pytest.mark.parametrize("changes", [
    {"round": 2}, {"stage": "synthesis"}, {"role": "proxy"}, {"role": "proxy+local"}, {"delta": 1e-4}, {"relation": "replace"},
    {"noise_multiplier": 0.1, "sigma": 0.05}, {"sampling": {"kind": "poisson", "rate": 0.5}}, {"sensitivity": 0.05, "sigma": None},
    {"unit": "record", "mechanism": "dp-sgd"}, {"unit": "record", "mechanism": "dp-sgd", "steps": 5},
])
def test_a_line_of_another_plan_stops_the_run(changes):
    plan = three_rounds()
    if "sigma" in changes and changes["sigma"] is None:
        changes = changes | {"sigma": changes["sensitivity"] * plan.noise_multiplier("train")}
    with pytest.raises(PrivacyError, match=next(iter(changes)) if "sampling" not in changes and "noise_multiplier" not in changes else "event"):
        plan.check("train", 1, [line_of(plan, **changes)])


def test_a_whole_run_is_held_against_the_plan_and_an_interrupted_round_may_have_two_lines():
    plan = three_rounds()
    done = [("train", round) for round in (1, 2, 3)]
    lines = [line_of(plan, round) for round in (1, 2, 2, 3)]
    plan.check_run(done, lines)
    plan.check_run(done[:2], lines)  # the third was charged when the run died, and the budget is spent
    plan.check_run([("synthesis", 1), *done], lines)
    with pytest.raises(PrivacyError, match="train round 3 has 0 lines"):
        plan.check_run(done, lines[:3])
    with pytest.raises(PrivacyError, match="sensitivity"):
        plan.check_run(done, [*lines[:3], line_of(plan, 3, sensitivity=0.05, sigma=0.05 * plan.noise_multiplier("train"))])
    with pytest.raises(PrivacyError, match="expected 0"):
        plan.check_run(done, [*lines, line_of(plan, 4)])
    with pytest.raises(PrivacyError, match="expected 0"):
        plan_privacy(PrivacyConfig(**CLIENT), []).check_run(done, lines)


def test_has_release_says_which_rounds_release_something():
    plan = three_rounds()
    assert [plan.has_release("train", round) for round in range(5)] == [False, True, True, True, False]
    assert not plan.has_release("synthesis", 1)


class Silent:
    """A method that hides its clients' sum from the ledger, or releases twice."""

    def __init__(self, times):
        self.times = times

    def __call__(self, real):
        def release(aggregator, updates, *more, **named):
            released: ReleasedSum | None = None
            for _ in range(self.times):
                released = real(aggregator, list(updates), *more, **named)
            return released or ReleasedSum({n: t.clone() for n, t in more[0].template.items()}, 3, 0.0)
        return release


@pytest.mark.parametrize("times", [0, 2])
def test_a_run_whose_method_strays_from_the_plan_is_stopped(data, shared, monkeypatch, times):
    from aulait.privacy.aggregator import PrivateAggregator

    monkeypatch.setattr(PrivateAggregator, "release", Silent(times)(PrivateAggregator.release))
    settings = tiny_run.settings(data, federation=LOCAL, privacy={k: v for k, v in CLIENT.items() if k != "epsilon"} | {"noise_multiplier": 1.0})
    with pytest.raises(PrivacyError, match=f"train round 1 has {times} lines in the ledger, expected 1"):
        loop.run(settings, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    assert not (data / "run" / "result.json").exists()


# -- mechanisms ----------------------------------------------------------------------------------------------------


class Wasteful(Gaussian):
    """Accounted as if its noise were half as large."""

    def event(self, noise_multiplier, sampling_rate, steps):
        return Event(noise_multiplier / 2, sampling_rate, steps)


def test_a_mechanism_of_a_third_party_is_planned_by_its_own_account():
    if "wasteful" not in MECHANISMS:
        MECHANISMS.register("wasteful")(Wasteful())
    schedule = ReleaseSchedule(stage="train", rounds=3, role="local", mechanism="wasteful", bound=1.0)
    plan, plain = (plan_privacy(PrivacyConfig(**CLIENT), [s]) for s in (schedule, replace(schedule, mechanism="gaussian")))
    assert plan.noise_multiplier("train") == pytest.approx(2 * plain.noise_multiplier("train"), rel=0.02)
    assert 5.8 < plan.epsilon["local"] <= 6.0


class Hopeless(Gaussian):
    """Accounted alike however much noise it adds."""

    def event(self, noise_multiplier, sampling_rate, steps):
        return Event(0.01, sampling_rate, steps)


def test_a_mechanism_that_no_noise_brings_within_the_target_ends_in_one_line():
    if "hopeless" not in MECHANISMS:
        MECHANISMS.register("hopeless")(Hopeless())
    schedule = ReleaseSchedule(stage="train", rounds=3, role="local", mechanism="hopeless",
                               bound=1.0)
    with pytest.raises(PrivacyError, match="'hopeless': no noise meets the target"):
        plan_privacy(PrivacyConfig(**CLIENT), [schedule])


def test_what_is_no_mechanism_of_the_unit_or_relation():
    with pytest.raises(PrivacyError, match="unknown"):
        find_mechanism("laplace-of-paris")
    with pytest.raises(PrivacyError, match="protects a record"):
        plan_privacy(PrivacyConfig(**CLIENT), [ReleaseSchedule(stage="train", rounds=1, role="local", mechanism="dp-sgd")])
    with pytest.raises(PrivacyError, match="replace"):
        plan_privacy(PrivacyConfig(**RECORD | {"relation": "replace"}),
                     [ReleaseSchedule(stage="train", rounds=1, role="local", mechanism="dp-sgd")])
    assert json.loads(json.dumps(find_mechanism("gaussian-batch").sensitivity(1.0, "replace"))) == pytest.approx(2 * math.sqrt(2))


class Telescoping(Gaussian):
    """Takes half of the last noise out again: it must remember it, also over a kill."""

    def add_noise(self, total, sigma, source, state):
        fresh = {name: source.gaussian(tuple(value.shape), sigma) for name, value in total.items()}
        last = {name: state.get(name, torch.zeros_like(fresh[name])) for name in fresh}
        return {name: total[name] + fresh[name] - last[name] / 2 for name in fresh}, fresh


def test_a_mechanism_s_memory_of_its_noise_survives_an_interruption(data, shared):
    if "telescoping" not in MECHANISMS:
        MECHANISMS.register("telescoping")(Telescoping())
    settings = tiny_run.settings(data, federation=LOCAL, privacy=CLIENT | {"noise_seed": 3, "mechanism": "telescoping"})
    plain = tiny_run.settings(data, federation=LOCAL, privacy=CLIENT | {"noise_seed": 3})
    run = lambda name, chosen, **more: loop.run(chosen, data / name, InlineEngine(), cache=tiny_run.fresh(shared), **more)  # noqa: E731
    run("whole", settings)

    def stop(stage, done, total, note):
        if stage == "train" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("halves", settings, observer=Observer(stop))
    run("halves", settings, resume=True)
    run("plain", plain)
    whole, halves, other = ((data / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("whole", "halves", "plain"))
    assert whole == halves != other
    assert {line.mechanism for line in Ledger(data / "halves" / "ledger.jsonl").lines} == {"telescoping"}
    tensors, _ = RunFolder(data / "halves").restore()
    assert not any(name.startswith("noise/") for name in tensors)
