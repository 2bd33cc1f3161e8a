"""What the rest of the package needs from a store, and nothing else.

A store holds *records*: coded ranges of objects, each self-contained given its base.  It knows ids, offsets and
checksums; what a record means is known to `patching` (tensors, blobs) and to `store.metadata` (everything small).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from modelgit.errors import IntegrityError
from modelgit.objects import BlobId, External, ObjectId, Root, TensorId, check_external, decode

__all__ = [
    "Foreign",
    "Located",
    "ObjectStore",
    "RecordWriter",
    "RootStore",
    "StagedObject",
    "VersionedRoot",
    "WriteStore",
    "covers",
    "is_external",
    "is_foreign",
    "read_external_record",
]

BORROWED = "@"
"""What the `pack` of a record begins with that lies in another store or in somebody's file."""


class Located(NamedTuple):
    """Where one record lies.

    The record rebuilds bytes `start` to `stop` of an object of `total` bytes; `offset` and `length` are its place in
    `pack`, the last `header` bytes of it being its header; `base` is the digest of the object of the same kind that it
    is coded against, or None.  `positions` is the digest of the blob that holds the positions of a record under a mask.
    """

    kind: str
    digest: bytes
    start: int
    stop: int
    total: int
    pack: str
    offset: int
    length: int
    header: int
    base: bytes | None
    positions: bytes | None = None

    @property
    def needs(self) -> tuple[tuple[str, bytes], ...]:
        """Kind and digest of the objects without which the record cannot be read."""
        base = () if self.base is None else ((self.kind, self.base),)
        return base if self.positions is None else (*base, (BlobId.KIND, self.positions))

    @property
    def payload_bytes(self) -> int:
        """How much of the record lies before its header."""
        return self.length - self.header

    def split(self, data: bytes) -> tuple[bytes, memoryview]:
        """(header, payload) of the whole record `data`."""
        return data[self.payload_bytes :], memoryview(data)[: self.payload_bytes]

    @property
    def is_leaf_table(self) -> bool:
        """Whether this is no part of the object, but what its id is hashed from (see `patching.leaves`)."""
        return self.stop == 0 < self.total


def covers(records: Iterable[Located]) -> bool:
    """Whether the records together rebuild every byte of their object."""
    reach = 0
    total = None
    for item in sorted(records, key=lambda item: item.start):
        total = item.total
        if item.start > reach:
            return False
        reach = max(reach, item.stop)
    return total is not None and reach >= total


def is_external(located: Located) -> bool:
    """Whether the record only says where the object lies (see `objects.external`): it has a header and no payload."""
    return not located.payload_bytes and located.stop > located.start


def read_external_record(data: bytes, located: Located) -> tuple[External, TensorId | BlobId]:
    """The external record `data`, checked against the id of its row.  Raises IntegrityError when it lies."""
    object_id = TensorId(located.digest) if located.kind == TensorId.KIND else BlobId(located.digest)
    external = decode(External, data, what=f"the external record of {object_id.KIND} {object_id}")
    check_external(external, object_id, located.total)
    return external, object_id


def is_foreign(located: Located) -> bool:
    """Whether the bytes lie outside of this store, so that they are compared with leaf digests on every read."""
    return located.pack.startswith(BORROWED) or is_external(located)


class Foreign(NamedTuple):
    """How a foreign object is read: `leaves` are the digests that its bytes must have, one after the other.

    Either `read(start, stop)` gives raw bytes of it, or `store` holds records of it; `shown` says where, for messages.
    """

    leaves: bytes
    shown: str
    hint: str
    read: Callable[[int, int], bytes] | None = None
    store: ObjectStore | None = None


class RecordWriter(Protocol):
    """Accepts records into packs that nobody sees before they are sealed."""

    def append(
        self,
        object_id: ObjectId,
        *,
        start: int,
        stop: int,
        total: int,
        header: bytes,
        payload: Iterable[bytes | bytearray | memoryview],
        base: ObjectId | None = None,
        positions: BlobId | None = None,
    ) -> None:
        """Write one record; thread-safe."""


class ObjectStore(Protocol):
    """Reading records by id."""

    def locate(self, object_id: ObjectId) -> list[Located]:
        """All records of the object that can be read now, in no particular order."""

    def read(self, located: Located) -> tuple[bytes, memoryview]:
        """(header, payload) of a record.  Raises IntegrityError when the pack is gone or short."""

    def read_part(self, located: Located, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a record, counted from its first byte."""

    def has(self, object_id: ObjectId) -> bool:
        """Whether records for all bytes of the object are here."""

    def objects(self) -> Iterator[Located]:
        """Every record, pack by pack."""

    def foreign(self, located: Located) -> Foreign:
        """How to read an object whose record is foreign.  Raises LenderError when what it lies in is not there."""

    def absence(self, object_id: ObjectId) -> IntegrityError:
        """Why there are no records of the object, as an error to raise."""


class StagedObject(Protocol):
    """Records that are written before the id of their object is known: a large tensor is hashed while it is coded."""

    def write(self, payload: Iterable[bytes | bytearray | memoryview]) -> None:
        """Append to the payload of the current record."""

    def end_record(
        self,
        *,
        start: int,
        stop: int,
        total: int,
        header: bytes,
        base: ObjectId | None = None,
        positions: BlobId | None = None,
    ) -> int:
        """Finish the current record; returns its length.  The next `write` begins another."""

    def name(self, object_id: ObjectId) -> None:
        """Give all finished records to the object."""

    def discard(self) -> None:
        """Take everything back: the object was known already."""


class WriteStore(ObjectStore, RecordWriter, Protocol):
    """A store that shows what was just written to it."""

    @property
    def is_first(self) -> bool:
        """Whether nothing at all was stored before: then nothing can be known already."""

    def stage(self) -> StagedObject:
        """Begin an object whose id comes last.  Nothing else may be written before it is named or discarded."""


class VersionedRoot(NamedTuple):
    """A root and the number of its version."""

    version: int
    root: Root


class RootStore(Protocol):
    """The one mutable thing."""

    def read(self) -> VersionedRoot:
        """The current root."""

    def swap(self, expected: int, new: Root) -> VersionedRoot:
        """Publish `new` if the current version is still `expected`; raises RootMoved otherwise."""
