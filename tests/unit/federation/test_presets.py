"""FlexLoRA's client types and resource distributions as ready-made tiers."""

from __future__ import annotations

import tomllib

import pytest

from aulait.core.errors import ConfigError
from aulait.federation import presets
from aulait.federation.tiers import sizes as _sizes
from aulait.methods import METHODS
from aulait.runs import experiment_file

NAMES = ["uniform", "heavy-tail-light", "heavy-tail-strong", "normal"]
OFF = {"privacy": {"off": True}, "algorithm": {"name": "flexlora"}}
each = pytest.mark.parametrize("name", NAMES)


def tree(name: str, rank: int = 200) -> dict:
    return OFF | {"adapter": {"rank": rank}, "federation": {"preset": name}}


def test_there_are_four_distributions():
    assert sorted(presets.SHARES) == sorted((*NAMES, "equal"))


def test_equal_is_one_tier_with_all_ranks():
    assert presets.tiers("equal", 8) == [{"name": "type 4", "share": 1.0, "placement": "local", "rank": 8}]


@each
def test_the_shares_sum_to_one_and_the_largest_machines_come_first(name):
    tiers = presets.tiers(name, 200)
    assert sum(tier["share"] for tier in tiers) == pytest.approx(1.0, abs=1e-12)
    assert [tier["name"] for tier in tiers] == ["type 4", "type 3", "type 2", "type 1"]
    assert {tier["placement"] for tier in tiers} == {"local"}


@each
def test_at_rank_200_the_ranks_are_those_of_the_paper(name):
    ranks = {tier["name"]: (tier["rank"], tier.get("attention_rank", tier["rank"])) for tier in presets.tiers(name, 200)}
    assert ranks == {"type 1": (8, 8), "type 2": (30, 30), "type 3": (200, 30), "type 4": (200, 200)}


def test_the_shares_are_those_of_the_paper():
    small_to_large = {name: [tier["share"] for tier in reversed(presets.tiers(name, 200))] for name in NAMES}
    assert small_to_large == {
        "uniform": [0.25, 0.25, 0.25, 0.25], "heavy-tail-light": [0.80, 0.05, 0.05, 0.10], "heavy-tail-strong": [0.05, 0.05, 0.10, 0.80],
        "normal": [0.0575, 0.4425, 0.4425, 0.0575]}


@pytest.mark.parametrize(("rank", "wanted"), [(1, [1, 1, 1, 1]), (8, [1, 1, 1, 8]), (64, [3, 10, 10, 64]), (100, [4, 15, 15, 100])])
def test_another_rank_keeps_the_proportions_and_at_least_one(rank, wanted):
    small_to_large = [tier.get("attention_rank", tier["rank"]) for tier in reversed(presets.tiers("uniform", rank))]
    assert small_to_large == wanted


@each
@pytest.mark.parametrize("rank", [1, 8, 200])
def test_a_preset_builds_and_comes_back_from_what_is_written(name, rank):
    """The resolved file holds preset and tiers; it can be run again as it is."""
    settings = experiment_file.build_settings(tree(name, rank))
    assert len(settings.federation.tier) == 4
    assert max(tier.rank for tier in settings.federation.tier) == rank
    again = experiment_file.build_settings(tomllib.loads(experiment_file.dump_settings(settings)))
    assert again.federation == settings.federation
    assert experiment_file.dump_settings(again) == experiment_file.dump_settings(settings)


@each
def test_clients_are_dealt_by_the_shares(name):
    tiers = experiment_file.build_settings(tree(name)).federation.tier
    sizes = _sizes(tiers, 1613)
    assert sum(sizes) == 1613
    for tier, size in zip(tiers, sizes, strict=True):
        assert abs(size - tier.share * 1613) <= 2


def test_the_rank_may_be_set_from_the_command_line():
    settings = experiment_file.build_settings(tree("uniform", 8), ["adapter.rank=40"])
    assert [tier.rank for tier in settings.federation.tier] == [40, 40, 6, 2]
    assert experiment_file.build_settings(OFF, ["federation.preset=normal"]).federation.tier[0].rank == 8  # of the default adapter


def test_without_a_preset_nothing_changes():
    for written in (OFF, OFF | {"federation": {"rate": 0.5}}, OFF | {"federation": {"preset": None}}):
        assert presets.expanded(written) == written
        assert [tier.name for tier in experiment_file.build_settings(written).federation.tier] == ["gpu", "laptop"]


def test_an_unknown_preset_is_one_clear_line_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"federation\.preset 'unifrom' is unknown; did you mean 'uniform'\?") as caught:
        experiment_file.build_settings(tree("unifrom"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tiers", [[{"name": "a"}], [], [1], "gpu", [{"name": "type 4", "share": 0.25, "placement": "local", "rank": 9}]])
def test_tiers_beside_a_preset_are_refused(tiers):
    with pytest.raises(ConfigError, match=r"federation\.preset and federation\.tier are both written; keep one"):
        experiment_file.build_settings(OFF | {"federation": {"preset": "uniform", "tier": tiers}})


@pytest.mark.parametrize("broken", [{"adapter": "big"}, {"adapter": {"rank": "eight"}}, {"adapter": {"rank": 0}}])
def test_other_mistakes_are_still_explained_where_a_preset_is_used(broken):
    with pytest.raises(ConfigError, match="adapter"):
        experiment_file.build_settings(OFF | {"federation": {"preset": "uniform"}} | broken)


def test_a_preset_needs_a_method_for_unequal_ranks():
    unequal = [name for name in METHODS.names() if not METHODS.find(name).TRAITS.unequal_ranks]
    assert unequal
    for name in unequal:
        with pytest.raises(ConfigError, match="needs one rank"):
            experiment_file.build_settings({"privacy": {"off": True}, "algorithm": {"name": name}, "federation": {"preset": "uniform"}})
