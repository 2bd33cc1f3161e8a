"""What lies outside a mask as one number: fingerprints that a run can afford after every step.

The fingerprint of a tensor is xxh3-128 over its raw little-endian bytes in C order, the positions of the mask set to
zero; that of a model is xxh3-128 over the names and fingerprints of its tensors.  It stands against accidents, which is
all that a run's own journal can: whoever writes the journal could write anything.  Measured at some 20 GB/s per core.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["fingerprint", "mask_fingerprint", "model_fingerprint", "zero_positions"]


def fingerprint(parts: Iterable[memoryview | bytes | bytearray]) -> str:
    """The fingerprint of a tensor whose bytes come in `parts`, masked positions zero already; 32 hex digits."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def model_fingerprint(tensors: Mapping[str, str]) -> str:
    """The fingerprint of all tensors, from theirs by name; it does not depend on their order."""
    state = xxhash.xxh3_128()
    for name in sorted(tensors):
        state.update(f"{name}\0{tensors[name]}\n".encode())
    return state.hexdigest()


def mask_fingerprint(mask: Mapping[str, NDArray[np.integer] | None]) -> str:
    """The fingerprint of a mask: names of tensors with their ascending positions, None for whole ones.

    A tensor without positions counts as one that the mask leaves out.
    """
    found = {}
    for name, at in mask.items():
        if at is None:
            found[name] = "whole"
        elif len(at):
            found[name] = fingerprint([np.ascontiguousarray(at, "<i8").data.cast("B")])
    return model_fingerprint(found)


def zero_positions(words: NDArray[np.generic], positions: NDArray[np.int64], start: int) -> None:
    """Set to zero what the ascending `positions` name of `words`, elements of a flattened tensor from `start` on."""
    low, high = np.searchsorted(positions, (start, start + len(words)))
    words[positions[low:high] - start] = 0
