"""What a file of the work tree holds: its segments and the ids of its tensors, computed or stored."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.objects import (
    LEAF_BYTES,
    BlobId,
    FileContent,
    LeafHasher,
    Literal,
    Segment,
    TensorEntry,
    TensorId,
    TensorRef,
    TensorSpec,
    blob_id,
    tensor_id,
)
from modelgit.parallel import Workers
from modelgit.patching.base import STEP_BYTES, windows
from modelgit.progress import SILENT, Progress

__all__ = ["FileRange", "LiteralBytes", "assemble", "hash_file"]

_Leaf = tuple[int, int, int]  # number of the source, and the bytes from and to in it


class FileRange:
    """A range of an open file as a source of raw bytes."""

    step_bytes = STEP_BYTES

    def __init__(self, file: FileReader, offset: int, spec: TensorSpec | None) -> None:
        self.spec = spec or TensorSpec(dtype="U8")
        self._file = file
        self._offset = offset

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of the range."""
        return self._file.read(self._offset + start, stop - start)

    def read_into(self, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        self._file.read_into(self._offset + start, out)


class LiteralBytes:
    """All bytes of an open file that are not tensors, one after the other, as a source of raw bytes."""

    step_bytes = STEP_BYTES

    def __init__(self, file: FileReader, scanned: ScannedFile) -> None:
        self._file = file
        self._ranges = [item for item in scanned.ranges if item.tensor is None]
        self._starts = list(accumulate((item.length for item in self._ranges), initial=0))
        self.size = self._starts[-1]
        self.spec = TensorSpec(dtype="U8", shape=(self.size,))

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop` of what the literal ranges hold together."""
        out = bytearray(stop - start)
        self.read_into(start, memoryview(out))
        return out

    def read_into(self, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        at = bisect_right(self._starts, start) - 1
        while len(out):
            item, skip = self._ranges[at], start - self._starts[at]
            length = min(len(out), item.length - skip)
            self._file.read_into(item.offset + skip, out[:length])
            start += length
            out = out[length:]
            at += 1


def assemble(scanned: ScannedFile, literal: BlobId | None, tensors: Sequence[TensorId]) -> FileContent:
    """The content record of a scanned file, from the id of its literal bytes and one id per tensor."""
    segments: list[Segment] = []
    position = 0
    for item in scanned.ranges:
        if item.tensor is not None:
            segments.append(TensorRef(index=item.tensor))
        elif literal is not None:
            segments.append(Literal(blob=literal, length=item.length, offset=position))
            position += item.length
    return FileContent(
        format=scanned.format,
        segments=tuple(segments),
        tensors=tuple(
            TensorEntry(name=found.name, spec=found.spec, id=object_id)
            for found, object_id in zip(scanned.tensors, tensors, strict=True)
        ),
        views=scanned.views,
    )


def hash_file(
    path: Path, *, shown: str, threads: int, opaque: bool = False, progress: Progress = SILENT
) -> tuple[FileContent, os.stat_result]:
    """The content of a file without storing anything, and its stat from before it was read.

    `opaque` says that it is recorded byte for byte, whatever it is.
    Raises RepositoryError when the file changes meanwhile, CheckpointFormatError when it is malformed.
    """
    with FileReader(path, shown=shown) as file:
        scanned = scan_reader(file, opaque=opaque)
        literal = LiteralBytes(file, scanned)
        sources: list[tuple[FileRange | LiteralBytes, int]] = [(literal, literal.size)]
        place = {item.tensor: item for item in scanned.ranges if item.tensor is not None}
        for index, tensor in enumerate(scanned.tensors):
            sources.append((FileRange(file, place[index].offset, tensor.spec), place[index].length))
        leaves = [
            (number, start, min(start + LEAF_BYTES, size))
            for number, (_, size) in enumerate(sources)
            for start in (range(0, size, LEAF_BYTES) if size else (0,))
        ]

        buffers = threading.local()

        def digest(leaf: _Leaf) -> tuple[int, bytes]:
            number, start, stop = leaf
            progress.check()
            if not hasattr(buffers, "step"):
                largest = max(stop - start for _, start, stop in leaves)
                buffers.step = memoryview(bytearray(min(STEP_BYTES, largest)))
            hasher = LeafHasher()
            for low, high in windows(stop - start, step_bytes=STEP_BYTES):  # in steps that stay in the cache
                piece = buffers.step[: high - low]
                sources[number][0].read_into(start + low, piece)
                hasher.update(piece)
            return number, hasher.finish()[0]

        digests: list[list[bytes]] = [[] for _ in sources]
        with Workers(threads, name="mgit-hash") as workers:
            for number, value in workers.ordered(digest, leaves, ahead=4 * workers.count):
                digests[number].append(value)
        if not file.is_unchanged():
            raise RepositoryError(f"{shown} changed while it was being read", hint="try again when nothing writes it")
        ids = [tensor_id(tensor.spec, digests[1 + index]) for index, tensor in enumerate(scanned.tensors)]
        blob = blob_id(literal.size, digests[0]) if literal.size else None
        return assemble(scanned, blob, ids), file.stat
