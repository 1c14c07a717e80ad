"""Numbers are sorted as the records they stand for, and few of these are looked at."""

from __future__ import annotations

import itertools
import random

from aulait.core.types import Record, Turn
from aulait.data.distinct import distinct, distinct_numbers, lead

TEXTS = ["", "a", "a\x00", "ab", "abcdefg", "abcdefgh", "abcdefgi", "\x00", "zebra", "Ärger", "日本語の文", "\U0001f600", "\uffff"]
RECORDS = [Record(text, prompt, label, unit, before)
           for text, prompt, label, unit, before in itertools.product(
               TEXTS, [None, "a", "abcdefghi", "abcdefghj", "é"], [None, "l"], [None, "17", "u"],
               [(), (Turn("user", "b"), Turn("assistant", "c"))])]


def content(record):
    return (record.unit or "", record.prompt or "", record.text, tuple((t.role, t.content) for t in record.before))


def test_a_smaller_lead_is_sorted_first():
    dice = random.Random(0)
    for one, two in (dice.choices(RECORDS, k=2) for _ in range(20_000)):
        if lead(one) < lead(two):
            assert content(one) < content(two)
        assert 0 <= lead(one) < 1 << 64


def test_numbers_are_those_of_the_distinct_records():
    dice = random.Random(1)
    for size in (0, 1, 2, 30, 400):
        records = dice.choices(RECORDS, k=size)
        looked_at = []
        leads = [lead(record) for record in records]
        found = distinct_numbers(range(size), leads, lambda number: looked_at.append(number) or records[number])  # noqa: B023
        assert [records[number] for number in found] == distinct(records)
        assert all(leads.count(leads[number]) > 1 for number in looked_at)


def test_of_equal_records_the_one_with_the_first_label_is_kept():
    records = [Record("a", None, "z"), Record("a", None, "b"), Record("b"), Record("a", None, None)]
    found = distinct_numbers([0, 1, 2], [lead(r) for r in records], records.__getitem__)
    assert [records[number] for number in found] == [Record("a", None, "b"), Record("b")]
