"""The unit "record": what it costs, when it is charged, what is refused, and a whole run that adds up."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests import tiny_run
from tests.closeness import assert_near
from tests.tiny_bases import filled, records, tiny

from aulait.cli.account import recount
from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import ConfigError, PrivacyError
from aulait.core.factors import Trainable
from aulait.core.seeds import Seeds
from aulait.core.types import ClientUpdate, Plan, Site
from aulait.engines.inline import InlineEngine, LocalClients
from aulait.methods import dplora
from aulait.methods.contract import RunContext, Server, record_mechanism
from aulait.models import loading
from aulait.models.loading import AdapterConfig
from aulait.privacy.accounting import Accountant, Event, calibrate, epsilon
from aulait.privacy.aggregator import BudgetSpent, KnownSites, PrivateAggregator, Release
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.ledger_line import LedgerLine
from aulait.privacy.noise import SeededNoise, SystemNoise
from aulait.privacy.plan import ReleaseSchedule, plan_privacy
from aulait.privacy.record_level import RecordMechanism, SiteNoise, unit_problems, worst_case
from aulait.runs import experiment_file, loop
from aulait.runs.prepared import SharedCache
from aulait.runs.train_stage import protected
from aulait.training import private_learner
from aulait.training.private_learner import PrivateLearner
from aulait.training.trainer import Learner, LocalTraining, TrainConfig

DELTA = 1e-5
LIKE = {"x": torch.zeros(3, 2)}
FORMS = dict.fromkeys(["a", "b", "nan", "inf", "shape", "names", "integers", "weight", "p", "huge"], LIKE)
SGD = RecordMechanism("dp-sgd", 4, 0.25)
BATCH = RecordMechanism("gaussian-batch", 1)
ON = PrivacyConfig(noise_multiplier=1.0, delta=DELTA, relation="zero-out", unit="record", clip=0.5)


def aggregator(record_mechanism=SGD, ledger=None, noise=None, budget=math.inf, **changes) -> PrivateAggregator:
    config = ON.model_copy(update=changes)
    ledger = ledger or Ledger(None)
    accountant = Accountant(DELTA, {"local": budget})
    ledger.replay(accountant)
    return PrivateAggregator(config, ledger, accountant, noise or SystemNoise(), KnownSites(frozenset({"p"})),
                             record_mechanisms=None if record_mechanism is None else {"train": record_mechanism})


def release(through, ask, **changes):
    arguments = dict(stage="train", round=1, role="local", bound=0.5, noise_multiplier=1.0, planned=3, template=LIKE)
    weights = {key: changes.pop(key) for key in [*changes] if key == "weights"}

    def lazily():
        yield from ask()

    return through.release(lazily(), Release(**arguments | changes), expected_shapes=FORMS, **weights)


def update(client, value=1.0, **more):
    return ClientUpdate(client, {"x": torch.full((3, 2), value)}, **more)


# -- what it costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("z", "rate", "steps"), [(1.0, 0.05, 200), (2.0, 0.2, 80), (0.8, 0.02, 400), (1.5, 0.5, 20)])
def test_epsilon_agrees_with_opacus(z, rate, steps):
    opacus = pytest.importorskip("opacus.accountants")
    ours = epsilon([Event(z, rate, steps)], DELTA)
    tight, loose = opacus.PRVAccountant(), opacus.RDPAccountant()
    tight.history = loose.history = [(z, rate, steps)]
    assert ours == pytest.approx(tight.get_epsilon(DELTA), rel=0.05)
    assert ours <= loose.get_epsilon(DELTA) * 1.001
    assert ours == pytest.approx(loose.get_epsilon(DELTA), rel=0.25)  # Rényi accounting is an upper bound


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise():
    by_steps = [epsilon([Event(1.2, 0.1, steps)], DELTA) for steps in (1, 10, 100, 1000)]
    by_rate = [epsilon([Event(1.2, rate, 50)], DELTA) for rate in (0.01, 0.1, 0.5, 1.0)]
    by_noise = [epsilon([Event(z, 0.1, 50)], DELTA) for z in (4.0, 2.0, 1.0, 0.6)]
    for values in (by_steps, by_rate, by_noise):
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_steps_are_counted_one_by_one():
    assert epsilon([Event(1.3, 0.1, 12)], DELTA) == epsilon([Event(1.3, 0.1)] * 12, DELTA) == epsilon([Event(1.3, 0.1, 4)] * 3, DELTA)
    account = Accountant(DELTA, {"local": math.inf})
    for _ in range(3):
        account.add("local", Event(1.3, 0.1, 4))
    assert account.spent("local") == epsilon([Event(1.3, 0.1, 12)], DELTA)
    z = calibrate(2.0, DELTA, 12, 0.1)
    assert 1.98 < epsilon([Event(z, 0.1, 4)] * 3, DELTA) <= 2.0
    with pytest.raises(PrivacyError, match="steps"):
        Event(1.0, 1.0, 0)


def test_the_literal_rule_is_two_groups_of_sensitivity_two_c():
    """z = sigma / (2√2): the two groups together, or one after the other with sigma / 2 each."""
    sigma, c = 2.0, 10.0
    z = sigma * c / BATCH.sensitivity(c, "replace")
    assert z == pytest.approx(sigma / (2 * math.sqrt(2)))
    together, one_by_one = epsilon([BATCH.event(z)] * 50, DELTA), epsilon([Event(sigma / 2)] * 100, DELTA)
    assert together == pytest.approx(one_by_one, rel=1e-6)
    assert together == pytest.approx(91.8, rel=1e-2)  # what the docstring of the method says
    with pytest.raises(PrivacyError, match="no amplification"):
        RecordMechanism("gaussian-batch", 1, 0.5)


def test_two_clipped_gradients_are_never_further_apart_than_the_sensitivity():
    from aulait.privacy.clipping import clip, norm

    generator = torch.Generator().manual_seed(0)
    far = 0.0
    for _ in range(200):
        pair = [[clip({"g": torch.randn(5, generator=generator) * 9}, 0.7) for _ in "AB"] for _ in range(2)]
        apart = math.hypot(*(norm({"g": one["g"].double() - two["g"].double()}) for one, two in zip(*pair, strict=True)))
        far = max(far, apart)
    opposite = math.hypot(*(norm({"g": torch.tensor([0.7]) - torch.tensor([-0.7])}) for _ in "AB"))
    assert far <= opposite <= BATCH.sensitivity(0.7, "replace") * (1 + 1e-6)
    assert opposite == pytest.approx(BATCH.sensitivity(0.7, "replace"))


def test_the_worst_client_pays_for_its_role():
    record_mechanism = worst_case("dp-sgd", [(100, 4, 5), (20, 2, 5), (0, 9, 5)])
    assert record_mechanism == RecordMechanism("dp-sgd", 9, 0.25)
    assert worst_case("dp-sgd", [(3, 1, 8)]).rate == 1.0
    assert worst_case("dp-sgd", [(3, 1, 8), (100, 1, 8)], 0.2).rate == 0.2
    assert worst_case("gaussian-batch", [(100, 4, 5)]) == RecordMechanism("gaussian-batch", 4, 1.0)
    for records_, steps, batch in [(100, 4, 5), (20, 2, 5)]:
        own = epsilon([Event(1.0, batch / records_, steps)] * 5, DELTA)
        assert own <= epsilon([record_mechanism.event(1.0)] * 5, DELTA)


# -- the aggregator ------------------------------------------------------------------------------------------------------


def test_the_line_is_on_disk_before_anybody_is_asked(tmp_path):
    path = tmp_path / "ledger.jsonl"
    seen = []

    def ask():
        seen.append(json.loads(path.read_text().splitlines()[-1]))
        return [update("a")]

    release(aggregator(ledger=Ledger(path)), ask)
    (line,) = seen
    assert (line["unit"], line["mechanism"], line["steps"]) == ("record", "dp-sgd", 4)
    assert line["sampling"] == {"kind": "poisson", "rate": 0.25}
    assert (line["sensitivity"], line["sigma"], line["noise_multiplier"]) == (0.5, 0.5, 1.0)
    assert line["epsilon"]["local"] == pytest.approx(epsilon([Event(1.0, 0.25, 4)], DELTA))
    assert line["private"]
    again = Ledger(path)
    assert again.events("local") == [Event(1.0, 0.25, 4)]
    assert aggregator(ledger=again)._accountant.spent("local") == line["epsilon"]["local"]


def test_the_literal_line_says_what_it_is():
    for relation in ("zero-out", "replace"):
        ledger = Ledger(None)
        release(aggregator(BATCH, ledger, relation=relation), lambda: [], noise_multiplier=2.0)
        (line,) = ledger.lines
        assert (line.mechanism, line.sampling.kind, line.relation) == ("gaussian-batch", "all", relation)
        assert line.sensitivity == pytest.approx(2 * math.sqrt(2) * 0.5)
        assert line.event == Event(2.0, 1.0, 1)


def test_nobody_is_asked_when_the_line_cannot_be_written_or_the_budget_is_spent(tmp_path):
    asked = []

    def ask():
        asked.append(1)
        return []

    with pytest.raises(OSError):
        release(aggregator(ledger=Ledger(tmp_path / "missing" / "ledger.jsonl")), ask)
    budget = epsilon([SGD.event(1.0)] * 2, DELTA)
    ledger = Ledger(None)
    through = aggregator(ledger=ledger, budget=budget, noise_multiplier=None, epsilon=budget)
    release(through, lambda: [])
    release(through, lambda: [])
    with pytest.raises(BudgetSpent):
        release(through, ask)
    with pytest.raises(BudgetSpent):  # and a resumed run knows
        release(aggregator(ledger=ledger, budget=budget), ask)
    assert asked == []
    assert len(ledger.lines) == 2


def bad_replies():
    return [
        update("nan", math.nan), update("inf", math.inf), ClientUpdate("shape", {"x": torch.zeros(2, 3)}), ClientUpdate("names", {"y": torch.zeros(3, 2)}),
        ClientUpdate("integers", {"x": torch.zeros(3, 2, dtype=torch.int64)}), update("weight", weight=math.nan), update("p"), update("huge", 1e9),
        update("stranger"),
    ]


@pytest.mark.parametrize("make", [aggregator, lambda: PrivateAggregator(PrivacyConfig(off=True), Ledger(None), None, SystemNoise(), KnownSites(frozenset({"p"})))])
def test_a_bad_reply_is_refused_and_the_round_goes_on(make):
    good = [update("a", 1.0, info={"train_loss": 3.0}), update("b", 2.0)]
    bound = {"bound": math.inf} if make().config.off else {}  # without privacy it would clip
    released = release(make(), lambda: [*bad_replies(), good[0], update("a", 7.0), good[1]], **bound)
    assert torch.equal(released.total["x"], torch.full((3, 2), 3.0))
    assert released.planned == 2
    assert [name for name, _ in released.refused] == sorted(["a", *(r.client for r in bad_replies())])
    assert ("train_loss" in released.info) == make().config.off  # diagnostics carry no noise
    sized = release(make(), lambda: [update("a", 1.0, weight=3.0), update("b", 2.0, weight=1.0)], weights="size", **bound)
    assert torch.allclose(sized.total["x"] / sized.planned, torch.full((3, 2), 1.25))


def test_units_do_not_mix(tmp_path):
    arguments = dict(stage="train", round=1, role="local", bound=1.0, noise_multiplier=1.0, planned=1, template=LIKE)
    with pytest.raises(PrivacyError, match="stage 'synthesis' found, expected none"):
        release(aggregator(), lambda: [], stage="synthesis")
    with pytest.raises(PrivacyError, match="terms"):
        aggregator(record_mechanism=None)
    ledger = Ledger(None)
    client = PrivateAggregator(ON.model_copy(update={"unit": "client", "relation": "add-remove"}), ledger, Accountant(DELTA, {"local": math.inf}), SystemNoise(), KnownSites(frozenset()))
    client.release([], Release(**arguments))
    with pytest.raises(PrivacyError, match="unit 'client'"):
        aggregator(ledger=ledger)


@pytest.mark.parametrize("change", [{"bound": math.inf}, {"bound": 0.0}, {"planned": 0}, {"noise_multiplier": -1.0}, {"role": "split"}])
def test_conditions_that_raise_before_anybody_is_asked(change):
    def ask():
        raise AssertionError("asked")

    with pytest.raises(PrivacyError):
        release(aggregator(), ask, **change)
    with pytest.raises(PrivacyError, match="replace"):
        release(aggregator(RecordMechanism("dp-sgd", 1, 1.0), relation="replace"), ask)


def test_seeded_noise_is_not_private():
    ledger = Ledger(None)
    release(aggregator(ledger=ledger, noise=SeededNoise(1), noise_seed=1), lambda: [])
    assert not ledger.lines[0].private


def test_lines_that_cannot_be(tmp_path):
    ledger = Ledger(None)
    release(aggregator(ledger=ledger), lambda: [])
    (line,) = ledger.lines
    for change in ({"unit": "client"}, {"mechanism": "gaussian"}, {"steps": 0}, {"steps": 1.0}, {"unit": "person"}, {"steps": True},
                   {"mechanism": "gaussian-batch"}):
        with pytest.raises(PrivacyError):
            LedgerLine(**line.model_dump() | change)
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(LedgerLine(**line.model_dump() | {"unit": "client", "mechanism": "gaussian", "sampling": {"kind": "all"}, "steps": 1}))
    old = json.loads(path.read_text())
    del old["steps"]  # a ledger from before there were steps
    old.pop("previous", None)  # nor a chain
    (tmp_path / "ledger.head").unlink()
    path.write_text(json.dumps(old) + "\n")
    assert Ledger(path).lines[0].steps == 1


# -- settings ------------------------------------------------------------------------------------------------------


def test_contradictions_are_told():
    sound = ("dplora", ("record",), "dp-sgd")
    assert unit_problems(ON, *sound) == []
    assert unit_problems(ON, "fedit", ("client", "record"), "dp-sgd") == []
    assert unit_problems(PrivacyConfig(off=True), "ffa", ("client",), "dp-sgd") == []
    for privacy, arguments, word in [
        (ON, ("safedlora", ("client",), "dp-sgd"), "protect whole clients"),
        (ON, ("hetlora", (), "dp-sgd"), "cannot be protected"),
        (ON.model_copy(update={"unit": "client"}), sound, "every record"),
        (ON.model_copy(update={"clip": "proxies"}), sound, "bounds gradients"),
        (ON.model_copy(update={"relation": "replace"}), sound, "Poisson"),
        (ON.model_copy(update={"shrink": "whole"}), sound, "shrink"),
    ]:
        (line,) = unit_problems(privacy, *arguments)
        assert word in line
        assert "\n" not in line
    assert unit_problems(ON.model_copy(update={"relation": "replace"}), "dplora", ("record",), "gaussian-batch") == []
    (wrong,) = ON.model_copy(update={"unit": "record", "relation": "add-remove"}).problems(10)
    assert wrong.endswith('write relation = "zero-out"')
    assert ON.model_copy(update={"unit": "client", "relation": "zero-out"}).problems(10) == []


def test_controls_are_not_private():
    site = Site("ann", Plan("t", "local", 2, 2, 2), records(4))
    for name in ("noise", "clip"):
        with pytest.raises(PrivacyError, match="not private"):
            dplora.record_mechanism(dplora.Config(**{name: "none"}), [site])
    assert dplora.record_mechanism(dplora.Config(), [site]) == RecordMechanism("dp-sgd", 2, 0.5)
    assert dplora.record_mechanism(dplora.Config(max_rate=0.1), [site]) == RecordMechanism("dp-sgd", 2, 0.1)
    assert dplora.record_mechanism(dplora.Config(mode="literal"), [site]) == RecordMechanism("gaussian-batch", 2)


def test_runs_of_before_called_the_relation_add_remove_and_go_on(data):
    """The same promise by its old name: settings are read as today's, and a ledger is gone on with."""
    new = tiny_run.settings(data, algorithm={"name": "dplora", "server": "plain"}, federation=TIERS, privacy=PRIVATE)
    old = experiment_file.dump_settings(new).replace('relation = "zero-out"', 'relation = "add-remove"')
    assert old != experiment_file.dump_settings(new) == experiment_file.renewed_settings(old)
    client = experiment_file.dump_settings(tiny_run.settings(data, federation=TIERS, privacy=CLIENT))
    assert experiment_file.renewed_settings(client) == client
    ledger = Ledger(None)
    release(aggregator(ledger=ledger), lambda: [])
    (line,) = ledger.lines
    before = Ledger(None)
    before.append(LedgerLine(**line.model_dump() | {"relation": "add-remove", "previous": None}))
    release(aggregator(ledger=before), lambda: [], round=2)
    assert [own.relation for own in before.lines] == ["add-remove", "zero-out"]
    plan = plan_privacy(ON, [ReleaseSchedule(stage="train", rounds=2, role="local", mechanism="dp-sgd", bound=0.5, sampling_rate=0.25, steps=4)])
    for own in before.lines:
        plan.check("train", own.round, [own])
    with pytest.raises(PrivacyError, match="relation"):
        plan.check("train", 1, [LedgerLine(**line.model_dump() | {"relation": "replace"})])


