"""Data: sources, fields, caps, hold-outs, partitions; every expected value is written by hand or counted anew."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from aulait.core.errors import DataError
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.data import builtin
from aulait.data.client_data import EVERYONE, NAMED_ROWS, Corpus, DataConfig, load_clients, problems
from aulait.data.hub_datasets import hub_parts
from aulait.data.partitions import deal

SEEDS = Seeds(3)


def rows_of(sizes: dict[str, int]) -> list[dict]:
    return [
        {"client": name, "text": f"text {i} of {name}", "label": f"l{i % 3}"}
        for name, n in sizes.items()
        for i in range(n)
    ]


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(source: str, seeds: Seeds = SEEDS, **more) -> Corpus:
    return load_clients(DataConfig(**({"source": source, "public": ""} | more)), seeds)


def texts(records) -> list[str]:
    return [record.text for record in records]


def all_records(corpus: Corpus) -> list[Record]:
    return [record for part in corpus.clients.values() for record in part.train + part.holdout]


# --- caps and hold-outs


def test_sizes_of_cap_and_holdout(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"one": 1, "two": 2, "ten": 10, "big": 500}))
    corpus = read(source, records_per_client=27, holdout=0.1)
    sizes = {name: (len(part.train), len(part.holdout)) for name, part in corpus.clients.items()}
    # ten: round(1.0) held; big: 50 held, cut to 27 · 0.1 / 0.9 = 3; two: at least one is held; one: below min_records.
    assert sizes == {"big": (27, 3), "ten": (9, 1), "two": (1, 1)}
    assert list(corpus.clients) == sorted(corpus.clients)
    assert corpus.left_out == 1
    assert corpus.malformed == ()


def test_a_large_holdout_leaves_a_record_to_learn_from(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"two": 2, "four": 4}))
    part = read(source, holdout=0.9).clients
    assert (len(part["two"].train), len(part["two"].holdout)) == (1, 1)
    assert (len(part["four"].train), len(part["four"].holdout)) == (1, 3)  # round(3.6) = 4 would leave none


def test_no_holdout(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"one": 1, "ten": 10}))
    parts = read(source, holdout=0.0, min_records=1).clients
    assert all(part.holdout == () for part in parts.values())
    assert [len(part.train) for part in parts.values()] == [1, 10]


def test_holdout_is_disjoint_from_train_and_duplicates_are_gone(tmp_path):
    rows = rows_of({"a": 40, "b": 40})
    corpus = read(jsonl(tmp_path / "a.jsonl", rows * 3), records_per_client=1000, holdout=0.25)
    for name, part in corpus.clients.items():
        assert not set(part.train) & set(part.holdout)
        together = texts(part.train + part.holdout)
        assert sorted(together) == sorted(f"text {i} of {name}" for i in range(40))


def test_records_are_distinct_by_text_not_by_label(tmp_path):
    rows = [{"client": c, "text": t, "label": x} for c in "ab" for t in ("same", "other") for x in ("z", "y")]
    corpus = read(jsonl(tmp_path / "a.jsonl", rows), label="label", holdout=0.0)
    assert sorted(corpus.clients["a"].train, key=lambda r: r.text) == [Record("other", None, "y"), Record("same", None, "y")]


# --- determinism


def test_same_seed_same_data_and_row_order_is_irrelevant(tmp_path):
    rows = rows_of({"a": 60, "b": 45, "c": 7})
    first = read(jsonl(tmp_path / "a.jsonl", rows), records_per_client=20)
    again = read(jsonl(tmp_path / "a.jsonl", rows), records_per_client=20)
    turned = read(jsonl(tmp_path / "b.jsonl", rows[::-1]), records_per_client=20)
    assert first == again == turned
    other = read(jsonl(tmp_path / "a.jsonl", rows), Seeds(4), records_per_client=20)
    assert other.clients["a"] != first.clients["a"]


def test_a_client_is_cut_without_a_look_at_the_others(tmp_path):
    alone = read(jsonl(tmp_path / "a.jsonl", rows_of({"a": 60, "b": 9})), records_per_client=20)
    more = read(jsonl(tmp_path / "b.jsonl", rows_of({"a": 60, "b": 9, "0": 77})), records_per_client=20)
    assert {name: more.clients[name] for name in "ab"} == alone.clients


def test_the_cap_is_a_random_choice_of_its_own(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"a": 60, "b": 60}))
    one, two = (read(source, seeds, holdout=0.0, records_per_client=20).clients for seeds in (SEEDS, Seeds(4)))
    numbers = [{text.split()[1] for text in texts(part.train)} for part in (one["a"], one["b"], two["a"])]
    assert len({frozenset(chosen) for chosen in numbers}) == 3
    assert read(source, holdout=0.0, records_per_client=25).clients["a"].train[:20] == one["a"].train


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity"])
def test_partitions_do_not_depend_on_row_order(tmp_path, kind):
    rows = rows_of({"a": 60, "b": 45})
    more = {"partition": kind, "clients": 5, "label": "label"}
    one = read(jsonl(tmp_path / "a.jsonl", rows), **more)
    assert one == read(jsonl(tmp_path / "b.jsonl", rows[::-1]), **more)
    assert one != read(jsonl(tmp_path / "a.jsonl", rows), Seeds(9), **more)


# --- fields


def test_prompt_and_response_replace_text(tmp_path):
    rows = [{"hospital": h, "q": f"what is {i}?", "a": f"it is {i}", "kind": i % 2} for h in (1, 2) for i in range(5)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    corpus = read(source, client="hospital", prompt="q", response="a", label="kind")
    assert list(corpus.clients) == ["1", "2"]
    assert Record("it is 3", "what is 3?", "1") in all_records(corpus)


def test_keeping_some_natural_clients(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({f"c{i}": 4 for i in range(20)} | {"small": 1}))
    corpus = read(source, clients=6)
    assert len(corpus.clients) == 6
    assert corpus.left_out == 1
    assert set(read(source, clients=5).clients) < set(corpus.clients)  # a smaller choice is part of a larger one
    assert set(read(source, Seeds(8), clients=6).clients) != set(corpus.clients)
    with pytest.raises(DataError, match=r"found 20 clients with at least 2 records \(1 left out\), expected 21"):
        read(source, clients=21)


def test_pooled_is_the_union_after_cap_and_split(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"a": 50, "b": 50, "c": 3}))
    apart, together = (read(source, records_per_client=10, pooled=pooled) for pooled in (False, True))
    assert list(together.clients) == [EVERYONE]
    assert Counter(together.clients[EVERYONE].train) == Counter(r for p in apart.clients.values() for r in p.train)
    assert Counter(together.clients[EVERYONE].holdout) == Counter(r for p in apart.clients.values() for r in p.holdout)
    assert len(read(jsonl(tmp_path / "b.jsonl", rows_of({"only": 9})), pooled=True).clients) == 1


# --- unseen clients


def test_unseen_clients_take_no_part(tmp_path):
    sizes = {f"c{i}": 20 + i for i in range(12)}
    source = jsonl(tmp_path / "a.jsonl", rows_of(sizes))
    whole, apart = read(source, records_per_client=10), read(source, records_per_client=10, unseen=4)
    assert whole.unseen == {}
    assert len(apart.unseen) == 4
    assert list(apart.unseen) == sorted(apart.unseen)
    assert set(apart.unseen) | set(apart.clients) == set(sizes)
    assert apart.clients == {name: part for name, part in whole.clients.items() if name not in apart.unseen}
    for name, own in apart.unseen.items():
        assert len(set(own)) == 10
        assert all(record.text.endswith(f"of {name}") for record in own)
    assert set(read(source, unseen=2).unseen) < set(apart.unseen)
    assert set(read(source, Seeds(8), unseen=4).unseen) != set(apart.unseen)
    turned = read(jsonl(tmp_path / "b.jsonl", rows_of(dict(reversed(sizes.items())))), records_per_client=10, unseen=4)
    assert turned == apart


def test_unseen_clients_are_chosen_by_name(tmp_path):
    one, two = ({f"c{i}": size for i in range(9)} for size in (5, 8))
    first, second = (read(jsonl(tmp_path / f"{i}.jsonl", rows_of(sizes)), unseen=3) for i, sizes in enumerate((one, two)))
    assert set(first.unseen) == set(second.unseen)
    assert {len(own) for own in first.unseen.values()} == {5}  # fewer than the cap: all


@pytest.mark.parametrize("more", [{"clients": 7}, {"clients": 7, "partition": "iid"}])
def test_unseen_clients_are_some_of_the_clients(tmp_path, more):
    source = jsonl(tmp_path / "a.jsonl", rows_of({f"c{i}": 9 for i in range(20)}))
    whole, apart = read(source, **more), read(source, unseen=3, **more)
    assert set(apart.clients) | set(apart.unseen) == set(whole.clients)
    assert (len(apart.clients), len(apart.unseen)) == (4, 3)


def test_pooled_clients_do_not_hold_the_unseen(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"a": 9, "b": 9, "c": 9}))
    apart, together = (read(source, unseen=1, pooled=pooled) for pooled in (False, True))
    assert together.unseen == apart.unseen
    everyone = together.clients[EVERYONE]
    assert Counter(everyone.train + everyone.holdout) == Counter(all_records(apart))
    assert list(read(source, unseen=2, pooled=True).clients) == [EVERYONE]


def test_too_many_unseen_clients(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"a": 9, "b": 9, "c": 9}))
    with pytest.raises(DataError, match=r"data\.unseen is 2 and 3 clients were found, expected at least 2 to be left that take part"):
        read(source, unseen=2)
    with pytest.raises(DataError, match=r"data\.unseen is 3 and 3 clients were found, expected at least 1"):
        read(source, unseen=3, pooled=True)


# --- malformed rows


def test_every_malformed_kind_is_named_by_line(tmp_path):
    good = [json.dumps(row).encode() for row in rows_of({"a": 3, "b": 3})]
    bad = [
        (b'{"client": "a", "text"', "not JSON"),
        (b'{"client": "a", "text": "caf\xe9"}', "not UTF-8"),
        (b'["a", "b"]', "found list, expected a JSON object"),
        (b'{"client": "a"}', "no field 'text'"),
        (b'{"text": "no owner"}', "no field 'client'"),
        (b'{"client": "a", "text": "  "}', "field 'text' is empty"),
        (b'{"client": "a", "text": null}', "field 'text' is empty"),
        (b'{"client": "", "text": "no owner"}', "field 'client' is empty"),
        (b'{"client": "a", "text": 17}', "field 'text' is int, expected text"),
        (b'{"client": ["a"], "text": "x"}', "field 'client' is list, expected text"),
        (b'{"client": "a", "text": "\\ud800"}', "field 'text' holds half a character (a lone surrogate)"),
        (b"[" * 100_000, "not JSON"),
    ]
    path = tmp_path / "a.jsonl"
    # Line 1 is malformed too: it must not be taken for the shape of the file. Line 2 is blank and no fault.
    path.write_bytes(b"\n".join([bad[3][0], b""] + good + [line for line, _ in bad]))
    corpus = read(str(path))
    wanted = ["a.jsonl line 1: no field 'text'"]
    wanted += [f"a.jsonl line {number}: {fault}" for number, (_, fault) in enumerate(bad, 3 + len(good))]
    assert list(corpus.malformed) == wanted
    assert len(all_records(corpus)) == 6


def test_only_a_thousand_malformed_rows_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n" * 1_234 + "".join(json.dumps(row) + "\n" for row in rows_of({"a": 2, "b": 2})))
    lines = read(str(path)).malformed
    assert len(lines) == NAMED_ROWS + 1
    assert lines[999] == "a.jsonl line 1000: not JSON"
    assert lines[-1] == "and 234 more malformed rows (1234 in total)"


def test_a_client_without_a_good_row_is_counted(tmp_path):
    rows = [*rows_of({"a": 2, "b": 2}), {"client": "c", "text": ""}, {"client": "c", "text": 5}]
    corpus = read(jsonl(tmp_path / "a.jsonl", rows))
    assert corpus.left_out == 1
    assert list(corpus.clients) == ["a", "b"]


def test_nothing_usable(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n")
    with pytest.raises(DataError, match=r"no usable row among 1; first fault: a.jsonl line 1: not JSON"):
        read(str(path))
    path.write_text("")
    with pytest.raises(DataError, match="no usable row among 0"):
        read(str(path))
    with pytest.raises(DataError, match="found no client with at least 3 records"):
        read(jsonl(path, rows_of({"a": 2, "b": 1})), min_records=3)


def test_one_client_is_refused_with_the_ways_out(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"alone": 5}))
    with pytest.raises(DataError) as caught:
        read(source)
    assert str(caught.value) == (
        "found one client 'alone', expected at least 2; name another field with data.client, choose a partition, "
        "or data.pooled = true"
    )


# --- file kinds


def test_all_file_kinds_give_the_same_corpus(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = rows_of({"a": 12, "b": 9})
    rows[0]["text"] = 'café, "quoted"\nand a second line'
    plain = jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + Path(plain).read_bytes()))
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["client", "text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    wanted = read(plain, label="label")
    assert wanted.malformed == ()
    for name in ("a.jsonl.gz", "a.csv", "a.parquet"):
        assert read(str(tmp_path / name), label="label") == wanted, name


def test_malformed_csv_rows(tmp_path):
    path = tmp_path / "a.csv"
    long = "x" * 200_000
    path.write_bytes(
        b'client,text\na,one\na,"two\nlines"\nb,caf\xe9\nb,one,more\n\nb,good\nb,' + long.encode() + b'\na,\nb,"open\nno end'
    )
    corpus = read(str(path))
    assert list(corpus.malformed) == [
        "a.csv line 5: not UTF-8",
        "a.csv line 6: found 3 columns, expected 2",
        "a.csv line 10: field 'text' is empty",
        "a.csv lines 11 to 12: not CSV (unexpected end of data; a quote that opens in line 11 is not closed)",
    ]
    assert sorted(texts(all_records(corpus))) == ["good", "one", "two\nlines", long]


def test_malformed_parquet_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"fine", b"caf\xe9", b"good", None, b"x", b"y"])
    broken = pyarrow.StringArray.from_buffers(6, *raw.buffers()[1:], raw.buffers()[0])
    table = pyarrow.table({"client": ["a", "a", "a", "a", "b", "b"], "text": broken})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    corpus = read(str(tmp_path / "a.parquet"))
    assert list(corpus.malformed) == ["a.parquet row 2: not UTF-8", "a.parquet row 4: field 'text' is empty"]
    assert sorted(texts(all_records(corpus))) == ["fine", "good", "x", "y"]


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"no parquet"), ("a.jsonl.gz", b"no gzip")])
def test_a_broken_container_is_one_clear_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}' cannot be read") as caught:
        read(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_hub_dataset_in_a_local_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    folder = tmp_path / "set"
    folder.mkdir()
    wanted = read(jsonl(tmp_path / "a.jsonl", rows_of({"a": 6, "b": 5})))
    jsonl(folder / "train.jsonl", rows_of({"a": 6, "b": 5}))
    jsonl(folder / "test.jsonl", rows_of({"t": 3, "u": 3}))
    assert read(f"hf:{folder}").clients == wanted.clients
    assert sorted(read(f"hf:{folder}:test").clients) == ["t", "u"]
    with pytest.raises(DataError, match="cannot be loaded"):
        read(f"hf:{folder}:nosuch")
    datasets.Dataset.from_list(rows_of({"a": 6, "b": 5})).save_to_disk(tmp_path / "saved")
    assert read(f"hf:{tmp_path / 'saved'}").clients == wanted.clients


def test_a_hub_dataset_without_a_network_is_one_clear_line(monkeypatch):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("Couldn't reach 'x/y'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"'hf:x/y' cannot be loaded \(ConnectionError: Couldn't reach 'x/y' on") as caught:
        read("hf:x/y")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("imdb", ("imdb", None, "train")),
        ("a/b:test", ("a/b", None, "test")),
        ("a/b:small:test", ("a/b", "small", "test")),
        ("/x/y z", ("/x/y z", None, "train")),
        ("/x:y/z:test", ("/x:y/z", None, "test")),
        ("C:\\data\\set", ("C:\\data\\set", None, "train")),
    ],
)
def test_parts_of_a_hub_name(written, parts):
    assert hub_parts(written) == parts


# --- problems


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"holdout": 1.0}, "data.holdout is 1.0; expected 0 to 0.9"),
        ({"holdout": float("nan")}, "data.holdout is nan"),
        ({"records_per_client": 0}, "data.records_per_client is 0"),
        ({"min_records": 0}, "data.min_records is 0"),
        ({"dirichlet_alpha": 0.0}, "data.dirichlet_alpha is 0.0"),
        ({"clients": 1}, "data.clients is 1; expected 2 or more"),
        ({"clients": 1, "unseen": 1}, "data.clients is 1; expected 2 or more"),
        ({"unseen": -1}, "data.unseen is -1; expected 0 or more"),
        ({"unseen": -1, "clients": 5}, "data.unseen is -1; expected 0 or more"),
        ({"unseen": 4, "clients": 5}, "data.unseen is 4 of data.clients = 5; expected at least 2 to be left that take part"),
        ({"unseen": 5, "clients": 5, "pooled": True}, "data.unseen is 5 of data.clients = 5; expected at least 1 to be left"),
        ({"prompt": "q"}, "found only one of data.prompt and data.response"),
        ({"response": "a"}, "found only one of data.prompt and data.response"),
        ({"partition": "iid"}, "data.partition is 'iid' without data.clients"),
        ({"partition": "dirichlet", "clients": 3}, "data.partition is 'dirichlet' without data.label"),
        ({"source": "docstring"}, "data.source: source 'docstring' is unknown; did you mean 'docstrings'?"),
        ({"public": "stdlbi"}, "data.public: source 'stdlbi' is unknown; did you mean 'stdlib'?"),
        ({"source": "no/such.jsonl"}, "data.source: found no file 'no/such.jsonl'"),
        ({"source": "data.json"}, "data.source: found no file 'data.json'"),
        ({"source": "data.txt"}, "data.source: found 'data.txt', expected a path that ends in .jsonl"),
        ({"source": "hf: "}, "data.source: found 'hf:' without a dataset"),
    ],
)
def test_each_bad_setting_is_one_line(settings, words):
    found = problems(DataConfig(**settings))
    assert len(found) == 1
    assert found[0].startswith(words)
    assert "\n" not in found[0]
    with pytest.raises(DataError, match=r"^data\.|^found only one"):
        load_clients(DataConfig(**settings), SEEDS)


def test_missing_fields_name_the_nearest(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"hospital": "h", "texts": "t"}])
    found = problems(DataConfig(source=source, client="hospitl"))
    assert found == [
        f"data.client: found no field 'hospitl' in '{source}'; did you mean 'hospital'?",
        f"data.text: found no field 'text' in '{source}'; did you mean 'texts'?",
    ]
    assert problems(DataConfig(source=source, client="hospital", text="texts")) == []
    assert problems(DataConfig(source=source, text="texts", partition="iid", clients=2)) == []
    assert problems(DataConfig(public=source)) == [
        f"data.public_text: found no field 'text' in '{source}'; did you mean 'texts'?"
    ]


def test_all_problems_at_once_and_none_by_default():
    assert len(problems(DataConfig(holdout=-1, min_records=0, source="x.json"))) == 3
    assert problems(DataConfig()) == []


def test_config_is_closed_and_frozen():
    with pytest.raises(ValidationError):
        DataConfig(nonsense=1)
    with pytest.raises(ValidationError):
        DataConfig(partition="random")
    with pytest.raises(ValidationError):
        DataConfig().source = "x"


# --- partitions


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity"])
@pytest.mark.parametrize("alpha", [0.01, 0.5, 100.0])
def test_partitions_sum_to_the_whole(tmp_path, kind, alpha):
    rows = rows_of({"a": 60, "b": 43})
    for row in rows:
        del row["client"]
    source = jsonl(tmp_path / "a.jsonl", rows)
    more = {"partition": kind, "clients": 11, "label": "label", "dirichlet_alpha": alpha, "records_per_client": 999}
    corpus = read(source, min_records=4, **more)
    assert list(corpus.clients) == [f"client-{i:02d}" for i in range(11)]
    assert Counter(texts(all_records(corpus))) == Counter(row["text"] for row in rows)
    assert min(len(p.train) + len(p.holdout) for p in corpus.clients.values()) >= 4
    assert corpus.left_out == 0


def test_iid_is_equal_and_quantity_and_labels_are_not():
    records = [Record(f"text {i}", None, f"l{i % 4}") for i in range(202)]

    def sizes(kind, alpha):
        return sorted(len(own) for own in deal(records, kind, 8, 2, alpha, seed=1))

    assert sizes("iid", 0.1) == [25] * 6 + [26] * 2
    assert deal(records, "iid", 8, 2, 0.1, seed=1) != deal(records, "iid", 8, 2, 0.1, seed=2)
    assert sizes("quantity", 0.1)[-1] > 60
    assert sizes("quantity", 1e6)[0] >= 24
    skewed = deal(records, "dirichlet", 8, 2, 0.05, seed=1)
    mixed = deal(records, "dirichlet", 8, 2, 1e6, seed=1)

    def purity(dealt):
        return sum(max(Counter(r.label for r in own).values()) for own in dealt) / len(records)

    assert purity(skewed) > 0.6
    assert purity(mixed) < 0.32  # four equal labels: one quarter, and rounding


def test_a_partition_of_too_few_records():
    with pytest.raises(DataError, match="found 5 distinct records, expected at least 6 for 3 clients"):
        deal([Record(str(i)) for i in range(5)], "iid", 3, 2, 0.5, seed=0)


# --- public texts


def test_public_texts_from_files(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", rows_of({"a": 3, "b": 3}))
    (tmp_path / "p.txt").write_bytes(b"one line\n\n two \none line\nbad \xff\n")
    corpus = read(source, public=str(tmp_path / "p.txt"))
    assert sorted(corpus.public) == ["one line", "two"]
    assert corpus.malformed == ("p.txt line 5: not UTF-8",)
    rows = [{"body": f"public {i}"} for i in range(50)]
    one = read(source, public=jsonl(tmp_path / "p.jsonl", rows * 2), public_text="body").public
    two = read(source, public=jsonl(tmp_path / "q.jsonl", rows[::-1]), public_text="body").public
    assert one == two
    assert sorted(one) == sorted(row["body"] for row in rows)
    assert list(one) != sorted(one)
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(DataError, match="found no text in field 'text'"):
        read(source, public=str(tmp_path / "p.txt"))


# --- built-in sources


ASSETS = Path(builtin.__file__).parent / "assets"


def test_docstrings_are_a_federation():
    rows = builtin.docstrings()
    counts = Counter(row["client"] for row in rows)
    assert len(counts) == 60
    assert sum(n >= 10 for n in counts.values()) >= 30
    assert max(counts.values()) <= 100
    assert max(Counter(name.split(".")[0] for name in counts).values()) <= 5
    assert len({row["text"] for row in rows}) == len(rows)
    assert all(40 <= len(row["text"]) <= 500 for row in rows)
    corpus = load_clients(DataConfig(), SEEDS)
    assert len(corpus.clients) == 60
    assert len(corpus.public) >= 1_000
    assert corpus.malformed == ()


def test_public_texts_of_the_standard_library():
    rows = builtin.standard_library()
    assert {"argparse", "json", "zipfile"} <= {row["client"] for row in rows}
    assert len({row["text"] for row in rows}) == len(rows) >= 1_000
    assert all(40 <= len(row["text"]) <= 500 for row in rows)


def test_built_in_texts_are_those_that_results_were_measured_with():
    """Other texts change results, so they need a line in CHANGELOG and new figures."""
    rows = builtin.docstrings() + builtin.standard_library()
    found = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert found == "2f3d97ddc80d13e494af1a572159c605a2d14a5a1bca4910a41f96129903b842"


def test_every_package_of_the_built_in_texts_is_named_with_its_licence():
    licences = (ASSETS / "LICENCES.txt").read_text(encoding="utf-8")
    head, *sections = re.split(r"\n={100}\n(?=\S+ \S+, )", licences)
    named = dict(re.findall(r"^(\w+) \S+: (\S+)$", head, re.MULTILINE))
    packages = {row["client"].split(".")[0] for row in builtin.docstrings()}
    assert set(named) == packages | {"Python"}
    assert set(named.values()) <= {"Apache-2.0", "BSD-3-Clause", "MIT", "PSF-2.0"}
    assert {section.split()[0] for section in sections} == set(named)
    silent = [section.split()[0] for section in sections if "copyright" not in section.lower()]
    assert silent == []


# --- real data


def real(name: str) -> str:
    root = Path(__file__).resolve().parents[3]
    folders = [os.environ.get("AULAIT_TEST_DATA"), root / "shared/data", root.parent / "shared/data"]
    for folder in folders:
        if folder and (path := Path(folder) / name / "data.jsonl").is_file():
            return str(path)
    pytest.skip(f"no {name} on this machine")


@pytest.mark.parametrize(
    ("name", "more", "clients"),
    [
        ("medquad", {"client": "source", "prompt": "question", "response": "answer"}, 9),
        ("commit_messages_numpy", {"client": "user", "min_records": 5}, 380),
    ],
)
def test_real_data_load_quickly(name, more, clients):
    started = time.process_time()
    corpus = read(real(name), **more)
    assert time.process_time() - started < 3.0
    assert len(corpus.clients) == clients
    assert corpus.malformed == ()
