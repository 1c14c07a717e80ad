"""Records to padded rows of token ids, and rows to scored positions.

Shape letters: X scored positions · T tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from aulait.core.types import Record, Turn
from aulait.models.loading import Base, logits, token_losses
from aulait.models.record_form import PartSum, RecordForm, TokenSpan, Written
from aulait.models.turn_cutting import fitting, shortened
from aulait.models.word_counts import WordCounts, counted

IGNORE = -100
AT_ONCE = 1024  # records whose lengths are looked at together
LEARNT_FROM = 32 * AT_ONCE  # first records whose words are counted


@dataclass(frozen=True)
class Coded:
    """A record in tokens, cut to the context.

    Attributes:
        ids: of the tokens; of a sequence-to-sequence record the source, then the target.
        prefix: how many of the first carry no loss, the source among them.
        spans: (first, behind the last) of every part that carries loss.
    """

    ids: list[int]
    prefix: int
    spans: tuple[TokenSpan, ...]


class Encoder:
    """Records to token ids, each record encoded once and remembered.

    What a base reads is said by its form (``models/record_form.py``): a text between the special
    tokens that its tokenizer sets, a pair or a conversation in its chat template, or plainly where
    it has none, with loss on the assistant's turns only. A sequence-to-sequence record has what was
    asked as the encoder's input and the text as the decoder's, each within the special tokens that
    its tokenizer sets around a text (T5: text </s>), as such models were trained.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self.form = RecordForm(base.tokenizer, base.config.template)
        self._known: dict[Record, Coded] = {}
        self._words = WordCounts(base.tokenizer)
        self._looked_at = 0

    def __call__(self, record: Record) -> tuple[list[int], int]:
        """Token ids, cut to the context, and the number of leading ids without loss."""
        coded = self.coded(record)
        return coded.ids, coded.prefix

    def coded(self, record: Record) -> Coded:
        """The same with every part that carries loss: a conversation may have several."""
        if record not in self._known:
            seq2seq = self._base.config.kind == "seq2seq"
            self._known[record] = self._sides(record) if seq2seq else self._causal(record)
        return self._known[record]

    def length(self, record: Record) -> int:
        """Tokens of a record before any cut; of the longer side where prompt and text do not share
        the context."""
        if self._base.config.kind == "seq2seq":
            return max(map(len, self._uncut_sides(record)))
        return len(self._written(record).ids)

    def longer(self, records: Sequence[Record], most: int) -> Iterator[tuple[int, int]]:
        """Places of those of some records that have more tokens before any cut, and how many.
        Words that are known rule most out; the tokenizer reads the others together."""
        seq2seq = self._base.config.kind == "seq2seq"
        wholes = [None if seq2seq else self.form.sum_of_parts(record) for record in records]
        self._looked_at += len(wholes)
        if self._looked_at <= LEARNT_FROM:
            self._words.learn([text for whole in wholes if whole for text in whole.texts])
        doubtful = self._sharper(self._doubtful(enumerate(wholes), most), most)
        texts = [text for _, whole in doubtful if whole for text in whole.texts]
        counts = iter(counted(self._base.tokenizer, texts))
        for place, whole in doubtful:
            length = (self.length(records[place]) if whole is None
                      else whole.marks + sum(islice(counts, len(whole.texts))))
            if length > most:
                yield place, length

    def _doubtful(self, wholes: Iterable[tuple[int, PartSum | None]],
                  most: int) -> list[tuple[int, PartSum | None]]:
        """Those that may have more tokens, by the words that are known."""
        return [(place, whole) for place, whole in wholes
                if whole is None or self._at_most(whole, most) > most]

    def _at_most(self, whole: PartSum, most: int) -> float:
        """A bound of a record's tokens; sharp only as far as ``most`` asks."""
        marks, texts = whole
        if len(texts) == 1:
            return marks + self._words.at_most(texts[0], most - marks)
        enough = (most - marks) // len(texts)
        return marks + sum([self._words.at_most(text, enough) for text in texts])

    def _sharper(self, doubtful: list[tuple[int, PartSum | None]],
                 most: int) -> list[tuple[int, PartSum | None]]:
        """Those of them that may have more tokens when all words are counted."""
        bounds = iter(self._words.sharper(
            [text for _, whole in doubtful if whole for text in whole.texts]))
        return [(place, whole) for place, whole in doubtful if whole is None
                or whole.marks + sum(islice(bounds, len(whole.texts))) > most]

    def asked(self, record: Record, room: int) -> list[int]:
        """The tokens that the answer to a record's prompt follows: at most ``room`` of them, of
        which an encoder keeps the first, a causal model the last exchanges."""
        if self._base.config.kind == "seq2seq":
            coded = self.coded(record)
            return coded.ids[: coded.prefix]
        if not record.asked:
            return list(self.form.opening)

        def over(turns: Sequence[Turn]) -> int:
            return len(self.form.asked(turns)) - room

        turns = fitting(record.asked, over)
        if self.form.chat:
            turns = shortened(self.form, turns, over)
        return self._ended(self.form.asked(turns), room)

    def _written(self, record: Record) -> Written:
        """A causal record before any cut."""
        if not record.asked:
            return self.form.text(record.text)
        return self.form.conversation(record.turns)

    def _causal(self, record: Record) -> Coded:
        """Cut to the context. A text loses its end. Of a conversation the oldest exchanges go
        first; of the last one at most half the context goes to the prompt's end."""
        written, context = self._written(record), self._base.config.context
        if len(written.ids) > context and record.asked:
            written = self._cut(record, context)
        ids = written.ids[:context]
        spans = tuple((a, min(b, context)) for a, b in written.spans if a < context)
        return Coded(ids, spans[0][0] if spans else len(ids), spans)

    def _cut(self, record: Record, context: int) -> Written:
        def keep(written: Written) -> int:
            return max(context - len(written.ids) + written.spans[-1][0], context // 2)

        def over(turns: Sequence[Turn]) -> int:
            written = self.form.conversation(turns)
            return written.spans[-1][0] - keep(written)

        turns = fitting(record.turns, over)
        if self.form.chat:
            turns = shortened(self.form, turns, over)
        written = self.form.conversation(turns)
        start, most = written.spans[-1][0], keep(written)
        if start <= most:
            return written
        answer = written.ids[start:]
        return Written([*self._ended(written.ids[:start], most), *answer],
                       [(most, most + len(answer))])

    def _ended(self, ids: list[int], room: int) -> list[int]:
        """What opens a text, and as many of the last tokens as there is room for."""
        first = len(self.form.opening)
        return ids if len(ids) <= room else ids[:first] + ids[first:][-(room - first):]

    def uncut(self, record: Record) -> tuple[list[int], list[int]]:
        """What stands before a record's answer, and the answer, before any cut."""
        if self._base.config.kind == "seq2seq":
            return self._uncut_sides(record)
        written = self._written(record)
        start = written.spans[-1][0]
        return written.ids[:start], written.ids[start:]

    def _uncut_sides(self, record: Record) -> tuple[list[int], list[int]]:
        """Source and target of a sequence-to-sequence record before any cut."""
        tok = self._base.tokenizer
        end = [tok.eos_token_id] if tok.eos_token_id is not None else []

        target = self.form.source(record.text)
        asked = "\n".join(turn.content for turn in record.asked)
        # an encoder must have something to look at, or its attention is not a number
        source = self.form.source(asked) or end or [self._base.pad]
        return source, target + ([] if target[-1:] == end else end)

    def _sides(self, record: Record) -> Coded:
        """Both sides keep their beginning, and the encoder's input its end mark."""
        source, target = self._uncut_sides(record)
        context = self._base.config.context
        ended = source[-1:] == [self._base.tokenizer.eos_token_id] and len(source) > context
        source = source[: context - 1] + source[-1:] if ended else source[:context]
        ids = [*source, *target[:context]]
        return Coded(ids, len(source), ((len(source), len(ids)),))


@dataclass(frozen=True)
class Rows:
    """Sequences of one step, right padded: ids and labels (rows, T); label -100 means no loss.

    ``source`` and ``mask`` are the encoder's input of a sequence-to-sequence model, otherwise None.
    """

    ids: Tensor
    labels: Tensor
    source: Tensor | None = None
    mask: Tensor | None = None


def collate(base: Base, encode: Encoder, records: Sequence[Record], last: bool = False) -> Rows:
    """Token rows of a step, padded to the longest; with ``last``, loss on the last answer of a
    conversation alone."""
    coded = [encode.coded(record) for record in records]
    pad = base.pad

    def stack(rows: list[list[int]], fill: int) -> Tensor:
        width = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=base.device)

    if base.config.kind == "seq2seq":
        source = stack([own.ids[: own.prefix] for own in coded], pad)
        labels = stack([own.ids[own.prefix :] for own in coded], IGNORE)
        lengths = torch.tensor([own.prefix for own in coded], device=base.device)
        mask = (torch.arange(source.shape[1], device=base.device)[None] < lengths[:, None]).long()
        return Rows(labels, labels, source, mask)
    return Rows(stack([own.ids for own in coded], pad),
                stack([_labels(own, last) for own in coded], IGNORE))


