"""Which records are protected together."""

from aulait.core.types import Record
from aulait.core.units import unit_key, units


def test_a_record_is_a_unit_by_its_content_whatever_its_label():
    same = Record("a", "p", label="x"), Record("a", "p", label="y")
    assert unit_key(same[0]) == unit_key(same[1])
    assert units(same) == [same]


def test_prompt_and_text_do_not_run_into_one_another():
    apart = [Record("bc", "a"), Record("c", "ab"), Record("abc"), Record("abc", "")]
    assert len({unit_key(record) for record in apart}) == 4


def test_records_of_one_value_are_one_unit_in_the_order_of_their_first_record():
    a, b, c = Record("1", unit="anna"), Record("2", unit="bert"), Record("3", unit="anna")
    assert units([a, b, c]) == [(a, c), (b,)]


def test_a_value_is_never_taken_for_a_text():
    assert unit_key(Record("x", unit="record|0|True|y")) != unit_key(Record("y"))
