"""Reading a view as if it were a tensor of its own: a tied name, a slice or a transposition of what is stored."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from modelgit.objects import BlobId, TensorId, TensorSpec, TensorView, check_view
from modelgit.patching.base import TensorReads, windows

__all__ = ["ViewBytes", "ViewReader"]

_BORDER = 8  # bytes: a multiple of every word


class ViewBytes:
    """The raw bytes of `view` in row-major order, from `read(start, stop)` of the stored tensor of spec `base`.

    Parts of a view without strides are read as they are asked for.  Of one with strides the stored bytes that it spans
    are read once and kept, and parts are put together from them as they are asked for: a view may repeat a few bytes
    into gigabytes.
    Raises CheckpointFormatError for a view that reaches beyond its tensor.
    """

    def __init__(
        self, read: Callable[[int, int], bytes | bytearray | memoryview], view: TensorView, base: TensorSpec
    ) -> None:
        self._read = read
        self._view = view
        self._limit = base.size_bytes
        self.spec = check_view(view, base)
        self._elements: NDArray[np.void] | None = None
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop` of the view."""
        if not self._view.strides:
            return self._span(self._view.offset + start, self._view.offset + stop)
        if not self.spec.size_bytes:
            return bytearray()
        with self._lock:
            if self._elements is None:
                self._elements = self._gather()
        width = self.spec.kind.bits // 8
        first = start // width
        data = bytearray().join(_flat(self._elements, first, -(-stop // width)))
        return data[start - first * width : stop - first * width]

    def _span(self, start: int, stop: int) -> bytearray:
        low = start // _BORDER * _BORDER
        high = min(-(-stop // _BORDER) * _BORDER, self._limit)
        return bytearray(self._read(low, high)[start - low : stop - low])

    def _gather(self) -> NDArray[np.void]:
        """The elements of the view, over the stored bytes that it spans."""
        width = self.spec.kind.bits // 8
        shape, strides = self.spec.shape, self._view.strides
        last = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
        size = (last + 1) * width
        data = bytearray(size)
        for start, stop in windows(size):
            data[start:stop] = self._span(self._view.offset + start, self._view.offset + stop)
        elements = np.frombuffer(data, f"V{width}")
        steps = tuple(stride * width for stride in strides)
        return np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False)


def _flat(elements: NDArray[np.void], start: int, stop: int) -> Iterator[bytes]:
    """The bytes of elements `start` to `stop`, counted in row-major order, without touching others."""
    if start >= stop:
        return
    row = math.prod(elements.shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # inside of one row
        yield from _flat(elements[last], start - last * row, stop - last * row)
        return
    if start < first * row:
        yield from _flat(elements[first - 1], start - (first - 1) * row, row)
    if first < last:
        yield elements[first:last].tobytes()
    if last * row < stop:
        yield from _flat(elements[last], 0, stop - last * row)


class ViewReader:
    """Reads `view` of the stored tensor `object_id` as if it were a tensor of its own: its offsets are the view's."""

    def __init__(self, reader: TensorReads, object_id: TensorId, view: TensorView, base: TensorSpec) -> None:
        self._reader = reader
        self._bytes = ViewBytes(partial(reader.read, object_id), view, base)
        self.spec = self._bytes.spec

    def size(self, tensor: TensorId | BlobId) -> int | None:
        """Length of the view in bytes, or None when its tensor is not stored here."""
        return None if self._reader.size(tensor) is None else self.spec.size_bytes

    def grain(self, tensor: TensorId | BlobId) -> int:
        """The largest piece that has to be decoded as a whole."""
        return self._reader.grain(tensor)

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of the view from `start` on; raises IntegrityError like `read`."""
        out[:] = self.read(tensor, start, start + out.nbytes)

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:  # noqa: ARG002 - one view, one tensor
        """Bytes `start` to `stop` of the view.  Raises IntegrityError when they cannot be rebuilt."""
        return self._bytes.read(start, stop)
