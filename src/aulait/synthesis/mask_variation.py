"""Variations of a text by a masked language model: hide some tokens, fill them in one after the
other.

Source: the variation of PrE-Text (Hou et al., 2024). Legend: B batch · T tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aulait.core.errors import ConfigError, ModelError, require
from aulait.core.seeds import Seeds
from aulait.core.types import Record
from aulait.models.generation import Sampling, TextModel, choose_tokens, decode, encode, frozen
from aulait.synthesis import prefix_variation
from aulait.synthesis.generator import load_text_model
from aulait.synthesis.variation import GenerateConfig, Variation, pair_will_do, redrawn, will_do


class MaskFill:
    """Any Hugging Face masked language model.

    In every pass floor(mask_fraction · tokens) positions of a text, at least one, are drawn
    uniformly without replacement among its tokens, hidden together, and filled one at a time.
    Special tokens are neither drawn nor filled in.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: GenerateConfig,
        device: str | torch.device = "cpu",
        writer: Variation | None = None,
    ) -> None:
        """See the class.

        Args:
            model: with a masked-language-model head.
            tokenizer: its tokenizer, with a mask token.
            config: how texts are made; the token settings (temperature, top_p, top_k) hold for the
                fillings.
            device: where the model lies.
            writer: writes free texts; None varies randomly drawn examples instead.

        Raises:
            ModelError: the tokenizer has no mask token.
        """
        require(
            tokenizer.mask_token_id is not None,
            ModelError,
            "kind 'mask' found a tokenizer without a mask token; expected a masked language model "
            "such as roberta-base",
        )
        self._model, self._tokenizer, self._config, self._device = (
            model, tokenizer, config, torch.device(device)
        )
        self._writer = writer
        self._forbidden = torch.tensor(sorted(set(tokenizer.all_special_ids)), device=self._device)

    def vary(self, texts: Sequence[str], seed: int) -> list[str | None]:
        """One child for every text, as the tokenizer spells it. None where four tries gave nothing
        new."""
        parents = [self._encoded(text) for text in texts]
        spelled = [decode(self._tokenizer, ids).strip() for ids in parents]

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[str]:
            children = [""] * len(indices)
            able = sorted((k for k, i in enumerate(indices) if parents[i]),
                          key=lambda k: len(parents[indices[k]]))
            generator = torch.Generator().manual_seed(attempt_seed)
            for start in range(0, len(able), self._config.batch):
                rows = able[start : start + self._config.batch]
                found = self.refill([parents[indices[k]] for k in rows], generator)
                for k, ids in zip(rows, found, strict=True):
                    children[k] = decode(self._tokenizer, ids).strip()
            return children

        return redrawn(draw, lambda i, c: will_do(c, self._config, (texts[i], spelled[i])),
                       len(texts), seed)

    def write(self, examples: Sequence[str], count: int, seed: int) -> list[str]:
        """New texts from the writer; without one, variations of examples drawn with replacement."""
        if self._writer is not None:
            return self._writer.write(examples, count, seed)
        if not examples:
            return []
        generator = torch.Generator().manual_seed(Seeds(seed).integer("examples"))
        chosen = torch.randint(len(examples), (count,), generator=generator).tolist()
        return [child for child in self.vary([examples[i] for i in chosen], seed)
                if child is not None]

    def vary_pairs(self, pairs: Sequence[Record], seed: int) -> list[Record | None]:
        """One child for every pair: prompt and response in one sequence, refilled on both sides of
        the border between them.

        With pairs = "response" the prompt stays as it is and is only read. None where four tries
        gave nothing new.
        """
        both = self._config.pairs == "both"
        border = self._encoded("\n")
        coded = [self._two(pair, len(border)) for pair in pairs]
        spelled = [Record(decode(self._tokenizer, y).strip(), decode(self._tokenizer, x).strip())
                   for x, y in coded]

        def draw(indices: list[int], attempt_seed: int, attempt: int) -> list[Record]:
            children = [Record("", "")] * len(indices)
            able = sorted((k for k, i in enumerate(indices) if all(coded[i])),
                          key=lambda k: sum(map(len, coded[indices[k]])))
            generator = torch.Generator().manual_seed(attempt_seed)
            for start in range(0, len(able), self._config.batch):
                rows = able[start : start + self._config.batch]
                parts = [coded[indices[k]] for k in rows]
                after = [len(x) + len(border) for x, _ in parts]
                free = [[*(range(len(x)) if both else ()), *range(n, n + len(y))]
                        for n, (x, y) in zip(after, parts, strict=True)]
                found = self.refill([x + border + y for x, y in parts], generator, free)
                for k, ids, n, (x, _) in zip(rows, found, after, parts, strict=True):
                    prompt = (
                        decode(self._tokenizer, ids[: len(x)]).strip() if both
                        else pairs[indices[k]].prompt
                    )
                    children[k] = Record(decode(self._tokenizer, ids[n:]).strip(), prompt)
            return children

        def accept(index: int, child: Record) -> bool:
            return all(pair_will_do(child, self._config, old)
                       for old in (pairs[index], spelled[index]))

        return redrawn(draw, accept, len(pairs), seed)

    def write_pairs(self, examples: Sequence[Record], count: int, seed: int) -> list[Record]:
        """New pairs from the writer; without one, variations of examples drawn with replacement."""
        if self._writer is not None:
            return self._writer.write_pairs(examples, count, seed)
        if not examples:
            return []
        generator = torch.Generator().manual_seed(Seeds(seed).integer("examples"))
        chosen = torch.randint(len(examples), (count,), generator=generator).tolist()
        return [child for child in self.vary_pairs([examples[i] for i in chosen], seed)
                if child is not None]

    def refill(
        self, texts: Sequence[list[int]], generator: torch.Generator,
        free: Sequence[Sequence[int]] | None = None
    ) -> list[list[int]]:
        """Token lists (without special tokens, not empty) after all passes; lengths stay. Random by
        the generator.

        ``free`` are the positions of every text that may be hidden; None is all of them.
        """
        ids_BT, mask_BT, start = self._framed(texts)
        lengths = [len(ids) for ids in texts]
        free = free or [range(length) for length in lengths]
        with frozen(self._model):
            for _ in range(self._config.mask_passes):
                places = [torch.tensor(part)[self._places(len(part), generator)] + start
                          for part in free]
                for row, place in enumerate(places):
                    ids_BT[row, place.to(self._device)] = self._tokenizer.mask_token_id
                for step in range(max(len(place) for place in places)):
                    rows = [row for row, place in enumerate(places) if len(place) > step]
                    at = torch.tensor([int(places[row][step]) for row in rows], device=self._device)
                    ids_BT[rows, at] = self._filled(ids_BT[rows], mask_BT[rows], at, generator)
        return [row[start : start + n] for row, n in zip(ids_BT.tolist(), lengths, strict=True)]

    def _places(self, length: int, generator: torch.Generator) -> Tensor:
        """Positions hidden in one pass, in the order they are filled."""
        count = max(1, int(self._config.mask_fraction * length + 1e-9))
        return torch.randperm(length, generator=generator)[:count]

    def _filled(self, ids_BT: Tensor, mask_BT: Tensor, at_B: Tensor,
                generator: torch.Generator) -> Tensor:
        """A token (B,) for one position of every row."""
        rows = torch.arange(len(at_B), device=self._device)

        def only_these(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            return (given[0][rows, at_B][:, None],) if given[0].dim() == 3 else None

        # The vocabulary is many times wider than the model: logits of the other positions would be
        # most of the work.
        head = self._model.get_output_embeddings()
        handle = head.register_forward_pre_hook(only_these) if head is not None else None
        try:
            logits_BTV = self._model(input_ids=ids_BT, attention_mask=mask_BT).logits
        finally:
            if handle is not None:
                handle.remove()
        logits_BV = (logits_BTV[:, 0] if logits_BTV.shape[1] == 1
                     else logits_BTV[rows, at_B]).clone()
        logits_BV[:, self._forbidden] = -torch.inf
        uniform_B = torch.rand(len(at_B), generator=generator, dtype=torch.float64).to(self._device)
        how = Sampling(temperature=self._config.temperature, top_p=self._config.top_p,
                       top_k=self._config.top_k)
        return choose_tokens(logits_BV, how, uniform_B)

    def _encoded(self, text: str) -> list[int]:
        """Tokens of the text without special ones, cut to what the model can read."""
        special = set(self._tokenizer.all_special_ids)
        return [token for token in encode(self._tokenizer, text)
                if token not in special][: self._most]

    def _two(self, pair: Record, border: int) -> tuple[list[int], list[int]]:
        """Tokens of prompt and response, cut so that both fit with the border: the response to half
        of the room at least."""
        x, y = self._encoded(pair.prompt or ""), self._encoded(pair.text)
        y = y[: max(self._most // 2, self._most - border - len(x))]
        return x[: max(0, self._most - border - len(y))], y

    @property
    def _most(self) -> int:
        """Tokens of a text that the model can read, with room for the frame and the offset of
        positions."""
        return int(getattr(self._model.config, "max_position_embeddings", 512)) - 4

    def _framed(self, texts: Sequence[list[int]]) -> tuple[Tensor, Tensor, int]:
        """Token numbers and attention mask (B, T), padded right, and where the texts start in their
        frames."""
        marker = self._tokenizer.mask_token_id
        # a mask between the tokens that frame a text
        frame = self._tokenizer(self._tokenizer.mask_token)["input_ids"]
        start = frame.index(marker)
        framed = [frame[:start] + ids + frame[start + 1 :] for ids in texts]
        longest = max(map(len, framed))
        pad = self._tokenizer.pad_token_id or 0
        ids_BT = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in framed],
                              device=self._device)
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in framed],
                               device=self._device)
        return ids_BT, mask_BT, start


def build_mask(config: GenerateConfig, model: Callable[[], TextModel]) -> MaskFill:
    """See ``GENERATORS``; free texts are written by the model of the experiment where it can."""
    require(config.filler is not None, ConfigError,
            "kind 'mask' has no filler; give the id or path of a masked model")
    base = model()
    writer = None if base.answers else prefix_variation.build_prefix(config, lambda: base)
    filler = load_text_model(str(config.filler), base.device, masked=True)
    return MaskFill(filler.model, filler.tokenizer, config, filler.device, writer)
