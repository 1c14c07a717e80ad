"""The table of synthetic texts: what each is, what it descends from, how many votes it got.

A text of the table is released: it is public, or follows from released votes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aulait.reporting import numbers
from aulait.reporting.folder import RunFiles
from aulait.runfolder.schema import SyntheticLine

MOST_ROWS: Final = 1200
MOST_LETTERS: Final = 400_000
LONGEST: Final = 420
DEEPEST: Final = 40
"""Steps from a text back to the public one that it descends from; a circle ends there too."""
ORIGINS: Final = {"public": "public word for word", "varied": "varied from a candidate",
                  "written": "written after examples or for a description"}
"""How a text came about, as the page says it."""
WON, KEPT, FINAL = "won votes", "kept", "final set"


@dataclass(frozen=True)
class TextRow:
    """A row of the table.

    Attributes:
        text: with its prompt before it; shortened.
        place: that it won votes in a round, was kept in one, or is of the final set.
        round: in which it won, or was made; None where that is not recorded.
        votes: as released, with noise; None without.
        origin: how it came about, in words; empty where that is not recorded.
        parent: the text that it was made from, or words about it; empty without.
        public: the public text at the head of its line of parents; empty where that is not known,
            or is the text itself or its parent.
        times: how often it stands in the final set; 0 elsewhere.
    """

    text: str
    place: str
    round: float | None
    votes: float | None
    origin: str
    parent: str
    public: str
    times: int = 0


@dataclass(frozen=True)
class TextTable:
    """The rows that are shown, of how many there are."""

    rows: Sequence[TextRow]
    of: int

    @property
    def left_out(self) -> int:
        """Rows that are not shown."""
        return self.of - len(self.rows)


def text_table(run: RunFiles) -> TextTable:
    """Texts that won votes, round by round, then the final set, each text once. Of too many every
    so many-th is left."""
    known = _lineage(line for lines in (*(line.winners for line in run.synthesis), run.synthetic)
                     for line in lines)
    rows = [_row(winner, WON, line.round, known)
            for line in run.synthesis for winner in line.winners if winner.text]
    won = {winner.text for line in run.synthesis for winner in line.winners}
    rows += [_row(SyntheticLine(text=text), KEPT, line.round, known)
             for line in run.synthesis for text in line.samples if text not in won]
    counted = Counter((line.prompt, line.text) for line in run.synthetic if line.text)
    first = {(line.prompt, line.text): line for line in reversed(run.synthetic) if line.text}
    rows += [_row(first[key], FINAL, first[key].round, known, times)
             for key, times in counted.items()]
    letters = sum(len(row.text) + len(row.parent) + len(row.public) for row in rows)
    room = min(MOST_ROWS, MOST_LETTERS * len(rows) // max(1, letters))
    step = max(1, -(-len(rows) // max(1, room)))
    return TextTable(rows[::step], len(rows))


def full_text(line: SyntheticLine) -> str:
    """A text, after its prompt where it has one."""
    return f"{line.prompt}\n{line.text or ''}" if line.prompt else line.text or ""


def shortened(text: str, limit: int = LONGEST) -> str:
    """At most so many letters."""
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _lineage(lines: Iterable[SyntheticLine]) -> dict[str, SyntheticLine]:
    """Text -> a line that tells of it; the first that does."""
    found: dict[str, SyntheticLine] = {}
    for line in lines:
        found.setdefault(full_text(line), line)
    return found


def _row(line: SyntheticLine, place: str, at: float | None, known: Mapping[str, SyntheticLine],
         times: int = 0) -> TextRow:
    parent = _parent(line)
    public = _public_ancestor(line, known)
    near = public in (full_text(line), line.parent)
    return TextRow(shortened(full_text(line)), place, at, line.votes,
                   ORIGINS.get(line.origin or "", line.origin or ""), parent,
                   "" if near else shortened(public, 200), times)


def _parent(line: SyntheticLine) -> str:
    """The parent as a text, or what is known of it."""
    if isinstance(line.parent, str):
        return shortened(line.parent, 200)
    if line.parent is not None:
        return f"text {numbers.count(line.parent)}"
    if line.texts is not None:
        return f"one of {numbers.counted(line.texts, 'text')} on {line.topic}"
    return ""


def _public_ancestor(line: SyntheticLine, known: Mapping[str, SyntheticLine]) -> str:
    """The public text that a line of parents begins with; empty where it is not recorded."""
    for _ in range(DEEPEST):
        if line.origin == "public":
            return full_text(line)
        above = known.get(line.parent) if isinstance(line.parent, str) else None
        if above is None:
            return ""
        line = above
    return ""
