"""Places for tiers in real runs: the plan and the run agree, impossible plans are refused, virtual time repeats itself."""

from __future__ import annotations

import json
import re

import pytest
from tests import tiny_run

from aulait.core.errors import ConfigError, DataError, ModelError
from aulait.engines.inline import InlineEngine
from aulait.runs import loop, proxies
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare
from aulait.runs.train_stage import draw_cohort
from aulait.runs.virtual_time.round_time import RoundCosts
from aulait.synthesis.population import Text

CACHE = SharedCache()
TIERS = [
    {"name": "station", "count": 2, "placement": "local", "machine": "workstation"},
    {"name": "laptop", "count": 2, "placement": "split", "machine": "laptop", "link": "office"},
    {"name": "board", "count": 2, "placement": "auto", "machine": "raspberry-pi-5"},
    {"name": "phone", "placement": "proxy", "machine": "phone", "link": "4g"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("placing")
    tiny_run.write_data(made)
    return made


def made(folder, tiers=None, **tables):
    tables.setdefault("adapter", {"rank": 2, "layers": "all"})
    tables.setdefault("algorithm", {"name": "fedit"})
    federation = tables.pop("federation", {})
    return tiny_run.settings(folder, federation={"tier": tiers or TIERS, **federation}, **tables)


def run(folder, path, settings, **more):
    return loop.run(settings, path, InlineEngine(), cache=CACHE, **more)


def lines(path):
    return [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("method", "wire"), [("fedit", "float32"), ("ffa", "int8"), ("flexlora", "float16"), ("hetlora", "float32"),
                                              ("fedex", "float32"), ("rolora", "float32"), ("lorafair", "float32")])
def test_bytes_of_a_mixed_run_are_those_of_its_plan(folder, tmp_path, method, wire):
    settings = made(folder, algorithm={"name": method}, compute={"cut": 2, "wire": wire})
    planned = summarise_plan(prepare(settings, CACHE))
    result = run(folder, tmp_path / "run", settings)
    trained = [line for line in lines(tmp_path / "run") if line["stage"] == "train"]
    for way in ("up", "down"):
        told = sum(tier[f"{way}_bytes_run"] for tier in planned["tiers"] if tier["placement"] != "proxy")
        assert sum(line[f"{way}_bytes"] for line in trained) == told
    assert result["traffic"]["up_bytes"] == planned["total"]["up_bytes"]
    assert {tier["placement"] for tier in result["tiers"]} == {"local", "split", "proxy"}


def test_splitlora_sends_what_was_planned(folder, tmp_path):
    settings = made(folder, [{"name": "all", "placement": "split", "machine": "laptop"}], algorithm={"name": "splitlora"}, compute={"cut": 2})
    planned = summarise_plan(prepare(settings, CACHE))["total"]
    assert run(folder, tmp_path / "run", settings)["traffic"] == planned


HALVES = [
    {"name": "slow", "count": 2, "placement": "split", "machine": "raspberry-pi-5", "rank": 1},
    {"name": "busy", "count": 2, "placement": "auto", "machine": "workstation"},
    {"name": "third", "placement": "split", "machine": "laptop", "cut": 3},
]


@pytest.mark.parametrize("method", ["hsplitlora", "fedit"])
def test_every_tier_is_cut_where_its_machine_says(folder, tmp_path, method):
    """A server that is a laptop: whoever is faster keeps more blocks."""
    options = {"part": 1.0} if method == "hsplitlora" else {}
    settings = made(folder, HALVES, algorithm={"name": method, **options},
                    compute={"cut": "auto", "server": "laptop", "allowed": ["split"]})
    prepared = prepare(settings, CACHE)
    planned = summarise_plan(prepared)
    cuts = {tier["name"]: tier["cut"] for tier in planned["tiers"]}
    assert cuts["third"] == 3
    assert cuts["busy"] >= cuts["slow"] >= 1
    if method == "fedit":  # with stacks of all clients' factors a deep cut is a long download
        assert cuts["busy"] > cuts["slow"], "the workstation is faster than the server, the board is not"
    result = run(folder, tmp_path / "run", settings)
    assert {tier["name"]: tier["cut"] for tier in result["tiers"]} == cuts
    for way in ("up", "down"):
        assert result["traffic"][f"{way}_bytes"] == planned["total"][f"{way}_bytes"]


@pytest.mark.parametrize(("tables", "told"), [
    ({"algorithm": {"name": "splitlora"}, "compute": {"cut": "auto"}}, "'splitlora' cuts all clients in one place"),
    ({"algorithm": {"name": "splitlora"}, "tiers": [{"name": "all", "placement": "split", "machine": "laptop", "cut": 3}]}, "cut = 3 and compute.cut is 2"),
    ({"tiers": [{"name": "all", "placement": "local", "cut": 1}]}, "has cut = 1 and placement = 'local', which cuts nothing"),
    ({"tiers": [{"name": "all", "placement": "split", "cut": "auto"}]}, "cut = 'auto' needs to know the machine"),
    ({"tiers": [{"name": "all", "placement": "split"}], "compute": {"cut": "auto"}}, "cut = 'auto' needs to know the machine"),
    ({"tiers": [{"name": "all", "placement": "split", "cut": 0}]}, "federation.tier"),
    ({"tiers": [{"name": "all", "placement": "split", "cut": "deep"}]}, "federation.tier"),
    ({"tiers": [{"name": "all", "placement": "split", "cut": 99, "machine": "laptop"}]}, "cut = 99 found, expected 1 to "),
])
def test_cuts_that_cannot_be_are_refused_in_words(folder, tables, told):
    tiers = tables.get("tiers", [{"name": "all", "placement": "split", "machine": "laptop"}])
    with pytest.raises((ConfigError, ModelError), match=re.escape(told)):
        prepare(made(folder, tiers, **{key: value for key, value in tables.items() if key != "tiers"}), CACHE)


def test_a_split_client_learns_what_a_local_one_learns(folder, tmp_path):
    """Placement is where the work is done, not what is learnt."""
    found = []
    for placement in ("local", "split"):
        settings = made(folder, [{"name": "all", "placement": placement, "machine": "laptop"}], compute={"cut": 3})
        found.append(run(folder, tmp_path / placement, settings))
    assert found[0]["eval"]["loss"] == pytest.approx(found[1]["eval"]["loss"], rel=1e-5)
    assert found[0]["eval"]["loss"] != found[0]["base_eval"]["loss"]


def test_split_is_refused_under_privacy_with_the_reason(folder):
    with pytest.raises(ConfigError, match=r"'split' sends activations of single records.*use 'local' or 'proxy'"):
        made(folder, privacy={"off": False, "epsilon": 8.0, "delta": 1e-2, "relation": "add-remove"})


def test_auto_never_splits_under_privacy(folder, tmp_path):
    tiers = [{"name": "small", "placement": "auto", "machine": str(little(tmp_path, 20_000_000))}]
    with pytest.raises(ConfigError, match="split is refused under privacy"):
        prepare(made(folder, tiers, privacy={"off": False, "epsilon": 8.0, "delta": 1e-2, "relation": "add-remove"}, synthesis={"proxies": "absent"}), CACHE)


def little(folder, memory_bytes):
    path = folder / f"little-{memory_bytes}.json"
    path.write_text(json.dumps({"name": "little", "device": "cpu", "flop_per_s": {"float32": 1e9}, "memory_bytes": memory_bytes,
                                "memory_bytes_per_s": 1e9, "up_bytes_per_s": 1e6, "down_bytes_per_s": 1e6}))
    return path


def test_what_exceeds_a_machine_is_one_line_with_what_fits(folder, tmp_path):
    machine = str(little(tmp_path, 31_000_000))
    tiers = [{"name": "small", "placement": "local", "batch": 64, "machine": machine}]
    with pytest.raises(ConfigError) as caught:
        prepare(made(folder, tiers), CACHE)
    assert "nearest that fits: rank = 2 and batch = " in str(caught.value)
    batch = int(str(caught.value).rpartition("batch = ")[2])
    assert prepare(made(folder, [{**tiers[0], "batch": batch}]), CACHE).federation.sites


def test_machines_make_the_same_run_places_aside(folder, tmp_path):
    """Naming a machine tells time; it changes nothing that is learnt."""
    bare = [{"name": "a", "count": 3, "placement": "local"}, {"name": "b", "placement": "proxy"}]
    named = [{**bare[0], "machine": "laptop"}, {**bare[1], "machine": "phone"}]
    plain, timed = (run(folder, tmp_path / name, made(folder, tiers)) for name, tiers in (("bare", bare), ("named", named)))
    assert plain["eval"] == timed["eval"]
    assert plain["clock"] is None
    assert timed["clock"]["total_s"] > 0


SHAKY = [{"name": "phone", "placement": "local", "machine": "phone", "availability": 0.8, "dropout": 0.2, "spread": 0.6}]

LOST = [{"name": "phone", "placement": "local", "machine": "phone", "dropout": 0.999999}]


def test_virtual_times_repeat_with_the_seed_and_add_up(folder, tmp_path):
    first, again = (run(folder, tmp_path / name, made(folder, SHAKY)) for name in ("one", "two"))
    assert first["clock"] == again["clock"]
    assert first["eval"] == again["eval"]
    other = run(folder, tmp_path / "three", made(folder, SHAKY, run={"name": "tiny", "seed": 2}))
    assert other["clock"] != first["clock"]
    told = [line["clock"] for line in lines(tmp_path / "one")]
    assert first["clock"]["total_s"] == pytest.approx(sum(clock["round_s"] for clock in told)) == pytest.approx(told[-1]["total_s"])
    for clock in told:
        assert clock["answered"] + clock["late"] + clock["lost"] + clock["away"] == 8


def test_a_round_without_answers_changes_nothing(folder, tmp_path):
    settings = made(folder, LOST)
    result = run(folder, tmp_path / "run", settings)
    assert all(line["clock"]["answered"] == 0 for line in lines(tmp_path / "run"))
    assert result["eval"]["loss"] == pytest.approx(result["base_eval"]["loss"], rel=1e-5)
    assert result["traffic"]["up_bytes"] == 0
    assert result["traffic"]["down_bytes"] > 0


METHODS = {name: {"name": name} for name in ("ffa", "flexlora", "flora", "fedex", "fedsa", "hetlora", "rolora", "lorafair", "safedlora")}
METHODS["fdlora"] = {"name": "fdlora", "fusion_tries": 4, "personal_steps": 1}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_lives_through_rounds_nobody_answers(folder, tmp_path, method):
    settings = made(folder, LOST, algorithm=METHODS[method], train={"rounds": 1})
    assert run(folder, tmp_path / "run", settings)["rounds"] == 1


def test_splitlora_lives_through_dropouts(folder, tmp_path):
    tiers = [{**SHAKY[0], "placement": "split"}]
    settings = made(folder, tiers, algorithm={"name": "splitlora"}, compute={"cut": 2})
    assert run(folder, tmp_path / "run", settings)["eval"]["loss"] > 0


def test_over_selection_ends_rounds_with_the_planned_number(folder, tmp_path):
    tiers = [{"name": "phone", "placement": "local", "machine": "phone", "spread": 0.5}]
    settings = made(folder, tiers, federation={"sampling": "fixed", "rate": 0.5}, compute={"over_selection": 0.5})
    run(folder, tmp_path / "run", settings)
    for line in lines(tmp_path / "run"):
        assert (line["clock"]["answered"], line["clock"]["late"]) == (4, 2)


def test_over_selection_and_fixed_sampling_are_refused_where_they_are_not_accounted(folder):
    with pytest.raises(ConfigError, match="'fixed' is not accounted under privacy"):
        made(folder, SHAKY, federation={"sampling": "fixed", "rate": 0.5}, privacy={"off": False, "epsilon": 8.0, "delta": 1e-2, "relation": "add-remove"})
    with pytest.raises(ConfigError, match="no accountant covers"):
        made(folder, SHAKY, compute={"over_selection": 0.5})


def test_late_and_lost_clients_leave_the_planned_number_alone(folder, tmp_path):
    """Under privacy the denominator is public; who answers follows from machines, not from data."""
    settings = made(folder, SHAKY, privacy={"off": False, "epsilon": 8.0, "delta": 1e-2, "relation": "add-remove", "noise_seed": 1, "clip": 1.0})
    run(folder, tmp_path / "run", settings)
    ledger = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert {line["planned"] for line in ledger if line["stage"] == "train"} == {8}


def test_bad_tiers_are_told_before_any_work(folder):
    cases = {
        "placement = 'auto' needs to know the machine": [{"name": "a", "placement": "auto"}],
        "give every tier a machine, or none": [{"name": "a", "count": 2, "machine": "laptop"}, {"name": "b"}],
        "belong to a machine": [{"name": "a", "dropout": 0.1}],
        "laptop": [{"name": "a", "machine": "laptpo"}],
        "placement = 'split' for all": [{"name": "a", "machine": "laptop"}],
    }
    for words, tiers in cases.items():
        with pytest.raises(ConfigError, match=words):
            made(folder, tiers, algorithm={"name": "splitlora" if "split" in words else "fedit"})


def test_a_deadline_closes_rounds_and_one_that_nobody_can_meet_is_refused(folder, tmp_path):
    tiers = [{**SHAKY[0], "dropout": 0.0, "availability": 1.0}]
    round_s = RoundCosts.of(prepare(made(folder, tiers), CACHE)).assignment("phone").round_s
    run(folder, tmp_path / "run", made(folder, tiers, compute={"deadline_s": round_s}))
    told = [line["clock"] for line in lines(tmp_path / "run")]
    assert any(clock["late"] for clock in told)
    assert all(clock["round_s"] <= round_s for clock in told)
    with pytest.raises(ConfigError, match="no client answers so soon"):
        prepare(made(folder, tiers, compute={"deadline_s": round_s / 2}), CACHE)


def test_virtual_time_does_not_tell_who_was_drawn_in_secret(folder, tmp_path):
    """Two runs whose secret cohorts differ tell the same virtual time: that of a public cohort of the same law."""
    privacy = {"off": False, "noise_multiplier": 1.0, "delta": 1e-2, "relation": "add-remove", "noise_seed": 1, "clip": 1.0}
    settings = made(folder, SHAKY, privacy=privacy, federation={"sampling": "poisson", "rate": 0.5}, train={"rounds": 4})
    told = []
    for name in ("one", "two"):
        run(folder, tmp_path / name, settings)
        told.append([line["clock"] for line in lines(tmp_path / name)])
    assert told[0] == told[1]  # seeds are the same, the secret draws are not: they agree by chance once in 8^4 and more
    assert len({clock["round_s"] for clock in told[0]}) == 4


def test_an_empty_tier_is_planned_and_a_name_of_the_server_is_refused(folder, tmp_path):
    tiers = [{"name": "none", "count": 0, "placement": "local", "machine": "laptop"}, {"name": "all", "placement": "local", "machine": "phone"}]
    assert [tier["name"] for tier in summarise_plan(prepare(made(folder, tiers), CACHE))["tiers"]] == ["all"]
    with pytest.raises(ConfigError, match="asks for 7 clients, the data has 8"):
        prepare(made(folder, [{"name": "a", "count": 7}, {"name": "b", "share": 0.0}]), CACHE)
    rows = [{"client": name, "text": f"{name} reads {word}."} for name in ("server", "other") for word in ("a file", "a line", "a name")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = made(folder, [{"name": "all", "placement": "split", "machine": "laptop"}], algorithm={"name": "splitlora"},
                    data={"source": str(tmp_path / "data.jsonl")})
    with pytest.raises(DataError, match="'server' has the name of the server's own site"):
        prepare(settings, CACHE)


@pytest.mark.parametrize(("key", "value"), [("round_s", float("inf")), ("over_selection", float("nan")), ("allowed", ())])
def test_bad_numbers_are_refused_at_once(folder, key, value):
    with pytest.raises(ConfigError, match=key):
        made(folder, compute={key: value})


def test_a_machine_without_a_link_is_refused_with_the_way_out(folder, tmp_path):
    path = tmp_path / "bare.json"
    path.write_text(json.dumps({"name": "bare", "device": "cpu", "flop_per_s": {"float32": 1e9}, "memory_bytes": 10**9}))
    with pytest.raises(ConfigError, match="set link to one of"):
        made(folder, [{"name": "a", "machine": str(path)}])
    assert made(folder, [{"name": "a", "machine": str(path), "link": "home"}])


def test_a_proxied_tier_that_was_chosen_lends_its_steps_to_the_proxies(folder, tmp_path):
    tiers = [{"name": "station", "count": 2, "machine": "workstation"},
             {"name": "weak", "placement": "auto", "machine": str(little(tmp_path, 200_000_000)), "steps": 1, "batch": 1}]
    ready = prepare(made(folder, tiers, compute={"allowed": ("proxy",)}), CACHE)
    assert ready.federation.tiers["weak"].plan.placement == "proxy"
    sites, _ = proxies.proxies(ready.settings, ready.federation, ready.context.seeds, [[Text("one two three", 0)]])
    assert [(site.plan.steps, site.plan.batch) for site in sites.values()] == [(1, 1)]


def test_the_dial_counts_the_bytes_of_the_method(folder):
    """What the planner lets through takes no longer by the clock, also where a method sends more than its factors."""
    for name in ("fedit", "ffa", "fedex", "flora"):
        for dial in (1.0, 2.0, 5.0):
            tiers = [{"name": "all", "placement": "auto", "machine": "laptop", "link": "3g"}]
            settings = made(folder, tiers, algorithm={"name": name}, compute={"round_s": dial, "allowed": ("local",)}, adapter={"rank": 8})
            assert RoundCosts.of(prepare(settings, CACHE)).assignment("all").round_s <= dial * 1.01, (name, dial)


def test_with_sampling_proxies_stand_for_the_share_of_a_cohort(folder):
    """A proxied client would have been drawn as often as a local one: their weights keep the proportion of the clients."""
    tiers = [{"name": "a", "count": 4, "machine": "laptop"}, {"name": "b", "placement": "proxy", "machine": "phone"}]
    whole = prepare(made(folder, tiers), CACHE)
    half = prepare(made(folder, tiers, federation={"sampling": "fixed", "rate": 0.5}), CACHE)
    stands = {"proxy-000": 4.0}
    for ready, local, proxied in ((whole, 4, 4.0), (half, 2, 2.0)):
        cohort, _ = draw_cohort(ready, 1, stands, None)
        assert (len(cohort.local), cohort.planned, dict(cohort.proxies)) == (local, local, {"proxy-000": proxied})
