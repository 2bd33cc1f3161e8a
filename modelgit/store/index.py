"""Finding records by id over many packs: a table on disk that is searched where it lies, and what is newer in memory.

The table is a cache: it can be deleted at any time and is made anew from the packs' own indices.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.store.base import Located
from modelgit.store.durable import write_cache_file
from modelgit.store.packs import PACK_NAME, ROW, pack_row, read_at, read_index, unpack_row

__all__ = ["PackLookup"]

_MAGIC = b"MGITLKP2"
_HEAD = struct.Struct("<8sIQ32s")  # magic, packs, rows, BLAKE3 of the pack names
_NUMBERED = struct.Struct("<I")
_WIDTH = _NUMBERED.size + ROW.size
_BLOCK = 64  # rows that are read at a time
_STEP_BYTES = 4 << 20
_LISTINGS = 5
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
        self._present: set[str] = set()
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
            before: set[str] | None = None
            for _ in range(_LISTINGS if look_again and not found else 0):
                # A listing that was under way while a pack got another name may have met neither: two must agree.
                self._refresh()
                found = self._search(digest)
                if found or self._present == before:
                    break
                before = self._present
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
        """Let go of the table (an open file cannot be replaced on Windows)."""
        with self._lock:
            if self._table is not None:
                self._table.close()
            self._table, self._recent, self._known, self._loaded = None, {}, set(), False
            self._damaged = set()

    def _search(self, digest: bytes) -> list[Located]:
        if self._table is not None:
            try:
                return [*self._recent.get(digest, ()), *self._table.find(digest)]
            except (OSError, IntegrityError):  # another host replaced it: the packs say the same
                self._table.close()
                self._table, self._recent, self._known, self._damaged = None, {}, set(), set()
                self._refresh()
        return list(self._recent.get(digest, ()))

    def _refresh(self) -> bool:
        if not self._loaded:
            self._loaded = True
            self._table = _Table.open(self._cache)
            if self._table is not None:
                self._known = set(self._table.names)
        present = self._listed()
        for _ in range(_LISTINGS):
            if not self._known - present:
                break
            # A pack may have another name by now (see `PackSession.rename_sealed`), and a listing that was under way
            # may have met neither the old nor the new one.
            before, present = present, self._listed()
            if present == before:
                break
        self._present = present
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

    def _listed(self) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self._packs) if PACK_NAME.match(entry.name)}
        except FileNotFoundError:
            return set()

    @property
    def wants_cache(self) -> bool:
        """Whether enough packs lie outside the table."""
        with self._lock:
            in_table = len(self._table.names) if self._table is not None else 0
            return len(self._known) - in_table >= _WORTH_CACHING


class _Table:
    """The sorted rows of the cache file, read where they lie.

    They are not mapped: when another host replaces a file on a network file system, mapped pages of the old one go
    away, and the process with them.  A read that fails says so.
    """

    def __init__(self, descriptor: int, names: list[str], start: int, rows: int) -> None:
        self._descriptor = descriptor
        self.names = names
        self._start = start
        self._rows = rows

    @classmethod
    def open(cls, path: Path | None) -> _Table | None:
        """Open the cache; None when it is absent or not a sound table."""
        if path is None:
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError:
            return None
        table = None
        with contextlib.suppress(OSError, IntegrityError, UnicodeDecodeError):
            table = cls._checked(descriptor)
        if table is None:
            os.close(descriptor)
        return table

    @classmethod
    def _checked(cls, descriptor: int) -> _Table | None:
        size = os.fstat(descriptor).st_size
        if size < _HEAD.size:
            return None
        magic, packed, rows, checksum = _HEAD.unpack(read_at(descriptor, 0, _HEAD.size, "table"))
        if magic != _MAGIC or size != _HEAD.size + packed + rows * _WIDTH:
            return None
        digest, names = blake3(), b""
        for position in range(_HEAD.size, size, _STEP_BYTES):
            part = read_at(descriptor, position, min(_STEP_BYTES, size - position), "table")
            digest.update(part)
            names += part[: max(0, packed - len(names))]
        if digest.digest() != checksum:
            return None
        return cls(descriptor, names.decode().split("\n") if packed else [], _HEAD.size + packed, rows)

    def find(self, digest: bytes) -> list[Located]:
        """All rows of a digest.  Raises OSError or IntegrityError when the file went away."""
        first, block, at = self._lower_bound(digest)
        found: list[Located] = []
        while first + at < self._rows:
            if at * _WIDTH >= len(block):
                first, at = first + at, 0
                block = self._block(first)
            position = at * _WIDTH
            number = _NUMBERED.unpack_from(block, position)[0]
            position += _NUMBERED.size
            if block[position : position + 32] != digest or number >= len(self.names):
                break
            found.append(unpack_row(block, self.names[number], position))
            at += 1
        return found

    def _lower_bound(self, digest: bytes) -> tuple[int, bytes, int]:
        """The block of rows in which the first row not below `digest` lies: (its first row, its bytes, the row in it).

        Digests are spread evenly, so that the first guess is off by about the root of the number of rows.
        """
        low, high = 0, self._rows  # the answer is in low ... high
        guess = int.from_bytes(digest[:8], "big") * self._rows >> 64
        leap = _BLOCK
        while True:
            if not low <= guess <= high:
                guess = (low + high) // 2
            first = max(low, min(guess - _BLOCK // 2, high - _BLOCK))
            block = self._block(first)
            count = len(block) // _WIDTH
            at = bisect.bisect_left(range(count), digest, key=lambda row: _key(block, row))
            if at == 0 and first > low:
                high, guess = first, first - leap
            elif at == count and first + count < high:
                low, guess = first + count, first + count + leap
            else:
                return first, block, at
            leap *= 4

    def _block(self, first: int) -> bytes:
        count = min(_BLOCK, self._rows - first)
        return read_at(self._descriptor, self._start + first * _WIDTH, count * _WIDTH, "table")

    def close(self) -> None:
        os.close(self._descriptor)


def _key(block: bytes, row: int) -> bytes:
    position = row * _WIDTH + _NUMBERED.size
    return block[position : position + 32]
