"""Checking ranges of stored objects against their ids, without rebuilding the rest.

An id is a hash over the digests of leaves of 4 MiB.  An object of more than one leaf therefore has a *leaf table*
beside its records: the bytes that its id is hashed from.  Whoever reads a range from a source that is not trusted
hashes the table, compares that with the id, and then the leaves that the range touches with the table.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from modelgit.errors import IntegrityError
from modelgit.objects import (
    DIGEST_BYTES,
    LEAF_BYTES,
    BlobId,
    TensorId,
    TensorSpec,
    leaf_count,
    leaf_digest,
    preimage,
    raw_id,
)
from modelgit.patching.base import WINDOW_BYTES, TensorReads
from modelgit.store.base import ObjectStore, RecordWriter

__all__ = [
    "REPAIR",
    "LeafChecks",
    "VerifiedReads",
    "check_leaf_tables",
    "leaf_table_bytes",
    "read_leaf_table",
    "stored_leaves",
    "write_leaf_table",
]

REPAIR = "`mgit fetch --repair` gets a good copy from a remote"
_KEPT_TABLES = 256


def leaf_table_bytes(size: int, spec: TensorSpec | None) -> int:
    """Length of the leaf table of an object of `size` raw bytes (a blob when `spec` is None)."""
    return len(preimage(size, spec, ())) + DIGEST_BYTES * leaf_count(size)


def write_leaf_table(
    store: RecordWriter, object_id: TensorId | BlobId, size: int, spec: TensorSpec | None, leaves: Sequence[bytes]
) -> int:
    """Write the leaf table of an object of more than one leaf; returns its length, 0 where none is needed."""
    if size <= LEAF_BYTES:
        return 0
    table = preimage(size, spec, leaves)
    store.append(object_id, start=0, stop=0, total=size, header=b"", payload=(table,))
    return len(table)


def read_leaf_table(store: ObjectStore, object_id: TensorId | BlobId, spec: TensorSpec | None) -> bytes | None:
    """The leaf table, checked against the id; None when there is none, or none that matches."""
    for item in store.locate(object_id):
        if item.is_leaf_table and item.length == leaf_table_bytes(item.total, spec):
            table = store.read_part(item, 0, item.length)
            if type(object_id).of(table) == object_id:
                return table
    return None


def stored_leaves(reads: TensorReads, object_id: TensorId | BlobId, size: int) -> list[bytes]:
    """The digests of the leaves of an object of `size` raw bytes, which is rebuilt for that leaf by leaf."""
    # Never a list of ranges first: a stranger's record may claim exabytes.
    starts = range(0, max(1, size), LEAF_BYTES)
    return [leaf_digest(reads.read(object_id, start, min(start + LEAF_BYTES, size))) for start in starts]


def check_leaf_tables(store: ObjectStore, object_id: TensorId | BlobId, expected: bytes) -> None:
    """Compare every stored leaf table with the right one; raises IntegrityError when one differs."""
    for item in store.locate(object_id):
        if item.is_leaf_table and (item.length != len(expected) or store.read_part(item, 0, item.length) != expected):
            raise IntegrityError(f"object {object_id} has a leaf table that does not match its id", hint=REPAIR)


class LeafChecks:
    """Reads ranges of objects and checks them leaf by leaf.  Thread-safe; memory is the range and one leaf."""

    def __init__(self, store: ObjectStore, reads: TensorReads) -> None:
        self._store = store
        self._reads = reads
        self._tables: OrderedDict[TensorId | BlobId, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def size(self, object_id: TensorId | BlobId) -> int | None:
        """Raw length in bytes, or None when the object is not stored."""
        return self._reads.size(object_id)

    def read(self, object_id: TensorId | BlobId, spec: TensorSpec | None, start: int, stop: int) -> bytearray:
        """Raw bytes `start` to `stop`.

        Raises IntegrityError when the object is missing, has another size than its spec says, or a leaf that the range
        touches is not the one that the id was hashed from.
        """
        size = self._reads.size(object_id)
        if size is None:
            raise self._store.absence(object_id)
        if spec is not None and size != spec.size_bytes:
            raise IntegrityError(f"object {object_id} has {size} bytes, its shape asks for {spec.size_bytes}")
        if not 0 <= start <= stop <= size:
            raise IntegrityError(f"{object_id.KIND} {object_id} does not have the bytes {start} to {stop}")
        if size <= LEAF_BYTES:
            data = self._reads.read(object_id, 0, size)
            if raw_id(size, spec, (leaf_digest(data),)) != object_id:
                raise IntegrityError(f"object {object_id} does not match its id", hint=REPAIR)
            return data if (start, stop) == (0, size) else data[start:stop]
        table = self._table(object_id, spec, size)
        out = bytearray(stop - start)
        for leaf in range(start // LEAF_BYTES, -(-stop // LEAF_BYTES)):
            low, high = leaf * LEAF_BYTES, min((leaf + 1) * LEAF_BYTES, size)
            data = self._reads.read(object_id, low, high)
            if leaf_digest(data) != _digest(table, leaf, size):
                raise IntegrityError(
                    f"object {object_id} does not match its id between bytes {low} and {high}", hint=REPAIR
                )
            begin, end = max(low, start), min(high, stop)
            out[begin - start : end - start] = memoryview(data)[begin - low : end - low]
        return out

    def _table(self, object_id: TensorId | BlobId, spec: TensorSpec | None, size: int) -> bytes:
        with self._lock:
            known = self._tables.get(object_id)
            if known is not None:
                self._tables.move_to_end(object_id)
                return known
        table = read_leaf_table(self._store, object_id, spec)
        if table is None:  # stored before there were such tables: the whole object, once, gives the same
            table = preimage(size, spec, stored_leaves(self._reads, object_id, size))
            if type(object_id).of(table) != object_id:
                raise IntegrityError(f"object {object_id} does not match its id", hint=REPAIR)
        with self._lock:
            self._tables[object_id] = table
            if len(self._tables) > _KEPT_TABLES:
                self._tables.popitem(last=False)
        return table


class VerifiedReads:
    """`TensorReads` of objects whose specs are known, with every byte checked against the ids.

    `specs` says which tensors have which dtype and shape; what is not in it is a blob.
    """

    def __init__(self, checks: LeafChecks, specs: Mapping[TensorId, TensorSpec]) -> None:
        self._checks = checks
        self._specs = specs

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        """Raw bytes `start` to `stop`.  Raises IntegrityError when they are not those of the id."""
        spec = self._specs.get(tensor) if isinstance(tensor, TensorId) else None
        if spec is None and isinstance(tensor, TensorId):
            raise IntegrityError(f"no file says which dtype and shape tensor {tensor} has")
        return self._checks.read(tensor, spec, start, stop)

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        out[:] = self.read(tensor, start, start + out.nbytes)

    def grain(self, tensor: TensorId | BlobId) -> int:
        """Whole windows: a leaf has to be rebuilt whole to be checked."""
        del tensor
        return WINDOW_BYTES

    def size(self, tensor: TensorId | BlobId) -> int | None:
        """Raw length in bytes, or None when the tensor is not stored."""
        return self._checks.size(tensor)


def _digest(table: bytes, leaf: int, size: int) -> bytes:
    begin = len(table) - DIGEST_BYTES * (leaf_count(size) - leaf)
    return table[begin : begin + DIGEST_BYTES]
