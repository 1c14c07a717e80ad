"""The text that a method reads before its rounds: found by the names of its sources, or refused before any work."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_run

from aulait.core.errors import DataError
from aulait.engines.inline import InlineEngine
from aulait.methods import cores
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.public_text import read_source
from aulait.runs.setup import prepare
from aulait.synthesis.population import Text

CACHE = SharedCache()


@pytest.fixture
def places(tmp_path):
    tiny_run.write_data(tmp_path)
    return tmp_path


def settings(places, algorithm=None, **more):
    return tiny_run.settings(places, algorithm={"name": "cores", **(algorithm or {})}, **more)


def test_sources_are_found_by_name(places):
    own = places / "own.txt"
    own.write_text("first text of another file\nsecond text of another file\n")
    run = prepare(settings(places), tiny_run.fresh(CACHE))
    public = [text if isinstance(text, str) else text.text for text in run.federation.corpus.public]
    released = [[Text("made", 1), Text("answer", 1, prompt="question")], []]
    assert [record.text for record in read_source("public", run, released)] == public
    assert [(record.text, record.prompt) for record in read_source("released", run, released)] == [("made", None), ("answer", "question")]
    assert [record.text for record in read_source("auto", run, released)] == ["made", "answer"]
    assert [record.text for record in read_source("auto", run, [])] == public
    assert {record.text for record in read_source(str(own), run, [])} == {"first text of another file", "second text of another file"}
    with pytest.raises(DataError, match="there is none"):
        read_source("released", run, [[]])


LOCAL = {"federation": {"tier": [{"name": "all", "placement": "local"}]}, "train": {"rounds": 1, "steps": 1, "batch": 2}}


@pytest.mark.parametrize(("algorithm", "data", "words"), [
    ({"basis_text": "nowhere.txt"}, {}, "nowhere.txt"), ({"basis_text": "released"}, {}, "released text and there is none"),
    ({"basis_text": ["public", "released"]}, {}, "released text"), ({}, {"public": ""}, "auto text and there is none")])
def test_text_that_is_not_there_is_told_before_any_work(places, algorithm, data, words):
    with pytest.raises(DataError, match=words):
        prepare(settings(places, algorithm, data=data, **LOCAL), tiny_run.fresh(CACHE))


@pytest.mark.parametrize("algorithm", [{"basis": "random"}, {"basis": "weights"}])
def test_a_basis_without_text_needs_none(places, algorithm):
    prepare(settings(places, algorithm, data={"public": ""}, **LOCAL), tiny_run.fresh(CACHE))


def test_a_run_takes_its_basis_from_what_stage_1_released_and_resumes_in_it(places, monkeypatch):
    """Both stages; stopped after the first round of training and gone on with, to the same adapter, bit for bit."""
    seen = []
    look = cores.look

    def looking(config, context, state, learner, texts):
        seen.append((state.round, [text.text for text in texts]))
        return look(config, context, state, learner, texts)

    monkeypatch.setattr(cores, "look", looking)
    whole = settings(places, train={"rounds": 3, "steps": 1, "batch": 2})
    loop.run(whole, places / "whole", InlineEngine(), cache=tiny_run.fresh(CACHE))
    made = {json.loads(line)["text"] for path in (places / "whole").rglob("synthetic.jsonl") for line in path.read_text().splitlines()}
    assert [round for round, texts in seen if texts] == [0]
    assert set(seen[0][1]) <= made
    step, count = cores.step, []

    def stopping(*given):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(cores, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        loop.run(whole, places / "half", InlineEngine(), cache=tiny_run.fresh(CACHE))
    monkeypatch.setattr(cores, "step", step)
    loop.run(whole, places / "half", InlineEngine(), resume=True, cache=tiny_run.fresh(CACHE))
    one, two = (load_file(places / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "half"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
