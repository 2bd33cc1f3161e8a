"""Decoded records by id: they never change, so that what was read once in a command need not be decoded again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TypeVar

from modelgit.objects import FileContent, Manifest, ObjectId, Record
from modelgit.store.base import ObjectStore
from modelgit.store.metadata import read_record

__all__ = ["RecordCache"]

_MAX_ENTRIES = 200_000  # entries of tables held at a time: about 100 MB at worst

R = TypeVar("R", bound=Record)


class RecordCache:
    """The records that were read last, bounded by the length of their tables.  Thread-safe.

    What it holds was checked against its id when it was read; a check of the store itself must go past it.
    """

    def __init__(self, *, max_entries: int = _MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries = 0
        self._kept: OrderedDict[ObjectId, Record] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, store: ObjectStore, object_id: ObjectId, kind: type[R]) -> R:
        """The record, from `store` if it is not kept.  Raises IntegrityError when it is missing or damaged there."""
        with self._lock:
            found = self._kept.get(object_id)
            if isinstance(found, kind):
                self._kept.move_to_end(object_id)
                return found
        record = read_record(store, object_id, kind)
        with self._lock:
            if object_id not in self._kept:
                self._kept[object_id] = record
                self._entries += _length(record)
            while self._entries > self._max_entries:
                self._entries -= _length(self._kept.popitem(last=False)[1])
        return record


def _length(record: Record) -> int:
    if isinstance(record, FileContent):
        return 1 + len(record.segments) + len(record.tensors)
    return 1 + len(record.files) if isinstance(record, Manifest) else 1
