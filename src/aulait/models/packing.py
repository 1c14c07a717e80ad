"""Sequences of unequal length behind one another in one row, without padding.

Each sees itself alone: its tokens have its own positions, its attention its own tokens. All else in
a decoder is computed token by token, so that the states are those of padded rows to rounding, and
no product is spent on padding. Neighbours of equal length share a call of the attention.

A model can be read so if its attention is the library's ``sdpa``, which is asked for by name in
every pass and so can be exchanged (transformers' ``AttentionInterface``), and if nothing else in it
looks from token to token. Whether that is so is tried once, on made-up tokens.

Shape letters: B sequences · T tokens of a padded row · S tokens of all sequences · D width · H
heads · K sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

NAME = "aulait_packed"
# attention in a window or in chunks of so many tokens: attributes of a model's settings
_REACHES = ("sliding_window", "attention_chunk_size", "window_size", "attention_window")
_UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)


@dataclass(frozen=True)
class PackedRows:
    """Sequences behind one another.

    Attributes:
        ids: tokens (1, S).
        places: of each token in its sequence (1, S).
        lengths: of the sequences.
    """

    ids: Tensor
    places: Tensor
    lengths: tuple[int, ...]

    def of_sites(self, sites: int) -> list[int]:
        """Tokens of each of K sites, which have equally many sequences, those of a site
        adjacent."""
        each = len(self.lengths) // sites
        return [sum(self.lengths[i : i + each]) for i in range(0, len(self.lengths), each)]

    def states(self, decoder: Any) -> Tensor:
        """Last hidden states (1, S, D)."""
        with _attending(decoder.config, self):
            hidden_1SD: Tensor = decoder(input_ids=self.ids, position_ids=self.places,
                                         use_cache=False)[0]
        return hidden_1SD


class AttentionSettings(Protocol):
    """What of a decoder's settings names its attention."""

    _attn_implementation: str


# the settings of the decoder that reads packed rows now, and the rows
_NOW: ContextVar[tuple[AttentionSettings, PackedRows] | None] = ContextVar("packed", default=None)


def packed_now() -> PackedRows | None:
    """What a decoder is reading, if it reads packed rows."""
    now = _NOW.get()
    return now and now[1]


def replay() -> Callable[[], AbstractContextManager[None]]:
    """What a part of this pass has to be within when it is computed again later."""
    now = _NOW.get()
    return nullcontext if now is None else partial(_attending, *now)


def packed(ids_BT: Tensor, lengths_B: Tensor) -> PackedRows:
    """The first tokens of right-padded sequences, as many of each as its length says."""
    place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    kept_BT = place_T < lengths_B[:, None]
    return PackedRows(ids_BT[kept_BT][None], place_T.expand_as(ids_BT)[kept_BT][None],
                      tuple(lengths_B.tolist()))


def can_pack(decoder: Any, context: int) -> bool:
    """Whether a decoder says the same of sequences behind one another as of padded rows.

    Args:
        decoder: on a processor; accelerators are kept busy by padded rows of many sequences.
        context: tokens of the longest sequence.
    """
    config = getattr(decoder, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa" or (
            next(decoder.parameters()).device.type != "cpu"):
        return False
    if any(0 < (getattr(config, name, None) or 0) < context for name in _REACHES):
        return False
    vocabulary = decoder.get_input_embeddings().num_embeddings
    ids_BT = (torch.arange(24) % vocabulary).view(3, 8)
    lengths_B = torch.tensor([5, 8, 8])
    try:
        with torch.no_grad():
            found_SD = packed(ids_BT, lengths_B).states(decoder)[0]
            whole_BTD = decoder(input_ids=ids_BT, use_cache=False)[0]
            wanted_SD = whole_BTD[torch.arange(8) < lengths_B[:, None]]
    except _UNFIT:
        return False
    if found_SD.shape != wanted_SD.shape:
        return False
    slack = min(100 * torch.finfo(wanted_SD.dtype).eps, 0.05)  # 1e-5 in float32
    apart = (found_SD.float() - wanted_SD.float()).abs().max()
    return bool(apart <= slack * wanted_SD.float().abs().max().clamp(min=1.0))


@contextmanager
def _attending(config: AttentionSettings, rows: PackedRows) -> Iterator[None]:
    """Let the decoder of these settings attend within each of these sequences."""
    own, mark = config._attn_implementation, _NOW.set((config, rows))
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own
        _NOW.reset(mark)


def register(attentions: Any) -> None:
    """Make the attention known to transformers, which then asks for no mask.

    Args:
        attentions: its ``ALL_ATTENTION_FUNCTIONS``.
    """
    attentions.register(NAME, partial(_attend, attentions["sdpa"]))


def _attend(own: Callable[..., tuple[Tensor, object]], module: object, *states: Tensor | None,
            **options: object) -> tuple[Tensor, None]:
    """The library's own attention, for runs of neighbours of equal length; queries, keys and values
    are (1, H, S, D), the mask None."""
    rows, outputs = packed_now(), []
    query, key, value, mask = states
    if rows is None or mask is not None:
        raise ValueError("attention of packed rows was asked for where there are none")
    runs = [(length, len(list(same))) for length, same in groupby(rows.lengths)]
    sizes = [length * count for length, count in runs]
    parts = (torch.split(x, sizes, dim=2) for x in (query, key, value) if x is not None)
    for (length, count), *three in zip(runs, *parts, strict=True):
        q, k, v = (_apart(part, count, length) for part in three)
        out_BTHD = own(module, q, k, v, None, **options)[0]
        outputs.append(out_BTHD.reshape(1, count * length, *out_BTHD.shape[2:]))
    return torch.cat(outputs, dim=1), None


def _apart(x: Tensor, count: int, length: int) -> Tensor:
    """(1, H, count · length, D) as (count, H, length, D), without a copy."""
    return x[0].view(x.shape[1], count, length, x.shape[3]).transpose(0, 1)


def gain(lengths: Sequence[int], width: int) -> float:
    """Tokens of padded rows for each token of these sequences."""
    return len(lengths) * width / max(1, sum(lengths))
