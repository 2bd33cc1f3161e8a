"""Coding stored objects anew: a store that shows how each object is to be coded from now on, and keeps what is better.

A new record is kept when it is smaller and costs no reader too much, when the old one takes too long to read and the
new one less, or when the old one has to go in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from modelgit.errors import BugError, IntegrityError
from modelgit.objects import BlobId, ObjectId
from modelgit.patching.chain import MAX_COST, chain_cost
from modelgit.store.base import Foreign, Located, ObjectStore, StagedObject
from modelgit.store.session import PackSession

__all__ = ["Recoded", "RecodingStore"]

_WORTH = 0.01  # a record that saves a smaller share is not worth moving
_WORTH_BYTES = 16
_PENDING = "+"

Key = tuple[str, bytes]


class Recoded(NamedTuple):
    """An object that got other records: those it had, and those it has now (in no pack yet)."""

    id: ObjectId
    before: tuple[Located, ...]
    after: tuple[Located, ...]


class RecodingStore:
    """A store to write to in which every object is still to be written, and whose records are the plan so far.

    `chosen` are the records of each object that count now; `expected` says which objects may be written.  What is kept
    goes to `session`, or nowhere if that is None (a dry run).  `headroom` of an object is the cost that the objects
    coded against it add to its own; `must_go` are objects whose present records may not stay.
    """

    def __init__(
        self,
        store: ObjectStore,
        session: PackSession | None,
        chosen: Mapping[Key, list[Located]],
        *,
        headroom: Callable[[Key], float],
        must_go: Collection[Key] = (),
    ) -> None:
        self._store = store
        self._session = session
        self._records = dict(chosen)
        self._headroom = headroom
        self._must_go = must_go
        self._headers: list[bytes] = []
        self.recoded: list[Recoded] = []

    @property
    def is_first(self) -> bool:
        """As if nothing was stored: no object is known already."""
        return True

    def has(self, object_id: ObjectId) -> bool:  # noqa: ARG002
        """Never: everything that is asked for is to be coded."""
        return False

    def locate(self, object_id: ObjectId) -> list[Located]:
        """The records that the object is going to have."""
        return self._records.get((object_id.KIND, object_id.digest), [])

    def read(self, located: Located) -> tuple[bytes, memoryview]:
        """(header, payload) of a record that is there already."""
        return self._store.read(located)

    def read_part(self, located: Located, start: int, stop: int) -> bytes:
        """A part of a record that is there already, or of the header of one that was planned."""
        if located.pack == _PENDING:
            before = located.payload_bytes
            return self._headers[located.offset][start - before : stop - before]
        return self._store.read_part(located, start, stop)

    def foreign(self, located: Located) -> Foreign:
        """How to read what lies elsewhere."""
        return self._store.foreign(located)

    def absence(self, object_id: ObjectId) -> IntegrityError:
        """Why there are no records of the object."""
        return self._store.absence(object_id)

    def objects(self) -> Iterator[Located]:
        """Every record of the plan."""
        return (item for group in self._records.values() for item in group)

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
        """Keep the record if it is better; a leaf table stays where it is."""
        if stop == 0 < total:
            return
        parts = list(payload)
        length = sum(map(len, parts)) + len(header)
        item = self.planned(start, stop, total, length, header, base, positions)
        if self._accept(object_id, [item]) and self._session is not None:
            self._session.append(
                object_id,
                start=start,
                stop=stop,
                total=total,
                header=header,
                payload=parts,
                base=base,
                positions=positions,
            )

    def stage(self) -> StagedObject:
        """Begin an object whose id comes last."""
        return _Staged(self, None if self._session is None else self._session.stage())

    def planned(
        self,
        start: int,
        stop: int,
        total: int,
        length: int,
        header: bytes,
        base: ObjectId | None,
        positions: BlobId | None,
    ) -> Located:
        """A record that is part of the plan, of an object that is not known yet; its header can be read."""
        self._headers.append(header)
        digests = [None if needed is None else needed.digest for needed in (base, positions)]
        number = len(self._headers) - 1
        return Located("", b"", start, stop, total, _PENDING, number, length, len(header), *digests)

    def _accept(self, object_id: ObjectId, fresh: list[Located]) -> bool:
        """Whether the records replace the present ones; if so they are part of the plan from here on."""
        key = (object_id.KIND, object_id.digest)
        present = self._records.get(key)
        if present is None:
            raise IntegrityError(
                f"an object that is stored reads as {object_id}, which is none",
                hint="`mgit fsck` names what is damaged",
            )
        fresh = [item._replace(kind=object_id.KIND, digest=object_id.digest) for item in fresh]
        old_size, new_size = (sum(item.length for item in group) for group in (present, fresh))
        old_cost = chain_cost(self, object_id)
        self._records[key] = fresh
        new_cost = chain_cost(self, object_id)
        is_smaller = new_size <= old_size - max(_WORTH_BYTES, _WORTH * old_size)
        if key in self._must_go:
            is_better = True
        elif old_cost > MAX_COST:
            is_better = new_cost < old_cost
        else:
            is_better = is_smaller and new_cost <= max(old_cost, MAX_COST - self._headroom(key))
        if not is_better:
            self._records[key] = present
            return False
        self.recoded.append(Recoded(object_id, tuple(present), tuple(fresh)))
        return True


class _Staged:
    def __init__(self, store: RecodingStore, inner: StagedObject | None) -> None:
        self._store = store
        self._inner = inner
        self._done: list[Located] = []
        self._length = 0

    def write(self, payload: Iterable[bytes | bytearray | memoryview]) -> None:
        parts = list(payload)
        self._length += sum(map(len, parts))
        if self._inner is not None:
            self._inner.write(parts)

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
        length = self._length + len(header)
        self._done.append(self._store.planned(start, stop, total, length, header, base, positions))
        self._length = 0
        if self._inner is not None:
            written = self._inner.end_record(
                start=start, stop=stop, total=total, header=header, base=base, positions=positions
            )
            if written != length:
                raise BugError(f"a record of {length} bytes was written as {written}")
        return length

    def name(self, object_id: ObjectId) -> None:
        if not self._store._accept(object_id, self._done):
            self.discard()
        elif self._inner is not None:
            self._inner.name(object_id)

    def discard(self) -> None:
        if self._inner is not None:
            self._inner.discard()
