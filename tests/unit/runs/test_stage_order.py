"""Stages in another order than the usual one: which rounds each has, one plan and one ledger for all
of them, what a later stage begins with, and resuming at every boundary."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests import tiny_run
from tests.tiny_run import lines

from aulait.core.errors import ConfigError
from aulait.engines.inline import InlineEngine
from aulait.methods import cores
from aulait.privacy.ledger import Ledger
from aulait.runfolder.run_folder import RunFolder
from aulait.runs import loop, setup
from aulait.runs.experiment_file import build_settings, dump_settings
from aulait.runs.plan_summary import summarise_plan
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Progress
from aulait.runs.stage_order import StageSpan, VoteCounts, stage_spans, training_ends
from aulait.synthesis import private_evolution, rounds

CACHE = SharedCache()
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "relation": "add-remove", "clip": 1.0}
TURNS = ["synthesis", "training", "synthesis", "training"]
OFF = {"off": True}
CORES = {"name": "cores", "renew": "stages", "basis_texts": 8}


class CutOff(BaseException):
    """As sudden as a process that ends."""


@pytest.fixture(scope="module", autouse=True)
def loaded(tmp_path_factory):
    """The base is loaded once for all runs of this file."""
    place = tmp_path_factory.mktemp("loaded")
    tiny_run.write_data(place)
    return setup.prepare(tiny_run.settings(place), CACHE).models.base


@pytest.fixture
def folder(tmp_path):
    tiny_run.write_corpus(tmp_path)
    return tmp_path


def run(folder, order, name="run", resume=False, **tables):
    tables = {"train": {"rounds": 3}, "privacy": OFF} | tables
    settings = tiny_run.settings(folder, **tables | {"run": {"stages": order}})
    return settings, loop.run(settings, folder / name, InlineEngine(), cache=tiny_run.fresh(CACHE),
                              resume=resume)


def adapter(folder, name="run"):
    return (folder / name / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("order", "rounds_", "wanted"), [
    (["synthesis", "training"], 5, [("synthesis", 1, 4), ("train", 1, 5)]),
    (["training", "synthesis"], 5, [("train", 1, 5), ("synthesis", 1, 4)]),
    (TURNS, 5, [("synthesis", 1, 4), ("train", 1, 3), ("synthesis", 5, 6), ("train", 4, 5)]),
    (["training", "synthesis", "training"], 2, [("train", 1, 1), ("synthesis", 1, 4),
                                                ("train", 2, 2)]),
    (["training"], 2, [("train", 1, 2)]),
])
def test_every_stage_has_its_rounds_counted_through_those_of_its_name(order, rounds_, wanted):
    found = stage_spans(order, VoteCounts(4, 2), rounds_)
    assert found == tuple(StageSpan(*span) for span in wanted)
    ends = [span.last for span in found if span.name == "train"]
    assert training_ends(found) == tuple(ends[:-1])


@pytest.mark.parametrize(("tables", "told"), [
    ({"run": {"stages": ["synthesis"]}}, "has no training"),
    ({"run": {"stages": ["training", "training"]}}, "the same stage twice in a row"),
    ({"run": {"stages": TURNS}, "train": {"rounds": 1}}, "at least one for each of the 2 stages"),
    ({"run": {"stages": TURNS}, "synthesis": {"source": "retrieve"}}, "would be paid for again"),
    ({"run": {"stages": ["vote", "training"]}}, "run.stages.0"),
])
def test_an_order_that_cannot_be_is_told_in_one_line(tables, told):
    with pytest.raises(ConfigError, match=told) as caught:
        build_settings({"privacy": OFF} | tables)
    assert "\n" not in str(caught.value)


def test_training_cannot_come_first_where_everybody_is_proxied(folder):
    everybody = {"tier": [{"name": "laptop", "placement": "proxy"}]}
    with pytest.raises(ConfigError, match="begins with training and every client is proxied"):
        run(folder, ["training", "synthesis", "training"], federation=everybody)


def test_the_key_has_a_short_name_and_old_files_mean_what_they_meant():
    assert build_settings({"privacy": OFF}).run.stages == ("synthesis", "training")
    short = build_settings({"privacy": OFF, "stages": TURNS})
    assert short.run.stages == tuple(TURNS)
    assert build_settings({"privacy": OFF}, [f"stages={json.dumps(TURNS)}"]) == short
    assert 'stages = [' in dump_settings(short)


def test_one_plan_and_one_ledger_cover_all_stages(folder):
    settings, result = run(folder, TURNS, privacy=PRIVATE, synthesis={"voters": "all"})
    prepared = setup.prepare(settings, tiny_run.fresh(CACHE))
    assert {(r.stage, r.rounds, r.role) for r in prepared.privacy.releases} == {
        ("synthesis", 4, "proxy+local"), ("train", 3, "local")}
    told = Ledger(folder / "run" / "ledger.jsonl").lines
    assert [(line.stage, line.round) for line in told] == [
        ("synthesis", 1), ("synthesis", 2), ("train", 1), ("train", 2),
        ("synthesis", 3), ("synthesis", 4), ("train", 3)]
    assert [(line["stage"], line["round"]) for line in lines(folder)] == [
        (line.stage, line.round) for line in told]
    plan = summarise_plan(prepared)
    assert plan["rounds"] == {"synthesis": 4, "train": 3}
    assert plan["stages"] == [
        {"stage": "synthesis", "rounds": 2}, {"stage": "train", "rounds": 2},
        {"stage": "synthesis", "rounds": 2}, {"stage": "train", "rounds": 1}]
    for role, spent in plan["privacy"]["epsilon"].items():
        assert spent <= 8.0 + 1e-9
        assert result["privacy"]["epsilon"][role] == pytest.approx(spent)
    for stage, count in (("synthesis", 4), ("train", 3)):
        multipliers = {line.noise_multiplier for line in told if line.stage == stage}
        assert multipliers == {prepared.privacy.noise_multiplier(stage)}, stage
        assert len([line for line in told if line.stage == stage]) == count
    page = (folder / "run" / "report.html").read_text()
    assert "The stages were synthesis, training, synthesis and training" in page
    assert "wrote with the adapter that had been released" in page


def test_bytes_of_all_stages_are_those_of_the_formula(folder):
    settings, result = run(folder, TURNS, privacy=PRIVATE, algorithm=CORES | {"server": "plain"})
    plan = summarise_plan(setup.prepare(settings, tiny_run.fresh(CACHE)))
    trained = [line for line in lines(folder) if line["stage"] == "train"]
    gpu = next(tier for tier in plan["tiers"] if tier["name"] == "gpu")
    assert [line["up_bytes"] for line in trained] == [3 * gpu["train_up_bytes_round"]] * 3
    assert result["traffic"]["up_bytes"] == (
        sum(line["up_bytes"] for line in lines(folder)))
    voted = [line for line in lines(folder) if line["stage"] == "synthesis"]
    laptop = next(tier for tier in plan["tiers"] if tier["name"] == "laptop")
    assert 0 < sum(line["down_bytes"] for line in voted) <= laptop["vote_down_bytes_run"]


def test_a_later_stage_goes_on_from_the_winners_and_the_adapter(folder, monkeypatch):
    """The second training's first state is the first one's last; candidates of the second synthesis
    are bred from the texts with the most votes; proxies learn from the second set."""
    begun, states = [], []
    right_anew, right_step = private_evolution.bred_anew, rounds.step

    def bred_anew(config, context, state):
        after = right_anew(config, context, state)
        begun.append((state, after))
        return after

    def step(config, context, state, cohort, server):
        states.append((cohort.round, state))
        return right_step(config, context, state, cohort, server)

    monkeypatch.setattr(private_evolution, "bred_anew", bred_anew)
    monkeypatch.setattr(rounds, "step", step)
    settings, _ = run(folder, TURNS)
    ((before, after),) = begun
    assert before.round == 2
    best = sorted({t.full: t for t in before.winners}.values(), key=lambda t: -t.votes)
    kept = best[: settings.synthesis.candidates]
    assert {t.full for t in kept} <= {t.full for t in after.pool}
    assert {t.parent for t in after.pool if t not in kept} <= {t.full for t in kept}
    assert [round for round, _ in states] == [1, 2, 3, 4]
    assert states[2][1].pool == after.pool


def test_the_generator_wears_the_adapter_after_a_training_and_only_then(folder, loaded,
                                                                            monkeypatch):
    worn = []
    right = private_evolution.children

    def children(variation, parents, round, seed):
        slots = [slot.worn for slot in loaded.slots.values() if slot.worn is not None]
        worn.append([bool(slot[1].any()) for slot in slots])
        return right(variation, parents, round, seed)

    monkeypatch.setattr(private_evolution, "children", children)
    _, result = run(folder, TURNS)
    bare, taught = worn[: worn.index(next(w for w in worn if w))], [w for w in worn if w]
    assert bare
    assert not any(bare)
    assert all(all(own) for own in taught), "every layer's B has been trained"
    assert worn == bare + taught
    assert result["synthesis"]["taught"] is True
    worn.clear()
    _, result = run(folder, TURNS, "bare", synthesis={"teach": False})
    assert worn
    assert not any(worn)
    assert "taught" not in result["synthesis"]


def test_a_taught_generator_writes_other_texts_than_a_bare_one(folder):
    strong = {"rounds": 2, "lr": 0.05, "steps": 4}
    sets = []
    for name, teach in (("taught", True), ("bare", False)):
        run(folder, ["training", "synthesis"], name, train=strong, synthesis={"teach": teach})
        sets.append([line["text"] for line in lines(folder, "synthetic.jsonl", name)])
    assert sets[0] != sets[1]
    assert adapter(folder, "taught") == adapter(folder, "bare"), "training came before"


def test_the_other_order_trains_the_strong_alone_and_then_writes(folder):
    _, result = run(folder, ["training", "synthesis"])
    told = lines(folder)
    assert [line["stage"] for line in told] == ["train"] * 3 + ["synthesis"] * 2
    assert {line["proxies"] for line in told if line["stage"] == "train"} == {0}
    assert len(lines(folder, "synthetic.jsonl")) == 8
    assert result["rounds"] == 3
    assert math.isfinite(result["eval"]["loss"])


def test_training_alone_asks_nobody_for_votes(folder):
    settings, _ = run(folder, ["training"])
    assert {line["stage"] for line in lines(folder)} == {"train"}
    assert not setup.prepare(settings, tiny_run.fresh(CACHE)).federation.voters
    assert not (folder / "run" / "synthetic.jsonl").exists()


def test_with_both_the_corpus_is_voted_on_once_and_written_texts_again(folder):
    both = {"source": "both", "rounds": 1, "retrieve": {"levels": 2, "cells": 6},
            "expansion": "topics", "texts": 12}
    _, result = run(folder, TURNS, synthesis=both)
    assert [(line["stage"], line["round"]) for line in lines(folder)] == [
        ("synthesis", 1), ("synthesis", 2), ("synthesis", 3), ("train", 1), ("train", 2),
        ("synthesis", 4), ("train", 3)]
    assert result["synthesis"]["set"]["origins"]["written"] >= 1


def test_without_further_votes_a_later_stage_writes_anew_at_no_cost(folder):
    both = {"source": "both", "rounds": 0, "retrieve": {"levels": 1, "cells": 6},
            "expansion": "topics", "texts": 12}
    settings, result = run(folder, TURNS, synthesis=both, privacy=PRIVATE,
                           train={"rounds": 2, "lr": 0.05})
    assert settings.votings == 1
    told = Ledger(folder / "run" / "ledger.jsonl").lines
    assert [(line.stage, line.round) for line in told] == [
        ("synthesis", 1), ("train", 1), ("train", 2)]
    assert result["synthesis"]["taught"] is True


def test_a_later_training_takes_its_basis_from_the_new_set(folder, monkeypatch):
    seen, right = [], cores.look

    def look(config, context, state, learner, texts):
        after = right(config, context, state, learner, texts)
        seen.append((state.round, [record.text for record in texts], after.tensors))
        return after

    monkeypatch.setattr(cores, "look", look)
    settings, _ = run(folder, TURNS, algorithm=CORES, train={"rounds": 4, "lr": 0.05})
    context = setup.prepare(settings, tiny_run.fresh(CACHE)).context
    assert context.stage_ends == (2,)
    assert [(round, bool(texts)) for round, texts, _ in seen] == [
        (0, True), (1, False), (2, True), (3, False)]
    first, second = seen[0][1], seen[2][1]
    assert first != second
    assert set(second) <= {line["text"] for line in lines(folder, "synthetic.jsonl")}
    past = [t for name, t in seen[2][2].items() if name.startswith("past/")]
    assert any(bool(t.any()) for t in past), "what was trained goes on in the old basis"
    before, after = ({n: t for n, t in seen[k][2].items() if n.startswith("basis/")}
                     for k in (0, 2))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    width = cores.kept_bytes(settings.method_config, context, "c0")
    once = cores.kept_bytes(cores.Config(), context, "c0")
    assert width == 3 * once, "two bases, and what was trained in the first"


@pytest.mark.parametrize("order", [TURNS, ["training", "synthesis", "training"]])
def test_a_run_cut_off_at_any_checkpoint_ends_as_if_nothing_had_happened(folder, order):
    """Stages and rounds alike: killed after every checkpoint in turn, always in a new process's
    state."""
    _, wanted = run(folder, order, "whole", algorithm=CORES)
    right = Progress.save

    def save(self, folder):
        right(self, folder)
        raise CutOff

    resume, places = False, 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Progress, "save", save)
            try:
                _, found = run(folder, order, "parts", resume, algorithm=CORES)
                break
            except CutOff:
                pass
        resume, places = True, places + 1
    assert places >= 3 + len(order)
    assert adapter(folder, "parts") == adapter(folder, "whole")
    assert lines(folder, "synthetic.jsonl", "parts") == lines(folder, "synthetic.jsonl", "whole")
    for key in ("eval", "rounds", "traffic"):
        assert found[key] == wanted[key]


def test_an_old_checkpoint_is_read_at_its_place(folder):
    """Written before the place was: the name of the stage tells it."""
    run(folder, ["synthesis", "training"], train={"rounds": 1})
    held = RunFolder(folder / "run")
    tensors, told = held.restore()
    for name, place in (("synthesis", 0), ("train", 1), ("done", 2)):
        old = {key: value for key, value in told.items() if key not in ("place", "lines")}
        held.checkpoint(tensors, old | {"stage": name})
        assert Progress.load(held).place == place
