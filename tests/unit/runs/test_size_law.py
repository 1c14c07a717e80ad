"""The law of size for whole runs: what is counted, what is refused, what "auto" chooses."""

from __future__ import annotations

import json
import math
import tomllib

import pytest
from tests import tiny_run

from aulait.core.errors import ConfigError
from aulait.engines.inline import InlineEngine
from aulait.runs import experiment_file, loop, size_law
from aulait.runs.prepared import SharedCache
from aulait.runs.setup import prepare

CACHE = SharedCache()
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 0.1, "noise_acknowledged": False}
LOCAL = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "synthesis": {"proxies": "absent"}}


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def prepared(places, algorithm=None, privacy=None, **more):
    return prepare(tiny_run.settings(places, algorithm=algorithm or {"name": "ffa"}, privacy=PRIVATE | (privacy or {}), **{**LOCAL, **more}),
                   tiny_run.fresh(CACHE))


def sides(run):
    return sum(m for m, _ in run.context.shapes.values()), sum(n for _, n in run.context.shapes.values())


@pytest.mark.parametrize(("algorithm", "numbers"), [
    ({"name": "ffa"}, lambda m, n, dense, layers: 2 * m), ({"name": "fedit"}, lambda m, n, dense, layers: 2 * (m + n)),
    ({"name": "cores"}, lambda m, n, dense, layers: 4 * layers), ({"name": "rolora"}, lambda m, n, dense, layers: 2 * max(m, n)),
    ({"name": "flexlora", "privacy_noise": "product"}, lambda m, n, dense, layers: dense)])
def test_the_numbers_under_noise_are_those_of_the_method(places, algorithm, numbers):
    run = prepared(places, algorithm, {"noise_acknowledged": True}, adapter={"rank": 2})
    found = size_law.noise_ratio(run)
    m, n = sides(run)
    dense = sum(a * b for a, b in run.context.shapes.values())
    assert found.numbers == numbers(m, n, dense, len(run.context.shapes))
    assert found.clients == 8
    release = next(own for own in run.privacy.releases if own.stage == "train")
    assert found.ratio == pytest.approx(release.noise_multiplier * math.sqrt(found.numbers) / (8 * math.sqrt(release.rounds)))


def test_proxies_dilute_the_noise_by_their_weight(places):
    tiers = {"tier": [{"name": "gpu", "count": 3, "placement": "local"}, {"name": "laptop", "placement": "proxy"}]}
    run = prepared(places, {"name": "ffa", "local_weight": 2.0}, federation=tiers, synthesis={"proxies": "public"})
    assert size_law.noise_ratio(run).clients == pytest.approx(3 + 5 / 2.0)
    assert "diluted by proxies" in size_law.law_in_words(run)
    alone = prepared(places, {"name": "ffa"}, federation=tiers)
    assert size_law.noise_ratio(alone).clients == 3


def test_records_are_counted_by_what_a_step_expects(places):
    """Eight sites of three records, two in a step: the noise of the mean of eight independent noises."""
    run = prepared(places, privacy={"unit": "record", "relation": "zero-out"}, data={"holdout": 0.0, "records_per_client": 4})
    counts = [len(site.train) for site in run.federation.training_sites]
    found = size_law.noise_ratio(run)
    assert found.clients == pytest.approx(len(counts) / math.sqrt(sum(1 / min(2, count) ** 2 for count in counts)))
    assert found.mechanisms == 3 * 2


def test_nothing_is_said_without_noise(places):
    run = prepare(tiny_run.settings(places, **LOCAL), tiny_run.fresh(CACHE))
    assert size_law.noise_ratio(run) is None
    assert size_law.law_in_words(run) == ""
    assert size_law.warning(run) is None


LOUD = {"epsilon": 0.5}


def test_a_run_that_cannot_learn_is_refused_before_any_work_unless_that_is_said_aloud(places):
    told = tiny_run.settings(places, privacy=PRIVATE | LOUD, **LOCAL)
    with pytest.raises(ConfigError, match=r"8 clients: at epsilon 0\.5 about 1 numbers can be trained.*it will not learn.*noise_acknowledged"):
        loop.run(told, places / "run", InlineEngine(), cache=tiny_run.fresh(CACHE))
    assert not (places / "run").exists()
    for said in ({"noise_acknowledged": True}, {"noise_seed": 3}):
        assert "it will not learn" in size_law.warning(prepared(places, privacy=LOUD | said))
    assert "hardly" in size_law.warning(prepared(places))