# -- the method ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("bases"))


def federation(base, config, privacy, z=1.0, proxies=()):
    """One round of the method; (before, after, info, requests, updates, ledger)."""
    shapes = loading.targets(base, AdapterConfig(targets="attention", layers=1))
    context, learner = RunContext(shapes, 2, 4.0, Seeds(3)), Learner(base, TrainConfig(optimizer="sgd"))
    sites = {n: Site(n, Plan("t", "proxy" if n in proxies else "local", 2, 2, 2), records(5 + len(n), len(n))) for n in ("ann", "barb", *proxies)}
    ledger = Ledger(None)
    accountant = None if privacy.off else Accountant(DELTA, {"local": math.inf})
    asked = None if privacy.off else record_mechanism(dplora, config, privacy, [sites["ann"], sites["barb"]])
    noise = SystemNoise() if privacy.noise_seed is None else SeededNoise(privacy.noise_seed)
    through = PrivateAggregator(privacy, ledger, accountant, noise, KnownSites(frozenset(proxies)),
                                record_mechanisms=None if asked is None else {"train": asked})
    clients = LocalClients(sites, dplora, context, learner).ask
    if asked is not None:
        site_noise = SiteNoise(mechanism=asked.mechanism, clip=privacy.clip, sigma=z * asked.sensitivity(privacy.clip, privacy.relation),
                               most_rate=asked.rate, most_steps=asked.steps, noise_seed=privacy.noise_seed)
    requests, updates = [], []

    def noted(some):
        requests.extend(some)
        for update in clients(some):
            updates.append(update)
            yield update

    ask = noted if asked is None else protected(noted, site_noise, {"ann": 2, "barb": 2})
    state = dplora.init(config, context)
    cohort = Cohort(round=1, local=("ann", "barb"), proxies={p: 2.0 for p in proxies}, planned=2, noise_multiplier=z, lr=0.1)
    after, info = dplora.step(config, context, state, cohort, Server(ask, through))
    return context, state, after, info, requests, updates, ledger


