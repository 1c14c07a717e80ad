"""Numbers of the ring Z_{2^b}, b whole bytes: streams that nobody without the seed can tell from
random ones, and how vectors of them travel.

In memory a number is a uint64 of which the lowest b bits count; sums wrap around by themselves.
The stream is ChaCha20's under a seed that is used once, so counter and nonce begin at zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from aulait.core.errors import WireError, require

Ring = NDArray[np.uint64]
_WORD: Final = 8


def stream(seed: bytes, count: int, width: int) -> Ring:
    """The first numbers of a seed's stream.

    Args:
        seed: 32 bytes, used for one stream.
        count: how many.
        width: bytes of a number, 1 to 8.
    """
    keystream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(
        bytes(count * width))
    return _widened(np.frombuffer(keystream, dtype=np.uint8), width)


def packed(numbers: Ring, width: int) -> bytes:
    """Their lowest ``width`` bytes one after another, little-endian."""
    rows = np.ascontiguousarray(numbers).astype("<u8").view(np.uint8).reshape(-1, _WORD)
    return rows[:, :width].tobytes()


def unpacked(raw: bytes, count: int, width: int) -> Ring:
    """The numbers that ``packed`` made these bytes of.

    Raises:
        WireError: there are more or fewer bytes.
    """
    require(len(raw) == count * width, WireError,
            f"a masked vector of {len(raw)} bytes found, expected {count * width}; it is not "
            "counted")
    return _widened(np.frombuffer(raw, dtype=np.uint8), width)


def centred(numbers: Ring, width: int) -> NDArray[np.int64]:
    """The representatives in [-2^(b-1), 2^(b-1))."""
    shift = np.uint64(8 * (_WORD - width))
    return (numbers << shift).view(np.int64) >> shift.astype(np.int64)


def _widened(raw: NDArray[np.uint8], width: int) -> Ring:
    rows = np.zeros((len(raw) // width, _WORD), dtype=np.uint8)
    rows[:, :width] = raw.reshape(-1, width)
    return rows.view("<u8").reshape(-1).astype(np.uint64)
