"""Many records lie in a file: the corpus is the same, and their texts are not in memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from aulait.core.seeds import Seeds
from aulait.core.types import Record, Turn
from aulait.data import record_store
from aulait.data.client_data import DataConfig, load_clients
from aulait.data.record_store import RecordStore, StoredRecords, picked
from aulait.data.unit_rule import UnitRule

RECORDS = [Record("ein Text"), Record("antwort é", "frage\n?"), Record("x" * 5000, None, "label", "unit"), Record("\U0001f600"),
           Record("a", "b", None, "17", (Turn("system", "be kind"), Turn("user", "u"), Turn("assistant", "v")))]


def test_records_come_back_as_they_were_from_memory_and_from_the_file():
    for most in (0, 10, 10_000_000):
        store = RecordStore(most)
        assert [store.append(record) for record in RECORDS] == list(range(len(RECORDS)))
        assert store.append(RECORDS[0]) == len(RECORDS)
        assert [store[number] for number in (4, 3, 2, 1, 0)] == RECORDS[::-1]
        more = store.append(replace(RECORDS[0], text="later"))
        assert store[more].text == "later"
        some = store.records([2, 0, 4])
        assert isinstance(some, tuple) is (most > 10_000)
        assert tuple(some) == (RECORDS[2], RECORDS[0], RECORDS[4])
        assert tuple(picked(some, [2, 1])) == (RECORDS[4], RECORDS[0])
        assert (len(some), some[-1], tuple(some[1:])) == (3, RECORDS[4], (RECORDS[0], RECORDS[4]))
        assert some == (RECORDS[2], RECORDS[0], RECORDS[4])
        assert some != (RECORDS[2], RECORDS[0])
        assert hash(some) == hash((RECORDS[2], RECORDS[0], RECORDS[4]))


@pytest.mark.parametrize("more", [{}, {"choice": "hash"}, {"holdout": 0.0}, {"records_per_client": 3}, {"pooled": True},
                                  {"unseen": 2}, {"partition": "dirichlet", "clients": 4}, {"clients": 3}])
def test_where_records_lie_changes_nothing(tmp_path, monkeypatch, more):
    rows = [{"client": f"c{i % 7}", "text": f"text {i % 60}", "label": f"l{i % 3}", "patient": i % 11} for i in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(source=str(tmp_path / "a.jsonl"), public="", label="label", records_per_client=30)
    config = config.model_copy(update=more)
    rule = UnitRule(more.get("choice") == "hash", "patient" if "choice" in more else None)
    held = load_clients(config, Seeds(1), rule)
    store = RecordStore.__init__
    monkeypatch.setattr(RecordStore, "__init__", lambda self: store(self, 100))
    filed = load_clients(config, Seeds(1), rule)
    assert {n: (tuple(c.train), tuple(c.holdout)) for n, c in filed.clients.items()} == {
        n: (c.train, c.holdout) for n, c in held.clients.items()}
    assert {n: tuple(own) for n, own in filed.unseen.items()} == held.unseen
    if "partition" not in more and "pooled" not in more:
        assert all(isinstance(client.train, StoredRecords) for client in filed.clients.values())
    assert record_store.IN_MEMORY > 1_000_000
