"""The columns of a comparison, the same in the terminal and on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aulait.reporting import measures, numbers
from aulait.reporting.arms import plain_label
from aulait.reporting.grouping import BESIDE
from aulait.reporting.measures import ComparisonRow, Measure
from aulait.reporting.numbers import Style

WORDS: Final = ("arm", "method", "not comparable")


@dataclass(frozen=True)
class Column:
    """A title, and the cells below it, one for each row."""

    title: str
    cells: tuple[str, ...]


def comparison_columns(rows: Sequence[ComparisonRow], timed: bool = True) -> list[Column]:
    """The arm; scores, first the one that rows are ranked by; what they cost; more scores. What no
    row has is left out.

    ``timed``: with virtual time among the costs.
    """
    lead = measures.ranking_measure(rows)
    first = list(dict.fromkeys((lead, *measures.TASKS, measures.LOSS)))
    beside = [(f"{other}_{m.key}", f"{other} {m.name}", m.style)
              for m in dict.fromkeys((lead, measures.LOSS)) for other in BESIDE]
    last = [(m.key, m.name, m.style) for m in measures.ALWAYS if m not in first]

    def shown(scores: Sequence[tuple[str, str, Style]]) -> list[Column]:
        return [_scores(rows, *score) for score in scores if any(row.get(score[0]) is not None
            for row in rows)]

    return [
        *_names(rows),
        Column("n", tuple(map(_count, rows))),
        *shown([(m.key, m.name, m.style) for m in first]),
        *_behind(rows, lead),
        *_differs(rows),
        *shown(beside),
        Column("epsilon, at most", tuple(map(_epsilon, rows))),
        _costs("MB up", rows, "up_bytes"),
        _costs("MB down", rows, "down_bytes"),
        Column("seconds", tuple(_plain(row.get("rounds_s")) for row in rows)),
        *(virtual_time_columns(rows) if timed else ()),
        *shown(last),
    ]


def word_columns(found: Sequence[Column]) -> list[int]:
    """Which columns hold words."""
    return [index for index, column in enumerate(found) if column.title in WORDS]


def arm_column(rows: Sequence[ComparisonRow]) -> Column:
    """The labels of the arms."""
    return Column("arm", tuple(plain_label(row["arm"]) for row in rows))


def _names(rows: Sequence[ComparisonRow]) -> list[Column]:
    """The arm, and the method where the arms' labels do not say it."""
    told = all(set(re.split(r"[\s=]", str(row["arm"]))) & {str(row["algorithm"])} for row in rows)
    return (
        [arm_column(rows)] if told
        else [arm_column(rows), Column("method", tuple(str(row["algorithm"]) for row in rows))]
    )


def _scores(rows: Sequence[ComparisonRow], key: str, title: str, style: Style) -> Column:
    def cell(row: ComparisonRow) -> str:
        if row.get(key) is not None:
            return numbers.spread(row[key], row.get(f"{key}_std"), style)
        return "–" if row["n"] else "not finished"

    return Column(title, tuple(map(cell, rows)))


def _differs(rows: Sequence[ComparisonRow]) -> list[Column]:
    """In what arms were measured otherwise than most; nothing where all may be compared."""
    if not any(row.get("differs") for row in rows):
        return []
    return [Column("not comparable", tuple(row.get("differs") or "–" for row in rows))]


def _behind(rows: Sequence[ComparisonRow], lead: Measure) -> list[Column]:
    """How far arms are behind the first, seed by seed; nothing where no two share a seed."""
    def cell(row: ComparisonRow) -> str:
        gap = row.get("behind")
        if gap is None:
            return "–"
        if gap["told"] is None:
            return f"{lead.style(gap['mean'])} (one seed)"
        text = f"{lead.style(gap['mean'])} [{lead.style(gap['low'])}, {lead.style(gap['high'])}]"
        return text if gap["told"] else f"{text}, a tie"

    told = any(row.get("behind") for row in rows)
    return [Column("behind the first", tuple(map(cell, rows)))] if told else []


def _costs(title: str, rows: Sequence[ComparisonRow], key: str) -> Column:
    return Column(title, tuple("–" if row.get(key) is None else _plain(row[key] / 1e6)
                               for row in rows))


def virtual_time_columns(rows: Sequence[ComparisonRow]) -> list[Column]:
    """Virtual time, where a row has it: to the target loss, until the end, waiting, energy."""
    aim = next((row["target_loss"] for row in rows if row.get("target_loss") is not None), None)
    columns = [
        Column("virtual seconds", tuple(_plain(row.get("virtual_s")) for row in rows)),
        Column("clients waiting", tuple("–" if row.get("idle_share") is None
            else numbers.percent(row["idle_share"], 0) for row in rows)),
        Column("energy", tuple(numbers.energy(row["energy_j"]) if row.get("energy_j") else "–"
                               for row in rows)),
    ]
    until = (
        [] if aim is None
        else [Column(f"virtual seconds to loss {numbers.loss(aim)}", tuple(map(_until, rows)))]
    )
    return [*until, *columns] if any(row.get("virtual_s") is not None for row in rows) else []


def _until(row: ComparisonRow) -> str:
    """Mean seconds to the target with the least and the most, and how many seeds reached it where
    not all did."""
    told = row.get("time_to_target_s")
    if told is None or not told["of"]:
        return "–"
    if not told["reached"]:
        return "not reached"
    between = f" ({_plain(told['min'])}–{_plain(told['max'])})" if told["reached"] > 1 else ""
    return (
        _plain(told["mean"]) + between + (f", {told['reached']} of {told['of']} seeds"
            if told["reached"] < told["of"] else "")
    )


def _plain(value: object) -> str:
    return "–" if value is None else numbers.significant(value)


def _count(row: ComparisonRow) -> str:
    return f"{row['n']}" + (f" (+{row['unfinished']} unfinished)" if row["unfinished"] else "")


def _epsilon(row: ComparisonRow) -> str:
    """An epsilon with what it protects, where that is not a client."""
    void = "" if row["private"] or row["epsilon_max"] is None else " (void)"
    unit = f" a {row['unit']}" if row["epsilon_max"] is not None and row["unit"] != "client" else ""
    return f"{numbers.epsilon(row['epsilon_max'])}{unit}{void}" if row["n"] else "–"
