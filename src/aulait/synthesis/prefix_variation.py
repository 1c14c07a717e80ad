"""Texts that a causal model continues: the base itself, or another model of this process.

Only public or released values enter this file: prompts are public texts or candidates that the
aggregator has let out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from aulait.core.errors import ModelError, require
from aulait.core.seeds import Seeds
from aulait.core.types import Record, Turn
from aulait.models.generation import Sampling, TextModel, decode, encode, extend, opening
from aulait.models.record_form import RecordForm
from aulait.synthesis.variation import (
    GenerateConfig,
    clean,
    pair_will_do,
    redrawn,
    will_do,
)


def sample_texts(writer: TextModel, prompts: Sequence[str], how: Sampling, seed: int = 0,
           add_bos: bool = True) -> list[str]:
    """The continuation of every prompt, in order, without the prompt and without special tokens.

    Random by ``seed`` alone; the global generators are neither read nor moved. An encoder-decoder
    model answers the prompt instead of continuing it.

    Args:
        writer: the model.
        prompts: released texts; special tokens spelled out in them are removed. May be empty with
            ``add_bos``.
        how: how tokens are drawn; here only new tokens count.
        seed: of the draws.
        add_bos: put the token that opens a document first, where the tokenizer has one.

    Raises:
        ModelError: a prompt is empty and the tokenizer has no token to start from.
    """
    tokenizer = writer.tokenizer
    first = opening(tokenizer) if add_bos and not writer.answers else []
    encoded = [first + encode(tokenizer, prompt, writer.answers) for prompt in prompts]
    return [decode(tokenizer, new.ids) for new in extend(writer, encoded, how, seed)]


class PrefixResample:
    """A random part of the parent from its beginning, continued by a causal model.

    Works with any base, with or without instruction tuning; the base may wear an adapter.
    """

    def __init__(self, model: Any, tokenizer: Any, config: GenerateConfig,
                 device: str | torch.device = "cpu", template: str = "auto") -> None:
        """See the class; ``template`` as ``model.template``.

        Raises:
            ModelError: the model is an encoder-decoder, which answers instead of continuing.
        """
        require(
            not model.config.is_encoder_decoder,
            ModelError,
            "kind 'prefix' found an encoder-decoder model; expected a causal one; set "
            "synthesis.generator to a causal model ('brew' is built in), or use kind 'prompt' or "
            "'mask'",
        )
        self._writer = TextModel(model, tokenizer, torch.device(device))
        self._tokenizer, self._config = tokenizer, config
        self._opening, self._form = opening(tokenizer), RecordForm(tokenizer, template)

    def vary(self, texts: Sequence[str], seed: int) -> list[str | None]:
        """One child for every text: its first words and a new rest. None where four tries gave
        nothing new."""
        parents = [encode(self._tokenizer, text)[: self._config.max_tokens] for text in texts]

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[str]:
            return self._continued([parents[i] for i in indices], attempt_seed)

        return redrawn(draw, lambda i, child: will_do(child, self._config, (texts[i],)), len(texts),
                       seed)

    def write(self, examples: Sequence[str], count: int, seed: int) -> list[str]:
        """New texts: what the model writes after three documents drawn from the examples.

        Redraws, for lack of luck with that, continue the beginning of one example.
        """
        if not examples:
            return []
        encoded = [encode(self._tokenizer, text)[: self._config.max_tokens] for text in examples]
        known = set(examples)

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[str]:
            shots = 3 if attempt == 0 else 1
            generator = torch.Generator().manual_seed(Seeds(attempt_seed).integer("examples"))
            chosen = torch.randint(len(encoded), (len(indices), shots),
                                   generator=generator).tolist()
            if attempt > 0:
                return self._continued([encoded[row[0]] for row in chosen], attempt_seed)
            prompts = [self._documents([encoded[i] for i in row]) for row in chosen]
            found = extend(self._writer, prompts, self._config.sampling, attempt_seed)
            return [clean(decode(self._tokenizer, new.ids), new.ended) for new in found]

        texts = redrawn(draw, lambda i, text: will_do(text, self._config, known), count, seed)
        return [text for text in texts if text is not None]

    def vary_pairs(self, pairs: Sequence[Record], seed: int) -> list[Record | None]:
        """One child for every pair: a new prompt and the response to it, or with pairs = "response"
        a new response alone."""
        if self._config.pairs == "response":
            before = [self._asked(pair.prompt or "") for pair in pairs]
            parents = [encode(self._tokenizer, pair.text)[: self._config.max_tokens]
                       for pair in pairs]

            def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[Record]:
                texts = self._continued([parents[i] for i in indices], attempt_seed,
                                        [before[i] for i in indices])
                return [Record(text, pairs[i].prompt)
                        for i, text in zip(indices, texts, strict=True)]

            return redrawn(draw, lambda i, child: pair_will_do(child, self._config, pairs[i]),
                           len(pairs), seed)
        prompts = self.vary([pair.prompt or "" for pair in pairs],
                            Seeds(seed).integer("pair-prompts"))
        return self._answered(prompts, pairs, Seeds(seed).integer("pair-responses"))

    def write_pairs(self, examples: Sequence[Record], count: int, seed: int) -> list[Record]:
        """New pairs: prompts written after three prompts drawn from the examples, each answered
        after one drawn pair."""
        prompts = self.write([pair.prompt or "" for pair in examples], count,
                             Seeds(seed).integer("pair-prompts"))
        generator = torch.Generator().manual_seed(Seeds(seed).integer("pair-examples"))
        shown = torch.randint(max(1, len(examples)), (len(prompts),), generator=generator).tolist()
        made = self._answered(prompts, [examples[i] for i in shown],
                              Seeds(seed).integer("pair-responses"))
        return [pair for pair in made if pair is not None]

    def _answered(self, prompts: Sequence[str | None], examples: Sequence[Record],
                  seed: int) -> list[Record | None]:
        """Every prompt with a response that the model writes after one pair as an example; None for
        None."""
        alive = [i for i, prompt in enumerate(prompts) if prompt is not None]
        asked = [self._asked(prompts[i] or "", examples[i]) for i in alive]

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[Record]:
            some = [asked[k] for k in indices]
            found = extend(self._writer, some, self._config.sampling, attempt_seed)
            texts = [clean(decode(self._tokenizer, new.ids), new.ended) for new in found]
            return [Record(text, prompts[alive[k]]) for k, text in zip(indices, texts, strict=True)]

        made = redrawn(draw, lambda k, pair: pair_will_do(pair, self._config, examples[alive[k]]),
                       len(alive), seed)
        pairs = dict(zip(alive, made, strict=True))
        return [pairs.get(i) for i in range(len(prompts))]

    def _asked(self, prompt: str, example: Record | None = None) -> list[int]:
        """What the model reads before its response: the prompt, after an example where there is
        one; as turns where it has a chat template, otherwise as documents."""
        if self._form.chat:
            shown = () if example is None else (
                Turn("user", example.prompt or ""), Turn("assistant", example.text))
            return self._form.asked([*shown, Turn("user", prompt)])
        shot = self._opening if example is None else self._documents(
            [encode(self._tokenizer, example.full)])
        return shot + encode(self._tokenizer, f"{prompt}\n")

    def _documents(self, examples: Sequence[list[int]]) -> list[int]:
        """The examples as the base saw documents in training, and the opening of one more."""
        end = self._tokenizer.eos_token_id
        closing = [] if end is None or [end] == self._opening else [int(end)]
        between = closing or self._opening or encode(self._tokenizer, "\n\n")
        ids: list[int] = []
        for example in examples:
            ids += [*self._opening, *example, *(closing if self._opening else between)]
        return ids + self._opening

    def _continued(self, parents: Sequence[list[int]], seed: int,
                   before: Sequence[list[int]] | None = None) -> list[str]:
        """Prefix and continuation of every parent; "" where the model added nothing.

        ``before`` is what the model reads in front of each; None is the opening of a document.
        """
        before = before or [self._opening] * len(parents)
        low, high = self._config.keep
        generator = torch.Generator().manual_seed(Seeds(seed).integer("keep"))
        share = (low + (high - low) * torch.rand(len(parents), generator=generator,
            dtype=torch.float64)).tolist()
        kept = [p[: max(0, min(int(s * len(p)), len(p) - 1))]
                for p, s in zip(parents, share, strict=True)]
        able = [i for i, prefix in enumerate(kept) if before[i] or prefix]
        prompts = [before[i] + kept[i] for i in able]
        limits = [self._config.max_tokens - len(kept[i]) for i in able]
        found = extend(self._writer, prompts, self._config.sampling, seed, limits)
        texts = [""] * len(parents)
        for i, new in zip(able, found, strict=True):
            prefix, whole = decode(self._tokenizer, kept[i]), decode(self._tokenizer,
                kept[i] + new.ids)
            child = clean(whole, new.ended, start=len(prefix))
            texts[i] = "" if child == prefix.strip() else child
        return texts


def build_prefix(config: GenerateConfig, model: Callable[[], TextModel]) -> PrefixResample:
    """See ``GENERATORS``."""
    writer = model()
    return PrefixResample(writer.model, writer.tokenizer, config, writer.device, writer.template)
