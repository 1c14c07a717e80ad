"""Records to padded rows of token ids, and rows to scored positions.

Shape letters: X scored positions · T tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aulait.core.types import Record
from aulait.models.loading import Base, logits

IGNORE = -100


class Encoder:
    """Records to token ids, each record encoded once and remembered.

    A causal text is <bos> text <eos>; with a prompt, <bos> prompt newline text <eos> with loss on
    text and <eos> only. A sequence-to-sequence record has the prompt as the encoder's input and the
    text as the decoder's, each within the special tokens that its tokenizer sets around a text (T5:
    text </s>), as such models were trained.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._known: dict[Record, tuple[list[int], int]] = {}

    def __call__(self, record: Record) -> tuple[list[int], int]:
        """Token ids, cut to the context, and the number of leading ids without loss."""
        if record not in self._known:
            self._known[record] = self._encode(record)
        return self._known[record]

    def length(self, record: Record) -> int:
        """Tokens of a record before any cut; of the longer side where prompt and text do not share
        the context."""
        ids, prefix = self._raw(record)
        if self._base.config.kind == "seq2seq":
            return max(len(prefix), len(ids))
        return len(prefix) + len(ids)

    def _raw(self, record: Record) -> tuple[list[int], list[int]]:
        """Token ids of the text, and of what stands before it without loss, neither cut."""
        tok = self._base.tokenizer
        seq2seq = self._base.config.kind == "seq2seq"
        begin = [tok.bos_token_id] if tok.bos_token_id is not None else []
        end = [tok.eos_token_id] if tok.eos_token_id is not None else []

        def encode(text: str) -> list[int]:
            # a control token that is spelled out in somebody's text is a word like any other
            return list(tok(text, add_special_tokens=seq2seq, truncation=False, verbose=False,
                            split_special_tokens=True)["input_ids"])

        if seq2seq:
            target = encode(record.text)
            # an encoder must have something to look at, or its attention is not a number
            source = encode(record.prompt or "") or end or [self._base.pad]
            return target + ([] if target[-1:] == end else end), source
        prefix = begin + (encode(record.prompt + "\n") if record.prompt is not None else [])
        return encode(record.text) + end, prefix

    def _encode(self, record: Record) -> tuple[list[int], int]:
        """Cut to the context. Of a record with a prompt, at most half the context goes to the
        prompt's end.

        A sequence-to-sequence record keeps the beginning of both sides, and the encoder's input its
        end mark.
        """
        ids, prefix = self._raw(record)
        context = self._base.config.context
        if self._base.config.kind == "seq2seq":
            ended = prefix[-1:] == [self._base.tokenizer.eos_token_id] and len(prefix) > context
            prefix = prefix[: context - 1] + prefix[-1:] if ended else prefix[:context]
            ids = ids[:context]
        elif len(prefix) + len(ids) > context:
            keep = len(prefix)
            if record.prompt is not None:
                keep = max(context - len(ids), context // 2)
            prefix = (prefix[:1] + prefix[1:][-(keep - 1):]) if len(prefix) > keep else prefix
            ids = ids[: context - len(prefix)]
        return prefix + ids, len(prefix)


@dataclass(frozen=True)
class Rows:
    """Sequences of one step, right padded: ids and labels (rows, T); label -100 means no loss.

    ``source`` and ``mask`` are the encoder's input of a sequence-to-sequence model, otherwise None.
    """

    ids: Tensor
    labels: Tensor
    source: Tensor | None = None
    mask: Tensor | None = None


def collate(base: Base, encode: Encoder, records: Sequence[Record]) -> Rows:
    """Token rows of a step, padded to the longest."""
    coded = [encode(record) for record in records]
    pad = base.pad

    def stack(rows: list[list[int]], fill: int) -> Tensor:
        width = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=base.device)

    if base.config.kind == "seq2seq":
        source = stack([ids[:n] for ids, n in coded], pad)
        labels = stack([ids[n:] for ids, n in coded], IGNORE)
        lengths = torch.tensor([n for _, n in coded], device=base.device)
        mask = (torch.arange(source.shape[1], device=base.device)[None] < lengths[:, None]).long()
        return Rows(labels, labels, source, mask)
    return Rows(
        stack([ids for ids, _ in coded], pad),
        stack([[IGNORE] * n + ids[n:] for ids, n in coded], IGNORE),
    )


def scored_tokens(rows: Rows) -> int:
    """How many positions carry loss: in a causal model the first token of a row never does."""
    labels = rows.labels if rows.source is not None else rows.labels[:, 1:]
    return int((labels != IGNORE).sum())


def scored(base: Base, rows: Rows, encoded: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (X, V), target ids (X,) and row numbers (X,) of all X positions that carry loss.

    ``encoded`` is the encoder's output for ``rows.source`` where it is known already.
    """
    if rows.source is not None:
        ahead = base.model.prepare_decoder_input_ids_from_labels(rows.labels)
        given = {"input_ids": rows.source} if encoded is None else {"encoder_outputs": (encoded,)}
        full = base.model(**given, attention_mask=rows.mask, decoder_input_ids=ahead,
                          use_cache=False).logits
        chosen = rows.labels != IGNORE
        out, target = full[chosen].float(), rows.labels[chosen]
    else:
        ahead = torch.cat([rows.labels[:, 1:], rows.labels.new_full((len(rows.labels), 1), IGNORE)],
                          dim=1)
        chosen = ahead != IGNORE
        out, target = logits(base, rows.ids, chosen), ahead[chosen]
    return out, target, chosen.nonzero()[:, 0]


def too_long(encode: Encoder, context: int,
             records: Sequence[Record]) -> Iterator[tuple[Record, int]]:
    """Records whose tokens exceed the context, with their length."""
    for record in records:
        length = encode.length(record)
        if length > context:
            yield record, length
