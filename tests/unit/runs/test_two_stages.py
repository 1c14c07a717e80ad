"""What an experiment file means where it chooses nothing for its two stages."""

from __future__ import annotations

import pytest

from aulait.core.errors import ConfigError
from aulait.runs.experiment_file import build_settings, dump_settings, renewed_settings

PRIVATE = {"privacy": {"epsilon": 8.0, "delta": 1e-5, "relation": "add-remove"}}
BOTH = [{"name": "a", "share": 0.1, "placement": "local"}, {"name": "b", "placement": "proxy"}]
RECORD = {"privacy": PRIVATE["privacy"] | {"unit": "record", "relation": "zero-out", "clip": 1.0},
          "data": {"records_per_client": 1000}}


@pytest.mark.parametrize("more", [
    {}, {"federation": {"tier": BOTH}}, {"synthesis": {"texts": 50}}, {"algorithm": {}},
    {"adapter": {"alpha": 8, "targets": "attention"}}, {"data": {"source": "docstrings"}}])
def test_nothing_chosen_is_retrieval_cores_and_the_rank_by_the_law(more):
    made = build_settings(PRIVATE | more)
    assert made.algorithm == {"name": "cores"}
    own = "alpha" in more.get("adapter", {})
    assert made.adapter.auto == (("rank",) if own else ("rank", "alpha"))
    assert made.synthesis.source == "retrieve"
    assert made.data.public == "mixed"
    assert made.method_config.basis_text == "auto", "the text that the votes chose"
    held = dump_settings(made)
    assert renewed_settings(held) == held


@pytest.mark.parametrize("more", [
    {"algorithm": {"name": "ffa"}}, {"algorithm": {"local_weight": 0.3}}, {"adapter": {"rank": 8}},
    {"adapter": {"layers": 2}}, {"synthesis": {"rounds": 2}}, {"synthesis": {"generator": "brew"}},
    {"synthesis": {"proxies": "absent"}}, {"federation": {"tier": [
        {"name": "a", "placement": "local"}]}},
    {"federation": {"tier": [BOTH[0] | {"rank": 4}, BOTH[1]]}}, {"federation": {"tier": [BOTH[1]]}}, {"privacy": {"off": True}}, RECORD])
def test_a_file_that_chooses_something_means_what_it_meant(more):
    made = build_settings(PRIVATE | more)
    assert made.algorithm["name"] == "ffa"
    assert not made.adapter.auto
    assert made.synthesis.source == "write"
    assert made.data.public == "stdlib"


def test_public_text_that_is_named_is_retrieved_from():
    assert build_settings(PRIVATE | {"data": {"public": "stdlib"}}).data.public == "stdlib"


def test_tables_that_are_none_are_still_told_of():
    with pytest.raises(ConfigError, match="privacy"):
        build_settings({"privacy": 3})
    with pytest.raises(ConfigError, match="federation"):
        build_settings(PRIVATE | {"federation": {"tier": "all"}})


@pytest.mark.parametrize("kind", ["back-translation", "backtranslation"])
def test_a_way_through_another_language_is_refused_in_a_line(kind):
    with pytest.raises(ConfigError, match="needs a translation model, and none is packaged") as told:
        build_settings({"privacy": {"off": True}, "synthesis": {"generate": {"kind": kind}}})
    assert "\n" not in str(told.value)
