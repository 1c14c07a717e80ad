"""The table ``[synthesis]``: what stage 1 is told."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from aulait.core.web_address import secret_problem
from aulait.synthesis.variation import GenerateConfig

Source = Literal["write", "retrieve", "both"]


class RetrieveConfig(BaseModel):
    """``[synthesis.retrieve]``: how public texts are retrieved by votes, with source "retrieve" or
    "both".

    Attributes:
        levels: votes, coarse to fine: first on clusters of the public texts, then on the parts of
            the clusters that won.
        cells: candidates of a vote, at most.
        threshold: votes subtracted from every released count before texts are drawn, in units of
            the noise's standard deviation.
        split: votes of a cell, in the same unit, for every part that it is divided into; so a cell
            is never divided further than its votes carry. Without noise only ``cells`` limits.
        written: with source "both", the share of the final set that the generator writes.
        cache: folder in which vectors and clusters of a large public corpus are kept for other
            runs; "" is ``corpora`` in the user's cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    levels: int = Field(2, ge=1, le=8)
    cells: int = Field(256, ge=2, le=20_000)
    threshold: float = Field(2.0, ge=0)
    split: float = Field(4.0, ge=0)
    written: float = Field(0.5, ge=0, le=1)
    cache: str = ""


class StartConfig(BaseModel):
    """``[synthesis.start]``: what is written for the description ``synthesis.about``.

    Attributes:
        keywords: lists of words; every text is asked for with one word drawn from each list, so
            that texts differ.
        share: share of the first candidates that are written for the description; the others are
            public texts.
        shots: public texts that are shown as examples, drawn anew for every text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    keywords: tuple[tuple[str, ...], ...] = ()
    share: float = Field(1.0, gt=0, le=1)
    shots: int = Field(0, ge=0, le=20)

    @field_validator("keywords")
    @classmethod
    def _no_empty_list(cls, keywords: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if not all(keywords):
            raise ValueError("keywords has an empty list; expected at least one word in each")
        return keywords


class SynthesisConfig(BaseModel):
    """``[synthesis]``: stage 1; it runs when any tier is proxy.

    Attributes:
        source: where the synthetic set comes from: "write" (private evolution: a generator writes,
            votes choose what it varies), "retrieve" (votes choose texts of a large public corpus,
            ``data.public``; no generator is needed), or "both" (retrieved texts are the first
            candidates that the generator varies, and part of the final set).
        about: what the clients' texts are, in the words of a public description, such as "commit
            messages of a numerical library"; the first candidates are then written for it by an
            instruction model (generate.kind = "prompt"). "" starts from public texts.
        start: how they are written.
        retrieve: how texts are retrieved.
        rounds: votes taken on written texts, T; with source "both" it may be 0, and texts are then
            written for the topics that were retrieved without a further vote.
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
                from; for bases that write worse than the public does), or "topics" (new texts for
            the topics of the released histogram, after examples of each; where texts are
            retrieved).
        public_texts: public texts that "nearest" looks at.
        proxies: what proxies learn from: "synthetic", "public" texts, "noise" (their updates
            replaced by noise of the same norm), or "absent". The last three are control arms and
            take no votes.
        proxy_count: sites on the server among which the synthetic set is sharded.
        max_tokens: tokens of a text that the embedder reads.
        generate: how texts are written.
        teach: in a stage of synthesis after a training (``run.stages``) the generator writes with
            the adapter that has been released, which costs no privacy; only the run's own base can
            ("base"). False keeps it bare.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: Source = "write"
    about: str = Field("", max_length=500)
    start: StartConfig = StartConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    rounds: int = Field(5, ge=0)
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
    expansion: Literal["vary", "write", "keep", "nearest", "topics"] = "vary"
    public_texts: int = Field(2000, ge=1)
    proxies: Literal["synthetic", "public", "noise", "absent"] = "synthetic"
    proxy_count: int = Field(12, ge=1, le=1000)
    max_tokens: int = Field(128, ge=8)
    generate: GenerateConfig = GenerateConfig()
    teach: bool = True

    @field_validator("generator")
    @classmethod
    def _no_secret(cls, generator: str) -> str:
        instead = "the environment variable that synthesis.generate.key_variable names"
        if problem := secret_problem(generator, instead):
            raise ValueError(problem)
        return generator

    @model_validator(mode="after")
    def _possible(self) -> Self:
        prompted = (self.generate.kind not in ("prefix", "mask")
                    or self.generator.startswith(("http://", "https://")))
        if self.rounds < 1 and self.source != "both":
            raise ValueError("synthesis.rounds is 0; expected 1 or more, or source = \"both\"")
        if self.expansion == "topics" and not self.retrieves:
            raise ValueError("synthesis.expansion is \"topics\" and nothing is retrieved; expected "
                             "source = \"both\"")
        if self.about and not self.writes:
            raise ValueError("synthesis.about is given and nothing is written; expected source = "
                             "\"write\" or \"both\"")
        if self.about and not prompted:
            raise ValueError(
                f"synthesis.about needs a model that is asked in words and generate.kind is "
                f"\"{self.generate.kind}\"; expected kind = \"prompt\" or the URL of a server")
        return self

    @property
    def retrieves(self) -> bool:
        """Whether votes choose public texts."""
        return self.source != "write"

    @property
    def writes(self) -> bool:
        """Whether a generator writes."""
        return self.source != "retrieve"

    @property
    def can_be_taught(self) -> bool:
        """Whether the generator can write with a trained adapter: the run's own base writes."""
        return (self.teach and self.writes and self.generator == "base"
                and self.generate.kind != "mask")

    @property
    def levels(self) -> int:
        """Votes on public texts; they come before those on written ones."""
        return self.retrieve.levels if self.retrieves else 0

    @property
    def votings(self) -> int:
        """Votes of the first stage of synthesis, each of them one release."""
        return self.levels + self.later_votings

    @property
    def later_votings(self) -> int:
        """Votes of every later stage of synthesis: public texts have been chosen by then."""
        return self.rounds if self.writes else 0

    def ballot(self, round: int, public: int) -> int:
        """Candidates of a vote, at most.

        Args:
            round: of synthesis, from 1.
            public: number of public texts.
        """
        if round <= self.levels:
            return min(self.retrieve.cells, public)
        starts = round == 1 and not self.about
        return min(self.pool, public) if starts else self.pool

    @property
    def largest_ballot(self) -> int:
        """Candidates of any vote, at most."""
        return max([self.pool] * self.writes + [self.retrieve.cells] * self.retrieves)

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
