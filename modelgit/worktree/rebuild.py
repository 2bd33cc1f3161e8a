"""A recorded file, rebuilt from the store by several threads, each writing its pieces where they belong."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modelgit.errors import IntegrityError
from modelgit.numerics.scratch import scratch
from modelgit.objects import BlobId, FileContent, Literal, TensorId
from modelgit.parallel import Workers
from modelgit.patching.base import TensorReads, windows
from modelgit.patching.blobs import BufferedBlobs
from modelgit.progress import Progress
from modelgit.store.durable import write_all
from modelgit.store.mounts import reserve

__all__ = ["write_content"]

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
) -> None:
    """Rebuild a file at `path` (which must not exist), flushed to disk.

    Raises IntegrityError when stored bytes are damaged or do not add up to `size`, RepositoryError when the disk
    refuses.
    """
    objects = _objects(content)
    held = sum(length for _, _, length in objects)
    if held != size:
        raise IntegrityError(f"{path.name}: its segments hold {held} bytes, the manifest promises {size}")
    if sum(isinstance(segment, Literal) for segment in content.segments) > 1:
        reader = BufferedBlobs(reader)
    with _Target(path, size, executable=executable) as target, Workers(threads, name="mgit-decode") as workers:

        def rebuild(piece: _Piece) -> int:
            buffer = scratch("checkout.piece", piece.stop - piece.start, np.uint8).data
            progress.check()
            reader.read_into(piece.object_id, piece.start, buffer)
            target.write(piece.offset, buffer)
            return buffer.nbytes

        for written in workers.ordered(rebuild, _pieces(reader, objects), ahead=4 * workers.count):
            progress.advance("checkout", written)
        target.finish(size)


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
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o777 if executable else 0o666)
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

    def finish(self, size: int) -> None:
        """Make it durable."""
        os.ftruncate(self._descriptor, size)  # nothing was written at the end of a file that ends with empty pieces
        os.fsync(self._descriptor)
