"""A cache of keys and values that does not copy itself at every token.

transformers' own layer is concatenated with every new token, which on a CPU costs a fifth of the
sampling time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PretrainedConfig

CHUNK_TOKENS = 64


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, (batch, heads, tokens, width), as views of buffers with room
    for more tokens."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any,
               **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens; returns all keys and all values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, new = self.get_seq_length(), key_states.shape[-2]
        # Whoever selects or repeats rows replaces ``keys`` by a tensor of its own: then the buffers
        # are stale.
        stale = self._rooms is None or self._rooms[0].data_ptr() != self.keys.data_ptr()
        if stale or self._rooms is None or old + new > self._rooms[0].shape[-2]:
            room = old + new + CHUNK_TOKENS
            self._rooms = (_moved(self.keys, key_states, old, room),
                           _moved(self.values, value_states, old, room))
        for buffer, states in zip(self._rooms, (key_states, value_states), strict=True):
            buffer[:, :, old : old + new] = states
        self.keys, self.values = (buffer[:, :, : old + new] for buffer in self._rooms)
        return self.keys, self.values


def _moved(past: Tensor, like: Tensor, old: int, room: int) -> Tensor:
    """A buffer shaped as ``like`` with place for ``room`` tokens, the first ``old`` of them copied
    from ``past``."""
    buffer = like.new_empty(*like.shape[:2], room, like.shape[-1])
    if old:
        buffer[:, :, :old] = past
    return buffer


def roomy_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model with this configuration; sliding-window and other special layers
    stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer
                    for layer in cache.layers]
    return cache


def paired_cache() -> EncoderDecoderCache:
    """An empty cache for an encoder-decoder: what the decoder has written, and what it looks at in
    the encoder's output."""
    own = DynamicCache()
    # layers appear on first use: a decoder may have other layers than the encoder
    own.layer_class_to_replicate = RoomyLayer
    return EncoderDecoderCache(own, DynamicCache())
