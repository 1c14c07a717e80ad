"""A start from a description: what the model is asked, with which words and examples, and what
becomes of answers that will not do."""

from __future__ import annotations

import pytest
import torch
from tests.contract.test_private_evolution import SEEDS, Writer, evolution

from aulait.core.errors import ConfigError
from aulait.core.types import Record
from aulait.synthesis import private_evolution, rounds
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.population import EvolutionState, Text
from aulait.synthesis.prompt_variation import Prompted
from aulait.synthesis.rounds import SynthesisContext
from aulait.synthesis.topics import Description
from aulait.synthesis.variation import GenerateConfig

ABOUT = "commit messages of a numerical library"
PUBLIC = [f"public text {i}" for i in range(30)]


class Model:
    """Answers with a number; remembers what it was asked."""

    def __init__(self, answer=lambda i, prompt: f"new text number {i}"):
        self.asked, self.answer = [], answer

    def __call__(self, prompts, seed):
        self.asked += prompts
        start = len(self.asked) - len(prompts)
        return [self.answer(start + i, prompt) for i, prompt in enumerate(prompts)]


def config(**start):
    return SynthesisConfig(about=ABOUT, start=start, candidates=4, variations=1,
                           generate={"kind": "prompt"})


def prompted(model):
    return Prompted(model, GenerateConfig(kind="prompt"))


def test_the_first_candidates_are_asked_for_by_the_description_and_one_word_of_each_list():
    model, lists = Model(), [["fixes", "tests"], ["arrays", "masks", "ufuncs"]]
    state = private_evolution.init(config(keywords=lists),
                                   evolution(PUBLIC, writer=prompted(model)))
    assert len(state.pool) == 8
    assert {(text.provenance, text.parent) for text in state.pool} == {("written", None)}
    for prompt in model.asked:
        assert ABOUT in prompt
        assert all(sum(word in prompt for word in own) == 1 for own in lists)
        assert "-----" not in prompt, "no examples unless they are asked for"
    assert len(set(model.asked)) > 1, "words are drawn anew for every text"


def test_a_mixture_of_written_and_public_texts_and_examples_from_public_ones():
    model = Model()
    state = private_evolution.init(config(share=0.25, shots=2),
                                   evolution(PUBLIC, writer=prompted(model)))
    assert [text.provenance for text in state.pool] == ["written"] * 2 + ["public"] * 6
    assert len({text.full for text in state.pool}) == 8
    for prompt in model.asked:
        assert sum(f"\n{text}\n" in prompt for text in PUBLIC) in (1, 2)  # may be drawn twice


def test_answers_that_repeat_an_example_or_are_too_short_are_asked_for_again():
    model = Model(lambda i, prompt: ("short", PUBLIC[0], "a new text now")[min(i, 2)])
    found = prompted(model).write_described([Description(ABOUT)], [[PUBLIC[0]]], 3)
    assert found == ["a new text now"]
    assert len(model.asked) == 3


def test_pairs_are_described_as_pairs():
    model = Model(lambda i, prompt: f"[INPUT]\nwhat is number {i}\n[ANSWER]\nit is {i}")
    public = [Record(f"answer {i}", f"question {i}") for i in range(9)]
    state = private_evolution.init(config(shots=1), evolution(public, writer=prompted(model)))
    assert {text.prompt is not None for text in state.pool} == {True}
    assert "[INPUT]" in model.asked[0]
    assert ABOUT in model.asked[0]


def test_a_generator_that_takes_no_words_is_named():
    with pytest.raises(ConfigError, match="cannot be asked in words"):
        private_evolution.init(config(), evolution(PUBLIC, writer=Writer()))


def test_without_a_description_the_start_is_as_it_was():
    plain = SynthesisConfig(candidates=4, variations=1)
    state = private_evolution.init(plain, evolution(PUBLIC))
    assert {text.provenance for text in state.pool} == {"public"}
    order = SEEDS.generator("public-start")
    drawn = torch.randperm(len(PUBLIC), generator=order).tolist()[:8]
    assert state.pool == tuple(Text(PUBLIC[i], 0) for i in drawn)


def test_written_sets_go_the_way_they_went():
    """With source "write" the stage is private evolution and nothing else."""
    plain = SynthesisConfig(candidates=4, variations=1, texts=5, expansion="keep")
    own = evolution(PUBLIC)
    context = SynthesisContext(lambda: own, lambda: pytest.fail("nothing is retrieved"))
    assert rounds.init(plain, context) == private_evolution.init(plain, own)
    state = EvolutionState(1, (), (Text("a winner", 1, None, 4.0),))
    assert rounds.final_set(plain, context, state) == private_evolution.result(plain, own, state)
