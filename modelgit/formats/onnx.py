"""ONNX models: the initialisers that hold their values as raw bytes; and files of external data.

A model is a protobuf message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto): ModelProto.graph (field 7) holds
GraphProto.initializer (5), each a TensorProto with dims, type, name and, as a rule, raw_data.  Only these fields are
walked, within bounds and without a protobuf library; the rest, values in typed fields (float_data) included, is literal
bytes.  Where protobuf lets a later field silently replace an earlier one, the file is refused.

A file of external data says nothing about itself: where its tensors lie is written in the model beside it, which may
change without it.  So it is one tensor of four-byte words, which codes floats of two and four bytes alike well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt, ScannedFile, ScannedRange, ScannedTensor
from modelgit.formats.cursor import MAX_NAME_BYTES, Cursor, check_tensor_name, quoted
from modelgit.formats.lookalikes import refuse_pointer
from modelgit.objects import TensorSpec

__all__ = ["ONNX", "ONNX_DATA", "OnnxDataFormat", "OnnxFormat"]

MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 64
_MAX_FIELD = (1 << 29) - 1
_BUFFER_BYTES = 4096  # small, because tensors are jumped over
_WORD = 4

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH = 7  # of ModelProto
_INITIALIZER = 5  # of GraphProto
_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14  # of TensorProto
_TYPED = frozenset({4, 5, 6, 7, 10, 11})

_TYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 14: "C64", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ", 24: "F8_E8M0",
}  # fmt: skip
# Types that safetensors does not know, by bits: their tensors are given as bytes.
_PACKED = {15: 128, 21: 4, 22: 4, 23: 4, 25: 2, 26: 2, 27: 6, 28: 6}

_DATA_NAME = re.compile(r".+\.onnx(?:_data|\.data)(?:[_-]?\d+)?\Z", re.IGNORECASE)


class _Field(NamedTuple):
    """A field of a message: its number, wire type, and value (varints) or length (the cursor is at its first byte)."""

    number: int
    wire: int
    value: int


class _Tensor(NamedTuple):
    """An initialiser: its name, and the place of its raw bytes if it has any."""

    name: str
    spec: TensorSpec | None
    start: int
    length: int


def _fields(cursor: Cursor, end: int) -> Iterator[_Field]:
    """The fields of the message that ends at byte `end`; what the consumer does not read of one is passed over."""
    while cursor.position < end:
        tag = cursor.varint("a field")
        number, wire = tag >> 3, tag & 7
        if not 1 <= number <= _MAX_FIELD:
            cursor.refuse(f"a field with number {number} before byte {cursor.position}")
        if wire == _VARINT:
            yield _Field(number, wire, cursor.varint("a value"))
        elif wire == _BYTES:
            length = cursor.varint("a length")
            start = cursor.position
            if length > end - start:
                cursor.refuse(
                    f"field {number} at byte {start} needs {length} bytes, its message has {end - start} left"
                )
            yield _Field(number, wire, length)
            cursor.position = start + length
        elif wire in (_FIXED64, _FIXED32):
            cursor.skip(8 if wire == _FIXED64 else 4, "a value")
            yield _Field(number, wire, 0)
        else:
            cursor.refuse(f"field {number} before byte {cursor.position} has the unknown wire type {wire}")
    if cursor.position > end:
        cursor.refuse(f"a value runs past the end of its message at byte {end}")


def _read_dims(cursor: Cursor, field: _Field, dims: list[int]) -> None:
    if field.wire == _VARINT:
        dims.append(field.value)
    elif field.wire == _BYTES:
        end = cursor.position + field.value
        while cursor.position < end and len(dims) <= MAX_DIMENSIONS:
            dims.append(cursor.varint("an extent"))
        if cursor.position > end:
            cursor.refuse(f"an extent runs past the end of its field at byte {end}")
    if len(dims) > MAX_DIMENSIONS:
        cursor.refuse(f"a tensor with more than {MAX_DIMENSIONS} dimensions")


def _read_tensor(cursor: Cursor, end: int) -> _Tensor:
    dims: list[int] = []
    seen: dict[int, int] = {}
    name, start, typed = "", 0, False
    for field in _fields(cursor, end):
        if field.number == _DIMS:
            _read_dims(cursor, field, dims)
            continue
        typed |= field.number in _TYPED
        if field.number not in (_TYPE, _NAME, _RAW, _LOCATION, _EXTERNAL):
            continue
        wanted = _VARINT if field.number in (_TYPE, _LOCATION) else _BYTES
        if field.wire != wanted or (field.number in seen and field.number != _EXTERNAL):
            cursor.refuse(
                f"field {field.number} of a tensor comes twice or in another form, before byte {cursor.position}"
            )
        seen[field.number] = field.value
        if field.number == _NAME:
            name = cursor.text(field.value, "a tensor name", limit=MAX_NAME_BYTES)
        elif field.number == _RAW:
            start = cursor.position
    check_tensor_name(cursor, name)
    if _RAW not in seen:
        return _Tensor(name, None, 0, 0)
    if typed or _EXTERNAL in seen or seen.get(_LOCATION):
        cursor.refuse(f"tensor {quoted(name)} holds its values twice")
    return _Tensor(name, _spec(cursor, name, seen.get(_TYPE, 0), dims, seen[_RAW]), start, seen[_RAW])


def _spec(cursor: Cursor, name: str, kind: int, dims: list[int], length: int) -> TensorSpec:
    """Dtype and shape, after they were found to need `length` bytes."""
    if kind in _PACKED:
        bits = _PACKED[kind]
        for extent in dims:
            bits *= extent
        need = -(-bits // 8)
        spec = TensorSpec(dtype="U8", shape=(length,))
    elif kind in _TYPES:
        spec = TensorSpec(dtype=_TYPES[kind], shape=tuple(dims))
        try:
            spec.check()
        except CheckpointFormatError as error:
            cursor.refuse(f"tensor {quoted(name)}: {error.message}")
        need = spec.size_bytes
    else:
        cursor.refuse(f"tensor {quoted(name)} has raw bytes of type {kind}, which has none")
    if need != length:
        shown = need if need < 1 << 66 else "far too many"
        cursor.refuse(f"tensor {quoted(name)} needs {shown} bytes and has {length}")
    return spec


class OnnxFormat:
    """Literal bytes, and one tensor per initialiser with raw bytes."""

    name = "onnx"

    def detect(self, head: bytes, name: str) -> bool:  # noqa: ARG002 - protobuf has no magic number
        """By name."""
        return name.lower().endswith(".onnx")

    def scan(self, file: ReadAt) -> ScannedFile:
        """Walk the model; the tensors themselves are not read.

        Raises CheckpointFormatError for a file that is truncated, malformed or ambiguous.
        """
        refuse_pointer(file.read(0, min(file.size, 256)), file.size, file.shown)
        cursor = Cursor(file, kind="ONNX model", buffer_bytes=_BUFFER_BYTES)
        ranges: list[ScannedRange] = []
        tensors: list[ScannedTensor] = []
        names: set[str] = set()
        graphs = count = position = 0
        for field in _fields(cursor, file.size):
            if field.number != _GRAPH:
                continue
            graphs += 1
            if field.wire != _BYTES or graphs > 1:
                cursor.refuse("it holds two graphs")
            for item in _fields(cursor, cursor.position + field.value):
                if item.number != _INITIALIZER:
                    continue
                count += 1
                if item.wire != _BYTES or count > MAX_TENSORS:
                    cursor.refuse(f"an initialiser that is no message, or more than {MAX_TENSORS:,}")
                found = _read_tensor(cursor, cursor.position + item.value)
                if found.name in names:
                    cursor.refuse(f"duplicate tensor {quoted(found.name)}")
                names.add(found.name)
                if found.spec is not None:
                    ranges.append(ScannedRange(position, found.start - position, None))
                    ranges.append(ScannedRange(found.start, found.length, len(tensors)))
                    tensors.append(ScannedTensor(found.name, found.spec))
                    position = found.start + found.length
        if not graphs:
            cursor.refuse("it holds no graph")
        if position < file.size:
            ranges.append(ScannedRange(position, file.size - position, None))
        return ScannedFile(self.name, file.size, tuple(ranges), tuple(tensors))


class OnnxDataFormat:
    """One tensor of four-byte words, and up to three literal bytes behind it."""

    name = "onnx-data"

    def detect(self, head: bytes, name: str) -> bool:  # noqa: ARG002 - the contents are bare numbers
        """By the names that exporters give: `model.onnx_data`, `model.onnx.data`, `model.onnx_data_1`."""
        return _DATA_NAME.match(name) is not None

    def scan(self, file: ReadAt) -> ScannedFile:
        """Nothing is read.  Raises CheckpointFormatError for a Git LFS pointer."""
        refuse_pointer(file.read(0, min(file.size, 256)), file.size, file.shown)
        words = file.size // _WORD
        ranges = [ScannedRange(0, words * _WORD, 0)] if words else []
        if file.size % _WORD:
            ranges.append(ScannedRange(words * _WORD, file.size % _WORD, None))
        tensors = (ScannedTensor(file.path.name, TensorSpec(dtype="U32", shape=(words,))),) if words else ()
        return ScannedFile(self.name, file.size, tuple(ranges), tensors)


ONNX = OnnxFormat()
ONNX_DATA = OnnxDataFormat()
