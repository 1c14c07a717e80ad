"""The columns of a comparison, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aulait.report import measures, numbers
from aulait.report.grouping import OTHERS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A title, and the cells below it, one for each row."""

    title: str
    cells: tuple[str, ...]


def columns(rows: Sequence[Row]) -> list[Column]:
    """Scores first, the one that rows are ranked by before the others, then what they cost; columns without a value are left out."""
    lead = measures.headline(rows)
    rest = [m for m in (*measures.TASKS, *measures.ALWAYS) if m is not lead]
    beside = (m for m in dict.fromkeys((lead, measures.LOSS)))
    shared = [(f"{other}_{m.key}", f"{other} {m.name}", m.style) for m in beside for other in OTHERS]
    scores = [(lead.key, lead.name, lead.style), *shared, *((m.key, m.name, m.style) for m in rest)]
    found = [_scores(rows, *score) for score in scores if any(row.get(score[0]) is not None for row in rows)]
    costs = [_costs("MB up", rows, "up_bytes"), _costs("MB down", rows, "down_bytes"),
             Column("seconds", tuple(_plain(row.get("wall_s")) for row in rows))]
    return [Column("n", tuple(map(_count, rows))), *found, Column("epsilon, at most", tuple(map(_epsilon, rows))), *costs]


def _scores(rows: Sequence[Row], key: str, title: str, style: Any) -> Column:
    def cell(row: Row) -> str:
        if row.get(key) is not None:
            return numbers.spread(row[key], row.get(f"{key}_std"), style)
        return "–" if row["n"] else "not finished"

    return Column(title, tuple(map(cell, rows)))


def _costs(title: str, rows: Sequence[Row], key: str) -> Column:
    return Column(title, tuple("–" if row.get(key) is None else _plain(row[key] / 1e6) for row in rows))


def _plain(value: Any) -> str:
    return "–" if value is None else numbers.significant(value)


def _count(row: Row) -> str:
    return f"{row['n']}" + (f" (+{row['unfinished']} unfinished)" if row["unfinished"] else "")


def _epsilon(row: Row) -> str:
    void = "" if row["private"] or row["epsilon_max"] is None else " (void)"
    return numbers.epsilon(row["epsilon_max"]) + void if row["n"] else "–"
