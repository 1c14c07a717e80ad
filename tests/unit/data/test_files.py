"""Files as people have them: forms told apart, encodings, patterns and folders, owners in one form."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import unicodedata
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from aulait.core.errors import DataError
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.data import sources
from aulait.data.client_data import Corpus, DataConfig, load_clients, problems
from aulait.data.partitions import deal, deal_by_hash
from aulait.data.source_row import Asked
from aulait.data.text_lines import TextLines

ROWS = [{"user": f"u{i % 3}", "text": f'{i}, "quoted"; a|b\tand\na second line é'} for i in range(12)]
ASKED = Asked(("user", "text"))


def read(source: Path | str, **more) -> Corpus:
    return load_clients(DataConfig(**({"source": str(source), "client": "user", "public": ""} | more)), Seeds(0))


def everything(corpus: Corpus) -> dict[str, list[str]]:
    return {name: sorted(r.text for r in part.train + part.holdout) for name, part in corpus.clients.items()}


def wanted(rows=ROWS) -> dict[str, list[str]]:
    names = sorted({row["user"] for row in rows})
    return {name: sorted(row["text"] for row in rows if row["user"] == name) for name in names}


def table(rows, delimiter=",", **more) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, **more)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# --- forms


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.json", json.dumps(ROWS), "a.json, a JSON array, utf-8"),
    ("b.json", json.dumps(ROWS, indent=2, ensure_ascii=False), "b.json, a JSON array, utf-8"),
    ("c.json", "\n".join(map(json.dumps, ROWS)), "c.json, a JSON object a line, utf-8"),
    ("a.csv", table(ROWS), "a.csv, columns apart by commas, utf-8"),
    ("b.csv", table(ROWS, ";"), "b.csv, columns apart by semicolons, utf-8"),
    ("c.csv", table(ROWS, "\t"), "c.csv, columns apart by tabs, utf-8"),
    ("d.csv", table(ROWS, "|"), "d.csv, columns apart by bars, utf-8"),
    ("a.tsv", table(ROWS, "\t"), "a.tsv, columns apart by tabs, utf-8"),
    ("A.CSV", table(ROWS, ";", quoting=csv.QUOTE_ALL), "A.CSV, columns apart by semicolons, utf-8"),
])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_form_gives_the_same_records(tmp_path, name, content, told, packed, mark):
    raw = mark + content.encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    corpus = read(path)
    assert everything(corpus) == wanted()
    assert corpus.malformed == ()
    assert sources.read_as(str(path), ASKED) == told.replace(name, path.name)


def test_a_header_decides_the_delimiter_whatever_the_texts_hold(tmp_path):
    rows = [{"user": f"u{i % 2}", "text": f"{i}, with, many, commas, but no semicolon", "n": i} for i in range(8)]
    (tmp_path / "a.csv").write_text(table(rows, ";"))
    assert everything(read(tmp_path / "a.csv")) == wanted(rows)
    (tmp_path / "b.csv").write_text("user;id,text\n" + "".join(f"u{i % 2};{i},text {i}\n" for i in range(8)))
    with pytest.raises(DataError, match=r"found no field 'user' .*did you mean 'user;id'"):
        read(tmp_path / "b.csv")


def test_quotes_that_are_text_in_a_table_of_tabs(tmp_path):
    rows = [{"user": f"u{i % 2}", "text": f'"Yes" and "no", {i}' if i else '"'} for i in range(8)]
    (tmp_path / "a.tsv").write_text("user\ttext\n" + "".join(f"{r['user']}\t{r['text']}\n" for r in rows))
    assert everything(read(tmp_path / "a.tsv")) == wanted(rows)
    assert "double quotes are text" in sources.read_as(str(tmp_path / "a.tsv"), ASKED)


@pytest.mark.parametrize(("content", "line"), [
    ('[{"user": "a", "text": "x"},\n{"user": "b" "text": "y"}]', 2),
    ('[{"user": "a", "text": "x"},\n{"user": "b", "text": "y"}', 2),
    ('[\n\n{"user": "a", "text": "x"}\n{"user": "b"}]', 4),
    ('[{"user": "a", "te', 1),
])
def test_an_array_that_breaks_off_names_its_line(tmp_path, content, line):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=rf"no JSON array from line {line} on .*\.jsonl") as caught:
        read(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_values_of_an_array_that_are_no_rows(tmp_path):
    rows = [{"user": u, "text": f"{u}{i} " + "long " * 20_000} for u in "ab" for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps([3, *rows, None, {"user": "a"}]))
    corpus = read(tmp_path / "a.json")
    assert everything(corpus) == wanted(rows)
    assert corpus.malformed == ("a.json row 1: found int, expected a JSON object",
                                "a.json row 8: found NoneType, expected a JSON object",
                                "a.json row 9: no field 'text'")
    (tmp_path / "b.json").write_text(" [ ] ")
    with pytest.raises(DataError, match="no usable row among 0"):
        read(tmp_path / "b.json")


# --- columns


def test_columns_that_nobody_asks_for_may_be_anything(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    users, texts = [r["user"] for r in ROWS], [r["text"] for r in ROWS]
    raw = pa.array([b"caf\xe9"] * 12)
    torn = pa.StringArray.from_buffers(12, *raw.buffers()[1:], raw.buffers()[0])
    columns = {"user": users, "text": texts, "note": torn, "until": pa.array([10**18] * 12, pa.timestamp("us"))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    twice = pa.Table.from_arrays([pa.array(users), pa.array(texts), torn, torn], ["user", "text", "x", "x"])
    pq.write_table(twice, tmp_path / "b.parquet")
    (tmp_path / "a.csv").write_bytes(b"user,x,text,x,\n" + b"".join(
        f'{u},caf\xe9,"{t}",,\n'.encode("latin-1") for u, t in zip(users, [f"t{i}" for i in range(12)], strict=True)))
    (tmp_path / "a.jsonl").write_bytes(b"".join(
        b'{"user": "%s", "text": "t%d", "x": "caf\xe9", "x": 1}\n' % (u.encode(), i) for i, u in enumerate(users)))
    for name in ("a.parquet", "b.parquet"):
        assert everything(read(tmp_path / name)) == wanted(), name
    plain = [{"user": u, "text": f"t{i}"} for i, u in enumerate(users)]
    for name in ("a.csv", "a.jsonl"):
        corpus = read(tmp_path / name)
        assert (everything(corpus), corpus.malformed) == (wanted(plain), ()), name


def test_a_value_that_python_cannot_hold_is_a_malformed_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    days = pa.array([1, 10**18, 2, 3], pa.timestamp("us"))
    pq.write_table(pa.table({"user": ["a", "a", "b", "b"], "text": ["1", "2", "3", "4"], "day": days}), tmp_path / "a.parquet")
    found = list(sources.rows(str(tmp_path / "a.parquet"), Asked(("user", "day"))))
    assert [row.fault for row in found] == ["", "field 'day' holds a value outside Python's range", "", ""]
    assert found[0].fields is not None
    assert list(found[0].fields) == ["user", "day"]


def test_a_column_that_is_asked_for_twice_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("user,text,text\n" + "a,b,c\n" * 4)
    arrays = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.Table.from_arrays(arrays, ["user", "text", "text"]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(DataError, match=r"more than one column 'text'") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"user": "u{i % 2}", "text": "t{i}"}}\n' for i in range(8))
                                      + '{"user": "u0", "text": "x", "text": "y"}\n')
    assert read(tmp_path / "a.jsonl").malformed == ("a.jsonl line 9: field 'text' occurs twice",)


def test_a_quote_that_is_never_closed_names_its_line(tmp_path):
    good = "".join(f"u{i % 2},text {i}\n" for i in range(6))
    path = tmp_path / "a.csv"
    path.write_text("user,text\n" + good + 'u0,"open\n' + good)
    with pytest.raises(DataError, match=r"a quote that opens in line 8 is not closed, and takes in the 6 lines"):
        read(path)
    path.write_text("user,text\n" + good + 'u0,"one\ntwo" x\n' + good)
    corpus = read(path)
    (fault,) = corpus.malformed
    assert fault.startswith("a.csv lines 8 to 9: not CSV (")
    assert "opens in line 8" in fault
    assert sum(map(len, everything(corpus).values())) == 6  # the second half repeats the first


# --- encodings


LATIN = [{"user": f"u{i % 3}", "text": f"{i} café à la crème"} for i in range(9)]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8", "utf-8-sig", "utf-32-le"])
def test_any_encoding_that_is_named_is_read(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes(table(LATIN).encode(encoding))
    (tmp_path / "a.json").write_bytes(json.dumps(LATIN, ensure_ascii=False).encode(encoding))
    (tmp_path / "a.jsonl").write_bytes("".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in LATIN).encode(encoding))
    for name in ("a.csv", "a.json", "a.jsonl"):
        assert everything(read(tmp_path / name, encoding=encoding)) == wanted(LATIN), name


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_wrong_encoding_is_one_line_with_the_setting_and_the_line(tmp_path, name):
    text = {"a.csv": table(LATIN), "a.json": json.dumps(LATIN, ensure_ascii=False, indent=1),
            "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in LATIN)}[name]
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"line \d+ is not UTF-8.*data\.encoding = 'utf-8'.*'latin-1'") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match=r"line 1 begins like UTF-16.*data\.encoding = 'utf-16'"):
        read(path)
    path.write_bytes(text.encode())
    with pytest.raises(DataError, match=r"data\.encoding = 'utf-16'|not utf-16|cannot be read"):
        read(path, encoding="utf-16")
    if name != "a.json":
        with pytest.raises(DataError, match=r"data\.encoding = 'cp1250'.* UTF-8; remove data\.encoding"):
            read(path, encoding="cp1250")


def test_a_single_broken_row_stays_a_row(tmp_path):
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in LATIN).encode()
    (tmp_path / "a.jsonl").write_bytes(rows + b'{"user": "u0", "text": "\xff"}\n')
    assert read(tmp_path / "a.jsonl").malformed == ("a.jsonl line 10: not UTF-8",)


def test_the_public_texts_have_an_encoding_of_their_own(tmp_path):
    (tmp_path / "a.csv").write_bytes(table(LATIN).encode("latin-1"))
    (tmp_path / "p.txt").write_text("élan\nœuvre\n", encoding="utf-8")
    corpus = read(tmp_path / "a.csv", encoding="latin-1", public=str(tmp_path / "p.txt"))
    assert sorted(corpus.public) == ["élan", "œuvre"]
    (tmp_path / "p.txt").write_bytes("élan\nà\né\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.public_encoding"):
        read(tmp_path / "a.csv", encoding="latin-1", public=str(tmp_path / "p.txt"))
    more = {"encoding": "latin-1", "public": str(tmp_path / "p.txt"), "public_encoding": "latin-1"}
    assert sorted(read(tmp_path / "a.csv", **more).public) == ["à", "é", "élan"]


@pytest.mark.parametrize("encoding", ["nonsense", "", "hex", "a\0b"])
def test_an_unknown_encoding_is_a_problem_of_the_settings(tmp_path, encoding):
    (line,) = problems(DataConfig(encoding=encoding, public=""))
    assert line.startswith("data.encoding is '")
    (line,) = problems(DataConfig(public_encoding=encoding))
    assert line.startswith("data.public_encoding is '")


# --- patterns and folders


@pytest.fixture
def notes(tmp_path):
    for owner in ("anna", "ben"):
        for i in range(3):
            path = tmp_path / "notes" / owner / "2024" / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"note {i}\nof {owner}\n")
            path.with_suffix(".md").write_text(f"# more {i} of {owner}")
    (tmp_path / "notes" / ".hidden").mkdir()
    (tmp_path / "notes" / ".hidden" / "x.txt").write_text("nobody reads this")
    return tmp_path / "notes"


def test_single_texts_and_whose_they_are(notes):
    texts = {o: sorted([f"note {i}\nof {o}" for i in range(3)] + [f"# more {i} of {o}" for i in range(3)]) for o in ("anna", "ben")}
    assert everything(read(f"{notes}/{{client}}/**/*.*")) == texts
    found = sources.read_as(f"{notes}/{{client}}/**/*.txt", ASKED)
    assert found == "6 files, each one text, utf-8, owners from what stands for {client}"
    only = everything(read(f"{notes}/{{client}}/2024/*.txt"))
    assert only == {o: [t for t in own if t.startswith("note")] for o, own in texts.items()}
    with pytest.raises(DataError, match="found one client '2024'"):  # all lie in folders of this name
        read(notes)
    for path in [*notes.rglob("2024/*.*")]:
        path.rename(path.parents[1] / path.name)
    assert everything(read(notes)) == texts
    assert everything(read(notes, client="whatever")) == texts
    assert sources.read_as(str(notes), ASKED).endswith("owners from the names of folders")
    assert everything(read(f"{notes}/*/*")) == texts


def test_a_part_of_a_name_may_be_the_owner(tmp_path):
    for owner in ("a-1", "b"):
        for i in range(2):
            (tmp_path / f"{owner}_{i}.txt").write_text(f"{owner} says {i}")
    assert list(read(f"{tmp_path}/{{client}}_*.txt").clients) == ["a-1", "b"]


def test_tables_of_a_pattern_are_read_one_after_the_other(tmp_path):
    for k in range(3):
        (tmp_path / f"part{k}.csv").write_text(table(ROWS[4 * k: 4 * k + 4], ",;|"[k]))
    assert everything(read(f"{tmp_path}/part*.csv")) == wanted()
    assert everything(read(tmp_path)) == wanted()
    owners = read(f"{tmp_path}/{{client}}.csv")
    assert list(owners.clients) == ["part0", "part1", "part2"]
    (tmp_path / "part1.csv").write_text("user,text\nu0\n" + "u0,x\n")
    assert read(f"{tmp_path}/part?.csv").malformed == ("part1.csv line 2: found 1 columns, expected 2",)


def test_owners_come_from_the_path_where_tables_name_none(tmp_path):
    for owner in ("north", "south"):
        rows = [{"text": f"{owner} {i}"} for i in range(3)]
        (tmp_path / f"{owner}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = read(f"{tmp_path}/{{client}}.jsonl")
    assert everything(corpus) == {o: [f"{o} {i}" for i in range(3)] for o in ("north", "south")}


@pytest.mark.parametrize(("source", "told"), [
    ("nothing/*.csv", "found no file at"), ("both", r"found tables \(.csv\) and single texts \(.md\)"),
    ("empty", "found no file at"), ("{client}/{client}.csv", "more than once"), ("*.xyz", "found no file at"),
])
def test_paths_that_mean_nothing(tmp_path, monkeypatch, source, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.csv").write_text("user,text\n")
    (tmp_path / "both" / "README.md").write_text("what this is")
    with pytest.raises(DataError, match=told) as caught:
        read(source)
    assert "\n" not in str(caught.value)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "data[1].csv").write_text(table(ROWS))
    assert everything(read(tmp_path / "data[1].csv")) == wanted()


def test_a_document_in_another_encoding_names_its_line(tmp_path):
    for owner in ("a", "b"):
        (tmp_path / owner).mkdir()
        for i in range(2):
            (tmp_path / owner / f"{i}.txt").write_text(f"{owner}{i}")
    (tmp_path / "a" / "2.txt").write_bytes(b"fine\nfine\ncaf\xe9\n")
    assert read(tmp_path).malformed == ("a/2.txt line 3: not UTF-8",)


# --- owners


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_an_owner_has_one_form_in_every_file(tmp_path, form):
    composed, apart = (unicodedata.normalize(how, "Zoé") for how in ("NFC", "NFD"))
    owners = [17, 17.0, "17", " 17 ", composed, f"{apart}\t", "017"]
    rows = [{"user": owner, "text": f"text {i}"} for i, owner in enumerate(owners)]
    path = tmp_path / f"o.{form}"
    path.write_text({"json": json.dumps(rows), "csv": table(rows),
                     "jsonl": "".join(json.dumps(row) + "\n" for row in rows)}[form])
    corpus = read(path, min_records=1, holdout=0.0)
    assert {name: len(part.train) for name, part in corpus.clients.items()} == {"17": 4, "Zoé": 2, "017": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "", "  ", "\ufeff", "NaN", "inf", "-Infinity",
                                   np.float32("nan"), Decimal("Infinity"), [17], {"a": 1}, b"17"])
def test_what_names_nobody_is_no_owner(value):
    with pytest.raises(ValueError, match="field 'user'"):
        sources.unit_field({"user": value}, "user")


@pytest.mark.parametrize("value", [np.int64(17), np.float32(17), np.uint8(17), Decimal("17.0")])
def test_numbers_of_other_libraries_are_numbers(value):
    assert sources.unit_field({"user": value}, "user") == "17"


# --- partitions


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-8, 1e-3, 1e3, 1e300, 1e307, 3e307, 1.7e308])
@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
def test_no_concentration_loses_a_record(alpha, kind):
    records = [Record(f"t{i}", None, f"l{i % 3}") for i in range(60)]
    for seed in range(5):
        dealt = deal(records, kind, 6, 1, alpha, seed)
        assert sorted(r.text for own in dealt for r in own) == sorted(r.text for r in records)
        assert min(map(len, dealt)) >= 1
        hashed = deal_by_hash([(r,) for r in records], kind, 6, alpha, Seeds(seed))
        assert sorted(r.text for own in hashed for r in own) == sorted(r.text for r in records)
    if alpha > 1e100 and kind == "quantity":
        assert {len(own) for own in dealt} == {10}


def test_lines_are_read_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\xff\ntwo")
    found = list(TextLines(tmp_path / "a.txt", Asked()))
    assert found == [(1, "one\r\n", False), (2, "\udcff\n", True), (3, "two", False)]
