"""Small pieces of stored blobs: the headers and paddings of a file lie in one blob and are asked for one by one."""

from __future__ import annotations

import threading

from modelgit.objects import BlobId, TensorId
from modelgit.patching.base import TensorReads

__all__ = ["BufferedBlobs"]

_WINDOW_BYTES = 1 << 20
_SMALL_BYTES = 64 << 10


class BufferedBlobs:
    """Reads through `reader`; small pieces of a blob come from a window that was read before, if they lie in it.

    Decoding a whole unit for every piece would make a file of thousands of tensors slow.  Thread-safe, like the reader.
    """

    def __init__(self, reader: TensorReads) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._held: tuple[BlobId, int, bytes] | None = None

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        """Raw bytes `start` to `stop`.  Raises IntegrityError when they cannot be rebuilt."""
        if not isinstance(tensor, BlobId) or stop - start > _SMALL_BYTES:
            return self._reader.read(tensor, start, stop)
        with self._lock:
            held = self._held
            if held is None or held[0] != tensor or start < held[1] or stop > held[1] + len(held[2]):
                low = start // _SMALL_BYTES * _SMALL_BYTES
                size = self._reader.size(tensor)
                high = stop if size is None else max(stop, min(low + _WINDOW_BYTES, size))
                held = self._held = (tensor, low, bytes(self._reader.read(tensor, low, high)))
        return bytearray(held[2][start - held[1] : stop - held[1]])

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        if not isinstance(tensor, BlobId) or out.nbytes > _SMALL_BYTES:
            self._reader.read_into(tensor, start, out)
        else:
            out[:] = self.read(tensor, start, start + out.nbytes)

    def grain(self, tensor: TensorId | BlobId) -> int:
        """The largest piece that has to be decoded as a whole."""
        return self._reader.grain(tensor)

    def size(self, tensor: TensorId | BlobId) -> int | None:
        """Raw length in bytes, or None when the tensor is not stored here."""
        return self._reader.size(tensor)