@pytest.mark.parametrize("mode", ["dpsgd", "ffa", "literal"])
def test_a_round_of_every_mode(base, mode):
    config = dplora.Config(mode=mode)
    context, before, after, info, requests, updates, ledger = federation(base, config, ON)
    sigma = 0.5 if mode != "literal" else 2 * math.sqrt(2) * 0.5
    assert {o.settings["private"]["sigma"] for o in requests} == {ledger.lines[0].sigma}
    assert ledger.lines[0].sigma == pytest.approx(sigma)
    assert all(not r.info for r in updates)
    names = {n for n in before.tensors}
    assert names == {f"{n}.{x}" for n in context.shapes for x in ("B" if mode == "ffa" else "AB")}
    for name in names:
        mean = sum(r.tensors[name] for r in updates) / 2
        assert_near(after.tensors[name] - before.tensors[name], mean, 1e-5, what=name)
    adapter = dplora.result(context, after)
    assert set(adapter.factors) == set(context.shapes)
    if mode == "ffa":
        assert all(torch.equal(adapter.factors[n][0], dplora.result(context, before).factors[n][0]) for n in context.shapes)
    up, down = dplora.travels(config, context, 1, "ann", ("ann", "barb"))
    assert (info["up_bytes"], info["down_bytes"]) == (2 * up, 2 * down)


