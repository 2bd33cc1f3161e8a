"""Named work buffers, one set per thread: fresh pages cost more than the arithmetic that is done in them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["scratch"]

# Larger buffers are handed out fresh: a thread of a pool must not hold on to them.
KEPT_BYTES = 32 << 20


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_name: dict[str, NDArray[np.uint8]] = {}


_BUFFERS = _Buffers()


def scratch(name: str, count: int, dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised 1-D array of `count` elements that stays valid until this thread asks for `name` again.

    Names belong to the function that uses them: two live arrays of one thread must have different names.
    """
    kind = np.dtype(dtype)
    size_bytes = count * kind.itemsize
    if size_bytes > KEPT_BYTES:
        return np.empty(count, kind)
    buffer = _BUFFERS.by_name.get(name)
    if buffer is None or buffer.size < size_bytes:
        buffer = _BUFFERS.by_name[name] = np.empty(max(size_bytes, 4096), np.uint8)
    return buffer[:size_bytes].view(kind)
