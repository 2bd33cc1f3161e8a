"""The pack file: records back to back, an index at the tail, a name that is its own checksum.

    16 bytes   magic "MGITPACK", u16 version (2; 1 is read too), 6 zero bytes
    ...        records: payload then header (see `Located`)
    ...        index: zstd frame of fixed-size rows, sorted by (digest, kind, start)
    64 bytes   footer: u64 index offset, u64 index length, u64 rows, 32 bytes BLAKE3 of the index, magic "KCAPTIGM"

A pack is immutable.  Its name is `<BLAKE3 of all its bytes>-<64-bit nonce>.pack`; the nonce lets the same content be
published again under a name that a garbage collector has not condemned.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard
from blake3 import blake3

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.objects import BlobId, ObjectId
from modelgit.store.base import Located
from modelgit.store.durable import create, write_all
from modelgit.store.mounts import reserve

__all__ = [
    "FOOTER",
    "HEADER",
    "KINDS",
    "PACK_NAME",
    "ROW",
    "PackMark",
    "PackWriter",
    "pack_row",
    "packed_size",
    "read_at",
    "read_index",
    "unpack_row",
    "verify_pack",
]

MAGIC, TAIL_MAGIC, VERSION = b"MGITPACK", b"KCAPTIGM", 2
HEADER = struct.pack("<8sH6x", MAGIC, VERSION)
FOOTER = struct.Struct("<QQQ32s8s")
ROW = struct.Struct("<32sB3xI5Q32s32s")
ROWS = {1: struct.Struct("<32sB3xI5Q32s"), 2: ROW}  # by version of the pack
PACK_NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}\.pack\Z")
KINDS = ("tensor", "blob", "content", "manifest", "patch", "commit", "mask", "fisher", "eval", "note")
_CODES = {kind: code for code, kind in enumerate(KINDS)}
_NONE = b"\0" * 32
MAX_INDEX_BYTES = 1 << 32
_RESERVE_BYTES = 16 << 20
_GATHER_BYTES = 256 << 10  # system calls for less than this cost more than the copy


def pack_row(item: Located) -> bytes:
    """The index row of a record."""
    return ROW.pack(
        item.digest,
        _CODES[item.kind],
        item.header,
        item.start,
        item.stop,
        item.total,
        item.offset,
        item.length,
        item.base or _NONE,
        item.positions or _NONE,
    )


def unpack_row(data: bytes | memoryview, pack: str, position: int = 0, *, version: int = VERSION) -> Located:
    """The record that the index row at `position` describes; raises IntegrityError for an impossible row.

    Packs of version 1 have no positions in their rows.
    """
    digest, code, header, start, stop, total, offset, length, base, *more = ROWS[version].unpack_from(data, position)
    positions = more[0] if more else _NONE
    if code >= len(KINDS) or not start <= stop <= total or header > length:
        raise IntegrityError(f"pack {pack[:16]} has an impossible index row")
    return Located(
        KINDS[code],
        digest,
        start,
        stop,
        total,
        pack,
        offset,
        length,
        header,
        None if base == _NONE else base,
        None if positions == _NONE else positions,
    )


class PackMark(NamedTuple):
    """How far a pack under construction had come: what `PackWriter.rollback` returns to."""

    size: int
    rows: int
    hash: blake3


class PackWriter:
    """Writes one pack under a temporary name.  Not thread-safe; `close` makes it durable but not visible."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = create(path, mode=0o444)
        self._hash = blake3()
        self._rows: list[Located] = []
        self._pending = bytearray()
        self._written = self._reserved = 0
        self.size = 0
        self.write(HEADER)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of a record that `add` will describe; small pieces are gathered."""
        self.size += len(data)
        if len(data) < _GATHER_BYTES:
            self._pending += data
            if len(self._pending) >= _GATHER_BYTES:
                self._flush()
            return
        self._flush()
        self._put(data)

    def _flush(self) -> None:
        if self._pending:
            gathered, self._pending = self._pending, bytearray()
            self._put(gathered)

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        self._written += len(data)
        if self._written > self._reserved and self._written > _RESERVE_BYTES:
            with contextlib.suppress(OSError):  # what is really needed may fit
                reserve(self._descriptor, self.path, self._reserved, self._written + _RESERVE_BYTES - self._reserved)
            self._reserved = self._written + _RESERVE_BYTES
        write_all(self._descriptor, data)
        self._hash.update(data)

    def add(self, located: Located) -> Located:
        """Give a written record its row in the index; returns it with an empty pack name: it has none yet."""
        row = located._replace(pack="")
        self._rows.append(row)
        return row

    def mark(self) -> PackMark:
        """Where the pack ends now."""
        self._flush()
        return PackMark(self.size, len(self._rows), self._hash.copy())

    def rollback(self, mark: PackMark) -> None:
        """Forget everything that was written after `mark`."""
        self._pending.clear()
        os.ftruncate(self._descriptor, mark.size)
        os.lseek(self._descriptor, mark.size, os.SEEK_SET)
        del self._rows[mark.rows :]
        self._hash = mark.hash.copy()
        self.size = self._written = self._reserved = mark.size

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
    ) -> Located:
        """Write one record and return where it lies (with an empty pack name: it has none yet)."""
        offset = self.size
        for chunk in payload:
            if len(chunk):
                self.write(chunk)
        self.write(header)
        located = Located(
            object_id.KIND,
            object_id.digest,
            start,
            stop,
            total,
            "",
            offset,
            self.size - offset,
            len(header),
            base.digest if base is not None else None,
            positions.digest if positions is not None else None,
        )
        return self.add(located)

    def read(self, located: Located, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a record of this unsealed pack."""
        self._flush()
        return read_at(self._descriptor, located.offset + start, stop - start, self.path.name)

    def close(self) -> str:
        """Write the index and the footer, flush to disk, and return the pack's content hash in hex."""
        rows = self._rows
        index = _pack_index(rows)
        footer = FOOTER.pack(self.size, len(index), len(rows), blake3(index).digest(), TAIL_MAGIC)
        self.write(index)
        self.write(footer)
        self._flush()
        os.ftruncate(self._descriptor, self.size)  # more was reserved than came
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Forget the pack."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        with contextlib.suppress(OSError):  # `gc` tidies up what cannot be removed now
            self.path.unlink()


