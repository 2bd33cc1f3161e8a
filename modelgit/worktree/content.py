"""What a file of the work tree holds: its segments and the ids of its tensors, computed or stored."""

from __future__ import annotations

import os
from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.objects import (
    LEAF_BYTES,
    BlobId,
    FileContent,
    Literal,
    Segment,
    TensorEntry,
    TensorId,
    TensorRef,
    TensorSpec,
    blob_id,
    leaf_digest,
    tensor_id,
)
from modelgit.parallel import Workers
from modelgit.patching.base import STEP_BYTES
from modelgit.progress import SILENT, Progress

__all__ = ["FileRange", "assemble", "hash_file"]

_Leaf = tuple[int, int, int]  # number of the range, and the bytes from and to in it


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


def assemble(scanned: ScannedFile, ids: list[TensorId | BlobId]) -> FileContent:
    """The content record of a scanned file; `ids` has one id per range."""
    segments: list[Segment] = []
    entries: dict[int, TensorEntry] = {}
    for item, object_id in zip(scanned.ranges, ids, strict=True):
        if isinstance(object_id, BlobId):
            segments.append(Literal(blob=object_id, length=item.length))
        elif item.tensor is not None:
            found = scanned.tensors[item.tensor]
            entries[item.tensor] = TensorEntry(name=found.name, spec=found.spec, id=object_id)
            segments.append(TensorRef(index=item.tensor))
    return FileContent(
        format=scanned.format,
        segments=tuple(segments),
        tensors=tuple(entries[index] for index in range(len(scanned.tensors))),
    )


def hash_file(
    path: Path, *, shown: str, threads: int, progress: Progress = SILENT
) -> tuple[FileContent, os.stat_result]:
    """The content of a file without storing anything, and its stat from before it was read.

    Raises RepositoryError when the file changes meanwhile, CheckpointFormatError when it is malformed.
    """
    with FileReader(path, shown=shown) as file:
        scanned = scan_reader(file)
        leaves = [
            (number, start, min(start + LEAF_BYTES, item.length))
            for number, item in enumerate(scanned.ranges)
            for start in (range(0, item.length, LEAF_BYTES) if item.length else (0,))
        ]

        def digest(leaf: _Leaf) -> tuple[int, bytes]:
            number, start, stop = leaf
            progress.check()
            return number, leaf_digest(file.read(scanned.ranges[number].offset + start, stop - start))

        digests: list[list[bytes]] = [[] for _ in scanned.ranges]
        with Workers(threads, name="mgit-hash") as workers:
            for number, value in workers.ordered(digest, leaves, ahead=4 * workers.count):
                digests[number].append(value)
        if not file.is_unchanged():
            raise RepositoryError(f"{shown} changed while it was being read", hint="try again when nothing writes it")
        ids: list[TensorId | BlobId] = [
            blob_id(item.length, digests[number])
            if item.tensor is None
            else tensor_id(scanned.tensors[item.tensor].spec, digests[number])
            for number, item in enumerate(scanned.ranges)
        ]
        return assemble(scanned, ids), file.stat
