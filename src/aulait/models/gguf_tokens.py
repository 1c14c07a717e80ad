"""A tokenizer as GGUF holds it: tokens with their kinds, merges, and the name that tells llama.cpp
how to split a text before merging.

GGUF does not hold the rule itself, only a name that readers know. So a tokenizer is written only
where its rule is one of those below; any other would be split otherwise than in training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aulait.core.errors import ModelError, require
from aulait.core.files import JsonTree

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens in GGUF
_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS: Final = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: Final[Mapping[str, str]] = {
    f"{_CONTRACTIONS}{_WORDS}|\\p{{N}}{{1,3}}{_REST}": "llama-bpe",
    f"{_CONTRACTIONS}{_WORDS}|\\p{{N}}{_REST}": "qwen2",
}
"""Regular expression of a splitting step -> llama.cpp's name of it."""


@dataclass(frozen=True)
class GgufTokens:
    """What the tokenizer's part of a GGUF file holds.

    Attributes:
        split: llama.cpp's name of the rule by which a text is split before merging.
        tokens: by id, as many as the embedding has rows.
        kinds: of each token.
        merges: "left right", the first merged first.
        special: "bos", "eos", "unk", "pad" -> id; those that the tokenizer has.
        begins: whether the tokenizer puts the opening token before a text by itself.
        ends: whether it puts the closing token after one.
        template: of chats; None without one.
    """

    split: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    begins: bool
    ends: bool
    template: str | None


def gguf_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> GgufTokens:
    """A tokenizer's part of a GGUF file.

    Args:
        tokenizer: of the model.
        rows: of the model's embedding; tokens beyond the tokenizer's own are unused ones.

    Raises:
        ModelError: it is of a kind, or splits texts by a rule, that cannot be written.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(_refusal("has no tokenizer.json"))
    tree: dict[str, JsonTree] = json.loads(backend.to_str())
    model = _tree(tree, "model")
    require(model.get("type") == "BPE" and not model.get("byte_fallback"), ModelError,
            _refusal(f"is of the kind {model.get('type')}"
                     f"{' with a fallback to bytes' if model.get('byte_fallback') else ''}"))
    split, merges = _split_of(tree), _merges(model)
    require(bool(merges), ModelError,
            _refusal("has no merges, which readers take for a tokenizer of another kind"))
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    require(max(vocabulary.values()) < rows, ModelError,
            _refusal(f"has tokens beyond the {rows} rows of the model's embedding"))
    for token, number in vocabulary.items():
        tokens[number], kinds[number] = token, NORMAL
        if number in added:
            kinds[number] = CONTROL if added[number].special else USER_DEFINED
    named = {name: getattr(tokenizer, f"{name}_token_id", None)
             for name in ("bos", "eos", "unk", "pad")}
    special = {name: int(token) for name, token in named.items() if token is not None}
    probe = list(tokenizer("a")["input_ids"])
    template = tokenizer.chat_template
    return GgufTokens(
        split, tuple(tokens), tuple(kinds), merges, special,
        begins=bool(probe) and probe[0] == special.get("bos"),
        ends=len(probe) > 1 and probe[-1] == special.get("eos"),
        template=template if isinstance(template, str) else None)


def _merges(model: Mapping[str, JsonTree]) -> tuple[str, ...]:
    found = model.get("merges")
    assert isinstance(found, list)
    return tuple(pair if isinstance(pair, str) else " ".join(map(str, pair))
                 for pair in found if isinstance(pair, str | list))


def _split_of(tree: Mapping[str, JsonTree]) -> str:
    """llama.cpp's name of the rule by which a tokenizer splits a text before merging."""
    normalizer = tree.get("normalizer")
    kind = normalizer.get("type") if isinstance(normalizer, dict) else None
    require(kind in (None, "NFC"), ModelError,
            _refusal(f"changes texts first ({kind})"))  # llama.cpp leaves NFC to the writer
    before = _tree(tree, "pre_tokenizer")
    steps = before.get("pretokenizers") if before.get("type") == "Sequence" else [before]
    assert isinstance(steps, list)
    rules = [_rule(step) for step in steps if isinstance(step, dict)]
    if rules == ["words"]:
        return "gpt-2"
    if rules == ["digits", "words"]:
        return "smollm"
    if len(rules) == 2 and rules[1] == "bytes" and rules[0] in _SPLITS.values():
        return rules[0]
    raise ModelError(_refusal("splits texts by a rule that has no name in GGUF here"))


def _rule(step: Mapping[str, JsonTree]) -> str:
    """"words": GPT-2's; "bytes": no splitting; "digits": each of its own; else a name of
    llama.cpp's, or "unknown"."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return _SPLITS.get(str(regex), "unknown")
    return "unknown"


def _tree(tree: Mapping[str, JsonTree], key: str) -> dict[str, JsonTree]:
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def _refusal(what: str) -> str:
    return (f"the tokenizer {what}; expected byte-level merges as of GPT-2, SmolLM, Llama 3 or "
            "Qwen 2 for a GGUF file; export with --merge instead, and convert that folder")