def _pack_index(rows: Iterable[Located]) -> bytes:
    ordered = sorted(rows, key=lambda row: (row.digest, row.kind, row.start))
    return zstandard.ZstdCompressor(level=3).compress(b"".join(map(pack_row, ordered)))


def packed_size(rows: Iterable[Located], end: int) -> int:
    """Bytes of the pack file whose records are `rows`, the last one ending at `end`."""
    return end + len(_pack_index(rows)) + FOOTER.size


def read_at(descriptor: int, offset: int, length: int, name: str) -> bytes:
    """Exactly `length` bytes at `offset`; raises IntegrityError when the file ends before."""
    if hasattr(os, "pread"):
        data = os.pread(descriptor, length, offset)
        if len(data) < length:  # a signal or a limit may cut a read short
            parts = [data]
            got = len(data)
            while got < length:
                more = os.pread(descriptor, length - got, offset + got)
                if not more:
                    break
                parts.append(more)
                got += len(more)
            data = b"".join(parts)
    else:  # Windows: every reader has a descriptor of its own
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = b""
        while len(data) < length:
            more = os.read(descriptor, length - len(data))
            if not more:
                break
            data += more
    if len(data) != length:
        raise IntegrityError(
            f"pack {name[:16]} ends before a record that its index names", hint="`mgit fsck` shows what is affected"
        )
    return data


def read_index(path: Path) -> Iterator[Located]:
    """The records of a pack from its tail, without reading the rest.

    Raises IntegrityError for a file that is not a pack, or whose index does not match its checksum.
    """
    name = path.name
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise IntegrityError(f"pack {name[:16]} is missing", hint="`mgit fsck` shows what is affected") from None
    try:
        size = os.fstat(descriptor).st_size
        if size < len(HEADER) + FOOTER.size or read_at(descriptor, 0, len(HEADER), name)[:8] != MAGIC:
            raise IntegrityError(f"{name} is not a pack file")
        version = struct.unpack("<H", read_at(descriptor, 8, 2, name))[0]
        if version not in ROWS:
            raise RepositoryError(f"pack {name[:16]} has format {version}, this mgit reads up to {VERSION}")
        offset, length, rows, checksum, magic = FOOTER.unpack(
            read_at(descriptor, size - FOOTER.size, FOOTER.size, name)
        )
        # Every record has at least a byte: an index of more rows is a bomb, a few kilobytes that inflate to gigabytes.
        if (
            magic != TAIL_MAGIC
            or offset + length + FOOTER.size != size
            or rows > offset
            or rows * ROWS[version].size > MAX_INDEX_BYTES
        ):
            raise IntegrityError(f"pack {name[:16]} has a damaged footer")
        frame = read_at(descriptor, offset, length, name)
    finally:
        os.close(descriptor)
    if blake3(frame).digest() != checksum:
        raise IntegrityError(f"pack {name[:16]} has a damaged index")
    yield from _rows(frame, rows, name, offset, version=version)


def _rows(frame: bytes, rows: int, name: str, end: int, *, version: int = VERSION) -> Iterator[Located]:
    width = ROWS[version].size
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != rows * width:
            raise IntegrityError(f"pack {name[:16]} has an index of the wrong size")
        table = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(frame)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"pack {name[:16]} has a damaged index: {error}") from None
    for position in range(0, len(table), width):
        item = unpack_row(table, name, position, version=version)
        if item.offset < len(HEADER) or item.offset + item.length > end:
            raise IntegrityError(f"pack {name[:16]} has a record outside its body")
        yield item


def verify_pack(path: Path) -> None:
    """Check every byte of a pack against its name; raises IntegrityError when they differ."""
    digest = blake3()
    try:
        with path.open("rb") as file:
            while chunk := file.read(4 << 20):
                digest.update(chunk)
    except FileNotFoundError:
        raise IntegrityError(f"pack {path.name[:16]} is missing") from None
    if digest.hexdigest() != path.name[:64]:
        raise IntegrityError(
            f"pack {path.name[:16]} does not hold the bytes that its name promises",
            hint="`mgit fetch --repair` gets good copies from a remote",
        )
