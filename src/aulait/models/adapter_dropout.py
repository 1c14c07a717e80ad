"""LoRA's dropout, drawn so that nothing but the record, the step and the layer decides it.

What an adapter reads is left out with a given probability, entry by entry, and the rest is scaled
up; the frozen layer reads all of it (Hu et al., "LoRA", ICLR 2022; PEFT's ``lora_dropout``). The
mask is a hash of the row's key, the layer, the position and the feature. So it does not depend on
what a record is padded or trained together with, nor on the device; a block that is computed again
in the backward pass sees the same one; and under the protection of single records no record decides
what is left out of another.

Shape letters: B rows · T positions of a row · N features.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF  # 32 bits


@dataclass(frozen=True)
class AdapterDropout:
    """What is left out in one pass.

    Attributes:
        rate: probability with which an entry is left out, in (0, 1).
        keys: one number of 32 bits for each row, int64 (B,).
    """

    rate: float
    keys: Tensor

    def applied(self, x: Tensor, layer: int, behind: Sequence[int] | None = None) -> Tensor:
        """The input of a layer, rows first, with entries left out and the rest divided by what is
        kept.

        Args:
            x: (B, ..., N), or (B · T, N) row by row; packed rows behind one another.
            layer: a number of the layer's own (``layer_number``).
            behind: lengths of rows that are packed; None for rows of equal length.
        """
        rows, width = len(self.keys), x.shape[-1]
        key_B = _mixed((self.keys.to(x.device) ^ layer) & _WORD)
        feature_N = torch.arange(width, device=x.device)
        if behind is None:
            own = x.reshape(rows, -1, width)
            key = key_B[:, None, None]
            place = torch.arange(own.shape[1], device=x.device)[:, None] * width + feature_N
        else:
            own = x.reshape(-1, width)
            key = key_B.repeat_interleave(torch.tensor(behind, device=x.device))[:, None]
            places = torch.cat([torch.arange(length, device=x.device) for length in behind])
            place = places[:, None] * width + feature_N
        kept = _mixed(((place * 0x9E3779B1) & _WORD) ^ key) >= int(self.rate * 2**32)
        return torch.where(kept, own / (1.0 - self.rate), 0.0).view(x.shape)


def layer_number(name: str) -> int:
    """A number of 32 bits for a layer, the same on every machine."""
    return zlib.crc32(name.encode())


def _mixed(h: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 (Austin Appleby, public domain) on numbers of 32 bits."""
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _WORD
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _WORD
    return h ^ (h >> 16)
