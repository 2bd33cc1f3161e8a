"""What the rest of the package needs from a store, and nothing else.

A store holds *records*: coded ranges of objects, each self-contained given its base.  It knows ids, offsets and
checksums; what a record means is known to `patching` (tensors, blobs) and to `store.metadata` (everything small).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from modelgit.objects import ObjectId, Root

__all__ = ["Located", "ObjectStore", "RecordWriter", "RootStore", "StagedObject", "VersionedRoot", "WriteStore"]


class Located(NamedTuple):
    """Where one record lies.

    The record rebuilds bytes `start` to `stop` of an object of `total` bytes; `offset` and `length` are its place in
    `pack`, the last `header` bytes of it being its header; `base` is the digest of the object of the same kind that it
    is coded against, or None.
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

    @property
    def is_leaf_table(self) -> bool:
        """Whether this is no part of the object, but what its id is hashed from (see `patching.leaves`)."""
        return self.stop == 0 < self.total


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


class StagedObject(Protocol):
    """Records that are written before the id of their object is known: a large tensor is hashed while it is coded."""

    def write(self, payload: Iterable[bytes | bytearray | memoryview]) -> None:
        """Append to the payload of the current record."""

    def end_record(self, *, start: int, stop: int, total: int, header: bytes, base: ObjectId | None = None) -> int:
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
