"""Pairs of a prompt and its response through stage 1: read, varied by every generator, voted on whole, dealt to proxies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.contract.test_private_evolution import PointEmbedder, a_round, evolution, site
from tests.tiny_bases import byte_tokenizer
from tests.unit.data.test_client_data import jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from aulait.core.errors import DataError
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.data import client_data
from aulait.data.client_data import DataConfig
from aulait.models.generation import decode, encode
from aulait.models.loading import BREW
from aulait.synthesis import private_evolution
from aulait.synthesis.config import SynthesisConfig
from aulait.synthesis.mask_variation import MaskFill
from aulait.synthesis.population import EvolutionState, Text
from aulait.synthesis.prefix_variation import PrefixResample
from aulait.synthesis.prompt_variation import Prompted
from aulait.synthesis.variation import GenerateConfig

PAIRS = [
    Record("The patient has a fever and a cough since two days.", "Doctor: What brings you here today? Patient: I have a fever."),
    Record("No known allergies.", "Doctor: Are you allergic to anything at all? Patient: No, nothing that I know."),
    Record("Takes aspirin.", "Doctor: Which drugs do you take every day? Patient: Only aspirin, I think."),
]
SHORT = GenerateConfig(max_tokens=12, min_words=2)
ALONE = SHORT.model_copy(update={"pairs": "response"})


@pytest.fixture(scope="module")
def brew() -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(BREW, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(BREW)


class Spy:
    """The real model; remembers what it is asked to read first."""

    def __init__(self, model: Any) -> None:
        self.inner, self.read = model, []
        self.config, self.training = model.config, False
        self.generation_config = model.generation_config

    def forward(self, *args: Any, **given: Any) -> Any:
        raise NotImplementedError

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def get_base_model(self) -> Any:
        return self.inner

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def __call__(self, **given: Any) -> Any:
        if given["input_ids"].shape[1] > 1:
            mask = given["attention_mask"].bool()
            self.read += [row[keep].tolist() for row, keep in zip(given["input_ids"], mask, strict=True)]
        return self.inner(**given)


# -- prefix ----------------------------------------------------------------------------------------------------------


def test_a_child_has_a_new_prompt_that_begins_like_the_old_one_and_a_response_to_it(brew):
    model, tokenizer = Spy(brew[0]), brew[1]
    children = PrefixResample(model, tokenizer, SHORT).vary_pairs(PAIRS * 3, 1)
    done = [(child, parent) for child, parent in zip(children, PAIRS * 3, strict=True) if child]
    assert len(done) >= 6
    for child, parent in done:
        assert child.prompt != parent.prompt
        assert child.prompt[:3] == parent.prompt[:3]
        assert child.text.strip()
        asked = next(ids for ids in model.read if ids[-len(end := encode(tokenizer, f"{child.prompt}\n")) :] == end)
        shown = decode(tokenizer, asked)
        assert shown.startswith(parent.full), "the parent is the example"
        assert shown.endswith(child.prompt + "\n")
    assert children == PrefixResample(brew[0], tokenizer, SHORT).vary_pairs(PAIRS * 3, 1)
    assert children != PrefixResample(brew[0], tokenizer, SHORT).vary_pairs(PAIRS * 3, 2)


def test_the_response_alone_is_continued_after_its_own_prompt(brew):
    model, tokenizer = Spy(brew[0]), brew[1]
    children = PrefixResample(model, tokenizer, ALONE).vary_pairs(PAIRS, 1)
    for child, parent in zip(children, PAIRS, strict=True):
        assert child is not None
        assert child.prompt == parent.prompt
        assert child.text != parent.text
        assert child.text[:2] == parent.text[:2]
    begun = [decode(tokenizer, ids) for ids in model.read]
    assert all(any(text.startswith(f"{pair.prompt}\n") for text in begun) for pair in PAIRS)


def saying(monkeypatch, answer: Callable[[list[int]], str], tokenizer) -> None:
    """Let every continuation be what ``answer`` makes of the prompt."""
    from aulait.models.generation import Continuation
    from aulait.synthesis import prefix_variation

    def extend(writer, prompts, how, seed, limits=None):
        return [Continuation(encode(tokenizer, answer(list(prompt))), True) for prompt in prompts]

    monkeypatch.setattr(prefix_variation, "extend", extend)


def test_a_child_whose_response_fails_is_dropped_not_replaced(monkeypatch, brew):
    tokenizer = brew[1]

    def answer(ids: list[int]) -> str:
        read = decode(tokenizer, ids)
        return ("" if "allergic" in read else " Something else.") if read.endswith("\n") else " and a new end of it"

    saying(monkeypatch, answer, tokenizer)
    first, second, third = PrefixResample(brew[0], tokenizer, SHORT.model_copy(update={"keep": (0.9, 0.9)})).vary_pairs(PAIRS, 0)
    assert second is None, "its prompt could be varied, its response not"
    assert first.text == "Something else."
    assert third.prompt.endswith("and a new end of it")


def test_a_child_whose_prompt_fails_is_dropped(monkeypatch, brew):
    tokenizer = brew[1]
    saying(monkeypatch, lambda ids: " Something else." if decode(tokenizer, ids).endswith("\n") else "", tokenizer)
    assert PrefixResample(brew[0], tokenizer, SHORT).vary_pairs(PAIRS, 0) == [None] * 3


def test_new_pairs_are_written_in_the_manner_of_the_examples(brew):
    written = PrefixResample(*brew, SHORT).write_pairs(PAIRS, 5, 3)
    assert 0 < len(written) <= 5
    assert all(pair.prompt and pair.text and pair not in PAIRS for pair in written)
    assert written == PrefixResample(*brew, SHORT).write_pairs(PAIRS, 5, 3)
    assert PrefixResample(*brew, SHORT).write_pairs([], 5, 3) == []


# -- mask ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filler() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=160, pad_token_id=0, **sizes))
    return model.eval(), tokenizer


@pytest.mark.parametrize("pairs", ["both", "response"])
def test_parts_are_refilled_and_the_border_stays(filler, pairs):
    config = GenerateConfig(kind="mask", filler="f", pairs=pairs, mask_fraction=0.4, min_words=1)
    seen = []
    fill = MaskFill(*filler, config)
    refill = fill.refill

    def watched(texts: Sequence[list[int]], generator: torch.Generator, free: Any = None) -> list[list[int]]:
        after = refill(texts, generator, free)
        seen.extend(zip(texts, after, free, strict=True))
        return after

    fill.refill = watched  # type: ignore[method-assign]
    children = fill.vary_pairs(PAIRS, 1)
    assert all(children)
    newline = encode(filler[1], "\n")
    for before, after, free in seen:
        assert len(before) == len(after)
        assert {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b} <= set(free)
        border = next(i for i in range(len(before)) if i not in free and before[i : i + 1] == newline)
        assert after[border : border + 1] == newline
        assert (0 in free) == (pairs == "both")
    for child, parent in zip(children, PAIRS, strict=True):
        assert child.text != parent.text
        assert (child.prompt == parent.prompt) == (pairs == "response")


def test_a_long_prompt_leaves_the_response_its_half(filler):
    fill = MaskFill(*filler, GenerateConfig(kind="mask", filler="f"))
    x, y = fill._two(Record("b" * 300, "a" * 300), 1)
    assert (len(x), len(y)) == (160 - 4 - 1 - 78, 78)
    x, y = fill._two(Record("b" * 5, "a" * 300), 1)
    assert (len(x), len(y)) == (160 - 4 - 6, 5)
    x, y = fill._two(Record("b" * 300, "a" * 3), 1)
    assert (len(x), len(y)) == (3, 160 - 4 - 4)


def test_nothing_to_refill_is_a_failure(filler):
    fill = MaskFill(*filler, GenerateConfig(kind="mask", filler="f", min_words=1))
    assert fill.vary_pairs([Record("", "a prompt"), Record("a text", "")], 0) == [None, None]


# -- prompt ----------------------------------------------------------------------------------------------------------


def prompted(answer: str, heard: list[str] | None = None, **more: Any) -> Prompted:
    def chat(prompts: list[str], seed: int) -> list[str]:
        if heard is not None:
            heard.extend(prompts)
        return [answer] * len(prompts)

    return Prompted(chat, GenerateConfig(kind="prompt", **more))


@pytest.mark.parametrize(("answer", "wanted"), [
    ("[INPUT]\nDoctor: How do you sleep?\n[ANSWER]\nSleeps well.", Record("Sleeps well.", "Doctor: How do you sleep?")),
    ("  [INPUT] one two three [ANSWER] yes\nand no\n", Record("yes\nand no", "one two three")),
    ("[ANSWER]\nSleeps well.\n[INPUT]\nDoctor: How do you sleep?", None),
    ("Sure! [INPUT]\nDoctor: How do you sleep?\n[ANSWER]\nSleeps well.", None),
    ("[INPUT]\nDoctor: How do you sleep?\n[ANSWER]\n", None),
    ("[INPUT]\n\n[ANSWER]\nSleeps well.", None),
    ("[INPUT]\none two three\n[ANSWER]\nyes\n[INPUT]\nfour five six\n[ANSWER]\nno", None),
    ("Doctor: How do you sleep?\nSleeps well.", None),
    ("[INPUT]\none\n[ANSWER]\nToo short a prompt.", None),
    (f"[INPUT]\n{PAIRS[0].prompt}\n[ANSWER]\n{PAIRS[0].text}", None),
])
def test_an_answer_is_a_pair_only_in_the_form_asked_for(answer, wanted):
    assert prompted(answer).vary_pairs([PAIRS[0]], 0) == [wanted]
    assert prompted(answer).write_pairs([PAIRS[0]], 1, 0) == ([wanted] if wanted else [])


def test_the_request_shows_both_parts_without_their_own_markers():
    heard: list[str] = []
    prompted("", heard).vary_pairs([Record("note [ANSWER] here", "talk [INPUT] there")], 0)
    shown = heard[0].rpartition("\n\n")[2]
    assert shown == "[INPUT]\ntalk  there\n[ANSWER]\nnote  here"
    heard.clear()
    prompted("", heard).write_pairs(PAIRS, 1, 0)
    assert sum(heard[0].count(f"[INPUT]\n{pair.prompt}\n[ANSWER]\n{pair.text}") for pair in PAIRS) == 3


def test_a_response_alone_keeps_the_prompt():
    assert prompted("A new note.", pairs="response").vary_pairs(PAIRS[:1], 0) == [Record("A new note.", PAIRS[0].prompt)]
    assert prompted("[ANSWER] A new note.", pairs="response").vary_pairs(PAIRS[:1], 0) == [None]
    assert prompted(PAIRS[0].text, pairs="response").vary_pairs(PAIRS[:1], 0) == [None]


# -- evolution -------------------------------------------------------------------------------------------------------


class PairWriter:
    """Marks both parts; fails where it is told to. It has no way to vary plain texts."""

    def __init__(self, fails: Callable[[Record], bool] = lambda pair: False) -> None:
        self.fails, self.asked = fails, []

    def vary_pairs(self, pairs, seed):
        self.asked += list(pairs)
        return [None if self.fails(pair) else Record(f"{pair.text}.{seed % 997}.{i}", f"{pair.prompt}+") for i, pair in enumerate(pairs)]

    def write_pairs(self, examples, count, seed):
        self.asked += list(examples)
        return [Record(f"new {i}", f"asked {i}") for i in range(count)]


OPEN = [Record(f"{letter} note {n}", f"{letter}{n} talk") for letter in "abcdef" for n in range(3)]
SMALL = SynthesisConfig(rounds=2, candidates=3, variations=2, texts=8)


def owner(*letters: str):
    found = site("s1", [])
    return type(found)("s1", found.plan, tuple(Record(f"{letter} own", f"{letter} asks") for letter in letters))


def test_pairs_are_embedded_whole_and_bred_as_pairs():
    embedder, writer = PointEmbedder(), PairWriter()
    state = private_evolution.init(SMALL, evolution(OPEN))
    assert all(text.prompt is not None for text in state.pool)
    after, info = a_round(SMALL, state, {"s1": owner("a", "a", "b")}, writer=writer, embedder=embedder)
    assert embedder.asked[0] == [text.full for text in state.pool]
    assert embedder.asked[0][0].count("\n") == 1
    bred = [text for text in after.pool if text.round == 1 and text.parent is not None]
    assert len(bred) == 6
    assert all(text.prompt.endswith("+") and text.parent in {parent.full for parent in after.winners} for text in bred)
    assert all(sample.count("\n") == 1 for sample in info["samples"])
    assert all(winner["prompt"] for winner in info["winners"])
    json.dumps(info["winners"])


def test_two_prompts_with_one_response_are_two_candidates():
    state = EvolutionState(0, (Text("yes", 0, prompt="a one"), Text("yes", 0, prompt="a two")))
    after, info = a_round(SMALL.model_copy(update={"candidates": 2, "variations": 1}), state, {"s1": owner("a")}, writer=PairWriter())
    assert info["kept"] == 2
    assert {text.prompt for text in after.winners} == {"a one", "a two"}


def test_failed_children_are_missing_and_the_ledger_of_pairs_can_be_saved():
    writer = PairWriter(lambda pair: pair.prompt.startswith("a"))
    state = EvolutionState(0, tuple(Text(pair.text, 0, prompt=pair.prompt) for pair in OPEN))
    after, _ = a_round(SMALL, state, {"s1": owner("a", "b")}, writer=writer)
    assert not [text for text in after.pool if text.prompt.startswith("a") and text.prompt.endswith("+")]
    assert EvolutionState.restore(json.loads(json.dumps(after.dump()))) == after


@pytest.mark.parametrize("expansion", ["vary", "write", "keep", "nearest"])
def test_the_final_set_is_of_pairs(expansion):
    config = SMALL.model_copy(update={"expansion": expansion})
    winners = tuple(Text(pair.text, 1, votes=float(5 - i), prompt=pair.prompt) for i, pair in enumerate(OPEN[:3]))
    made = private_evolution.result(config, evolution(OPEN, writer=PairWriter(), seeds=Seeds(1)), EvolutionState(2, (), winners))
    assert len(made) == 8
    assert all(text.prompt is not None and text.record.prompt == text.prompt for text in made)
    if expansion == "nearest":
        assert {text.record for text in made} <= set(OPEN)


def test_plain_texts_have_no_prompt_in_their_lines():
    assert "prompt" not in Text("a", 1).as_dict()
    assert Text("a", 1, prompt="b").as_dict()["prompt"] == "b"


# -- reading ---------------------------------------------------------------------------------------------------------


ROWS = [{"client": f"c{i % 2}", "talk": f"talk {i}", "note": f"note {i}"} for i in range(8)]


def read(tmp_path, public: list[dict[str, Any]], **more: Any):
    sources = {"source": str(jsonl(tmp_path / "own.jsonl", ROWS)), "public": str(jsonl(tmp_path / "public.jsonl", public))}
    return client_data.load_clients(DataConfig(**sources, prompt="talk", response="note", **more), Seeds(0))


def test_public_rows_with_both_fields_are_pairs_whatever_else_they_hold(tmp_path):
    rows = [{"talk": "p1", "note": "r1", "text": "plain"}, {"talk": "p1", "note": "r1"}, {"talk": "p2", "note": "r2"}, {"text": "plain"}]
    corpus = read(tmp_path, rows, label=None)
    assert sorted(corpus.public, key=lambda pair: pair.full) == [Record("r1", "p1"), Record("r2", "p2")]
    assert [fault for fault in corpus.malformed if "line 4" in fault] == ["public.jsonl line 4: no field 'note'"]
    assert read(tmp_path, rows[::-1]).public == corpus.public


def test_plain_public_texts_stay_plain(tmp_path):
    rows = [{"text": "one"}, {"text": "two"}]
    assert sorted(read(tmp_path, rows).public) == ["one", "two"]
    both = [{"talk": "p", "note": "r", "text": "plain"}]
    assert read(tmp_path, both, public_plain=True).public == ("plain",)


def test_public_rows_that_are_neither_are_named_before_any_work(tmp_path):
    with pytest.raises(DataError, match=r"data\.response: found no field 'note' in .* 'notes'\?; data\.public_text: found no field 'text'"):
        read(tmp_path, [{"talk": "p", "notes": "r"}])


def test_a_generator_with_a_chat_template_is_asked_in_it(tmp_path):
    """One example as an earlier exchange, then the question; and documents where there is no template."""
    from tests.chat_bases import CHATML, chat_base

    base = chat_base(tmp_path / "chat", CHATML)
    asked = PrefixResample(base.model, base.tokenizer, GenerateConfig())._asked("What is it?", Record("Two a day.", "What is the dose?"))
    turns = [{"role": "user", "content": "What is the dose?"}, {"role": "assistant", "content": "Two a day."}, {"role": "user", "content": "What is it?"}]
    assert asked == base.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    plain = PrefixResample(base.model, base.tokenizer, GenerateConfig(), template="plain")._asked("What is it?")
    assert plain == base.tokenizer("What is it?\n")["input_ids"]
    made = PrefixResample(base.model, base.tokenizer, GenerateConfig(max_tokens=8, min_words=1)).vary_pairs([Record("Two a day.", "What is the dose?")], 3)
    assert len(made) == 1
