"""Which records are too long: the same as counted one by one, and few of them are read by the tokenizer."""

from __future__ import annotations

import pytest

from aulait.core.errors import DataError
from aulait.core.types import Record, Turn
from aulait.data import builtin
from aulait.data.client_data import ClientData
from aulait.data.record_store import RecordStore
from aulait.models import loading
from aulait.models.loading import ModelConfig
from aulait.training import batches
from aulait.training.batches import Encoder, too_long
from aulait.training.context_length import fitted

TEXTS = [row["text"] for row in builtin.docstrings()][:600]
RECORDS = [*map(Record, TEXTS[:200]), *(Record(a, b) for a, b in zip(TEXTS[200:300], TEXTS[300:400], strict=True)),
           *(Record(a, b, before=(Turn("system", "be kind"), Turn("user", a), Turn("assistant", b)))
             for a, b in zip(TEXTS[400:420], TEXTS[420:440], strict=True))]


@pytest.fixture(scope="module")
def base():
    return loading.load_base(ModelConfig(context=64))


@pytest.mark.parametrize("most", [8, 64, 100, 10_000])
def test_long_records_are_those_that_are_counted_one_by_one(base, monkeypatch, most):
    monkeypatch.setattr(batches, "AT_ONCE", 37)
    encode = Encoder(base)
    wanted = [(place, encode.length(record)) for place, record in enumerate(RECORDS) if encode.length(record) > most]
    assert list(too_long(encode, most, RECORDS)) == wanted
    assert list(too_long(encode, most, iter(RECORDS))) == wanted


def test_most_records_are_known_to_fit_from_their_words(base, monkeypatch):
    read = []
    counted = batches.counted
    monkeypatch.setattr(batches, "counted", lambda tokenizer, texts: read.extend(texts) or counted(tokenizer, texts))
    records = [Record(" ".join(text.split()[:60])) for text in TEXTS] * 5
    assert list(too_long(Encoder(base), 250, records)) == []
    assert len(read) < 0.05 * len(records)


def test_what_is_left_where_long_records_go(base):
    store = RecordStore(0)
    long, short = Record("word " * 100), [Record(f"short {i}") for i in range(6)]
    numbers = [store.append(record) for record in (*short[:2], long, *short[2:], long)]
    clients = {"a": ClientData(store.records(numbers[:4]), store.records(numbers[4:])),
               "b": ClientData((long,), (short[0],)), "c": ClientData((short[1],), ())}
    encode = Encoder(base)
    left = fitted("drop", 64, encode, clients)
    assert {name: (tuple(c.train), tuple(c.holdout)) for name, c in left.items()} == {
        "a": ((short[0], short[1], short[2]), (short[3], short[4], short[5])), "c": ((short[1],), ())}
    assert fitted("cut", 64, encode, clients) == clients
    with pytest.raises(DataError, match=r"3 of 11 texts are longer than model\.context = 64 tokens"):
        fitted("error", 64, encode, clients)
