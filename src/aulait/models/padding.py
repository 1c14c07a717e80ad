"""Tokens and positions that a base really has: what pads, what opens and ends, how far it counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from aulait.core.errors import ModelError, require

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TABLE = re.compile(r"(?:^|_)(?:wpe|pos|positions?)(?:$|_)")  # names of tables of positions


def padding_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up.

    Nothing that is scored ever looks at it, so any row of the embedding will do: the tokenizer's
    padding token, else its end of text, else token 0.
    """
    rows = embedding_rows(model)
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and 0 <= int(token) < rows:
            return int(token)
    return 0


def embedding_rows(model: PreTrainedModel) -> int:
    """Tokens that the base has a row for."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise when a token that opens or ends every text has no row in the embedding.

    Raises:
        ModelError: in one line.
    """
    rows = embedding_rows(model)
    for what in ("bos_token", "eos_token"):
        token = getattr(tokenizer, f"{what}_id")
        require(token is None or int(token) < rows, ModelError,
                f"the {what} of {name} has number {token} and the embedding {rows} rows, expected "
                f"a smaller number; give the folder the tokenizer that the model was trained with")


def check_positions(model: PreTrainedModel, context: int, name: str) -> None:
    """Raise when the context is longer than a base can count that has a table of positions, learnt
    or computed beforehand.

    Raises:
        ModelError: in one line.
    """
    most = min(_positions(model), default=context)
    require(context <= most, ModelError,
            f"model.context is {context} and {name} has {most} positions, expected at most "
            f"{most}; set model.context = {most}, and data.too_long = 'cut' or 'drop' for "
            "longer texts")


def _positions(model: PreTrainedModel) -> Iterator[int]:
    """The rows of every table of positions that a text can use."""
    if model.config.model_type == "mpt":  # computes its slopes for so many positions, no table
        yield int(model.config.max_seq_len)
    for path, module in _text_modules(model):
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and _TABLE.search(name) and "rel" not in name:
            first = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's rule
            yield module.num_embeddings - int(getattr(module, "offset", first))
        for own, table in (*vars(module).items(), *module.named_buffers(recurse=False)):
            if isinstance(table, Tensor) and _TABLE.search(own) and table.dim() == 2 and (
                    table.is_floating_point()):  # not the numbers of positions
                yield table.shape[0]


def _text_modules(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules that tokens pass through: not the tower of a model that also sees, which counts
    patches of an image."""
    yield from model.get_decoder().named_modules()
    if model.config.is_encoder_decoder:
        yield from model.get_encoder().named_modules()
