"""What a row holds: formats told by settings or by the rows, conversations in the shapes that people have."""

from __future__ import annotations

import json

import pytest

from aulait.core.errors import DataError
from aulait.core.seeds import Seeds
from aulait.core.types import Record, Turn
from aulait.core.units import unit_key
from aulait.data.client_data import DataConfig, Faults, gather, load_clients, problems, resolved
from aulait.data.formats import conversation, record_of
from aulait.data.public import first_exchange, read_public
from aulait.data.row_fields import RowFields
from aulait.data.source_row import Asked

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"},
         {"role": "user", "content": "c?"}, {"role": "assistant", "content": "d"}]
WANTED = Record("d", "c?", before=(Turn("system", "Be brief."), Turn("user", "a?"), Turn("assistant", "b")))


def config_of(tmp_path, rows: list[dict], **given) -> DataConfig:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"client": f"c{i % 2}", **row}) + "\n" for i, row in enumerate(rows)))
    return DataConfig(source=str(path), public="", min_records=1, **given)


def sole(tmp_path, row: dict, **given) -> Record:
    config = resolved(config_of(tmp_path, [row], **given))
    (found,) = gather(config, Faults()).values()
    return found[0]


@pytest.mark.parametrize("row", [
    {"messages": TURNS},
    {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(t["role"], "system"), "value": t["content"]} for t in TURNS]},
    {"messages": json.dumps(TURNS)},
    {"messages": [{**t, "content": [{"type": "text", "text": t["content"]}], "name": None} for t in TURNS]},
    {"messages": [*TURNS, {"role": "user", "content": "never answered"}]},
    {"messages": [TURNS[0] | {"role": "developer"}, *TURNS[1:]]},
])
def test_a_conversation_in_every_shape(tmp_path, row):
    assert sole(tmp_path, row) == WANTED


@pytest.mark.parametrize(("row", "record"), [
    ({"prompt": "p", "response": "r"}, Record("r", "p")),
    ({"prompt": "p", "completion": "r"}, Record("r", "p")),
    ({"question": "p", "answer": "r"}, Record("r", "p")),
    ({"instruction": "p", "output": "r"}, Record("r", "p")),
    ({"instruction": "p", "input": "x {y}", "output": "r"}, Record("r", "p\n\nx {y}")),
    ({"instruction": "p", "input": " ", "output": "r"}, Record("r", "p")),
    ({"text": "t", "prompt": "p", "response": "r", "messages": TURNS}, Record("t")),
])
def test_the_first_rows_tell_the_format(tmp_path, row, record):
    assert sole(tmp_path, row) == record


def test_a_pair_is_a_conversation_of_one_exchange(tmp_path):
    chat = sole(tmp_path, {"messages": TURNS[1:3]})
    assert chat == Record("b", "a?")
    assert unit_key(chat) == unit_key(Record("b", "a?"))
    assert chat.turns == (Turn("user", "a?"), Turn("assistant", "b"))


def test_what_is_embedded_is_what_was_said():
    assert WANTED.full == "a?\nb\nc?\nd"
    assert WANTED.asked == WANTED.turns[:-1]
    assert Record("t").turns == ()


def test_conversations_that_differ_in_an_earlier_turn_are_two_units():
    other = Record("d", "c?", before=(Turn("user", "a?"), Turn("assistant", "b")))
    assert len({unit_key(WANTED), unit_key(other), unit_key(Record("d", "c?"))}) == 3
    split = Record("d", "c?", before=(Turn("user", "a?\", \"b"),))
    assert unit_key(split) != unit_key(other)


def test_named_fields_come_first(tmp_path):
    row = {"text": "t", "talk": TURNS, "q": "p", "a": "r", "more": "m"}
    assert sole(tmp_path, row, messages="talk") == WANTED
    assert sole(tmp_path, row, prompt="q", response="a", input="more", join="{input}: {prompt}") == Record("r", "m: p")
    assert sole(tmp_path, row, prompt="q", response="a", format="text") == Record("t")
    assert sole(tmp_path, {**row, "messages": TURNS}, format="chat") == WANTED
    assert sole(tmp_path, {**row, "prompt": "p", "response": "r"}, format="pairs") == Record("r", "p")


