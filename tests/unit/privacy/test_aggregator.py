"""The aggregator with an attacker in mind: what comes out, when, and what it costs."""

import json
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.closeness import assert_near
from tests.oracle import gaussian

from aulait.core.errors import PrivacyError
from aulait.core.types import ClientUpdate
from aulait.privacy.accounting import Accountant, Event, calibrate
from aulait.privacy.aggregator import (
    BudgetSpent,
    KnownSites,
    PrivateAggregator,
    Release,
    WantedUpdates,
)
from aulait.privacy.config import PrivacyConfig
from aulait.privacy.ledger import Ledger
from aulait.privacy.noise import SeededNoise, SystemNoise

DELTA = 1e-5
LIKE = {"A": torch.zeros(3, 2), "B": torch.zeros(4)}


class NoNoise:
    """A noise source that adds nothing, so that the sum before the noise can be seen."""

    private = True

    def at(self, release):
        return self

    def step(self, std):
        return 0.0

    def gaussian(self, shape, std):
        return torch.zeros(shape, dtype=torch.float64)


def aggregator(noise=None, ledger=None, budget=None, proxies=(), **config):
    config = {"noise_multiplier": 1.0, "delta": DELTA, "relation": "add-remove", **config}
    accountant = Accountant(DELTA, budget or {"local": math.inf, "proxy": math.inf})
    ledger = ledger or Ledger(None)
    ledger.replay(accountant)
    return PrivateAggregator(PrivacyConfig(**config), ledger, accountant, noise or NoNoise(), KnownSites(frozenset(proxies)))


def without_privacy(proxies=()):
    return PrivateAggregator(PrivacyConfig(off=True), Ledger(None), None, NoNoise(), KnownSites(frozenset(proxies)))


def release(through, updates, template=LIKE, **changes):
    arguments = dict(stage="train", round=1, role="local", bound=1.0, noise_multiplier=1.0, planned=5, template=template)
    names = {f.name for f in fields(Release)}
    named = {key: changes.pop(key) for key in [*changes] if key not in names}
    return through.release(updates, Release(**{**arguments, **changes}), **named)


def update(client, seed=0, size=1.0, template=LIKE, **more):
    generator = torch.Generator().manual_seed(seed)
    share = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64).float() * size for k, v in template.items()}
    return ClientUpdate(client, share, **more)


def flat(tensors):
    return torch.cat([tensors[k].double().reshape(-1) for k in sorted(tensors)])


# --- sensitivity ---------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 99), st.floats(-30, 30)), min_size=1, max_size=9),
    st.floats(1e-6, 1e6), st.data(),
)
def test_one_client_moves_the_sum_of_updates_by_at_most_the_bound(clients, bound, data):
    updates = [update(name, seed, 10**size) for name, seed, size in clients]
    if data.draw(st.booleans()):
        updates[0].tensors["A"][0, 0] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    gone = data.draw(st.sampled_from(sorted({name for name, _, _ in clients})))
    whole = release(aggregator(), updates, bound=bound).total
    less = release(aggregator(), [r for r in updates if r.client != gone], bound=bound).total
    # float32 of the released total is after the noise, hence its rounding is allowed here.
    assert float((flat(whole) - flat(less)).norm()) <= bound * (1 + 1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 29), max_size=40), min_size=1, max_size=6), st.integers(1, 40), st.data())
def test_one_client_moves_the_votes_by_at_most_the_bound_over_all_labels_together(votes, cap, data):
    template = {"label 0": torch.zeros(10), "label 1": torch.zeros(10), "label 2": torch.zeros(10)}
    updates = []
    for i, own in enumerate(votes):
        counts = torch.bincount(torch.tensor(own, dtype=torch.long), minlength=30).double()
        updates.append(ClientUpdate(f"c{i}", {name: counts[10 * j : 10 * j + 10] for j, name in enumerate(template)}))
    bound = math.sqrt(cap)
    gone = data.draw(st.integers(0, len(votes) - 1))
    whole = release(aggregator(), updates, template=template, bound=bound).total
    less = release(aggregator(), updates[:gone] + updates[gone + 1 :], template=template, bound=bound).total
    assert float((flat(whole) - flat(less)).norm()) <= bound * (1 + 1e-5)


