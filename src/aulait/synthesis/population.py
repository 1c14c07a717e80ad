"""What stage 1 is told and what it carries: its settings, its texts and its state, which can be
saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from aulait.core.files import JsonMapping
from aulait.core.types import Record
from aulait.core.web_address import secret_problem
from aulait.synthesis.variation import GenerateConfig, Variation


class SynthesisConfig(BaseModel):
    """``[synthesis]``: stage 1; it runs when any tier is proxy.

    Attributes:
        rounds: votes taken, T.
        candidates: parents kept after a vote.
        variations: children of a parent; J = candidates · (1 + variations) stand for election.
        embedder: "minilm" (built in) or any sentence-transformers name or path.
        generator: "base", "brew" (built in), a Hugging Face id or path, or the URL of a server that
            speaks the OpenAI protocol. A sequence-to-sequence base cannot continue texts: name a
            causal model.
        texts: size of the final synthetic set.
        selection: "rank", "sample" (needs no good threshold to keep minorities), "geometry", or
            "random" (no votes are taken at all: the control arm).
        threshold: votes subtracted before sampling, in units of the noise's standard deviation.
        reach: of "geometry": distances between unit vectors beyond it are all the same.
        lookahead: 0 embeds the candidate itself; K > 0 embeds the mean of K variations of it.
        neighbours: candidates a record votes for.
        votes: "private", or "exact" for votes without noise (an arm; the run is then not private).
        voters: "proxy", or "all": local clients vote too and pay for both.
        expansion: the final set is made by "vary" (variations of winners), "write" (new texts after
            three winners as examples), "keep" (the winners themselves, repeated), or "nearest" (the
            public texts nearest to the winners: the votes then say which public texts to learn
                from; for bases that write worse than the public does).
        public_texts: public texts that "nearest" looks at.
        proxies: what proxies learn from: "synthetic", "public" texts, "noise" (their updates
            replaced by noise of the same norm), or "absent". The last three are control arms and
            take no votes.
        proxy_count: sites on the server among which the synthetic set is sharded.
        max_tokens: tokens of a text that the embedder reads.
        generate: how texts are written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rounds: int = Field(5, ge=1)
    candidates: int = Field(60, ge=2)
    variations: int = Field(4, ge=1)
    embedder: str = "minilm"
    generator: str = "base"
    texts: int = Field(600, ge=1)
    selection: Literal["rank", "sample", "geometry", "random"] = "rank"
    threshold: float = Field(1.0, ge=0)
    reach: float = Field(1.0, gt=0)
    lookahead: int = Field(0, ge=0)
    neighbours: int = Field(1, ge=1)
    votes: Literal["private", "exact"] = "private"
    voters: Literal["proxy", "all"] = "proxy"
    expansion: Literal["vary", "write", "keep", "nearest"] = "vary"
    public_texts: int = Field(2000, ge=1)
    proxies: Literal["synthetic", "public", "noise", "absent"] = "synthetic"
    proxy_count: int = Field(12, ge=1, le=1000)
    max_tokens: int = Field(128, ge=8)
    generate: GenerateConfig = GenerateConfig()

    @field_validator("generator")
    @classmethod
    def _no_secret(cls, generator: str) -> str:
        instead = "the environment variable that synthesis.generate.key_variable names"
        if problem := secret_problem(generator, instead):
            raise ValueError(problem)
        return generator

    @property
    def breeds(self) -> bool:
        """Whether stage 1 makes texts, where clients are proxied."""
        return self.proxies in ("synthetic", "noise")

    @property
    def asks_for_votes(self) -> bool:
        """Whether stage 1 asks clients for votes, where some are proxied."""
        return self.breeds and self.selection != "random"

    @property
    def pool(self) -> int:
        """J, the candidates of a vote."""
        return self.candidates * (1 + self.variations)


@dataclass(frozen=True)
class Text:
    """A synthetic text, or a pair of a prompt and the response to it.

    Attributes:
        text: itself; of a pair the response.
        round: the round it was written for; 0 for public texts.
        parent: the text it was bred from, in full; None for public texts.
        votes: released votes it got.
        prompt: what the text responds to; None for plain text.
    """

    text: str
    round: int
    parent: str | None = None
    votes: float = 0.0
    prompt: str | None = None

    @property
    def record(self) -> Record:
        """As a proxy learns it."""
        return Record(self.text, self.prompt)

    @property
    def full(self) -> str:
        """Prompt and text together, as embedded and as shown."""
        return self.record.full

    def as_dict(self) -> dict[str, object]:
        """The fields by name, for JSON; no prompt where there is none."""
        return {key: value for key, value in asdict(self).items()
                if key != "prompt" or value is not None}


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
class EvolutionState:
    """What stage 1 carries from round to round.

    Attributes:
        round: rounds done.
        pool: candidates of the next vote.
        winners: texts kept after each vote, of all rounds.
    """

    round: int
    pool: tuple[Text, ...]
    winners: tuple[Text, ...] = ()

    def dump(self) -> dict[str, object]:
        """For the checkpoint."""
        return asdict(self)

    @staticmethod
    def restore(saved: JsonMapping) -> EvolutionState:
        """From the checkpoint."""
        texts = {key: tuple(Text(**text) for text in saved[key]) for key in ("pool", "winners")}
        return EvolutionState(saved["round"], **texts)