def _labels(coded: Coded, last: bool) -> list[int]:
    """The tokens that carry loss, the others hidden."""
    labels = [IGNORE] * len(coded.ids)
    for start, stop in coded.spans[-1:] if last else coded.spans:
        labels[start:stop] = coded.ids[start:stop]
    return labels


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
        ahead, chosen = _ahead(rows)
        out, target = logits(base, rows.ids, chosen), ahead[chosen]
    return out, target, chosen.nonzero()[:, 0]


def losses(base: Base, rows: Rows) -> tuple[Tensor, Tensor]:
    """Nats (X,) and row numbers (X,) of all X positions that carry loss."""
    if rows.source is not None:
        out, target, row = scored(base, rows)
        return torch.nn.functional.cross_entropy(out, target, reduction="none"), row
    ahead, chosen = _ahead(rows)
    return token_losses(base, rows.ids, chosen, ahead[chosen]), chosen.nonzero()[:, 0]


def _ahead(rows: Rows) -> tuple[Tensor, Tensor]:
    """The token that follows each position (B, T), and whether it carries loss."""
    ahead = torch.cat([rows.labels[:, 1:], rows.labels.new_full((len(rows.labels), 1), IGNORE)],
                      dim=1)
    return ahead, ahead != IGNORE


def too_long(encode: Encoder, context: int,
             records: Iterable[Record]) -> Iterator[tuple[int, int]]:
    """Records whose tokens exceed the context: places, from 0, and lengths."""
    source, start = iter(records), 0
    while some := list(islice(source, AT_ONCE)):
        yield from ((start + place, length) for place, length in encode.longer(some, context))
        start += len(some)