def test_bound_is_reached_so_noise_is_not_wasted():
    whole = release(aggregator(), [update("a", 1, 100.0), update("b", 2)], bound=2.0).total
    less = release(aggregator(), [update("b", 2)], bound=2.0).total
    assert float((flat(whole) - flat(less)).norm()) == pytest.approx(2.0, rel=1e-5)


# --- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("relation", "factor"), [("add-remove", 1.0), ("replace", 2.0)])
def test_noise_added_is_noise_accounted(relation, factor):
    template = {"A": torch.zeros(500, 500), "B": torch.zeros(50_000)}
    ledger = Ledger(None)
    through = aggregator(SystemNoise(), ledger, relation=relation)
    released = release(through, [], template=template, bound=0.3, noise_multiplier=1.7)
    (line,) = ledger.lines
    assert line.sensitivity == pytest.approx(0.3 * factor)
    assert line.sigma == released.noise_std == pytest.approx(1.7 * 0.3 * factor)
    assert line.private
    for name in template:
        assert float(released.total[name].double().var()) == pytest.approx(line.sigma**2, rel=0.02)
        assert abs(float(released.total[name].double().mean())) < 6 * line.sigma / math.sqrt(template[name].numel())
    again = release(through, [], template=template, bound=0.3, noise_multiplier=1.7)
    assert not torch.isin(again.total["B"], released.total["B"]).all()
    assert abs(float((again.total["B"] * released.total["B"]).mean())) < 0.05 * line.sigma**2


def test_sigma_is_for_the_sum_and_does_not_depend_on_who_replied():
    stds = {release(aggregator(), [update(str(i), i) for i in range(n)]).noise_std for n in (0, 1, 5)}
    assert stds == {1.0}


def test_nothing_else_comes_out_under_privacy():
    updates = [update("a", info={"loss": 3.0}), update("a"), update("p"), ClientUpdate("b", {"A": torch.zeros(1)})]
    released = release(aggregator(proxies=["p"]), updates, planned=7)
    assert (released.info, released.refused, released.planned) == ({}, (), 7)
    assert sorted(released.total) == ["A", "B"]
    assert all(t.dtype == torch.float32 and t.shape == LIKE[k].shape for k, t in released.total.items())


def test_seeded_noise_is_reproducible_and_says_that_it_is_not_private():
    ledger = Ledger(None)
    first = release(aggregator(SeededNoise(5), ledger, noise_seed=5), [])
    again = release(aggregator(SeededNoise(5), noise_seed=5), [])
    later = release(aggregator(SeededNoise(5), ledger, noise_seed=5), [])
    assert torch.equal(flat(first.total), flat(again.total))
    assert not torch.equal(flat(first.total), flat(later.total))
    assert [line.private for line in ledger.lines] == [False, False]
    with pytest.raises(PrivacyError, match="noise_seed"):
        aggregator(SeededNoise(5))


def test_no_noise_is_not_private():
    ledger = Ledger(None)
    through = aggregator(SystemNoise(), ledger)
    released = release(through, [update("a", 1, 1e-3)], noise_multiplier=0.0)
    assert_near(flat(released.total), flat(update("a", 1, 1e-3).tensors), 1e-6)
    assert not ledger.lines[0].private
    assert ledger.lines[0].epsilon == {"local": math.inf, "proxy": 0.0}


# --- order, refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [aggregator, without_privacy])
def test_order_of_replies_does_not_matter(make):
    updates = [update(f"c{i}", i, 10.0**i) for i in range(8)]
    one, two = release(make(), updates, bound=1e3), release(make(), updates[::-1], bound=1e3)
    assert torch.equal(flat(one.total), flat(two.total))


