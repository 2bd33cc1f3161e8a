"""Reading a view as if it were a tensor of its own: a tied name, a slice or a transposition of what is stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np

from modelgit.objects import BlobId, TensorId, TensorSpec, TensorView, check_view
from modelgit.patching.base import TensorReads, windows

__all__ = ["ViewBytes", "ViewReader"]

_BORDER = 8  # bytes: a multiple of every word


class ViewBytes:
    """The raw bytes of `view` in row-major order, from `read(start, stop)` of the stored tensor of spec `base`.

    Parts of a view without strides are read as they are asked for; one with strides is put together whole, once, in
    memory of its own size and that of the bytes it spans.
    Raises CheckpointFormatError for a view that reaches beyond its tensor.
    """

    def __init__(
        self, read: Callable[[int, int], bytes | bytearray | memoryview], view: TensorView, base: TensorSpec
    ) -> None:
        self._read = read
        self._view = view
        self._limit = base.size_bytes
        self.spec = check_view(view, base)
        self._whole: bytes | None = None
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop` of the view."""
        if not self._view.strides:
            return self._span(self._view.offset + start, self._view.offset + stop)
        with self._lock:
            if self._whole is None:
                self._whole = self._gather()
            return bytearray(self._whole[start:stop])

    def _span(self, start: int, stop: int) -> bytearray:
        low = start // _BORDER * _BORDER
        high = min(-(-stop // _BORDER) * _BORDER, self._limit)
        return bytearray(self._read(low, high)[start - low : stop - low])

    def _gather(self) -> bytes:
        if not self.spec.size_bytes:
            return b""
        width = self.spec.kind.bits // 8
        shape, strides = self.spec.shape, self._view.strides
        last = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
        size = (last + 1) * width
        data = bytearray(size)
        for start, stop in windows(size):
            data[start:stop] = self._span(self._view.offset + start, self._view.offset + stop)
        elements = np.frombuffer(data, f"V{width}")
        steps = tuple(stride * width for stride in strides)
        return np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False).tobytes()


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
