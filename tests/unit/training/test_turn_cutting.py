"""Conversations beyond the context: whole turns are kept, the oldest go first; tokens of every cut against the uncut."""

from __future__ import annotations

import pytest
from tests.chat_bases import CHATML, INSTRUCT, THOUGHTS, chat_base
from tests.tiny_bases import tiny

from aulait.core.errors import DataError
from aulait.core.types import Record, Turn
from aulait.data.client_data import ClientData
from aulait.models.turn_cutting import without_oldest
from aulait.training.batches import Encoder
from aulait.training.context_length import fitted, readable

SYSTEM = Turn("system", "Be brief.")


def talk(exchanges: int, system: bool = True, last: str = "And then?") -> Record:
    before = [SYSTEM] if system else []
    for number in range(exchanges):
        before += [Turn("user", f"What is {number}?"), Turn("assistant", f"It is {number}.")]
    return Record("Then ask again.", last, before=tuple(before))


def text_of(base, encode: Encoder, record: Record) -> str:
    return base.tokenizer.decode(encode(record)[0])


@pytest.fixture(scope="module", params=[CHATML, THOUGHTS, None], ids=["chatml", "thoughts", "plain"])
def base(request, tmp_path_factory):
    return chat_base(tmp_path_factory.mktemp("chat"), request.param, context=96)


def test_exchanges_go_one_by_one_and_the_system_stays():
    turns = talk(2).turns
    found = list(without_oldest(turns))
    assert found == [list(turns), [SYSTEM, *turns[3:]], [SYSTEM, *turns[5:]]]
    greeted = (Turn("assistant", "hello"), *turns[1:3])
    assert list(without_oldest(greeted)) == [list(greeted), list(turns[1:3])]


def test_a_long_conversation_keeps_its_last_whole_exchanges(base):
    encode, record = Encoder(base), talk(30)
    assert encode.length(record) > 96
    coded = encode.coded(record)
    assert len(coded.ids) <= 96
    kept = [list(turns) for turns in without_oldest(record.turns) if encode.form.conversation(turns).ids == coded.ids]
    assert len(kept) == 1
    assert kept[0][0] == SYSTEM
    longer = next(list(turns) for turns in without_oldest(record.turns) if len(turns) == len(kept[0]) + 2)
    assert len(encode.form.conversation(longer).ids) > 96
    assert coded.spans == tuple(encode.form.conversation(kept[0]).spans)


def test_of_a_question_that_is_too_long_the_end_is_kept_and_the_whole_answer(base):
    encode = Encoder(base)
    record = talk(3, last="so " * 200 + "What is the dose?")
    coded = encode.coded(record)
    text = text_of(base, encode, record)
    assert len(coded.ids) <= 96
    assert "What is the dose?" in text
    assert "What is 2?" not in text
    assert text.count("Then ask again.") == 1
    assert len(coded.spans) == 1
    assert base.tokenizer.decode(coded.ids[coded.spans[0][0] : coded.spans[0][1]]).strip().endswith("<|im_end|>")


def test_of_an_answer_that_is_too_long_the_beginning_is_kept(base):
    encode = Encoder(base)
    record = Record("Two a day. " + "the of and " * 100, "What is the dose? " * 20)
    coded = encode.coded(record)
    assert len(coded.ids) == 96
    first, last = coded.spans[-1]
    assert first <= 48
    assert last == 96
    assert base.tokenizer.decode(coded.ids[first:last]).lstrip("[think]\n/").startswith("Two a day.")


def test_instructions_without_an_end_leave_room_for_the_answer(base):
    encode = Encoder(base)
    record = Record("Two a day.", "What is the dose?", before=(Turn("system", "so " * 300),))
    coded = encode.coded(record)
    assert len(coded.ids) <= 96
    assert "Two a day." in text_of(base, encode, record)
    assert coded.spans
    assert coded.spans[-1][1] <= len(coded.ids)