def test_the_rank_is_as_large_as_noise_allows(places):
    chosen = {}
    for target in (0.5, 1.0, 2.0, 1e-3):
        run = prepared(places, {"name": "cores"}, {"target_ratio": target}, adapter={"rank": "auto"})
        rank = chosen[target] = run.settings.adapter.rank
        assert run.context.rank == rank == run.federation.training_sites[0].plan.rank
        assert size_law.noise_ratio(run).ratio <= target or rank == 1
        larger = prepared(places, {"name": "cores"}, {"target_ratio": target, "noise_acknowledged": True}, adapter={"rank": rank + 1})
        assert size_law.noise_ratio(larger).ratio > target
    assert chosen[1e-3] == 1 <= chosen[0.5] < chosen[1.0] < chosen[2.0]


def test_layers_go_where_rank_one_is_too_large(places):
    every = {"rank": "auto", "layers": "auto", "targets": "all-linear"}
    wide = prepared(places, {"name": "cores"}, {"target_ratio": 2.0}, adapter=every)
    assert wide.settings.adapter.layers == "all"
    narrow = prepared(places, {"name": "cores"}, {"target_ratio": 0.3}, adapter=every)
    assert narrow.settings.adapter.rank == 1
    assert narrow.settings.adapter.layers == max(
        count for count in range(1, 7) if size_law.noise_ratio(prepared(
            places, {"name": "cores"}, adapter={"rank": 1, "layers": count, "targets": "all-linear"})).ratio <= 0.3)
    kept = prepared(places, {"name": "ffa"}, {"target_ratio": 0.1, "noise_acknowledged": True}, adapter={"rank": 4, "layers": "auto"})
    assert kept.settings.adapter.rank == 4
    assert kept.settings.adapter.layers == 1


def test_proxies_afford_no_larger_rank(places):
    """They spread the noise by making the signal as small."""
    ranks = []
    for rest in ("proxy", "absent"):
        told = tiny_run.settings(
            places, algorithm={"name": "cores"}, privacy=PRIVATE | {"target_ratio": 1.0, "noise_acknowledged": True}, adapter={"rank": "auto"},
            federation={"tier": [{"name": "gpu", "count": 3, "placement": "local"}, {"name": "laptop", "placement": "proxy"}]},
            synthesis={"proxies": "synthetic" if rest == "proxy" else "absent"})
        ranks.append(prepare(told, tiny_run.fresh(CACHE)).settings.adapter.rank)
    assert ranks[0] == ranks[1]


def test_without_privacy_auto_is_the_usual(places):
    for adapter, alpha in (({"rank": "auto", "layers": "auto"}, 16.0),
                           ({"rank": "auto", "alpha": 5.0}, 5.0), ({"alpha": "auto"}, 16.0)):
        run = prepare(tiny_run.settings(places, adapter=adapter, **LOCAL), tiny_run.fresh(CACHE))
        found = run.settings.adapter
        assert found.layers == ("all" if "layers" in adapter else 2)
        assert found.rank == (8 if "rank" in adapter else tiny_run.settings(places).adapter.rank)
        assert found.alpha == (alpha if "rank" in adapter else 2 * found.rank)


