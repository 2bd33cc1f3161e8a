"""A recorded file, rebuilt from the store by several threads, each writing its pieces where they belong."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modelgit.errors import IntegrityError
from modelgit.formats.detect import is_same_stat
from modelgit.numerics.scratch import scratch
from modelgit.objects import BlobId, FileContent, Literal, TensorId
from modelgit.parallel import Workers
from modelgit.patching.base import TensorReads, windows
from modelgit.patching.blobs import BufferedBlobs
from modelgit.progress import Progress
from modelgit.store.durable import create, write_all
from modelgit.store.mounts import reserve
from modelgit.worktree.copying import copy_range

__all__ = ["Predecessor", "write_content"]

_LEAST_PIECE_BYTES = 1 << 20
_RESERVE_FROM_BYTES = 4 << 20


def write_content(
    reader: TensorReads,
    content: FileContent,
    size: int,
    path: Path,
    *,
    threads: int,
    progress: Progress,
    executable: bool = False,
    predecessor: Predecessor | None = None,
) -> None:
    """Rebuild a file at `path` (which must not exist), flushed to disk.

    Objects that `predecessor` holds are copied from there, which a file system with reflinks does for nothing; if it
    changes meanwhile, everything is taken from the store after all.
    Raises IntegrityError when stored bytes are damaged or do not add up to `size`, RepositoryError when the disk
    refuses.
    """
    objects = _objects(content)
    held = sum(length for _, _, length in objects)
    if held != size:
        raise IntegrityError(f"{path.name}: its segments hold {held} bytes, the manifest promises {size}")
    if sum(isinstance(segment, Literal) for segment in content.segments) > 1:
        reader = BufferedBlobs(reader)
    with (
        _Target(path, size, executable=executable) as target,
        _Old(predecessor) as old,
        Workers(threads, name="mgit-decode") as workers,
    ):

        def rebuild(piece: _Piece) -> int:
            progress.check()
            length = piece.stop - piece.start
            place = old.find(piece)
            if place is not None:
                target.copy(old.descriptor, place, piece.offset, length)
                return length
            buffer = scratch("checkout.piece", length, np.uint8).data
            reader.read_into(piece.object_id, piece.start, buffer)
            target.write(piece.offset, buffer)
            return length

        for written in workers.ordered(rebuild, _pieces(reader, objects), ahead=4 * workers.count):
            progress.advance("checkout", written)
        if not old.is_unchanged():
            copied = [piece for piece in _pieces(reader, objects) if old.find(piece) is not None]
            old.forget()
            for _ in workers.ordered(rebuild, copied, ahead=4 * workers.count):
                pass
        target.finish(size)


class Predecessor(NamedTuple):
    """The file that is about to be replaced, what it was found to hold, and its `stat` then."""

    path: Path
    content: FileContent
    status: os.stat_result


class _Old:
    """A predecessor opened for copying; holds nothing when there is none, or when it is no longer what it was."""

    def __init__(self, predecessor: Predecessor | None) -> None:
        self.descriptor = -1
        self._places: dict[TensorId | BlobId, int] = {}
        if predecessor is None or predecessor.status.st_size < _RESERVE_FROM_BYTES:
            return
        self._status = predecessor.status
        try:
            self.descriptor = os.open(
                predecessor.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
            )
        except OSError:
            return
        offset = 0
        for object_id, first, length in _objects(predecessor.content):
            if isinstance(object_id, TensorId) and not first:
                self._places.setdefault(object_id, offset)
            offset += length
        if offset != predecessor.status.st_size or not self.is_unchanged():
            self.forget()

    def __enter__(self) -> _Old:
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def find(self, piece: _Piece) -> int | None:
        """Where the bytes of the piece begin in the file; None when they are not in it."""
        place = self._places.get(piece.object_id)
        return None if place is None else place + piece.start

    def is_unchanged(self) -> bool:
        """Whether the open file is still the one that was looked at (or does not matter)."""
        return not self._places or is_same_stat(self._status, os.fstat(self.descriptor))

    def forget(self) -> None:
        """Use it no more."""
        self._places = {}


class _Piece(NamedTuple):
    """Bytes `start` to `stop` of an object, which belong at `offset` of the file."""

    object_id: TensorId | BlobId
    start: int
    stop: int
    offset: int


def _objects(content: FileContent) -> list[tuple[TensorId | BlobId, int, int]]:
    """The objects of a file in order, with where in them its bytes begin, and how many they are."""
    found: list[tuple[TensorId | BlobId, int, int]] = []
    for segment in content.segments:
        if isinstance(segment, Literal):
            found.append((segment.blob, segment.offset, segment.length))
        elif 0 <= segment.index < len(content.tensors):
            entry = content.tensors[segment.index]
            found.append((entry.id, 0, entry.spec.size_bytes))
        else:
            raise IntegrityError(f"a segment names tensor {segment.index} of {len(content.tensors)}")
    return found


def _pieces(reader: TensorReads, objects: Sequence[tuple[TensorId | BlobId, int, int]]) -> Iterator[_Piece]:
    """The file in pieces that are each decoded once: as small as the object's coding allows, to stay in the cache."""
    offset = 0
    for object_id, first, length in objects:
        step = _LEAST_PIECE_BYTES if length <= _LEAST_PIECE_BYTES else max(_LEAST_PIECE_BYTES, reader.grain(object_id))
        for start, stop in windows(length, step_bytes=step):
            yield _Piece(object_id, first + start, first + stop, offset + start)
        offset += length


class _Target:
    """A new file that several threads fill, each at its own offsets."""

    def __init__(self, path: Path, size: int, *, executable: bool) -> None:
        self._descriptor = create(path, mode=0o777 if executable else 0o666)
        try:
            if size >= _RESERVE_FROM_BYTES:
                reserve(self._descriptor, path, 0, size)
        except OSError:
            os.close(self._descriptor)
            raise
        self._seeking = threading.Lock()

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`."""
        if not hasattr(os, "pwrite"):  # Windows
            with self._seeking:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                write_all(self._descriptor, data)
            return
        while len(data):
            written = os.pwrite(self._descriptor, data, offset)
            offset += written
            data = data[written:]

    def copy(self, source: int, source_offset: int, offset: int, length: int) -> None:
        """Copy bytes of another open file."""
        with self._seeking if not hasattr(os, "pwrite") else contextlib.nullcontext():
            copy_range(source, source_offset, self._descriptor, offset, length)

    def finish(self, size: int) -> None:
        """Make it durable."""
        os.ftruncate(self._descriptor, size)  # nothing was written at the end of a file that ends with empty pieces
        os.fsync(self._descriptor)