def bad_replies():
    nan = update("nan")
    nan.tensors["B"][1] = math.nan
    inf = update("inf")
    inf.tensors["A"][0, 1] = -math.inf
    return [
        nan, inf,
        ClientUpdate("double", {k: v.double() * 1e300 for k, v in update("x").tensors.items()}),
        ClientUpdate("wide", {k: v.double() + 1e39 for k, v in update("x").tensors.items()}),
        ClientUpdate("names", {"A": torch.zeros(3, 2)}),
        ClientUpdate("more", {**update("x").tensors, "C": torch.zeros(1)}),
        ClientUpdate("shape", {"A": torch.zeros(2, 3), "B": torch.zeros(4)}),
        ClientUpdate("integers", {"A": torch.zeros(3, 2), "B": torch.zeros(4, dtype=torch.int64)}),
        ClientUpdate("complex", {"A": torch.zeros(3, 2), "B": torch.zeros(4, dtype=torch.complex64)}),
        ClientUpdate("sparse", {"A": torch.eye(3, 2).to_sparse(), "B": torch.zeros(4)}),
        ClientUpdate("list", {"A": torch.zeros(3, 2), "B": [0.0] * 4}),
        ClientUpdate("weight", update("x").tensors, weight=math.nan),
        update("p"),
    ]


@pytest.mark.parametrize("make", [aggregator, without_privacy])
def test_bad_replies_are_refused_and_the_others_count(make):
    good = [update("g1", 1, 0.1), update("g2", 2, 0.1)]
    released = release(make(proxies=["p"]), [*bad_replies(), good[0], update("g1", 9), good[1]])
    assert_near(flat(released.total), flat(good[0].tensors) + flat(good[1].tensors), 1e-6)
    if make is without_privacy:
        assert [client for client, _ in released.refused] == sorted([r.client for r in bad_replies()] + ["g1"])
        assert dict(released.refused)["g1"] == "replied twice"
        assert released.planned == 2


def test_low_precision_replies_count():
    half = ClientUpdate("a", {k: v.bfloat16() for k, v in update("a", 3, 50.0).tensors.items()})
    total = flat(release(aggregator(), [half]).total)
    assert_near(total, flat(half.tensors) / flat(half.tensors).norm(), 1e-5)


def test_replies_are_not_changed_and_not_aliased():
    mine = update("a", 1)
    before = flat(mine.tensors).clone()
    released = release(without_privacy(), [mine], bound=math.inf)
    released.total["A"].add_(1.0)
    assert torch.equal(flat(mine.tensors), before)


# --- privacy off ---------------------------------------------------------------------------------------------------


def test_a_summand_that_overflows_is_left_out_and_the_round_goes_on():
    big = ClientUpdate("b", {name: torch.full_like(value, 1e30) for name, value in LIKE.items()})
    square = lambda r: {name: value * value for name, value in r.tensors.items()}  # noqa: E731
    for through in (aggregator(), without_privacy()):
        through._largest_norm = math.inf
        alone = release(through, [update("a")], transform=square)
        both = release(through, [update("a"), big], transform=square)
        assert torch.equal(flat(alone.total), flat(both.total))
    assert both.refused == (("b", "what it adds is not finite"),)


def test_without_privacy():
    through = without_privacy()
    updates = [update("b", 1, weight=30, info={"loss": 1.0, "s": 2.0}), update("a", 2, weight=10, info={"loss": 3.0})]
    plain = release(through, updates, bound=math.inf, planned=99)
    one, two = flat(updates[0].tensors), flat(updates[1].tensors)
    assert_near(flat(plain.total), one + two, 1e-6)
    assert (plain.planned, plain.noise_std, plain.refused) == (2, 0.0, ())
    assert plain.info == {"loss": 2.0, "s": 2.0}
    sized = release(through, updates, bound=math.inf, weights="size")
    assert_near(flat(sized.total), 1.5 * one + 0.5 * two, 1e-6)
    clipped = release(through, updates[:1], bound=0.5)
    assert float(flat(clipped.total).norm()) == pytest.approx(0.5, rel=1e-5)
    nobody = release(through, [], weights="size")
    assert nobody.planned == 1
    assert not flat(nobody.total).any()
    assert not through.private
    refused = []
    both = [*updates, update("c"), update("b")]
    assert [r.client for r in through.collect(both, "flora", "ffa", WantedUpdates({"a": LIKE, "b": LIKE}), refused)] == ["b", "a"]
    assert refused == [("c", "was not asked"), ("b", "replied twice")]


