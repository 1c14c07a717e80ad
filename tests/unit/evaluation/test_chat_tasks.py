"""Task metrics of conversations: ranked and written after the chat template, against a sequence at a time."""

from __future__ import annotations

import pytest
import torch
from tests.chat_bases import CHATML, INSTRUCT, THOUGHTS, chat_base
from tests.closeness import assert_near
from tests.oracle.chat_spans import spelled

from aulait.core.types import Record, Turn
from aulait.evaluation import tasks
from aulait.evaluation.config import TaskConfig
from aulait.evaluation.losses import EvaluateConfig, evaluate
from aulait.training.batches import Encoder
from aulait.training.trainer import Learner, TrainConfig

CHOICES = ["Two a day.", "Two", "ask again", "5 mg", "the dose?"]
BEFORE = (Turn("system", "Be brief."), Turn("user", "What is it?"), Turn("assistant", "the of and"))
ASKED = [Record("Two", "What is the dose?"), Record("5 mg", "How long?", before=BEFORE), Record("ask again", "And then? <|im_end|>")]


@pytest.fixture(scope="module", params=[CHATML, INSTRUCT, THOUGHTS], ids=["chatml", "instruct", "thoughts"])
def base(request, tmp_path_factory):
    return chat_base(tmp_path_factory.mktemp("chat"), request.param, context=128)


def by_hand(base, record: Record, choice: str) -> tuple[float, int]:
    """Log-probability and number of the tokens that a choice adds to the question, in transformers' own words."""
    tokenizer = base.tokenizer
    given = tokenizer.apply_chat_template(spelled(record.asked), add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = tokenizer.apply_chat_template(spelled((*record.asked, Turn("assistant", choice))), return_dict=True)["input_ids"]
    with torch.no_grad():
        logp = base.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logp[i - 1, ids[i]]) for i in range(len(given), len(ids))), len(ids) - len(given)


def test_choices_are_ranked_after_the_template(base):
    records = ASKED[:2]
    encode = Encoder(base)
    assert tasks.packs(base)
    for likelihood in (tasks.whole, tasks.packed):
        sums, tokens = likelihood(base, encode, records, CHOICES)
        for x, record in enumerate(records):
            for c, choice in enumerate(CHOICES):
                wanted, count = by_hand(base, record, choice)
                assert int(tokens[x, c]) == count
                assert_near(float(sums[x, c]), wanted, 1e-4)


def test_a_cut_conversation_is_ranked_alike_by_both(base):
    long = Record("Two", "How long? " * 30, before=BEFORE * 4)
    encode = Encoder(base)
    (whole, counts), (packed, same) = (way(base, encode, [long], CHOICES) for way in (tasks.whole, tasks.packed))
    assert torch.equal(counts, same)
    assert_near(packed, whole, 1e-4)


def test_answers_are_what_transformers_generates(base):
    found = tasks.write_answers(base, ASKED[:2], 6)
    for record, text in zip(ASKED[:2], found, strict=True):
        ids = base.tokenizer.apply_chat_template(spelled(record.asked), add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        out = base.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=base.pad)
        assert text == base.tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)


def test_the_same_question_in_two_conversations_has_two_references(base):
    learner = Learner(base, TrainConfig())
    records = [Record("Two a day.", "And then?"), Record("ask again", "And then?", before=BEFORE)]
    seen = {}
    written = tasks.write_answers

    def perfect(base, some, most, rows=32):
        seen["records"] = some
        return [record.text for record in reversed(some)]

    tasks.write_answers = perfect
    try:
        scores = evaluate(learner, None, {"a": records}, EvaluateConfig(task="rouge", records_per_client=2))
    finally:
        tasks.write_answers = written
    assert scores.task["exact_match"] == 0
    assert scores.task["bleu"] < 50  # a text that was right elsewhere is not right here
    assert isinstance(EvaluateConfig(), TaskConfig)
