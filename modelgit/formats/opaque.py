"""Any file at all: one range of literal bytes, stored and restored exactly, never looked into."""

from __future__ import annotations

from modelgit.formats.base import ReadAt, ScannedFile, ScannedRange
from modelgit.formats.lookalikes import is_weight_name, refuse_pointer

__all__ = ["OPAQUE", "OpaqueFormat", "record_whole"]


def record_whole(file: ReadAt, note: str = "") -> ScannedFile:
    """One literal range over the whole file (none for an empty one); `note` says why it is not read."""
    ranges = (ScannedRange(0, file.size, None),) if file.size else ()
    return ScannedFile("opaque", file.size, ranges, (), note=note)


class OpaqueFormat:
    """Takes every file."""

    name = "opaque"

    def detect(self, head: bytes, name: str) -> bool:  # noqa: ARG002 - the contract passes both
        """Always true."""
        return True

    def scan(self, file: ReadAt) -> ScannedFile:
        """One literal range over the whole file (none for an empty one).

        Raises CheckpointFormatError for a Git LFS pointer where weights are expected.
        """
        if is_weight_name(file.path.name):
            refuse_pointer(file.read(0, min(file.size, 256)), file.size, file.shown)
        return record_whole(file)


OPAQUE = OpaqueFormat()
