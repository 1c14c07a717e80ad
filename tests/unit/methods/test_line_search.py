"""The line search by the clients: against what it should find on a bowl, the loss itself, the aggregator's bound and the account."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests import tiny_run
from tests.contract.federation import OFF, ON, ZeroNoise

from aulait.core import lora
from aulait.core.cohort import Cohort
from aulait.core.errors import ConfigError, WireError
from aulait.core.types import ClientUpdate, SearchRequest
from aulait.engines.deployment.site import request_checks
from aulait.engines.inline import InlineEngine, LocalClients
from aulait.evaluation.losses import evaluate
from aulait.methods.contract import Server, State
from aulait.methods.shared import line_search
from aulait.methods.shared.line_search import BOUND, DROP, Means, Search
from aulait.privacy.accounting import Accountant
from aulait.privacy.aggregator import KnownSites, PrivateAggregator
from aulait.privacy.ledger import Ledger
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.runs.virtual_time.round_time import RoundCosts

CACHE = SharedCache()
L, P = {"one.lora_B": torch.tensor([[1.0, 0.0]])}, {"one.lora_B": torch.tensor([[0.0, 1.0]])}
EPSILON = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove"}
LOCAL = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "synthesis": {"proxies": "absent"}}


def bowl(best, curvature=0.05):
    """A site whose loss is least at ``best``; what it answers."""
    def ask(requests):
        for request in requests:
            here = request.tensors["one.lora_B"]
            local, proxied = (lora.under(tag, request.tensors).get("one.lora_B", torch.zeros(1, 2)) for tag in ("local", "proxied"))

            def loss(at):
                return curvature * float((at - torch.tensor([best])).square().sum())

            drops = [loss(here) - loss(here + a * local + b * proxied) for a, b in line_search.read_steps(request)]
            yield ClientUpdate(request.client, {DROP: torch.tensor(drops)})

    return ask


def searched(ask, local=L, proxied=P, share=0.8, privacy=ON, noise=None, scale=None, clients=4):
    """One search from zero."""
    ledger = Ledger(None)
    aggregator = PrivateAggregator(privacy, ledger, Accountant(1e-5, {"local": math.inf}), noise or ZeroNoise(), KnownSites(frozenset()))
    cohort = Cohort(round=1, local=tuple(f"c{k}" for k in range(clients)), proxies={}, planned=clients, noise_multiplier=1.0, search_noise_multiplier=1.0)
    tensors = {"one.lora_B": torch.zeros(1, 2)} | ({} if scale is None else {"search/scale": torch.tensor([scale])})
    asked = Search(SimpleNamespace(), State(0, tensors), cohort, Server(ask, aggregator), lambda name: {})
    return line_search.search(asked, Means(local, 0.0, share, proxied)), ledger


@pytest.mark.parametrize(("best", "taken"), [
    ((0.8, 0.2), (0.8, 0.2)), ((1.6, 0.4), (1.6, 0.4)), ((0.4, 0.1), (0.4, 0.1)), ((0.2, 0.05), (0.2, 0.05)), ((0.0, 1.0), (0.0, 1.0)),
    ((1.0, 0.0), (1.0, 0.0)), ((0.5, 0.5), (0.5, 0.5)), ((-1.0, -1.0), (0.0, 0.0))])
def test_without_noise_the_step_nearest_to_the_least_loss_is_taken_and_none_that_harms(best, taken):
    found, ledger = searched(bowl(best), privacy=OFF)
    assert found.told["taken"] == pytest.approx(taken)
    assert torch.allclose(found.state.tensors["one.lora_B"], torch.tensor([taken]))
    assert not ledger.lines


def test_the_plain_step_is_left_only_for_what_noise_cannot_feign():
    assert line_search.chosen([0.03, 0.05, 0.0], 0.01) == 0  # 2 deviations of a difference are 0.028
    assert line_search.chosen([0.03, 0.07, 0.0], 0.01) == 1
    assert line_search.chosen([-0.005, -0.02, 0.0], 0.01) == 0
    assert line_search.chosen([-0.02, -0.02, 0.001], 0.01) == 2
    assert line_search.chosen([-0.02, -0.03, -0.02], 0.01) is None
    assert line_search.chosen([0.0, -1.0], 0.0) is None


def test_the_length_of_steps_follows_what_was_found():
    for best, scale, after in (((1.6, 0.4), 1.0, 1.5), ((0.8, 0.2), 1.0, 1.0), ((0.2, 0.05), 1.0, 0.5), ((-1.0, -1.0), 1.0, 0.5),
                               ((-1.0, -1.0), 1 / 16, 1 / 16), ((16.0, 4.0), 4.0, 4.0)):
        found, _ = searched(bowl(best), privacy=OFF, scale=scale)
        assert found.state.tensors["search/scale"].item() == pytest.approx(after), best
        assert found.told["steps"][0] == pytest.approx([0.8 * scale, 0.2 * scale])


def test_noise_of_known_size_shortens_what_stands_apart():
    def signal(local, noise_std):
        return line_search._signal(Means({"one.lora_B": local}, noise_std, 0.8, P))

    noise = torch.randn(1, 10_000, generator=torch.Generator().manual_seed(0))
    assert signal(noise, 1.0) == pytest.approx(2 * line_search.LEAST_SIGNAL)
    assert signal(noise + 2.0, 1.0) == 1.0  # |S|² = 4 d beside d
    assert signal(noise + 0.5, 1.0) == pytest.approx(2 * 0.2, rel=0.1)  # 0.25 / 1.25
    assert signal(noise, 0.0) == 1.0


def test_no_client_moves_the_sum_by_more_than_the_bound():
    def attack(size):
        def ask(requests):
            for request in requests:
                drops = torch.zeros(len(line_search.read_steps(request)))
                if request.client == "c3":
                    drops[0] = size
                yield ClientUpdate(request.client, {DROP: drops})
        return ask

    small, large = (searched(attack(size))[0].told["drops"] for size in (0.0, 1e30))
    moved = math.dist(small, large) * 4
    assert moved == pytest.approx(BOUND, rel=1e-3)


def test_steps_that_ruin_do_not_hide_those_that_help():
    """One step gains a little and five ruin the model: what is released still tells which."""
    def ask(requests):
        for request in requests:
            drops = torch.full((len(line_search.read_steps(request)),), -100.0)
            drops[4] = 0.05
            yield ClientUpdate(request.client, {DROP: drops})

    found, _ = searched(ask)
    assert found.told["taken"] == [0.0, 1.0]
    assert found.told["drops"][4] > 0.3 * BOUND


def test_what_is_no_number_or_of_another_size_is_not_counted():
    def ask(requests):
        for request in requests:
            yield ClientUpdate(request.client, {DROP: torch.full((len(line_search.read_steps(request)),), math.nan)})

    found, _ = searched(ask)
    assert found.told["drops"] == [0.0] * 7
    found, _ = searched(lambda requests: [ClientUpdate(request.client, {DROP: torch.ones(2)}) for request in requests])
    assert found.told["drops"] == [0.0] * 7


def test_steps_that_harm_are_not_taken_under_noise():
    """Steps that harm everybody by the floor or more are found by sixty clients in nine of ten rounds."""
    class Loud(ZeroNoise):
        def __init__(self, seed):
            self.generator = torch.Generator().manual_seed(seed)

        def gaussian(self, shape, std):
            return std * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    taken = [searched(bowl((-1.0, -1.0), curvature=1.0), noise=Loud(seed), clients=60)[0].told["taken"] != [0.0, 0.0] for seed in range(60)]
    assert sum(taken) / 60 < 0.1


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["ffa", "cores"])
def test_a_client_measures_what_evaluation_measures(places, name):
    settings = tiny_run.settings(places, algorithm={"name": name, "server": "search"}, adapter={"rank": 2}, **LOCAL)
    run = prepare(settings, tiny_run.fresh(CACHE))
    state = run.first_state()
    generator = torch.Generator().manual_seed(0)
    local, proxied = ({n: 0.3 * torch.randn(t.shape, generator=generator) for n, t in sorted(state.factors.items())} for _ in range(2))
    kept = {n: t for n, t in state.tensors.items() if "/" in n}
    site = run.federation.training_sites[0]
    steps = [[1.0, 0.0], [0.5, 2.0]]
    request = SearchRequest(site.name, 1, {**state.factors, **lora.tagged("local", local), **lora.tagged("proxied", proxied)},
                            {"search_steps": steps, "search_records": 2}, kept)
    (update,) = LocalClients.of(run, run.federation.sites).ask([request])
    config = settings.evaluate.model_copy(update={"records_per_client": 2})

    def loss(a, b):
        moved = {n: t + a * local[n] + b * proxied[n] for n, t in state.factors.items()}
        adapter = run.settings.method.result(run.context, replace(state, tensors={**state.tensors, **moved}))
        return evaluate(run.models.learner, adapter, {site.name: site.train}, config).loss

    expected = [loss(0, 0) - loss(a, b) for a, b in steps]
    assert update.tensors[DROP].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert max(map(abs, expected)) > 1e-3


def test_votes_updates_and_searches_share_one_budget(places):
    both = {"federation": {"tier": [{"name": "gpu", "count": 3, "placement": "local"}, {"name": "laptop", "placement": "proxy"}]},
            "synthesis": {"voters": "all"}}
    for told, roles in ((LOCAL, ("local",)), (both, ("local", "proxy"))):
        run = prepare(tiny_run.settings(places, algorithm={"name": "ffa", "server": "search"},
                                        privacy=EPSILON | {"search_fraction": 0.3, "clip": 0.1}, **told), tiny_run.fresh(CACHE))
        releases = {r.stage: r for r in run.privacy.releases}
        mu = {stage: r.rounds / r.noise_multiplier**2 for stage, r in releases.items()}
        assert mu["search"] / (mu["search"] + mu["train"]) == pytest.approx(0.3, rel=1e-6)
        for role in roles:
            assert run.privacy.epsilon[role] <= 8.0 * (1 + 1e-9)
        assert run.privacy.epsilon["local"] == pytest.approx(8.0, rel=1e-4)
        assert releases["search"].sensitivity == pytest.approx(BOUND)


@pytest.mark.parametrize("name", ["ffa", "cores"])
def test_a_private_run_releases_twice_a_round_and_keeps_its_promise(places, name):
    settings = tiny_run.settings(places, algorithm={"name": name, "server": "search"}, privacy=EPSILON | {"clip": 0.1}, **LOCAL)
    result = loop.run(settings, places / "run", InlineEngine(), cache=tiny_run.fresh(CACHE))
    lines = [json.loads(line) for line in (places / "run" / "ledger.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["round"]) for line in lines if "stage" in line] == [
        (stage, round) for round in (1, 2, 3) for stage in ("train", "search")]
    assert result["privacy"]["epsilon"]["local"] <= 8.0
    rounds = [json.loads(line) for line in (places / "run" / "rounds.jsonl").read_text().splitlines()]
    assert all(len(line["search"]["drops"]) == 4 for line in rounds)


def test_bytes_of_a_search_are_those_of_the_formula(places):
    told = {"adapter": {"rank": 1}, "train": {"rounds": 1}}
    results = {server: loop.run(tiny_run.settings(places, algorithm={"name": "ffa", "server": server}, **LOCAL, **told),
                                places / server, InlineEngine(), cache=tiny_run.fresh(CACHE)) for server in ("plain", "search")}
    run = prepare(tiny_run.settings(places, algorithm={"name": "ffa"}, **LOCAL, **told), tiny_run.fresh(CACHE))
    own = run.settings.method.travels(run.settings.method_config, run.context, 1, "", ("",))[0]
    up, down = (results["search"]["traffic"][way] - results["plain"]["traffic"][way] for way in ("up_bytes", "down_bytes"))
    assert up == 8 * 4 * len(line_search.LENGTHS)
    assert down == 8 * 2 * own  # the state and L; nobody is proxied


def test_the_plan_and_the_clock_count_the_search(places):
    both = {"federation": {"tier": [{"name": "gpu", "count": 3, "placement": "local"}, {"name": "laptop", "placement": "proxy"}]}}
    for told in (LOCAL, both):
        planned, sent, seconds = {}, {}, {}
        for server in ("plain", "search"):
            settings = tiny_run.settings(places, algorithm={"name": "ffa", "server": server}, train={"rounds": 2}, **told)
            costs = RoundCosts.of(prepare(settings, tiny_run.fresh(CACHE)))
            trainers = costs.federation.trainers
            planned[server] = [sum(way) for way in zip(*map(costs.travelled, trainers), strict=True)]
            seconds[server] = costs.assignment(settings.federation.tier[0].name).round_s
            folder = places / f"{server}-{len(trainers)}"
            loop.run(settings, folder, InlineEngine(), cache=tiny_run.fresh(CACHE))
            rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
            sent[server] = [sum(line[way] for line in rounds if line["stage"] == "train") for way in ("up_bytes", "down_bytes")]
        assert planned == sent
        assert seconds["search"] > seconds["plain"]


@pytest.mark.parametrize(("told", "why"), [
    ({"algorithm": {"name": "hetlora", "server": "search"}}, "hetlora"),
    ({"algorithm": {"name": "ffa", "server": "search"},
      "privacy": {"epsilon": 8.0, "delta": 1e-3, "relation": "zero-out", "unit": "record", "clip": 1.0}}, "unit"),
    ({"algorithm": {"name": "ffa", "server": "search"}, "federation": {"sampling": "fixed", "rate": 0.5, "tier": [{"name": "a", "placement": "local"}]}},
     "sampling"),
])
def test_a_search_that_cannot_be_is_refused_in_a_line_and_auto_goes_without(places, told, why):
    told = LOCAL | told
    with pytest.raises(ConfigError, match=why) as refused:
        prepare(tiny_run.settings(places, **told), tiny_run.fresh(CACHE))
    assert "\n" not in str(refused.value)
    assert "server = 'plain'" in str(refused.value)
    auto = told | {"algorithm": told["algorithm"] | {"server": "auto"}}
    run = prepare(tiny_run.settings(places, **auto), tiny_run.fresh(CACHE))
    assert run.settings.method_config.server == "plain"
    assert all(release.stage != "search" for release in run.privacy.releases)


@pytest.mark.parametrize(("privacy", "server"), [({"off": True}, "search"), (EPSILON | {"clip": 0.1}, "plain")])
def test_auto_searches_where_that_costs_nothing(places, privacy, server):
    run = prepare(tiny_run.settings(places, algorithm={"name": "cores"}, privacy=privacy, **LOCAL), tiny_run.fresh(CACHE))
    assert run.settings.method_config.server == server
    assert all(release.stage != "search" for release in run.privacy.releases)


def terms(**told):
    privacy = SimpleNamespace(protects_records=False)
    return SimpleNamespace(**{"votes": False, "placement": "local", "method": SimpleNamespace(), "rounds": 3, "synthesis_rounds": 0,
                              "method_config": SimpleNamespace(server="search"), "privacy": privacy, "adapter": SimpleNamespace(rank=2)} | told)


@pytest.mark.parametrize(("told", "settings", "why"), [
    ({"method_config": SimpleNamespace(server="plain")}, {}, "nothing of a line search"),
    ({"placement": "proxy"}, {}, "nothing of a line search"),
    ({"privacy": SimpleNamespace(protects_records=True)}, {}, "protect single records"),
    ({}, {"search_steps": []}, "without 1 to"), ({}, {"search_steps": [[1.0]] }, "without 1 to"), ({}, {"search_steps": [[1.0, 0.0]] * 33}, "without 1 to"),
    ({}, {"search_steps": [[math.inf, 0.0]]}, "without 1 to"), ({}, {"search_records": 10_000}, "without 1 to"), ({}, {"search_records": True}, "without 1 to"),
])
def test_a_site_measures_nothing_that_its_terms_do_not_say(told, settings, why):
    request = SearchRequest("ann", 1, {}, {"search_steps": [[1.0, 0.0]], "search_records": 4} | settings)
    assert why in request_checks._search(request, terms(**told))
    assert request_checks._search(SearchRequest("ann", 1, {}, {"search_steps": [[1.0, 0.0]], "search_records": 4}), terms()) is None


def test_a_malformed_request_is_refused_by_the_site_itself():
    with pytest.raises(WireError):
        line_search.read_steps(SearchRequest("ann", 1, {}, {"search_steps": "ab", "search_records": 4}))
