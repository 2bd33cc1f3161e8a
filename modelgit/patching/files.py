"""Stored files as files: read at any offset from their segments, and compared with what their content record claims."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from modelgit.errors import CheckpointFormatError, IntegrityError, UsageError
from modelgit.formats.base import FORMATS
from modelgit.objects import BlobId, FileContent, Literal, TensorId
from modelgit.patching.base import TensorReads
from modelgit.patching.blobs import BufferedBlobs

__all__ = ["StoredFile", "check_table"]


class StoredFile:
    """A recorded file, opened for positional reads; nothing is read before it is asked for.

    Raises IntegrityError for a content record whose segments name tensors that it does not have.
    """

    def __init__(self, reader: TensorReads, content: FileContent, *, shown: str) -> None:
        self.path = Path(shown)
        self.shown = shown
        self._reader = BufferedBlobs(reader)
        self._pieces: list[tuple[BlobId | TensorId, int, int]] = []
        self._starts: list[int] = []
        self.size = 0
        for segment in content.segments:
            if isinstance(segment, Literal):
                piece: tuple[BlobId | TensorId, int, int] = (segment.blob, segment.length, segment.offset)
            elif 0 <= segment.index < len(content.tensors):
                entry = content.tensors[segment.index]
                piece = (entry.id, entry.spec.size_bytes, 0)
            else:
                raise IntegrityError(f"{shown}: a segment names tensor {segment.index} of {len(content.tensors)}")
            self._pieces.append(piece)
            self._starts.append(self.size)
            self.size += piece[1]

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; raises CheckpointFormatError when the file is shorter.

        Tensors are read on word borders.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointFormatError(f"{self.shown} has {self.size} bytes, {offset + length} are asked for")
        parts: list[bytes] = []
        at = bisect_right(self._starts, offset) - 1
        while length:
            object_id, size, skip = self._pieces[at]
            start = offset - self._starts[at]
            stop = min(start + length, size)
            if stop > start:
                if isinstance(object_id, BlobId):
                    parts.append(bytes(self._reader.read(object_id, skip + start, skip + stop)))
                else:
                    low, high = start // 8 * 8, min(-(-stop // 8) * 8, size)
                    parts.append(bytes(self._reader.read(object_id, low, high)[start - low : stop - low]))
            length -= max(0, stop - start)
            offset += max(0, stop - start)
            at += 1
        return b"".join(parts)


def check_table(reader: TensorReads, content: FileContent, *, shown: str) -> None:
    """Compare a content record with the file that it describes.

    Gate, diff and merge go by the record's names, loaders by the file's own header: a stranger could show one model to
    the first and another to the second.  Raises IntegrityError when names, specs or order differ, or when the format is
    not known here, so that nobody can tell.
    """
    if not content.tensors and all(isinstance(segment, Literal) for segment in content.segments):
        return  # no claim is made about its bytes
    try:
        found = FORMATS.get(content.format).scan(StoredFile(reader, content, shown=shown))
    except (CheckpointFormatError, UsageError) as error:
        raise IntegrityError(f"{shown} does not hold the tensors that it claims: {error.message}") from None
    claimed = [
        (segment.length, None)
        if isinstance(segment, Literal)
        else (content.tensors[segment.index].spec.size_bytes, segment.index)
        for segment in content.segments
    ]
    actual = [(item.length, item.tensor) for item in found.ranges]
    names = [(tensor.name, tensor.spec) for tensor in found.tensors]
    listed = [(entry.name, entry.spec) for entry in content.tensors]
    if claimed != actual or names != listed or found.views != content.views:
        raise IntegrityError(f"{shown} does not hold the tensors that it claims: its header says otherwise")
