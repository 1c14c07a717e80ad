"""More files as people have them: line ends, packing, kinds of columns, numbers, names, turns."""

from __future__ import annotations

import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aulait.core.errors import DataError
from aulait.core.seeds import Seeds
from aulait.core.types import Record, Turn
from aulait.data import sources
from aulait.data.client_data import Corpus, DataConfig, load_clients

USERS = ["a", "a", "b", "b"]
TEXTS = ["one", "two", "three", "four"]
PLAIN = {"a": {"one", "two"}, "b": {"four", "three"}}


def read(source: Path, **more) -> Corpus:
    given = {"source": str(source), "client": "user", "public": "", "min_records": 1, "holdout": 0.0}
    return load_clients(DataConfig(**(given | more)), Seeds(0))


def texts(corpus: Corpus) -> dict[str, set[str]]:
    return {name: {record.text for record in own.train} for name, own in corpus.clients.items()}


@pytest.mark.parametrize("content", [
    b"user,text\r\na,one\r\na,two\r\nb,three\r\nb,four\r\n",
    b"user,text\ra,one\ra,two\rb,three\rb,four\r",
    b"\xef\xbb\xbfuser,text\n\n\na,one\na,two\n\nb,three\nb,four",
    b'"user","text"\n"a","one"\n"a","two"\n"b","three"\n"b","four"\n',
    b"text,n,user\none,1,a\ntwo,,a\nthree,x,b\nfour,,b\n",
    b"user;text;score\na;one;1,5\na;two;2,5\nb;three;0,1\nb;four;3,0\n",
    b"user|text\na|one\na|two\nb|three\nb|four\n",
    b"sep=;\nuser;text\na;one\na;two\nb;three\nb;four\n",
], ids=["crlf", "cr", "mark_and_empty_lines", "quotes", "order", "decimal_commas", "bars", "sep"])
def test_a_table_however_it_is_written(tmp_path, content):
    for name, data in (("t.csv", content), ("u.csv.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        corpus = read(tmp_path / name)
        assert (texts(corpus), corpus.malformed) == (PLAIN, ())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \n"])
def test_lines_of_json_however_they_end(tmp_path, end):
    rows = [json.dumps({"user": u, "text": t}) for u, t in zip(USERS, TEXTS, strict=True)]
    (tmp_path / "a.jsonl").write_bytes(end.join(rows).encode("utf-8-sig"))
    assert texts(read(tmp_path / "a.jsonl")) == PLAIN


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.NDJSON", "a.jsonl.gz"])
@pytest.mark.parametrize("form", ["array", "indented", "lines"])
def test_json_is_told_by_what_the_file_holds(tmp_path, name, form):
    rows = [{"user": u, "text": t} for u, t in zip(USERS, TEXTS, strict=True)]
    content = ("\n".join(map(json.dumps, rows)) if form == "lines"
               else " \n" + json.dumps(rows, indent=2 if form == "indented" else None))
    packed = name.endswith(".gz")
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    corpus = read(tmp_path / name)
    assert (texts(corpus), corpus.malformed) == (PLAIN, ())
    assert ("a JSON array" if form != "lines" else "a JSON object a line") in sources.read_as(
        str(tmp_path / name))


def test_what_follows_an_array_is_not_lost_in_silence(tmp_path):
    rows = json.dumps([{"user": u, "text": t} for u, t in zip(USERS, TEXTS, strict=True)])
    (tmp_path / "a.json").write_text(f"{rows}\n{rows}")
    with pytest.raises(DataError, match=r"from line 2 on \(expected nothing after the array"):
        read(tmp_path / "a.json")


def test_rows_that_are_lists_are_malformed_rows(tmp_path):
    rows = ["[1, 2]", *(json.dumps({"user": u, "text": t})
                        for u, t in zip(USERS, TEXTS, strict=True))]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    corpus = read(tmp_path / "a.jsonl")
    assert texts(corpus) == PLAIN
    assert corpus.malformed == ("a.jsonl line 1: found list, expected a JSON object",)


@pytest.mark.parametrize("source", ["", " "])
def test_no_source_is_not_the_current_folder(tmp_path, monkeypatch, source):
    (tmp_path / "a.csv").write_text("user,text\na,one\na,two\nb,three\nb,four\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is empty; give a path"):
        read(source)


@pytest.mark.parametrize("more", [
    "1" * 5000, "-" + "9" * 6000, "1e999", "-1E-999", "[[[[]]]]", '{"a": {"b": null}}', '"\\ud800"', "NaN",
])
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_field_that_nobody_asks_for_may_be_anything(tmp_path, more, form):
    rows = [f'{{"x": {more}, "user": "{u}", "text": "{t}"}}' for u, t in zip(USERS, TEXTS, strict=True)]
    (tmp_path / f"a.{form}").write_text("\n".join(rows) if form == "jsonl" else f"[{','.join(rows)}]")
    corpus = read(tmp_path / f"a.{form}")
    assert (texts(corpus), corpus.malformed) == (PLAIN, ())


def test_a_very_long_number_is_an_owner_as_it_is_written(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(
        f'{{"user": {digit * 5000}, "text": "{text}"}}\n' for digit, text in zip("1122", TEXTS, strict=True)))
    assert sorted(map(len, texts(read(tmp_path / "a.jsonl")))) == [5000, 5000]


@pytest.mark.parametrize("make", [
    lambda v: pa.array(v).dictionary_encode(),
    lambda v: pa.array(v, pa.large_string()),
    lambda v: pa.array(v, pa.string_view()),
    lambda v: pa.array(v),
], ids=["dictionary", "large", "view", "string"])
def test_texts_of_any_kind_of_column(tmp_path, make):
    pq.write_table(pa.table({"user": make(USERS), "text": make(TEXTS)}), tmp_path / "a.parquet")
    assert texts(read(tmp_path / "a.parquet")) == PLAIN


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.float16(), pa.decimal128(5, 2),
                                  pa.string()], ids=str)
