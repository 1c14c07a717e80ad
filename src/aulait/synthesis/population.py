"""What stage 1 carries: its texts and its state, which can be saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from aulait.core.files import JsonMapping
from aulait.core.types import Record
from aulait.synthesis.variation import Variation

Origin = Literal["public", "varied", "written"]


@dataclass(frozen=True)
class Text:
    """A synthetic text, or a pair of a prompt and the response to it.

    Attributes:
        text: itself; of a pair the response.
        round: the round it was written for; 0 for public texts.
        parent: the text it was bred from, in full; None for public texts.
        votes: released votes it got.
        prompt: what the text responds to; None for plain text.
        origin: how it came about, where round and parent do not tell; see ``provenance``.
    """

    text: str
    round: int
    parent: str | None = None
    votes: float = 0.0
    prompt: str | None = None
    origin: Origin | None = None

    @property
    def record(self) -> Record:
        """As a proxy learns it."""
        return Record(self.text, self.prompt)

    @property
    def full(self) -> str:
        """Prompt and text together, as embedded and as shown."""
        return self.record.full

    @property
    def provenance(self) -> Origin:
        """"public" (taken as it is), "varied" (from a parent) or "written" (after examples, or for
        a description)."""
        return self.origin or (
            "public" if self.round == 0 else "written" if self.parent is None else "varied")

    def as_dict(self) -> dict[str, object]:
        """The fields by name, for JSON; no prompt where there is none."""
        told = {key: value for key, value in asdict(self).items()
                if key != "prompt" or value is not None}
        return told | {"origin": self.provenance}


def text_of(source: str | Record, round: int, parent: str | None = None) -> Text:
    """A text or a pair as a candidate."""
    return (
        Text(source, round, parent) if isinstance(source, str) else Text(source.text, round, parent,
            prompt=source.prompt)
    )


def children(variation: Variation, parents: Sequence[Text], round: int,
             seed: int) -> list[Text | None]:
    """One child for every parent, in order; None where it failed. The child of a pair is a pair."""
    made: Sequence[str | Record | None]
    if any(parent.prompt is not None for parent in parents):
        made = variation.vary_pairs([parent.record for parent in parents], seed)
    else:
        made = variation.vary([parent.text for parent in parents], seed)
    return [text_of(child, round, parent.full) if child else None
            for child, parent in zip(made, parents, strict=True)]


def written(variation: Variation, examples: Sequence[Text], count: int, round: int,
            seed: int) -> list[Text]:
    """New texts, or pairs, in the manner of the examples; fewer than ``count`` where some
    failed."""
    made: Sequence[str | Record]
    if any(example.prompt is not None for example in examples):
        made = variation.write_pairs([example.record for example in examples], count, seed)
    else:
        made = variation.write([example.text for example in examples], count, seed)
    return [text_of(text, round) for text in made]


@dataclass(frozen=True)
class Cell:
    """Public texts that stood for election together.

    Attributes:
        members: their numbers among the public texts.
        votes: released.
        weight: what is left of the votes above the noise, at least 0; texts are drawn by it.
        parts: into how many parts its votes carry a division; None is any number.
    """

    members: tuple[int, ...]
    votes: float
    weight: float
    parts: int | None = None


@dataclass(frozen=True)
class EvolutionState:
    """What stage 1 carries from round to round.

    Attributes:
        round: votes done.
        pool: candidates of the next vote on texts.
        winners: texts kept after each vote, of all rounds.
        cells: public texts that the last vote on cells left, where texts are retrieved.
    """

    round: int
    pool: tuple[Text, ...]
    winners: tuple[Text, ...] = ()
    cells: tuple[Cell, ...] = ()

    def dump(self) -> dict[str, object]:
        """For the checkpoint."""
        return asdict(self)

    @staticmethod
    def restore(saved: JsonMapping) -> EvolutionState:
        """From the checkpoint."""
        texts = {key: tuple(Text(**text) for text in saved[key]) for key in ("pool", "winners")}
        cells = tuple(Cell(tuple(cell["members"]), cell["votes"], cell["weight"], cell["parts"])
                      for cell in saved.get("cells", ()))
        return EvolutionState(saved["round"], **texts, cells=cells)