@pytest.mark.parametrize("template", [CHATML, INSTRUCT, None])
def test_what_is_asked_leaves_the_room_it_is_told(template, tmp_path):
    base = chat_base(tmp_path, template, context=96)
    encode = Encoder(base)
    for record in (talk(0), talk(30), talk(3, last="so " * 200 + "What?"), talk(0, last="x" * 500)):
        for room in (96, 60, 40):
            ids = encode.asked(record, room)
            assert len(ids) <= room
            if record == talk(0):
                assert ids == encode.form.asked(record.asked)


def test_a_pair_of_a_base_without_template_is_cut_as_ever(tmp_path):
    base = tiny(tmp_path, context=24)
    tok = base.tokenizer
    ids, given = Encoder(base)(Record("abcdefghijklmnopqrst", "0123456789" * 3))
    prompt = tok("0123456789" * 3 + "\n", add_special_tokens=False)["input_ids"]
    assert given == 12
    assert ids[:12] == [tok.bos_token_id, *prompt[-11:]]
    assert ids[12:] == tok("abcdefghijkl", add_special_tokens=False)["input_ids"]


def test_too_long_judges_the_whole_conversation(base):
    encode, clients = Encoder(base), {"a": ClientData((talk(0), talk(30)), (talk(1),))}
    assert fitted("cut", 96, encode, clients) == clients
    assert fitted("drop", 96, encode, clients) == {"a": ClientData((talk(0),), (talk(1),))}
    with pytest.raises(DataError, match="1 of 3 texts are longer"):
        fitted("error", 96, encode, clients)


def test_a_text_of_one_token_without_any_mark_has_no_loss_and_breaks_nothing(tmp_path):
    import torch
    from tests.tiny_bases import filled

    from aulait.core.factors import Trainable
    from aulait.evaluation.losses import EvaluateConfig, evaluate
    from aulait.models import loading
    from aulait.models.loading import AdapterConfig
    from aulait.training.trainer import Learner, LocalTraining, TrainConfig

    base = chat_base(tmp_path, CHATML, context=96)
    assert len(Encoder(base)(Record("x"))[0]) == 1
    learner = Learner(base, TrainConfig())
    start = filled(loading.targets(base, AdapterConfig(targets=("q_proj",))), 2)
    (done,) = learner.train([LocalTraining(start, (Record("x"), Record("y")), Trainable.AB, 1, 2, 1e-2, 1)])
    assert all(torch.isfinite(value).all() for pair in done.adapter.factors.values() for value in pair)
    scores = evaluate(learner, None, {"a": [Record("x"), Record("the of and")]}, EvaluateConfig(records_per_client=2))
    assert scores.tokens == len(Encoder(base)(Record("the of and"))[0]) - 1


def test_conversations_that_the_template_refuses_are_left_out_and_counted(tmp_path):
    # refuses whoever says "No"
    picky = CHATML.replace("{% for message in messages %}", "{% for message in messages %}{% if message['content'] == 'No' %}{{ raise_exception('no') }}{% endif %}", 1)
    encode = Encoder(chat_base(tmp_path, picky, context=96))
    good, bad = talk(0), Record("No", "Really?")
    left, remarks = readable(encode, {"a": ClientData((good, bad), (bad,)), "b": ClientData((bad,), (good,)), "c": ClientData((good, Record("text")), ())})
    assert left == {"a": ClientData((good,), ()), "c": ClientData((good, Record("text")), ())}
    assert [remark[:21] for remark in remarks] == ["a conversation of 'a'"] * 2 + ["a conversation of 'b'"]
    assert "the model's chat template refuses a conversation of the turns user, assistant (no)" in remarks[0]
    assert readable(encode, {"a": ClientData((good,), ())}) == ({"a": ClientData((good,), ())}, ())
    with pytest.raises(DataError, match="refuses a conversation"):
        readable(encode, {"a": ClientData((bad,), ())})
