"""Making a safetensors header: for files that a merge puts together from the tensors of several."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

from modelgit.errors import CheckpointFormatError
from modelgit.objects import TensorSpec

__all__ = ["build_header", "read_metadata"]

_ALIGNMENT = 8


def build_header(tensors: Sequence[tuple[str, TensorSpec]], metadata: Mapping[str, str] | None) -> bytes:
    """The length field and header of a file that holds `tensors` in this order, padded so that data are aligned."""
    table: dict[str, object] = {}
    if metadata:
        table["__metadata__"] = dict(metadata)
    offset = 0
    for name, spec in tensors:
        end = offset + spec.size_bytes
        table[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def read_metadata(header: bytes) -> dict[str, str] | None:
    """The `__metadata__` of a header (with its length field) that a scan has accepted; None when it has none."""
    try:
        table = json.loads(header[8:])
        metadata = table.get("__metadata__")
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointFormatError("a stored safetensors header does not read as JSON") from None
    return None if metadata is None else {str(key): str(value) for key, value in metadata.items()}
