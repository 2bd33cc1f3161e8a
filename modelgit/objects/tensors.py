"""Tensor specifications, and the ids of tensors and blobs by 4 MiB leaves."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from blake3 import blake3

from modelgit.errors import CheckpointFormatError
from modelgit.objects.canonical import Record
from modelgit.objects.dtypes import DType, dtype_named
from modelgit.objects.ids import BlobId, TensorId, domain

__all__ = [
    "DIGEST_BYTES",
    "LEAF_BYTES",
    "LeafHasher",
    "TensorEntry",
    "TensorSpec",
    "blob_id",
    "leaf_count",
    "leaf_digest",
    "leaf_digests",
    "preimage",
    "raw_id",
    "tensor_id",
]

LEAF_BYTES = 4 << 20
DIGEST_BYTES = 32
MAX_DIMENSIONS = 64
_LEAF_DOMAIN = domain("leaf")


class TensorSpec(Record, frozen=True, kw_only=True):
    """Dtype and shape.  `shape` is a tuple of non-negative ints, `()` for a scalar."""

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def kind(self) -> DType:
        """The dtype's description."""
        return dtype_named(self.dtype)

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def size_bytes(self) -> int:
        """Length of the raw bytes.

        Raises CheckpointFormatError when sub-byte elements do not fill whole bytes, or rows do not fill whole blocks.
        """
        return self.kind.size_of(self.shape)

    def check(self) -> None:
        """Raise CheckpointFormatError for an unknown dtype, too many dimensions, or a negative or absurd extent."""
        if len(self.shape) > MAX_DIMENSIONS:
            raise CheckpointFormatError(f"a tensor with {len(self.shape)} dimensions (at most {MAX_DIMENSIONS})")
        if any(extent < 0 or extent >= 1 << 63 for extent in self.shape):
            raise CheckpointFormatError(f"a tensor with shape {list(self.shape)[:8]}")
        if self.size_bytes >= 1 << 63:
            raise CheckpointFormatError(f"a tensor of {self.size_bytes} bytes")


class TensorEntry(Record, frozen=True, kw_only=True):
    """A named tensor of a file."""

    name: str
    spec: TensorSpec
    id: TensorId


def leaf_count(size_bytes: int) -> int:
    """How many leaves an object of that size has."""
    return max(1, -(-size_bytes // LEAF_BYTES))


def leaf_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The 32-byte digest of one leaf of raw bytes (at most LEAF_BYTES)."""
    return blake3(_LEAF_DOMAIN).update(data).digest()


class LeafHasher:
    """Digests of consecutive leaves of bytes that come in pieces of any size, from the beginning of a leaf on."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._hash = blake3(_LEAF_DOMAIN)
        self._filled = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        while view.nbytes:
            if self._filled == LEAF_BYTES:
                self._digests.append(self._hash.digest())
                self._hash = blake3(_LEAF_DOMAIN)
                self._filled = 0
            part = view[: LEAF_BYTES - self._filled]
            self._hash.update(part)
            self._filled += part.nbytes
            view = view[part.nbytes :]

    def finish(self) -> list[bytes]:
        """The digests, that of the last leaf included; that of one empty leaf for nothing."""
        return [*self._digests, self._hash.digest()]


def leaf_digests(data: bytes | bytearray | memoryview) -> list[bytes]:
    """The digests of consecutive leaves of `data`; that of one empty leaf for nothing."""
    view = memoryview(data)  # a slice of bytes would be a copy
    return [leaf_digest(view[start : start + LEAF_BYTES]) for start in range(0, max(1, len(view)), LEAF_BYTES)]


def preimage(size_bytes: int, spec: TensorSpec | None, leaves: Iterable[bytes]) -> bytes:
    """What the id of a tensor (of a blob: `spec` is None) is hashed from, but for the domain."""
    if spec is None:
        return struct.pack("<Q", size_bytes) + b"".join(leaves)
    name = spec.dtype.encode("ascii")
    head = struct.pack("<B", len(name)) + name + struct.pack(f"<I{len(spec.shape)}Q", len(spec.shape), *spec.shape)
    return head + b"".join(leaves)


def tensor_id(spec: TensorSpec, leaves: Iterable[bytes]) -> TensorId:
    """The id of a tensor from its spec and the digests of its leaves, in order."""
    return TensorId.of(preimage(0, spec, leaves))


def blob_id(size_bytes: int, leaves: Iterable[bytes]) -> BlobId:
    """The id of a blob from its length and the digests of its leaves, in order."""
    return BlobId.of(preimage(size_bytes, None, leaves))


def raw_id(size_bytes: int, spec: TensorSpec | None, leaves: Iterable[bytes]) -> TensorId | BlobId:
    """The id of a tensor, or of a blob where `spec` is None."""
    return blob_id(size_bytes, leaves) if spec is None else tensor_id(spec, leaves)
