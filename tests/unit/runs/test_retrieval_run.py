"""Whole small runs whose synthetic set is retrieved by votes, written, or both: one plan, one
ledger, resumed in the middle, and what their set is told to be."""

from __future__ import annotations

import math

import pytest
from tests import tiny_run
from tests.tiny_run import lines

from aulait.core.errors import AulaitError, ConfigError
from aulait.engines.inline import InlineEngine
from aulait.privacy.accounting import calibrate
from aulait.privacy.ledger import Ledger
from aulait.runs import loop, setup
from aulait.runs.experiment_file import build_settings, dump_settings
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.synthesis import retrieval

CACHE = SharedCache()
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 1.0}
RETRIEVE = {"source": "retrieve", "retrieve": {"levels": 2, "cells": 6}}
BOTH = {"source": "both", "rounds": 1, "retrieve": {"levels": 2, "cells": 6}}


@pytest.fixture
def folder(tmp_path):
    tiny_run.write_corpus(tmp_path)
    return tmp_path


def run(folder, name="run", resume=False, **tables):
    settings = tiny_run.settings(folder, **tables)
    return settings, loop.run(settings, folder / name, InlineEngine(), cache=tiny_run.fresh(CACHE),
                              resume=resume)


def public_texts(folder):
    return set((folder / "public.txt").read_text().splitlines())


@pytest.mark.parametrize(("synthesis", "votes"), [(RETRIEVE, 2), (BOTH, 3),
                                                  (BOTH | {"rounds": 0}, 2)])
def test_the_plan_the_ledger_and_the_account_agree_on_every_vote(folder, synthesis, votes):
    settings, result = run(folder, synthesis=synthesis, privacy=PRIVATE)
    prepared = setup.prepare(settings, tiny_run.fresh(CACHE))
    release = next(r for r in prepared.privacy.releases if r.stage == "synthesis")
    assert (release.rounds, release.role) == (votes, "proxy")
    assert release.noise_multiplier == pytest.approx(calibrate(8.0, 1e-3, votes))
    told = [line for line in Ledger(folder / "run" / "ledger.jsonl").lines
            if line.stage == "synthesis"]
    assert [(line.round, line.sensitivity, line.sigma) for line in told] == [
        (k, math.sqrt(3), release.sigma) for k in range(1, votes + 1)]
    plan = summarise_plan(prepared)
    assert plan["rounds"]["synthesis"] == votes
    assert plan["privacy"]["epsilon"]["proxy"] == pytest.approx(
        result["privacy"]["epsilon"]["proxy"])
    assert result["privacy"]["epsilon"]["proxy"] <= 8.0
    laptop = next(tier for tier in plan["tiers"] if tier["name"] == "laptop")
    voting = [line for line in lines(folder) if line["stage"] == "synthesis"]
    assert sum(line["down_bytes"] for line in voting) <= laptop["vote_down_bytes_run"]
    assert sum(line["up_bytes"] for line in voting) <= laptop["vote_up_bytes_run"]


def test_every_retrieved_text_is_public_word_for_word_and_said_to_be(folder):
    _, result = run(folder, synthesis=RETRIEVE, train={"rounds": 1})
    texts = lines(folder, "synthetic.jsonl")
    assert len(texts) == 8
    assert {line["text"] for line in texts} <= public_texts(folder)
    assert {line["origin"] for line in texts} == {"public"}
    told = result["synthesis"]
    assert told["source"] == "retrieve"
    assert "generator" not in told, "nothing is written"
    assert told["set"]["origins"] == {"public": 8}
    assert told["set"]["verbatim_public"] == 1.0
    assert told["set"]["distinct"] == len({line["text"] for line in texts}) / 8
    assert told["set"]["words_mean"] == 4
    assert 0 <= told["set"]["distance"] <= 2
    assert told["set"]["private"] is False
    page = (folder / "run" / "report.html").read_text()
    assert "public word for word" in page


def test_with_both_a_part_is_written_and_the_rest_retrieved(folder):
    _, result = run(folder, synthesis=BOTH | {"expansion": "topics", "texts": 12},
                    train={"rounds": 1})
    told = result["synthesis"]["set"]
    assert told["origins"]["written"] >= 1
    assert told["origins"]["public"] >= 6
    assert sum(told["origins"].values()) == 12
    assert told["verbatim_public"] >= told["origins"]["public"] / 12
    voting = [line for line in lines(folder) if line["stage"] == "synthesis"]
    assert len(voting) == 3
    first = [text for text in voting[2]["winners"] if text["parent"] is None]
    assert {text["text"] for text in first} <= public_texts(folder), "candidates were retrieved"


def test_without_votes_the_texts_are_drawn_from_the_whole_corpus(folder):
    settings, _ = run(folder, synthesis=RETRIEVE | {"selection": "random"}, train={"rounds": 1})
    assert not setup.prepare(settings, tiny_run.fresh(CACHE)).federation.voters
    assert {line["text"] for line in lines(folder, "synthetic.jsonl")} <= public_texts(folder)


def test_a_run_cut_off_between_two_levels_ends_as_if_nothing_had_happened(folder, monkeypatch):
    run(folder, "whole", synthesis=BOTH)
    right, calls = retrieval.step, []

    def step(*given):
        calls.append(1)
        if len(calls) == 2:
            raise AulaitError("cut off")
        return right(*given)

    monkeypatch.setattr(retrieval, "step", step)
    with pytest.raises(AulaitError, match="cut off"):
        run(folder, "parts", synthesis=BOTH)
    run(folder, "parts", resume=True, synthesis=BOTH)
    assert len(calls) == 3
    for file in ("synthetic.jsonl",):
        assert lines(folder, file, "parts") == lines(folder, file, "whole")
    assert [line["histogram"] for line in lines(folder, name="parts")[:3]] == [
        line["histogram"] for line in lines(folder, name="whole")[:3]]


def test_the_mixed_corpus_is_the_default_where_texts_are_retrieved_and_nowhere_else():
    off = {"privacy": {"off": True}}
    assert build_settings(off).data.public == "stdlib"
    assert build_settings(off | {"synthesis": {"source": "write"}}).data.public == "stdlib"
    for source in ("retrieve", "both"):
        made = build_settings(off | {"synthesis": {"source": source}})
        assert made.data.public == "mixed"
        assert 'public = "mixed"' in dump_settings(made)
        named = build_settings(off | {"synthesis": {"source": source},
                                      "data": {"public": "stdlib"}})
        assert named.data.public == "stdlib"


@pytest.mark.parametrize(("synthesis", "told"), [
    ({"rounds": 0}, "synthesis.rounds is 0"),
    ({"expansion": "topics"}, "nothing is retrieved"),
    ({"about": "poems", "source": "retrieve"}, "nothing is written"),
    ({"about": "poems"}, 'expected kind = "prompt"'),
    ({"source": "find"}, "'write', 'retrieve' or 'both'"),
    ({"source": "retrieve", "neighbours": 300}, "synthesis.retrieve.cells = 256"),
    ({"start": {"keywords": [["a"], []]}}, "empty list"),
    ({"retrieve": {"cells": 1}}, "greater than or equal to 2"),
])
def test_what_cannot_be_is_told_before_any_work(synthesis, told):
    with pytest.raises(ConfigError, match=told):
        build_settings({"synthesis": synthesis, "privacy": {"off": True}})