def test_controls_and_seeded_noise_draw_the_same_batches(base, monkeypatch):
    seen = []
    inner = private_learner.private_steps
    monkeypatch.setattr(private_learner, "private_steps", lambda lea, work: (seen.append(work), inner(lea, work))[1])
    off = PrivacyConfig(off=True, clip=0.5)
    federation(base, dplora.Config(noise="none"), off)
    federation(base, dplora.Config(noise="none", clip="none"), off)
    federation(base, dplora.Config(), ON.model_copy(update={"noise_seed": 4}))
    federation(base, dplora.Config(), ON)
    from aulait.training.record_gradients import batches

    clipped, free, seeded, secret = (seen[i : i + 2] for i in (0, 2, 4, 6))
    assert [w.clip for w in clipped + free + seeded] == [0.5] * 2 + [math.inf] * 2 + [0.5] * 2
    for one, two, three in zip(clipped, free, seeded, strict=True):
        assert batches(one) == batches(two) == batches(three)
    assert [w.private for w in seen] == [False] * 6 + [True] * 2
    assert len({w.noise_seed for w in seeded}) == 2  # every site has its own stream
    assert secret[0].noise_seed is None
    left, right = (federation(base, dplora.Config(), ON.model_copy(update={"noise_seed": 4}))[2] for _ in range(2))
    assert all(torch.equal(left.tensors[n], right.tensors[n]) for n in left.tensors)
    left, right = (federation(base, dplora.Config(), ON)[2] for _ in range(2))
    assert not all(torch.equal(left.tensors[n], right.tensors[n]) for n in left.tensors)


