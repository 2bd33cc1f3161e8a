"""Which records of an object travel: the cheapest that the receiver can read.

A record that is coded against another object is only of use to a receiver that has that object, or gets it too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from modelgit.errors import IntegrityError, MgitError
from modelgit.objects import ObjectId, TensorSpec, id_class
from modelgit.patching.leaves import leaf_table_bytes
from modelgit.remotes.base import Needed
from modelgit.store.base import Located

__all__ = ["BATCH", "Selection", "batches", "select_records"]

BATCH = 256
MAX_HEADER_BYTES = 64 << 20

T = TypeVar("T")
Locate = Callable[[Collection[ObjectId]], Mapping[ObjectId, Sequence[Located]]]
Missing = Callable[[Collection[ObjectId]], set[ObjectId]]


class Selection(NamedTuple):
    """The records to copy, and all objects that they make up: those wanted and the bases that must come along."""

    records: list[Located]
    items: list[Needed]

    @property
    def size_bytes(self) -> int:
        """Bytes of all records."""
        return sum(record.length for record in self.records)


def batches(items: Iterable[T], *, size: int = BATCH) -> Iterator[list[T]]:
    """Consecutive lists of at most `size` items: one question to a remote each."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def select_records(
    locate: Locate, wanted: Sequence[Needed], missing: Missing, *, where: str, lacking: type[MgitError]
) -> Selection:
    """Choose records for all of `wanted`; `missing` says which ids the receiver lacks.

    An object of several extents gets exactly one record per extent, so that nothing travels that is not checked.  The
    smallest is taken among those whose base the receiver will have; where there is none, the base is sent as well.
    Raises `lacking`, saying that it looked in `where`, for an object that is not there whole.
    """
    try:
        return _Choice(locate, missing, where, lacking, cautious=False).of(wanted)
    except _TangledError:
        pass
    try:
        # Two objects are each coded against the other somewhere, and whole elsewhere.  Taking whole ones first is the
        # order in which the source itself reads them.
        return _Choice(locate, missing, where, lacking, cautious=True).of(wanted)
    except _TangledError as error:
        raise lacking(
            f"{where} does not hold {error}: it is coded against what is rebuilt from it",
            hint="`mgit fsck` there shows what else is missing",
        ) from None


class _TangledError(Exception):
    """Every record of an object is coded against something that was to be rebuilt from it."""


class _Choice:
    def __init__(
        self, locate: Locate, missing: Missing, where: str, lacking: type[MgitError], *, cautious: bool
    ) -> None:
        self._locate = locate
        self._missing = missing
        self._where = where
        self._lacking = lacking
        self._cautious = cautious
        self._items: dict[ObjectId, Needed] = {}
        self._needed: dict[ObjectId, set[ObjectId]] = {}

    def of(self, wanted: Sequence[Needed]) -> Selection:
        self._items = {item.id: item for item in wanted}
        records: list[Located] = []
        frontier = list(self._items)
        while frontier:
            following: list[ObjectId] = []
            for batch in batches(frontier):
                found = self._locate(batch)
                absent = self._absent(found)
                for object_id in batch:
                    records += self._tile(object_id, found.get(object_id, ()), absent, following)
            frontier = following
        return Selection(records, list(self._items.values()))

    def _absent(self, found: Mapping[ObjectId, Sequence[Located]]) -> set[ObjectId]:
        needed = {other for rows in found.values() for row in rows for other in _needs(row)}
        return self._missing(sorted(needed - self._items.keys()))

    def _tile(
        self, object_id: ObjectId, rows: Sequence[Located], absent: set[ObjectId], following: list[ObjectId]
    ) -> list[Located]:
        item = self._items[object_id]
        chosen: list[Located] = []
        position = 0
        total = rows[0].total if rows else 0
        while not chosen or position < total:
            usable = [row for row in rows if row.start == position and row.total == total and _is_sound(row, position)]
            if not usable:
                raise self._lacking(
                    f"{self._where} does not hold {object_id.KIND} {object_id} ({item.name})"
                    + (" whole" if rows else ""),
                    hint="`mgit fsck` there shows what else is missing",
                )
            free = [row for row in usable if not self._comes_back(object_id, _needs(row))]
            if not free:
                raise _TangledError(f"{object_id.KIND} {object_id} ({item.name}) whole")
            best = min(free, key=lambda row: self._cost(row, absent))
            for other in _needs(best):
                self._needed.setdefault(object_id, set()).add(other)
                if other in absent and other not in self._items:
                    # Nothing but this record names it.  A base has the form of what is coded against it.
                    is_base = best.base == other.digest and best.kind == other.KIND
                    form = (item.spec, item.size) if is_base else (None, None)
                    what = "base" if is_base else "positions"
                    self._items[other] = Needed(other, f"{what} of {item.name.removeprefix('base of ')}", *form)
                    following.append(other)
            chosen.append(best)
            position = best.stop
        chosen += [row for row in rows if _is_sound_leaf_table(row, total, item.spec)][:1]
        if item.size is not None and total != item.size:
            raise IntegrityError(f"{object_id.KIND} {object_id} ({item.name}) has {total} bytes, not {item.size}")
        return chosen

    def _cost(self, row: Located, absent: set[ObjectId]) -> tuple[bool, int]:
        if self._cautious:
            return row.base is not None, row.length
        return any(other in absent and other not in self._items for other in _needs(row)), row.length

    def _comes_back(self, object_id: ObjectId, needed: Sequence[ObjectId]) -> bool:
        """Whether one of `needed` is to be rebuilt from `object_id`, as far as is chosen by now."""
        stack, seen = list(needed), set(needed)
        while stack:
            current = stack.pop()
            if current == object_id:
                return True
            fresh = self._needed.get(current, set()) - seen
            seen |= fresh
            stack += fresh
        return False


def _needs(row: Located) -> list[ObjectId]:
    return [id_class(kind)(digest) for kind, digest in row.needs]


def _is_sound_leaf_table(row: Located, total: int, spec: TensorSpec | None) -> bool:
    """Whether a row has the length of the object's leaf table; its bytes are checked with those of the object."""
    return row.is_leaf_table and row.total == total and row.length == leaf_table_bytes(total, spec) and not row.header


def _is_sound(row: Located, position: int) -> bool:
    """Whether a row makes progress and is not longer than any record of its range can be."""
    raw = row.stop - row.start
    return (
        row.header <= min(row.length, MAX_HEADER_BYTES)
        and row.length <= 2 * raw + row.header + (1 << 20)
        and (row.stop > position or row.total == 0)
    )
