"""At most how many tokens a text has, from the tokens of its words: a hundred times faster than the
tokenizer, and enough to know that a text fits.

It holds for byte-level BPE, where no token reaches from a word over the blank into the next one:
the vocabulary and the tokenizer's parts are looked at, and whatever is not known to be so has no
bound. Words are counted by the tokenizer itself, once; a word that is not remembered has at most as
many tokens as bytes.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import sub
from typing import TYPE_CHECKING

from aulait.core.files import JsonObject

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

REMEMBERED = 50_000  # words
_LONGEST = 32  # characters of a word that is remembered
_BLANK = "\u0120"  # how byte-level vocabularies write a blank
_SPACES = frozenset("\u0120\u010a\u0109\u010d\u010b\u010c")  # and white space of one byte
_BOUNDARY = re.compile(r"(?<=\S) (?=\S)")
_DIGIT = re.compile("[0-9]")  # few numbers come twice
_REACHES_OVER = re.compile(r"\S ")
_SPLITTERS = frozenset(["Sequence", "ByteLevel", "Digits", "Split"])
_AT_ONCE = 512  # texts whose tokens are in memory together
_JOINED = 64  # words that are read as one text
_SAVED = 4  # characters that a usual word has more than tokens
_LONGER = 3  # times, at most, that composing a text (NFC) may lengthen its UTF-8


class _Counts(dict[str, int]):
    """Word, with the blank before it left out -> its tokens; of others at most so many."""

    def __init__(self, stretch: int) -> None:
        super().__init__()
        self._stretch = stretch
        self[""] = sys.maxsize  # between two blanks in a row, which may be one token

    def __missing__(self, word: str) -> int:
        if word.isascii():
            return len(word) + 1
        return self._stretch * len(word.encode("utf-8", "replace")) + 1


class WordCounts:
    """The tokens of words of one tokenizer.

    Args:
        tokenizer: of a base.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        normaliser = _stretch(tokenizer)
        self.known = normaliser is not None
        # tokens that begin a word, by the blank before it
        self._begin = frozenset(number for token, number in tokenizer.get_vocab().items()
                                if token.startswith(_BLANK)) if self.known else frozenset()
        self._counts = _Counts(normaliser or 1)

    def at_most(self, text: str, enough: int = 0) -> float:
        """A number of tokens that a text's words do not exceed; infinite where none is known.

        Args:
            text: any.
            enough: a bound that need not be sharpened.
        """
        if not self.known:
            return math.inf
        if text.isascii():
            if len(text) <= enough:
                return len(text)
            if text.isprintable():  # as many words as probably make up for what is too much
                parts = text.split(" ", 4 + (len(text) - enough) // _SAVED)
                bound = len(parts[0]) + len(parts[-1]) + 1 + sum(
                    map(self._counts.__getitem__, islice(parts, 1, len(parts) - 1)))
                if bound <= enough:
                    return bound
        return self._sum(_words(text), self._counts)

    def sharper(self, texts: Sequence[str]) -> list[float]:
        """The bounds of some texts where every word is counted."""
        if not self.known:
            return [math.inf] * len(texts)
        parts = [_words(text) for text in texts]
        all_words = dict.fromkeys(word for words in parts for word in words[1:])
        counts = self._tokens([word for word in all_words if word not in self._counts])
        counts.update((word, self._counts[word]) for word in all_words if word in self._counts)
        return [self._sum(words, counts) for words in parts]

    def learn(self, texts: Sequence[str]) -> None:
        """Count the words of some texts, as long as there is room for more."""
        room = REMEMBERED - len(self._counts)
        if not self.known or room <= 0:
            return
        fresh = dict.fromkeys(word for text in texts for word in _words(text)[1:]
                              if word not in self._counts and len(word) <= _LONGEST
                              and not _DIGIT.search(word))
        words = list(fresh)[:room]
        if words:
            self._counts.update(self._tokens(words))

    def _tokens(self, words: Sequence[str]) -> dict[str, int]:
        """Each with a blank before it. Many are read as one text, in which no token reaches over a
        blank, so that each word's tokens are those up to the next that begins one."""
        plain = [word for word in words if word.isprintable() and " " not in word]
        groups = [plain[at : at + _JOINED] for at in range(0, len(plain), _JOINED)]
        texts = [" " + " ".join(group) for group in groups]
        found: dict[str, int] = {}
        for group, ids in zip(groups, coded(self._tokenizer, texts), strict=True):
            starts = [at for at, number in enumerate(ids) if number in self._begin]
            if len(starts) == len(group) and not starts[0]:
                found.update(zip(group, map(sub, [*starts[1:], len(ids)], starts), strict=True))
        rest = [word for word in words if word not in found]
        counts = counted(self._tokenizer, [f" {word}" for word in rest])
        return {**found, **dict(zip(rest, counts, strict=True))}

    def _sum(self, words: Sequence[str], counts: Mapping[str, int]) -> int:
        """Of a text in words; the first has no blank before it."""
        return self._counts.__missing__(words[0]) + sum(
            map(counts.__getitem__, islice(words, 1, None)))


def counted(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """The numbers of tokens of many texts, read as plain words."""
    return list(map(len, coded(tokenizer, texts)))


def coded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[Sequence[int]]:
    """The tokens of many texts, read as plain words, many in a call."""
    if not tokenizer.is_fast:
        if texts:
            yield from tokenizer(
                list(texts), add_special_tokens=False, truncation=False, verbose=False,
                split_special_tokens=True, return_attention_mask=False,
                return_token_type_ids=False)["input_ids"]
        return
    inner = tokenizer.backend_tokenizer
    inner.no_truncation()
    inner.no_padding()
    for start in range(0, len(texts), _AT_ONCE):
        inner.encode_special_tokens = True  # read as words; each call of the tokenizer sets it
        for one in inner.encode_batch_fast(list(texts[start : start + _AT_ONCE]),
                                           add_special_tokens=False):
            yield one.ids


def _words(text: str) -> list[str]:
    """A text in the pieces that are counted apart, without the single blanks between them."""
    plain = text.isprintable() and "  " not in text and text.strip(" ") == text
    return text.split(" ") if plain else _BOUNDARY.split(text)


def _stretch(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many times longer in bytes the tokenizer may make a text; None where its tokens may reach
    over a blank, or that is not known."""
    if not tokenizer.is_fast:
        return None
    inner = tokenizer.backend_tokenizer
    if type(inner.model).__name__ != "BPE" or inner.pre_tokenizer is None:
        return None
    splitters = list(_parts(json.loads(inner.pre_tokenizer.__getstate__())))
    normalisers = [] if inner.normalizer is None else list(
        _parts(json.loads(inner.normalizer.__getstate__())))
    kinds = {part["type"] for part in splitters}
    sound = (
        kinds <= _SPLITTERS and "ByteLevel" in kinds
        and not any(part.get("add_prefix_space") for part in splitters)
        and all(part["type"] in ("NFC", "Sequence") for part in normalisers)
        and not any(_REACHES_OVER.search(str(token)) or token.lstrip or token.rstrip
                    for token in tokenizer.added_tokens_decoder.values() if not token.special)
        and not any(_reaches_over(token) for token in tokenizer.get_vocab())
    )
    return (_LONGER if normalisers else 1) if sound else None


def _parts(node: JsonObject) -> Iterator[JsonObject]:
    """A part of a tokenizer and all parts within it."""
    yield node
    for inner in (*node.get("pretokenizers", ()), *node.get("normalizers", ())):
        yield from _parts(inner)


def _reaches_over(token: str) -> bool:
    """Whether a token holds a blank behind something else than white space."""
    at = token.find(_BLANK, 1)
    while at > 0:
        if token[at - 1] not in _SPACES:
            return True
        at = token.find(_BLANK, at + 1)
    return False
