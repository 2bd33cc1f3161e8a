"""Random numbers by position: any window of a stream, without those before it."""

from __future__ import annotations

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

__all__ = ["uniform"]

_PER_BLOCK = 4  # 64-bit numbers that one step of Philox's counter gives
_MANTISSA_BITS = 53


def uniform(stream: str, start: int, count: int) -> NDArray[np.float64]:
    """Numbers `start` to `start + count` of the stream of that name, uniform in [0, 1), float64.

    Philox4x64 (Salmon et al. 2011) with a key made from the name: the n-th number is a function of name and n alone, so
    that windows, threads and their order mean nothing.
    """
    key = int.from_bytes(blake3(stream.encode()).digest(length=16), "little")
    skipped = start // _PER_BLOCK
    generator = np.random.Philox(key=key, counter=skipped)
    first = start - skipped * _PER_BLOCK
    raw = np.asarray(generator.random_raw(first + count), np.uint64)[first:]
    return (raw >> np.uint64(64 - _MANTISSA_BITS)).astype(np.float64) * 2.0**-_MANTISSA_BITS