# --- proxies and single updates ------------------------------------------------------------------------------------


def test_only_proxies_are_admitted():
    ledger = Ledger(None)
    through = aggregator(ledger=ledger, proxies=["p1", "p2"])
    bad = update("p2")
    bad.tensors["A"][0, 0] = math.nan
    counted, refused = through.admit([update("p2", 5), update("p1", 1), bad], LIKE)
    assert [r.client for r in counted] == ["p1", "p2"]
    assert refused == (("p2", "replied twice"),)
    assert through.admit([bad], LIKE) == ([], (("p2", "A holds NaN or infinity"),))
    assert ledger.lines == ()
    for make in (through, without_privacy(["p1"])):
        with pytest.raises(PrivacyError, match="'c' is not a proxy"):
            make.admit([update("p1"), update("c")], LIKE)


def test_single_replies_are_refused_under_privacy():
    with pytest.raises(PrivacyError, match="'ffa'"):
        aggregator().collect([update("a")], "flora", "ffa", WantedUpdates({"a": LIKE}), [])
    with pytest.raises(PrivacyError, match="uniform"):
        release(aggregator(), [update("a")], weights="size")


# --- ledger and budget ---------------------------------------------------------------------------------------------


class Witness:
    """Looks at the disk in the moment in which noise is drawn."""

    private = True

    def __init__(self, path):
        self.path, self.seen = path, []

    def at(self, release):
        self.seen.append((release, len(self.path.read_text().splitlines())))
        return self

    def step(self, std):
        return 0.0

    def gaussian(self, shape, std):
        assert json.loads(self.path.read_text().splitlines()[-1])["sigma"] == std
        return torch.zeros(shape, dtype=torch.float64)


def test_the_line_is_on_disk_before_the_noise_is_drawn(tmp_path):
    path = tmp_path / "ledger.jsonl"
    witness = Witness(path)
    through = aggregator(witness, Ledger(path))
    release(through, [])
    release(through, [], noise_multiplier=2.0)
    assert witness.seen == [(1, 1), (2, 2)]


def test_a_line_that_cannot_be_written_stops_the_release(tmp_path):
    witness = Witness(tmp_path / "missing" / "ledger.jsonl")
    through = aggregator(witness, Ledger(witness.path))
    with pytest.raises(OSError):
        release(through, [])
    assert witness.seen == []


def test_budget_stops_before_anything_happens():
    ledger = Ledger(None)
    z = calibrate(2.0, DELTA, 3)
    budget = {"local": 2.0, "proxy": 2.0}
    through = aggregator(ledger=ledger, budget=budget, noise_multiplier=None, epsilon=2.0)
    for _ in range(3):
        release(through, [], noise_multiplier=z)
    with pytest.raises(BudgetSpent, match=r"role 'local' has spent epsilon 2 and would spend 2\.\d+, its budget is 2"):
        release(through, [], noise_multiplier=z)
    with pytest.raises(BudgetSpent):
        release(through, [], noise_multiplier=z, role="proxy+local")
    assert len(ledger.lines) == 3
    release(through, [], noise_multiplier=z, role="proxy")
    # A resumed run knows what was spent.
    with pytest.raises(BudgetSpent):
        release(aggregator(ledger=ledger, budget=budget), [], noise_multiplier=z)


def test_ledger_epsilon_is_the_closed_form_with_mixed_roles(tmp_path):
    path = tmp_path / "ledger.jsonl"
    through = aggregator(ledger=Ledger(path))
    for z, role, bound in [(5.0, "proxy+local", 5.4), (5.0, "proxy", 5.4), (2.0, "local", 0.1), (3.0, "local", 0.2)]:
        release(through, [update(role)], noise_multiplier=z, role=role, bound=bound)
    resumed = aggregator(ledger=Ledger(path))
    release(resumed, [], noise_multiplier=1.1)
    last = json.loads(path.read_text().splitlines()[-1])
    for role, multipliers in {"proxy": [5, 5], "local": [5, 2, 3, 1.1]}.items():
        assert last["epsilon"][role] == pytest.approx(gaussian.epsilon_of(multipliers, DELTA), rel=1e-3)
        assert last["epsilon"][role] == pytest.approx(gaussian.epsilon_from_ledger(path, role, DELTA), rel=0.01)