def test_resolved_settings_stay_as_they_are(tmp_path):
    for given in ({}, {"format": "chat"}, {"format": "text"}, {"prompt": "p", "response": "r"}):
        once = resolved(config_of(tmp_path, [{"messages": TURNS}], **given))
        assert once.format != "auto"
        assert resolved(once) == once


@pytest.mark.parametrize(("value", "fault"), [
    (None, "no list of turns"), ("not json", "no list of turns"), ([], "no list of turns"), ({"role": "user"}, "no list of turns"),
    ([TURNS[1]], "no assistant's turn that answers another"), ([TURNS[2]], "no assistant's turn that answers another"),
    (["hello", "there"], "turn 1 of field 'messages' is str"), ([{"role": "secret", "content": "x"}], "turn 1 of field 'messages' has no known role"),
    ([TURNS[1], {"role": "assistant", "content": None}], "turn 2 of field 'messages' is empty"),
    ([TURNS[1], {"role": "assistant", "content": 5}], "turn 2 of field 'messages' is int"),
    ([TURNS[1], {"role": "assistant", "content": [{"type": "image"}]}], "a part that is no text"),
    ([TURNS[1], {"role": "assistant", "content": "\ud800"}], "half a character"),
])
def test_what_is_no_conversation_is_a_malformed_row(value, fault):
    with pytest.raises(ValueError, match=fault) as caught:
        conversation({"messages": value}, "messages")
    assert "secret" not in str(caught.value)


def test_malformed_conversations_are_counted_and_the_rest_is_learnt(tmp_path):
    config = config_of(tmp_path, [{"messages": TURNS}, {"messages": TURNS[1:3]}, {"messages": "?"}, {"other": 1}])
    corpus = load_clients(config, Seeds(0))
    assert sum(len(c.train) + len(c.holdout) for c in corpus.clients.values()) == 2
    assert [line.partition(": ")[2] for line in corpus.malformed] == ["field 'messages' is no list of turns", "no field 'messages'"]


def test_what_is_wrong_with_the_settings_is_said_before_work(tmp_path):
    config = config_of(tmp_path, [{"messages": TURNS}])
    assert problems(config) == []
    assert "data.messages: found no field 'talk'" in problems(config.model_copy(update={"messages": "talk"}))[0]
    assert "name them with data.prompt" in problems(config.model_copy(update={"format": "pairs"}))[0]
    for join in ("{prompt}", "{prompt} {input} {other}", "{prompt} {input", "{prompt.x} {input}"):
        assert "data.join" in problems(config.model_copy(update={"join": join}))[0]


def test_public_conversations_start_as_their_first_exchange(tmp_path):
    assert first_exchange(WANTED) == Record("b", "a?")
    path = tmp_path / "public.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"messages": TURNS}, {"messages": TURNS[3:]}, {"messages": 3})))
    found, wrong = read_public(str(path), Asked(), RowFields("chat", messages="messages"))
    assert set(found) == {Record("b", "a?"), Record("d", "c?")}
    assert [fault for _, fault in wrong] == ["field 'messages' is no list of turns"]


def test_public_rows_may_have_other_fields_than_the_private_ones(tmp_path):
    path = tmp_path / "public.jsonl"
    path.write_text(json.dumps({"question": "p", "answer": "r"}) + "\n")
    config = config_of(tmp_path, [{"messages": TURNS}, {"messages": TURNS[1:3]}]).model_copy(update={"public": str(path)})
    assert load_clients(config, Seeds(0)).public == (Record("r", "p"),)
    plain = config.model_copy(update={"public": "stdlib"})
    assert isinstance(load_clients(plain, Seeds(0)).public[0], str)


def test_a_format_without_rows_to_look_at(tmp_path):
    assert resolved(DataConfig(source="sites")).format == "text"
    assert resolved(DataConfig(source="sites", format="chat")).answers
    assert resolved(DataConfig(source=str(tmp_path / "missing.jsonl"))).format == "text"
    with pytest.raises(DataError):
        load_clients(DataConfig(source=str(tmp_path / "missing.jsonl")), Seeds(0))


def test_a_row_by_resolved_fields():
    assert record_of({"text": "t"}, RowFields("text"), "l", "u") == Record("t", None, "l", "u")
