"""The scores on held-out text side by side: base, shared adapter, personal adapters, clients that
took no part; and the replies that were refused."""

from __future__ import annotations

from aulait.reporting import numbers, story
from aulait.reporting.folder import RunFiles
from aulait.reporting.markup import PageTable
from aulait.reporting.measures import ALWAYS, TASKS
from aulait.runfolder.schema import Scores

SHOWN = 40
"""Rows of refused replies that are shown."""


def scores_table(run: RunFiles) -> PageTable:
    """A row for each adapter that was scored, a column for each measure that has a value."""
    rows = scored_adapters(run)
    columns = [(measure.key, measure.name, measure.style) for measure in (*TASKS, *ALWAYS)]
    columns += [("count", "records of the task", numbers.count), ("tokens", "tokens",
        numbers.count)]
    found = [column for column in columns
             if any(scores.value(column[0]) is not None for _, scores in rows)]
    lines = [[name, *(numbers.or_dash(scores.value(key), style) for key, _, style in found)]
             for name, scores in rows]
    return PageTable(["scored with", *(name for _, name, _ in found)], lines)


def scored_adapters(run: RunFiles) -> list[tuple[str, Scores]]:
    """What was scored, as (name, scores): the base, the shared adapter, the personal ones, unseen
    clients."""
    before, after = run.result.base_eval, run.result.eval
    own = story.is_personal(run)
    rows = [
        ("base model", before),
        ("shared adapter", after.shared if own else after),
        ("personal adapters", after if own else None),
        ("base model, unseen clients", before.unseen),
        ("shared adapter, unseen clients", after.unseen),
    ]
    return [(name, scores) for name, scores in rows
            if scores is not None and scores.loss is not None]


def refusals(run: RunFiles) -> dict[tuple[str, str], list[str]]:
    """(client, reason) -> the rounds in which such a reply was refused; empty unless privacy was
    off, for only then this may be told."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in run.training if story.is_off(run) else ():
        for entry in line.refused_clients:
            client, _, reason = entry.partition(": ")
            found.setdefault((client, reason), []).append(numbers.count(line.round))
    return found


def refused_replies(run: RunFiles) -> int:
    """Refused replies of all rounds."""
    return sum(map(len, refusals(run).values()))
