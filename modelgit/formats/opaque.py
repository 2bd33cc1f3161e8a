"""Any file at all: one range of literal bytes, stored and restored exactly, never looked into.

Pickled checkpoints (`.pt`, `.bin`, `.pth`) are opaque too: reading their tensors is not worth running their code.
"""

from __future__ import annotations

from modelgit.formats.base import ReadAt, ScannedFile, ScannedRange
from modelgit.formats.lookalikes import is_weight_name, refuse_pointer

__all__ = ["OPAQUE", "OpaqueFormat"]


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
        ranges = (ScannedRange(0, file.size, None),) if file.size else ()
        return ScannedFile(self.name, file.size, ranges, ())


OPAQUE = OpaqueFormat()
