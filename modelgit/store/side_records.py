"""Records that the root names beside the current operation: which commits were pruned, which statistics are kept.

Each is immutable and a small file of its own; a change writes another one, and counts once a root names it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from modelgit.errors import IntegrityError
from modelgit.objects import (
    KeptEstimate,
    KeptNote,
    ObjectId,
    Pruning,
    Retention,
    RetentionId,
    Statistics,
    StatisticsId,
    decode,
    encode,
)
from modelgit.store.durable import make_directory, write_durably

__all__ = ["SideRecords", "retention_records", "statistics_records", "with_estimates", "with_notes", "with_prunings"]

_MAX_BYTES = 64 << 20
_NAME = re.compile(r"[0-9a-f]{64}\Z")

I = TypeVar("I", bound=ObjectId)  # noqa: E741  (I for id)
R = TypeVar("R", bound=msgspec.Struct)


class SideRecords(Generic[I, R]):
    """Files `<folder>/<hex>`, each a record of one kind; `shown` is what messages call it, `hint` what helps."""

    def __init__(self, folder: Path, kind: type[I], record: type[R], *, shown: str, hint: str | None = None) -> None:
        self._folder = folder
        self._kind = kind
        self._record = record
        self._shown = shown
        self._hint = hint

    def write(self, record: R) -> I:
        """Store a record durably; it counts once a root names it."""
        data = encode(record)
        object_id = self._kind.of(data)
        make_directory(self._folder)
        write_durably(self._folder / object_id.hex, data)
        return object_id

    def read(self, object_id: I | None) -> R:
        """Read a record, an empty one for None.  Raises IntegrityError when it is missing or damaged."""
        if object_id is None:
            return self._record()
        try:
            with (self._folder / object_id.hex).open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            raise IntegrityError(f"{self._shown} ({object_id.short}) is missing", hint=self._hint) from None
        if len(data) > _MAX_BYTES:
            raise IntegrityError(f"{self._shown} ({object_id.short}) is longer than {_MAX_BYTES} bytes")
        if self._kind.of(data) != object_id:
            raise IntegrityError(f"{self._shown} ({object_id.short}) does not match its id", hint=self._hint)
        return decode(self._record, data, what=self._shown)

    def read_current(self, current: Callable[[], I | None]) -> R:
        """The record that `current`, which reads the root, names.  Raises IntegrityError when it is missing or damaged.

        Another one may take its place between the two readings, and the old one be deleted: then that one is read.
        """
        object_id = current()
        try:
            return self.read(object_id)
        except IntegrityError:
            newer = current()
            if newer == object_id:
                raise
            return self.read(newer)

    def listed(self) -> set[I]:
        """Every record that there is a file of."""
        if not self._folder.is_dir():
            return set()
        names = [path.name for path in self._folder.iterdir() if _NAME.match(path.name)]
        return {self._kind(bytes.fromhex(name)) for name in names}

    def remove(self, records: Iterable[I]) -> None:
        """Delete records that no root names any more."""
        for object_id in records:
            with contextlib.suppress(OSError):  # then it is deleted next time
                (self._folder / object_id.hex).unlink()


def retention_records(path: Path) -> SideRecords[RetentionId, Retention]:
    """The records of pruned commits of the repository directory `path`."""
    return SideRecords(path / "retention", RetentionId, Retention, shown="the list of pruned commits")


def statistics_records(path: Path) -> SideRecords[StatisticsId, Statistics]:
    """The records of kept statistics of the repository directory `path`."""
    return SideRecords(
        path / "statistics",
        StatisticsId,
        Statistics,
        shown="the list of kept estimates and notes",
        hint="`mgit fisher remove --all` begins a new one; `mgit fisher` and `mgit fetch --fisher` fill it",
    )


def with_prunings(record: Retention, prunings: Iterable[Pruning]) -> Retention:
    """`record` and what `prunings` add to it."""
    known = {commit for item in record.prunings for commit in item.commits}
    fresh = []
    for item in prunings:
        commits = tuple(commit for commit in item.commits if commit not in known)
        if commits:
            fresh.append(Pruning(family=item.family, time_ms=item.time_ms, commits=commits))
    return Retention(prunings=(*record.prunings, *fresh)) if fresh else record


def with_estimates(record: Statistics, estimates: Iterable[KeptEstimate]) -> Statistics:
    """`record` with `estimates` as the newest, each in place of one with the same key."""
    fresh = tuple({item.key: item for item in estimates}.values())
    keys = {item.key for item in fresh}
    kept = (item for item in record.fishers if item.key not in keys)
    return msgspec.structs.replace(record, fishers=(*kept, *fresh))


def with_notes(record: Statistics, notes: Iterable[KeptNote]) -> Statistics:
    """`record` with those of `notes` that it does not list yet as the newest."""
    known = {item.id for item in record.notes}
    fresh = {item.id: item for item in notes if item.id not in known}
    return msgspec.structs.replace(record, notes=(*record.notes, *fresh.values()))
