"""What every generator is made of: its settings, its two functions, and when a text will do."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from typing import Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from aulait.core.registry import Registry
from aulait.core.scripts import word_count
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.core.web_address import secret_problem
from aulait.models.generation import Sampling, TextModel

Drawn = TypeVar("Drawn")
REDRAWS = 3  # further tries for a text that came out empty or too short
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)|\n")


class GenerateConfig(BaseModel):
    """How new texts are made from released ones.

    Attributes:
        kind: "prefix" (the base continues a part of the parent), "mask" (a masked model refills a
            part of the parent), "prompt" (an instruction model is asked), or what another
            distribution registers as a generator.
        temperature: 0 is greedy; 1 samples what the model believes.
        top_p: the smallest set of tokens with at least this probability is kept; 1 keeps all.
        top_k: the most likely tokens that are kept; 0 keeps all.
        max_tokens: tokens of a new text, the part kept of its parent included, so that texts do not
            grow by rounds. Of a pair each part has as many, but for "prompt", where it is the whole
            answer of the model.
        pairs: what changes in the child of a prompt and its response: "both" (a new prompt from a
            part of the old one, and the response that belongs to it, written after the parent as an
            example), or the "response" alone, so that every prompt stays a public one. With "mask"
            parts of both, or of the response.
        keep: smallest and largest share of the parent's tokens kept as prefix.
        mask_fraction: share of the tokens refilled in one pass.
        mask_passes: passes for one child.
        batch: sequences in a forward pass.
        min_words: shorter texts are failures; of a pair it is asked of the prompt, a response may
            be one word. In scripts without blanks between words every sign is a word.
        filler: Hugging Face id or path of a masked model, for "mask".
        url: address of a server that speaks the OpenAI protocol ("http://localhost:8000/v1"), for
            "prompt"; without user, password or key in it.
        model: name of the model at that server; None takes the first one it lists.
        key_variable: name of the environment variable that holds the server's key, if it needs one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str = "prefix"
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(50, ge=0)
    max_tokens: int = Field(64, ge=1)
    pairs: Literal["both", "response"] = "both"
    keep: tuple[float, float] = (0.2, 0.7)
    mask_fraction: float = Field(0.3, gt=0, le=1)
    mask_passes: int = Field(2, ge=1)
    batch: int = Field(64, ge=1)
    min_words: int = Field(3, ge=1)
    filler: str | None = None
    url: str | None = None
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if unknown := GENERATORS.unknown(kind):
            raise ValueError(unknown)
        return kind

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.keep
        if not 0 <= low <= high <= 1:
            raise ValueError(f"keep is {self.keep}; expected two shares with 0 <= low <= high <= 1")
        return self

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        instead = f"the environment variable {self.key_variable} (generate.key_variable)"
        if problem := secret_problem(self.url or "", instead):
            raise ValueError(problem)
        return self

    @property
    def sampling(self) -> Sampling:
        """The settings of the sampling loop."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.top_k, self.batch)


class Variation(Protocol):
    """Makes texts from released texts; no private text ever enters."""

    def vary(self, texts: Sequence[str], seed: int) -> list[str | None]:
        """One child for every text, in order; None where even the redraws failed, never the parent
        or the prompt."""
        ...

    def write(self, examples: Sequence[str], count: int, seed: int) -> list[str]:
        """New texts in the manner of the examples: ``count`` of them, fewer only where even the
        redraws failed."""
        ...

    def vary_pairs(self, pairs: Sequence[Record], seed: int) -> list[Record | None]:
        """One child for every prompt and response, in order; None where a part of it failed, never
        the parent."""
        ...

    def write_pairs(self, examples: Sequence[Record], count: int, seed: int) -> list[Record]:
        """New pairs in the manner of the examples: ``count`` of them, fewer where a part failed."""
        ...


class BuildGenerator(Protocol):
    """What is registered under the kind of a generator."""

    def __call__(self, config: GenerateConfig, model: Callable[[], TextModel]) -> Variation:
        """A generator.

        Args:
            config: how texts are made.
            model: gives the model that the experiment names; loads it when it is called.
        """
        ...


_NO_TRANSLATION = (
    "a way through another language needs a translation model, and none is packaged; use 'prompt' "
    "with an instruction model, or register a generator of your own")
GENERATORS: Registry[BuildGenerator] = Registry("generator", {
    "prefix": "aulait.synthesis.prefix_variation:build_prefix",
    "mask": "aulait.synthesis.mask_variation:build_mask",
    "prompt": "aulait.synthesis.prompt_variation:build_prompt",
}, lambda build: "" if callable(build) else "it cannot be called",
    dict.fromkeys(("back-translation", "backtranslation", "back_translation", "translate"),
                  _NO_TRANSLATION))
Chat = Callable[[list[str], int], list[str]]  # prompts and a seed to one answer for each


def clean(text: str, ended: bool, start: int = 0) -> str:
    """A text without outer white space and, if it was cut by the token limit, without its last
    partial sentence.

    Args:
        text: as decoded.
        ended: True if the model ended it by itself; then nothing is cut.
        start: characters that were given to the model; the cut never reaches into them or into the
            first half.
    """
    text = text.rstrip()
    if not ended:
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        late = [end for end in ends if end > max(len(text) / 2, start)]
        text = text[: late[-1]] if late else text
    return text.strip()


def redrawn(
    draw: Callable[[list[int], int, int], Sequence[Drawn]],
    accept: Callable[[int, Drawn], bool],
    count: int,
    seed: int,
) -> list[Drawn | None]:
    """``count`` texts or pairs; those not accepted are drawn again, up to ``REDRAWS`` times, then
    None.

    Args:
        draw: (indices still wanted, seed, attempt from 0) -> one text for each index.
        accept: (index, text) -> whether the text will do.
        count: texts wanted.
        seed: every attempt gets its own seed from it.
    """
    texts: list[Drawn | None] = [None] * count
    missing = list(range(count))
    for attempt in range(1 + REDRAWS):
        if not missing:
            break
        drawn = draw(missing, Seeds(seed).integer("attempt", attempt), attempt)
        for index, text in zip(missing, drawn, strict=True):
            if accept(index, text):
                texts[index] = text
        missing = [index for index in missing if texts[index] is None]
    return texts


def will_do(text: str, config: GenerateConfig, known: Container[str]) -> bool:
    """Whether a text has enough words and is not one of the texts it was made from, word for
    word."""
    return word_count(text) >= config.min_words and text not in known


def pair_will_do(pair: Record, config: GenerateConfig, parent: Record | None = None) -> bool:
    """Whether a pair has a response, a prompt with enough words (or its parent's), and is not its
    parent word for word."""
    own, old = (pair.prompt or "", pair.text), (parent.prompt or "",
        parent.text) if parent else ("", "")
    return (
        bool(own[1].split()) and (word_count(own[0]) >= config.min_words or own[0] == old[0])
        and own != old
    )
