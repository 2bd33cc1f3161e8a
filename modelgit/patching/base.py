"""What patching reads from and gives back: raw bytes of tensors by range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from modelgit.objects import BlobId, TensorId, TensorSpec

__all__ = ["STEP_BYTES", "WINDOW_BYTES", "TensorReads", "TensorSource", "windows"]

WINDOW_BYTES = 8 << 20
"""How much of a tensor is held at a time: whole leaves, and whole units of every codec."""

STEP_BYTES = 512 << 10
"""How much is read, hashed and coded in one go where nothing asks for more: it stays in a processor's own cache."""


def windows(size_bytes: int, *, step_bytes: int = WINDOW_BYTES) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive ranges of at most `step_bytes` that cover `size_bytes`; none for nothing."""
    for start in range(0, size_bytes, step_bytes):
        yield start, min(start + step_bytes, size_bytes)


class TensorSource(Protocol):
    """A tensor that is about to be stored: a range of a file, or the output of a merge.

    `read` is called from several threads, may be called twice for one range, and must then return equal bytes;
    the writer checks that.  `step_bytes`, a power of two of at most WINDOW_BYTES, is the least that is worth asking for
    at a time.
    """

    spec: TensorSpec
    step_bytes: int

    def read(self, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Raw little-endian bytes `start` to `stop` (byte offsets inside the tensor, on word borders)."""

    def read_into(self, start: int, out: memoryview) -> None:
        """The same from `start` on, into a buffer of the caller's."""


class TensorReads(Protocol):
    """Reading stored tensors by range; thread-safe, checked, bounded in memory by the range that is asked for."""

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        """Raw bytes `start` to `stop` of the tensor.  Raises IntegrityError when they cannot be rebuilt."""

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""

    def grain(self, tensor: TensorId | BlobId) -> int:
        """The largest piece that has to be decoded as a whole: reading less at a time decodes it again and again."""

    def size(self, tensor: TensorId | BlobId) -> int | None:
        """Raw length in bytes, or None when the tensor is not stored here."""
