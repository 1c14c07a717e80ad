"""The bound on a text's tokens is one, and it is said where none is known."""

from __future__ import annotations

import math
import random

import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from aulait.data import builtin
from aulait.models.loading import BREW
from aulait.models.word_counts import WordCounts, counted

TEXTS = [row["text"] for row in builtin.standard_library()]
ODD = ["", " ", "  ", "\n", "a", " a", "a ", "a  b", "a\n\n  b", "x \n y", "tab\tb", "1,234.5", "don't 's", "é à", "日本 語", "\u00a0 a",
       "a\u2003b", "...\n\n\n   ...", "\x1c a", "a \u0301", "<|bos|> a", "\u1e9b\u0323 x"]


def trained(splitter, normaliser=None):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.normalizer = splitter, normaliser
    inner.train_from_iterator(TEXTS[:300], trainers.BpeTrainer(vocab_size=800, show_progress=False,
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module", params=["brew", "digits", "llama3", "nfc"])
def tokenizer(request):
    level, from_tokenizers = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Split
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    import tokenizers

    split = from_tokenizers(tokenizers.Regex(LLAMA_3), "isolated")
    return {"brew": lambda: transformers.AutoTokenizer.from_pretrained(BREW),
            "digits": lambda: trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])),
            "llama3": lambda: trained(pre_tokenizers.Sequence([split, whole])),
            "nfc": lambda: trained(level, normalizers.NFC())}[request.param]()


def test_no_text_has_more_tokens_than_its_bound(tokenizer):
    dice = random.Random(0)
    pieces = [*ODD, *" \n\t.,", *" ".join(TEXTS[:20]).split()[:200]]
    made = ["".join(dice.choice(pieces) + dice.choice(["", " ", "  ", "\n", " \n "]) for _ in range(dice.randint(1, 30)))
            for _ in range(400)]
    words = WordCounts(tokenizer)
    assert words.known
    for learnt in ([], TEXTS[:400], [*ODD, *made]):
        words.learn(learnt)
        texts = [*TEXTS[:300], *ODD, *made]
        exact = counted(tokenizer, texts)
        assert exact == [len(tokenizer(t, add_special_tokens=False, split_special_tokens=True)["input_ids"]) for t in texts]
        assert all(words.at_most(text) >= count for text, count in zip(texts, exact, strict=True))
        assert all(words.at_most(text, enough=50) >= count for text, count in zip(texts, exact, strict=True))
    joined = [word for text in [*TEXTS[:60], *ODD, *made[:60]] for word in text.split(" ") if word]
    alone = dict(zip(joined, counted(tokenizer, [f" {word}" for word in joined]), strict=True))
    assert words._tokens(list(alone)) == alone
    known = TEXTS[:300]
    assert sum(map(words.at_most, known)) < 1.6 * sum(counted(tokenizer, known))


def test_where_tokens_may_reach_over_a_blank_no_bound_is_known():
    over = trained(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    assert any("\u0120" in token[1:] and token[0] != "\u0120" for token in over.get_vocab())
    prefixed = trained(pre_tokenizers.ByteLevel(add_prefix_space=True))
    spelled = trained(pre_tokenizers.Whitespace())
    folded = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFKC())
    added = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    added.add_tokens(["and so"])
    for tokenizer in (over, prefixed, spelled, folded, added):
        words = WordCounts(tokenizer)
        words.learn(TEXTS[:5])
        assert words.at_most("a b") == math.inf
