"""The scores on held-out text side by side: base, shared adapter, personal adapters, clients that
took no part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aulait.reporting import markup, numbers, story
from aulait.reporting.folder import Run, Table, at, number, sequence
from aulait.reporting.markup import Html
from aulait.reporting.measures import ALWAYS, TASKS

SHOWN = 40
"""Rows of refused replies that are shown."""


def table(run: Run) -> Html:
    """A row for each adapter that was scored, a column for each measure that has a value."""
    rows = kinds(run)
    if not rows:
        return markup.absent("Scores on held-out text")
    found = [measure for measure in (*TASKS, *ALWAYS)
             if any(number(at(scores, measure.key)) is not None for _, scores in rows)]
    counts = [(key, name) for key, name in (("count", "records of the task"), ("tokens", "tokens"))
              if any(number(at(scores, key)) is not None for _, scores in rows)]
    head = ["scored with", *(measure.name for measure in found), *(name for _, name in counts)]
    lines = []
    for name, scores in rows:
        values = [_or_dash(scores.get(measure.key), measure.style) for measure in found]
        lines.append([name, *values, *(_or_dash(scores.get(key), numbers.count) for key,
            _ in counts)])
    return markup.join(markup.table(head, lines), markup.note(_legend(run)))


def kinds(run: Run) -> list[tuple[str, Mapping[str, Any]]]:
    """What was scored, as (name, scores): the base, the shared adapter, the personal ones, unseen
    clients."""
    before, after = run.result.get("base_eval"), run.result.get("eval")
    shared = at(after, "shared")
    own = story.is_personal(run)
    rows = [
        ("base model", before),
        ("shared adapter", shared if own else after),
        ("personal adapters", after if own else None),
        ("base model, unseen clients", at(before, "unseen")),
        ("shared adapter, unseen clients", at(after, "unseen")),
    ]
    return [(name, scores) for name, scores in rows if isinstance(scores, Mapping)
            and number(scores.get("loss")) is not None]


def _legend(run: Run) -> str:
    text = (
        "Losses are in nats per token, over all held-out tokens; the mean client's loss counts "
        "every client once."
    )
    if story.is_personal(run):
        text += " Personal adapters: each client's held-out text under its own adapter."
    if at(run.result, "eval", "unseen") is not None:
        text += (
            " Unseen clients took no part in the training; they have the shared adapter and no "
            "other."
        )
    return text


def refused(run: Run) -> Html:
    """Replies that were left out, by client and reason; only without privacy, where this may be
    told."""
    lines = refusals(run)
    if not lines:
        return Html("")
    rows = [[client, reason, ", ".join(rounds)] for (client, reason),
            rounds in list(lines.items())[:SHOWN]]
    more = f" {len(lines) - SHOWN:,} more are in rounds.jsonl." if len(lines) > SHOWN else ""
    note = markup.note(f"A refused reply enters no mean; the round went on without it.{more}")
    listed = markup.table(["client", "reason", "rounds"], rows, words=(0, 1, 2))
    return markup.folded(f"Refused replies: {numbers.count(count(run))}", markup.join(listed, note),
                         unfolded=True)


def refusals(run: Run) -> dict[tuple[str, str], list[str]]:
    """(client, reason) -> the rounds in which such a reply was refused; empty unless privacy was
    off."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in run.stage("train") if story.is_off(run) else ():
        for entry in _entries(line):
            client, _, reason = entry.partition(": ")
            found.setdefault((client, reason), []).append(numbers.count(line.get("round")))
    return found


def count(run: Run) -> int:
    """Refused replies of all rounds."""
    return sum(len(rounds) for rounds in refusals(run).values())


def _entries(line: Table) -> list[str]:
    return [entry for entry in sequence(line.get("refused_clients")) if isinstance(entry, str)]


def _or_dash(value: Any, style: Any) -> str:
    return "–" if number(value) is None else str(style(value))
