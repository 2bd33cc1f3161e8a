"""Small files read whole from their segments."""

from __future__ import annotations

from modelgit.errors import IntegrityError
from modelgit.objects import FileContent, Literal
from modelgit.patching.materialise import TensorReader

__all__ = ["read_small_file"]


def read_small_file(reader: TensorReader, content: FileContent, *, limit: int = 1 << 28) -> bytes:
    """The bytes of a file.  Raises IntegrityError when it is over `limit` bytes or cannot be rebuilt."""
    parts: list[bytes | bytearray] = []
    total = 0
    for segment in content.segments:
        if isinstance(segment, Literal):
            size = segment.length
        elif 0 <= segment.index < len(content.tensors):
            size = content.tensors[segment.index].spec.size_bytes
        else:
            raise IntegrityError(f"a segment names tensor {segment.index} of {len(content.tensors)}")
        total += size
        if total > limit:
            raise IntegrityError(f"a file of more than {limit} bytes where a small one is expected")
        object_id = segment.blob if isinstance(segment, Literal) else content.tensors[segment.index].id
        parts.append(reader.read(object_id, 0, size))
    return b"".join(parts)