def test_a_site_does_no_more_than_is_accounted(base):
    """A site that holds fewer records than the server believed samples no more often than the ledger says."""
    context, *_, requests, _, _ = federation(base, dplora.Config(), ON)
    noise = SiteNoise.read(requests[0].settings)
    assert noise.most_rate == pytest.approx(2 / 8)
    small = Site("ann", Plan("t", "local", 2, 9, 50), records(3))
    learner = PrivateLearner(Learner(base, TrainConfig()), noise, [small])
    asked = LocalTraining(context.initial(), learner.stand_in(small).train, Trainable.AB, 9, 50, 0.1, 1)
    work = learner._work(asked, small.train)
    assert (work.rate, work.steps) == (pytest.approx(0.25), 2)


def test_proxies_train_without_noise_beside_the_clients(base):
    context, before, after, info, requests, updates, _ = federation(base, dplora.Config(), ON, proxies=("p",))
    (proxy,) = [r for r in updates if r.client == "p"]
    assert "private" not in next(o for o in requests if o.client == "p").settings
    local = [r for r in updates if r.client != "p"]
    for name in before.tensors:
        wanted = (sum(r.tensors[name] for r in local) + 2.0 * proxy.tensors[name]) / 4
        assert_near(after.tensors[name] - before.tensors[name], wanted, 1e-5, what=name)
    assert info["proxies"] == 1
    assert lora.norm(filled(context.shapes, 2)) > 0