def test_a_run_folder_says_what_was_chosen_and_is_resumed(places):
    told = tiny_run.settings(places, algorithm={"name": "cores"}, privacy=PRIVATE, **LOCAL, adapter={"rank": "auto"},
                             train={"rounds": 2, "steps": 1})
    result = loop.run(told, places / "run", InlineEngine(), cache=tiny_run.fresh(CACHE))
    config = tomllib.loads((places / "run" / "config.toml").read_text())
    assert config["adapter"]["auto"] == ["rank", "alpha"]
    assert config["adapter"]["alpha"] == 4 * config["adapter"]["rank"]
    assert config["adapter"]["rank"] == result["tiers"][0]["rank"] > 1
    noise = result["privacy"]["noise"]
    assert noise["trained_numbers"] == 8 * config["adapter"]["rank"] ** 2
    assert noise["in_words"] in (places / "run" / "report.html").read_text().replace("&#39;", "'")
    assert loop.run(told, places / "run", InlineEngine(), resume=True, cache=tiny_run.fresh(CACHE)) == json.loads(
        (places / "run" / "result.json").read_text())
    again = experiment_file.build_settings(config)
    assert again.adapter.auto == ("rank", "alpha")


def test_the_rank_of_the_algorithm_is_that_of_the_adapter(places):
    tree = {"algorithm": {"name": "cores", "rank": "auto"}, "privacy": {"off": True}}
    assert experiment_file.build_settings(tree).adapter.auto == ("rank", "alpha")
    assert experiment_file.build_settings({**tree, "algorithm": {"name": "ffa", "rank": 3}}).adapter.rank == 3
    with pytest.raises(ConfigError, match=r"algorithm\.rank = 'auto' and adapter\.rank = 4 differ"):
        experiment_file.build_settings({**tree, "adapter": {"rank": 4}})
    with pytest.raises(ConfigError, match="'big' has a rank of its own"):
        experiment_file.build_settings({**tree, "federation": {"tier": [{"name": "big", "rank": 4}]}})
    with pytest.raises(ConfigError, match=r"adapter\.rank"):
        experiment_file.build_settings({"adapter": {"rank": "large"}, "privacy": {"off": True}})
    with pytest.raises(ConfigError, match=r"privacy\.target_ratio"):
        experiment_file.build_settings({**tree, "privacy": {"off": True, "target_ratio": 0.0}})


MIXED = {"federation": {"tier": [{"name": "gpu", "count": 3, "placement": "local"}, {"name": "laptop", "placement": "proxy"}]},
         "synthesis": {"proxies": "public"}}


def part_of_proxies(run):
    """Of the mean: 5 proxied clients beside 3 local ones of weight w."""
    return 5 / (3 * run.settings.method_config.weight + 5)


def test_proxies_weigh_as_much_as_the_local_clients_lack(places):
    """Public numbers alone: the more noise, the more; without noise little; never more than the share they stand for."""
    parts = {}
    for epsilon in (None, 8.0, 2.0, 0.1):
        privacy = {"off": True} if epsilon is None else PRIVATE | {"epsilon": epsilon, "noise_acknowledged": True}
        run = prepare(tiny_run.settings(places, algorithm={"name": "cores"}, privacy=privacy, **MIXED), tiny_run.fresh(CACHE))
        parts[epsilon] = part_of_proxies(run)
        found = size_law.noise_ratio(run, diluted=False)
        lacking = (found.ratio**2 if found else 0.0) + 1 / 3
        assert parts[epsilon] == pytest.approx(5 / 8 * lacking**2 / (lacking**2 + 0.3), rel=1e-3)
    assert parts[None] == pytest.approx(5 / 8 * (1 / 9) / (1 / 9 + 0.3), rel=1e-3)
    assert parts[None] < parts[8.0] < parts[2.0] < parts[0.1] <= 5 / 8 * (1 + 1e-3)


def test_a_weight_that_is_written_stays_and_other_methods_begin_at_one(places):
    for algorithm, weight in (({"name": "cores", "local_weight": 3.0}, 3.0), ({"name": "ffa"}, 1.0), ({"name": "cores"}, None)):
        run = prepare(tiny_run.settings(places, algorithm=algorithm, **MIXED), tiny_run.fresh(CACHE))
        found = run.settings.method_config.local_weight
        assert found == weight if weight else found > 1.0
    lone = prepare(tiny_run.settings(places, algorithm={"name": "cores"}, **LOCAL), tiny_run.fresh(CACHE))
    assert lone.settings.method_config.local_weight == 1.0
    with pytest.raises(ConfigError, match=r"local_weight"):
        tiny_run.settings(places, algorithm={"name": "ffa", "local_weight": "much"}, **MIXED)