def test_poisson_sampling_is_recorded_and_cheaper():
    ledger = Ledger(None)
    release(aggregator(ledger=ledger), [], sampling_rate=0.1)
    (line,) = ledger.lines
    assert line.sampling.model_dump(exclude_none=True) == {"kind": "poisson", "rate": 0.1}
    assert 0 < line.epsilon["local"] < gaussian.epsilon_of([1.0], DELTA)
    with pytest.raises(PrivacyError, match="replace"):
        release(aggregator(relation="replace"), [], sampling_rate=0.1)


# --- broken promises -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        dict(bound=math.inf), dict(bound=0.0), dict(bound=-1.0), dict(bound=math.nan), dict(noise_multiplier=-1.0),
        dict(noise_multiplier=math.inf), dict(noise_multiplier=math.nan), dict(planned=0), dict(role="split"),
        dict(role=""), dict(sampling_rate=0.0), dict(sampling_rate=1.1),
    ],
)
def test_wrong_arguments_raise_and_cost_nothing(changes):
    ledger = Ledger(None)
    with pytest.raises(PrivacyError):
        release(aggregator(ledger=ledger), [update("a")], **changes)
    assert ledger.lines == ()


def test_parts_that_do_not_fit_are_refused():
    config = PrivacyConfig(epsilon=1.0, delta=DELTA, relation="add-remove")
    sound = Accountant(DELTA, {"local": 1.0})
    PrivateAggregator(config, Ledger(None), sound, SystemNoise(), KnownSites(frozenset()))
    for settings_, accountant in [
        (config, None),
        (config, Accountant(1e-6, {"local": 1.0})),
        (config, Accountant(DELTA, {"local": 1.1})),
        (PrivacyConfig(epsilon=1.0, relation="replace"), sound),
        (PrivacyConfig(epsilon=1.0, delta=DELTA), sound),
        (PrivacyConfig(epsilon=1.0, delta=DELTA, relation="replace", trust="secure", dropouts=0.7), sound),
    ]:
        with pytest.raises(PrivacyError):
            PrivateAggregator(settings_, Ledger(None), accountant, SystemNoise(), KnownSites(frozenset()))
    used = Ledger(None)
    release(aggregator(ledger=used), [])
    with pytest.raises(PrivacyError, match="resume with the settings"):
        aggregator(ledger=used, relation="replace")


def test_an_accountant_that_forgot_the_ledger_is_refused():
    ledger = Ledger(None)
    release(aggregator(ledger=ledger), [])
    config = PrivacyConfig(noise_multiplier=1.0, delta=DELTA, relation="add-remove")
    forgetful = Accountant(DELTA, {"local": math.inf})
    with pytest.raises(PrivacyError, match="replay"):
        release(PrivateAggregator(config, ledger, forgetful, NoNoise(), KnownSites(frozenset())), [])
    forgetful.add("local", Event(1.0))
    release(PrivateAggregator(config, ledger, forgetful, NoNoise(), KnownSites(frozenset())), [])


def test_a_client_cannot_spread_its_releases_over_two_accounts():
    through = aggregator()
    release(through, [update("a")], role="proxy+local")
    release(through, [update("a")], role="local")
    with pytest.raises(PrivacyError, match="another role"):
        release(through, [update("a")], role="proxy")
    release(through, [update("b")], role="proxy")


def test_a_split_client_never_passes_a_private_door():
    """Its activations left the site beside the aggregator; that the sum is noised would protect nobody."""
    split = update("a", info={"wire_up_bytes": 10.0, "wire_down_bytes": 10.0})
    with pytest.raises(PrivacyError, match=r"'a' is split.*use 'local' or 'proxy'"):
        release(aggregator(), [update("b"), split])
    assert release(without_privacy(), [update("b"), split]).counted.keys() == {"a", "b"}