# -- a whole run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared():
    return SharedCache()


@pytest.fixture
def data(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


TIERS = {"tier": [{"name": "all", "placement": "local"}]}
CLIENT = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 0.5}
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "zero-out", "unit": "record", "clip": 0.5}


@pytest.mark.parametrize("mode", ["dpsgd", "ffa", "literal"])
def test_a_run_spends_its_budget_and_the_ledger_agrees(data, shared, mode):
    settings = tiny_run.settings(data, algorithm={"name": "dplora", "mode": mode, "server": "plain"}, federation=TIERS, privacy=PRIVATE)
    result = loop.run(settings, data / "run", InlineEngine(), cache=tiny_run.fresh(shared))
    lines = [json.loads(line) for line in (data / "run" / "ledger.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert {line["unit"] for line in lines} == {"record"}
    assert {line["steps"] for line in lines} == {2}
    assert 7.8 < result["privacy"]["epsilon"]["local"] <= 8.0
    assert all(row["agrees"] for row in recount(data / "run"))
    page = (data / "run" / "report.html").read_text()
    assert "one record of one client" in page
    assert "with a record as without it" in page


def test_what_a_run_refuses(data, shared):
    for tables, word in [
        ({"algorithm": {"name": "hetlora"}, "privacy": PRIVATE}, "hetlora"),
        ({"algorithm": {"name": "dplora", "server": "plain"}, "privacy": PRIVATE | {"unit": "client", "relation": "add-remove"}}, "record"),
        ({"algorithm": {"name": "dplora", "server": "plain"}, "privacy": {k: v for k, v in PRIVATE.items() if k != "clip"}}, "clip"),
        ({"algorithm": {"name": "ffa"}, "privacy": PRIVATE | {"relation": "add-remove"}}, "null record"),
        ({"algorithm": {"name": "dplora", "server": "plain"}, "privacy": PRIVATE | {"delta": 0.1}}, "one over the record"),
        ({"algorithm": {"name": "dplora", "server": "plain", "noise": "none"}, "privacy": PRIVATE}, "not private"),
    ]:
        with pytest.raises((ConfigError, PrivacyError), match=word):
            loop.run(tiny_run.settings(data, **{"federation": TIERS, **tables}), data / "refused", InlineEngine(), cache=shared)
        assert not (data / "refused" / "ledger.jsonl").exists()
