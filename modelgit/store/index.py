"""Finding records by id over many packs: a table on disk that is searched where it lies, and what is newer in memory.

The table is a cache: it can be deleted at any time and is made anew from the packs' own indices.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.store.base import Located
from modelgit.store.durable import write_cache_file
from modelgit.store.packs import PACK_NAME, ROW, pack_row, read_index, unpack_row

__all__ = ["PackLookup"]

_MAGIC = b"MGITLKP1"
_HEAD = struct.Struct("<8sIQ32s")  # magic, packs, rows, BLAKE3 of the pack names
_NUMBERED = struct.Struct("<I")
_WORTH_CACHING = 16  # packs outside the table before it is worth writing again


class PackLookup:
    """Looks up records by digest in all packs of a directory.  Thread-safe."""

    def __init__(self, packs: Path, cache: Path | None) -> None:
        self._packs = packs
        self._cache = cache
        self._lock = threading.Lock()
        self._table: _Table | None = None
        self._recent: dict[bytes, list[Located]] = {}
        self._known: set[str] = set()
        self._damaged: set[str] = set()
        self._loaded = False

    def find(self, digest: bytes, *, look_again: bool = True) -> list[Located]:
        """All records whose object has this digest.

        Where there is none, packs that appeared since are looked at, unless `look_again` says that it is not worth
        reading the directory for every unknown object.
        A pack whose index is damaged counts as empty here, so that the rest can still be read and checked.
        """
        with self._lock:
            if not self._loaded:
                self._refresh()
            found = self._search(digest)
            if not found and look_again and self._refresh():
                found = self._search(digest)
            return found

    def refresh(self) -> None:
        """Look at the directory again: packs may have come or gone."""
        with self._lock:
            self._refresh()

    def packs(self) -> set[str]:
        """Names of all packs."""
        with self._lock:
            self._refresh()
            return set(self._known)

    def rows(self) -> Iterator[Located]:
        """Every record of every pack.  Raises IntegrityError when the index of one is damaged."""
        for name in sorted(self.packs()):
            yield from read_index(self._packs / name)

    def write_cache(self) -> None:
        """Write the table of all packs that there are now."""
        if self._cache is None:
            return
        with self._lock:
            self._refresh()
            if self._damaged:
                return
            names = sorted(self._known)
            numbers = {name: number for number, name in enumerate(names)}
            rows = [row for name in names for row in read_index(self._packs / name)]
            rows.sort(key=lambda row: (row.digest, row.kind, row.start))
            body = b"".join(_NUMBERED.pack(numbers[row.pack]) + pack_row(row) for row in rows)
            packed = "\n".join(names).encode()
            data = _HEAD.pack(_MAGIC, len(packed), len(rows), blake3(packed + body).digest()) + packed + body
            write_cache_file(self._cache, data)

    def close(self) -> None:
        """Let go of the table (a mapped file cannot be replaced on Windows)."""
        with self._lock:
            if self._table is not None:
                self._table.close()
            self._table, self._recent, self._known, self._loaded = None, {}, set(), False
            self._damaged = set()

    def _search(self, digest: bytes) -> list[Located]:
        found = list(self._recent.get(digest, ()))
        if self._table is not None:
            found += self._table.find(digest)
        return found

    def _refresh(self) -> bool:
        try:
            present = {entry.name for entry in os.scandir(self._packs) if PACK_NAME.match(entry.name)}
        except FileNotFoundError:
            present = set()
        if not self._loaded:
            self._loaded = True
            self._table = _Table.open(self._cache)
            if self._table is not None:
                self._known = set(self._table.names)
        if self._known - present:  # collected meanwhile: start over with what is there
            if self._table is not None:
                self._table.close()
            self._table, self._recent, self._known, self._damaged = None, {}, set(), set()
        fresh = present - self._known
        for name in fresh:
            try:
                rows = list(read_index(self._packs / name))
            except (IntegrityError, RepositoryError):  # damaged, or (as it says) of another format
                if not (self._packs / name).exists():
                    continue
                rows = []
                self._damaged.add(name)
            for row in rows:
                self._recent.setdefault(row.digest, []).append(row)
            self._known.add(name)
        return bool(fresh)

    @property
    def wants_cache(self) -> bool:
        """Whether enough packs lie outside the table."""
        with self._lock:
            in_table = len(self._table.names) if self._table is not None else 0
            return len(self._known) - in_table >= _WORTH_CACHING


class _Table:
    """The sorted rows of the cache file, mapped."""

    def __init__(self, view: mmap.mmap, names: list[str], start: int, rows: int) -> None:
        self._view = view
        self.names = names
        self._start = start
        self._rows = rows
        self._width = _NUMBERED.size + ROW.size

    @classmethod
    def open(cls, path: Path | None) -> _Table | None:
        """Map the cache; None when it is absent or not a sound table."""
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        if len(view) < _HEAD.size:
            view.close()
            return None
        magic, packed, rows, checksum = _HEAD.unpack_from(view)
        start = _HEAD.size + packed
        sound = magic == _MAGIC and len(view) == start + rows * (_NUMBERED.size + ROW.size)
        if not sound or blake3(view[_HEAD.size :]).digest() != checksum:
            view.close()
            return None
        names = view[_HEAD.size : start].decode().split("\n") if packed else []
        return cls(view, names, start, rows)

    def find(self, digest: bytes) -> list[Located]:
        low, high = 0, self._rows
        while low < high:
            middle = (low + high) // 2
            position = self._start + middle * self._width + _NUMBERED.size
            if self._view[position : position + 32] < digest:
                low = middle + 1
            else:
                high = middle
        found = []
        while low < self._rows:
            position = self._start + low * self._width
            number = _NUMBERED.unpack_from(self._view, position)[0]
            position += _NUMBERED.size
            if self._view[position : position + 32] != digest or number >= len(self.names):
                break
            found.append(unpack_row(self._view, self.names[number], position))
            low += 1
        return found

    def close(self) -> None:
        self._view.close()
