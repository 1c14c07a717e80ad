"""Topics: the words that tell a cell of public texts from the others, and texts written for it.

All of it works on public texts and released votes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.synthesis.corpus_index import shown
from aulait.synthesis.population import Cell, Text, text_of, written
from aulait.synthesis.variation import Variation

EXAMPLES = 24  # texts of a topic that are shown to a generator or counted for its words, at most
WORDS = 5
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]{2,}")


@dataclass(frozen=True)
class Topic:
    """What texts are written for.

    Attributes:
        keywords: words that tell it from the others.
        examples: public texts of it.
        wanted: texts to be written.
    """

    keywords: tuple[str, ...]
    examples: tuple[Text, ...]
    wanted: int


@dataclass(frozen=True)
class Description:
    """What a text is asked for by.

    Attributes:
        about: what the text is, in words; "" where only examples tell.
        keywords: words that it has to do with.
    """

    about: str = ""
    keywords: tuple[str, ...] = ()


@runtime_checkable
class DescribedWriter(Protocol):
    """A generator that also writes what is described in words."""

    def write_described(self, descriptions: Sequence[Description],
                        examples: Sequence[Sequence[str]], seed: int) -> list[str | None]:
        """One text for every description, each after its own examples (none: no examples are
        shown); None where even the redraws failed."""
        ...

    def write_described_pairs(self, descriptions: Sequence[Description],
                              examples: Sequence[Sequence[Record]],
                              seed: int) -> list[Record | None]:
        """One pair of a prompt and a response for every description, likewise."""
        ...


def keywords(texts: Sequence[str | Record], cells: Sequence[Cell]) -> list[list[str]]:
    """The words of every cell, the most telling first: often in the texts of the cell, seldom in
    those of the others (TF-IDF with cells as documents), counted on ``EXAMPLES`` texts a cell."""
    counts = [Counter(word for i in cell.members[:EXAMPLES]
                      for word in set(map(str.lower, _WORD.findall(shown(texts[i])))))
              for cell in cells]
    within = Counter(word for own in counts for word in own)
    found = []
    for own in counts:
        score = {word: count * math.log((1 + len(cells)) / within[word])
                 for word, count in own.items()}
        found.append(sorted(score, key=lambda word: (-score[word], word))[:WORDS])
    return found


def write_topics(generator: Variation, topics: Sequence[Topic], about: str, round: int,
                 seeds: Seeds) -> list[Text]:
    """Texts for topics: as many for each as it wants, fewer where some failed.

    A generator that writes what is described is told the words of the topic and shown three of its
    texts; any other writes in the manner of the topic's texts.
    """
    if not isinstance(generator, DescribedWriter):
        return [text for k, topic in enumerate(topics)
                for text in written(generator, topic.examples, topic.wanted, round,
                                    seeds.integer("topics-write", k))]
    each = [topic for topic in topics for _ in range(topic.wanted)]
    examples = [[topic.examples[(k + i) % len(topic.examples)] for i in range(3)]
                for k, topic in enumerate(each)]
    descriptions = [Description(about, topic.keywords) for topic in each]
    seed = seeds.integer("topics-write")
    made: Sequence[str | Record | None]
    if any(text.prompt is not None for some in examples for text in some):
        pairs = [[text.record for text in some] for some in examples]
        made = generator.write_described_pairs(descriptions, pairs, seed)
    else:
        made = generator.write_described(descriptions, [[text.text for text in some]
                                                        for some in examples], seed)
    return [text_of(text, round) for text in made if text is not None]