def test_an_owner_has_one_form_in_every_kind_of_column(tmp_path, kind):
    numbers = [7, 7, 8, 8]
    made = pa.array(map(str, numbers), kind) if kind == pa.string() else pa.array([float(n) for n in numbers]).cast(kind, safe=False)
    pq.write_table(pa.table({"user": made, "text": TEXTS}), tmp_path / "a.parquet")
    assert sorted(texts(read(tmp_path / "a.parquet"))) == ["7", "8"]


def test_columns_whose_names_have_dots_or_hold_others(tmp_path):
    pq.write_table(pa.table({"user.name": USERS, "user": [{"name": "x", "id": 1}] * 4, "the text": TEXTS}),
                   tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", client="user.name", text="the text")
    assert texts(found) == PLAIN


def test_columns_beside_those_asked_for_may_be_of_any_kind(tmp_path):
    far = pa.array([Decimal("1.5")] * 4)
    pq.write_table(pa.table({
        "user": USERS, "text": TEXTS, "d": far, "day": [datetime.date(1, 1, 1)] * 4, "map": pa.array(
            [[("k", 1)]] * 4, pa.map_(pa.string(), pa.int32())), "none": pa.nulls(4), "raw": [b"\xff"] * 4,
        "time": pa.array([2**62] * 4, pa.timestamp("ns", "Europe/Paris")), "long": pa.array([2**62] * 4, pa.duration("s")),
        "deep": [[[{"a": [1]}]]] * 4}), tmp_path / "a.parquet")
    corpus = read(tmp_path / "a.parquet")
    assert (texts(corpus), corpus.malformed) == (PLAIN, ())


@pytest.mark.parametrize(("one", "other"), [
    ("Zo\u00eb", "Zoe\u0308"), ("\u212b", "\u00c5"), (" x\u00a0", "x"), ("\u200bx\ufeff", "x"), ("-0", "0"), ("5.000", "5"),
    (2**53, float(2**53)), (1e3, 1000), (-3.0, "-3"), ("\uac00", "\u1100\u1161"), (10**20, 1e20),
])
def test_two_spellings_of_one_owner(one, other):
    assert sources.unit_field({"u": one}, "u") == sources.unit_field({"u": other}, "u")


@pytest.mark.parametrize(("one", "other"), [("017", "17"), ("a", "A"), ("1.5", "15"), ("1_0", "10"), ("\u0661", "1"),
                                            (0.1, "0"), ("x y", "xy"), ("17a", "17")])
def test_owners_that_are_two(one, other):
    assert sources.unit_field({"u": one}, "u") != sources.unit_field({"u": other}, "u")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_packed_file_that_breaks_off_is_one_line(tmp_path, name):
    rows = "".join(json.dumps({"user": f"u{i % 9}", "text": f"{i * i * 7919} text"}) + "\n" for i in range(4000))
    (tmp_path / name).write_bytes(gzip.compress(rows.encode())[:-2000])
    with pytest.raises(DataError, match="a\\.") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    (tmp_path / name).write_bytes(rows.encode())  # not packed at all
    with pytest.raises(DataError, match="a\\.") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["e.jsonl", "e.json", "e.csv", "e.tsv", "e.jsonl.gz"])
def test_an_empty_file_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    with pytest.raises(DataError, match="e\\.") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


TURNS = [("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
ASKED = Record("a2", "u2", before=(Turn("user", "u1"), Turn("assistant", "a1")))


@pytest.mark.parametrize(("field", "turns"), [
    ("messages", [{"role": r, "content": c} for r, c in TURNS]),
    ("messages", [{"role": r.upper(), "content": [{"type": "text", "text": c}]} for r, c in TURNS]),
    ("messages", json.dumps([{"role": r, "content": c} for r, c in TURNS])),
    ("messages", [{"role": r, "content": c, "name": "n", "weight": 1} for r, c in TURNS]),
    ("messages", [*({"role": r, "content": c} for r, c in TURNS), {"role": "user", "content": "thanks"}]),
    ("messages", [{"role": "system", "content": ""}, *({"role": r, "content": c} for r, c in TURNS)]),
    ("conversations", [{"from": {"user": "human", "assistant": "gpt"}[r], "value": c} for r, c in TURNS]),
    ("conversations", [{"from": {"user": "human", "assistant": "ai"}[r], "value": c} for r, c in TURNS]),
    ("conversation", [{"role": r, "content": c, "timestamp": None} for r, c in TURNS]),
    ("conversation", [{"role": {"user": "User", "assistant": "Chatbot"}[r], "text": c} for r, c in TURNS]),
])
def test_conversations_as_public_data_sets_have_them(tmp_path, field, turns):
    rows = [{"user": user, field: turns} for user in "ab"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = read(tmp_path / "a.jsonl")
    assert [own.train for own in corpus.clients.values()] == [(ASKED,), (ASKED,)]
