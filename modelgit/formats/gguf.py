"""GGUF files of version 2 and 3: the tensors of llama.cpp and its relatives, in whatever block type they are.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, counts, typed key/value
pairs, one entry per tensor (name, extents with the fastest first, type, offset), and the tensors at aligned offsets.
Values of keys are skipped, each within bounds; only `general.alignment` means something here.  Shapes are given as
safetensors would give them: the fastest extent last.
"""

from __future__ import annotations

from typing import NamedTuple

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt, ScannedFile, ScannedRange, ScannedTensor
from modelgit.formats.cursor import MAX_NAME_BYTES, Cursor, check_tensor_name, quoted
from modelgit.formats.lookalikes import refuse_pointer
from modelgit.objects import TensorSpec

__all__ = ["GGUF", "GgufFormat"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 1 << 30
MAX_TENSORS = 1_000_000
MAX_KEYS = 1_000_000
MAX_KEY_BYTES = 65535  # the specification's own limit
MAX_DIMENSIONS = 8  # ggml has four
MAX_DEPTH = 8  # of arrays in arrays
MIN_TENSOR_BYTES = 24  # an entry with an empty name and no extents
MIN_KEY_BYTES = 13
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20

_STRING, _ARRAY = 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by type of value
_INTEGERS = frozenset({0, 2, 4, 10})

# Numbers of `enum ggml_type`; those missing were never in a released file or are removed.
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    30: "BF16", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0",
}  # fmt: skip


class _Found(NamedTuple):
    """A tensor as its entry describes it; `start` and `stop` are relative to the first tensor."""

    start: int
    stop: int
    number: int
    name: str


def _skip_value(cursor: Cursor, kind: int, key: str, depth: int = 0) -> None:
    if kind == _STRING:
        cursor.skip(cursor.unsigned(8, "a string's length"), "a string")
    elif kind == _ARRAY:
        if depth == MAX_DEPTH:
            cursor.refuse(f"arrays in arrays deeper than {MAX_DEPTH} under {quoted(key)}")
        inner = cursor.unsigned(4, "an array's type")
        count = cursor.unsigned(8, "an array's length")
        if inner in _VALUE_BYTES:
            cursor.skip(count * _VALUE_BYTES[inner], "an array")
            return
        # The shortest string is its length, the shortest array its type and length: counts cannot be made up.
        cursor.require(count * (8 if inner == _STRING else 12), "an array")
        if inner == _STRING:
            cursor.skip_strings(count, "a string")
            return
        for _ in range(count):
            _skip_value(cursor, inner, key, depth + 1)
    elif kind in _VALUE_BYTES:
        cursor.skip(_VALUE_BYTES[kind], "a value")
    else:
        cursor.refuse(f"the key {quoted(key)} has a value of unknown type {kind}")


def _read_keys(cursor: Cursor, count: int) -> int:
    """Skip all pairs; returns the alignment that they declare."""
    alignment = DEFAULT_ALIGNMENT
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.text(cursor.unsigned(8, "a key's length"), "a key", limit=MAX_KEY_BYTES)
        if key in seen:
            cursor.refuse(f"duplicate key {quoted(key)}")
        seen.add(key)
        kind = cursor.unsigned(4, "a value's type")
        if key == "general.alignment":
            if kind not in _INTEGERS:
                cursor.refuse("`general.alignment` is not an unsigned integer")
            alignment = cursor.unsigned(_VALUE_BYTES[kind], "`general.alignment`")
            if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
                cursor.refuse(f"an alignment of {alignment} bytes")
        else:
            _skip_value(cursor, kind, key)
    return alignment


def _read_tensor(cursor: Cursor, number: int, alignment: int) -> tuple[_Found, TensorSpec]:
    name = cursor.text(cursor.unsigned(8, "a name's length"), "a tensor name", limit=MAX_NAME_BYTES)
    check_tensor_name(cursor, name)
    dimensions = cursor.unsigned(4, "a number of dimensions")
    if dimensions > MAX_DIMENSIONS:
        cursor.refuse(f"tensor {quoted(name)} has {dimensions} dimensions (at most {MAX_DIMENSIONS})")
    shape = tuple(reversed([cursor.unsigned(8, "an extent") for _ in range(dimensions)]))
    kind = cursor.unsigned(4, "a tensor's type")
    start = cursor.unsigned(8, "a tensor's offset")
    if kind not in _TYPES:
        raise CheckpointFormatError(
            f"{cursor.file.shown} holds the tensor {quoted(name)} of GGUF type {kind}, which this mgit does not know",
            hint="`pip install --upgrade modelgit`, or convert the file to a type that is known",
        )
    spec = TensorSpec(dtype=_TYPES[kind], shape=shape)
    try:
        spec.check()
        size = spec.size_bytes
    except CheckpointFormatError as error:
        cursor.refuse(f"tensor {quoted(name)}: {error.message}")
    if start % alignment:
        cursor.refuse(f"tensor {quoted(name)} lies at offset {start}, which is no multiple of {alignment}")
    return _Found(start, start + size, number, name), spec


def _ranges(cursor: Cursor, found: list[_Found], data: int) -> list[ScannedRange]:
    """Everything before the tensors, the tensors in the order of their offsets, and what lies between and behind."""
    size = cursor.file.size
    position = min(data, size)
    ranges = [ScannedRange(0, position, None)]
    previous = ""
    for item in sorted(found):
        start, stop = data + item.start, data + item.stop
        if stop > size:
            raise CheckpointFormatError(
                f"{cursor.file.shown} is truncated: tensor {quoted(item.name)} ends at byte {stop}, the file at {size}",
                hint="wait until it is written, or copy or download it again",
            )
        if start < position:
            cursor.refuse(f"tensors {quoted(previous)} and {quoted(item.name)} overlap")
        if start > position:
            ranges.append(ScannedRange(position, start - position, None))
        ranges.append(ScannedRange(start, stop - start, item.number))
        position, previous = stop, item.name
    if position < size:
        ranges.append(ScannedRange(position, size - position, None))
    return ranges


class GgufFormat:
    """Literal bytes for the header and for padding, one tensor per entry."""

    name = "gguf"

    def detect(self, head: bytes, name: str) -> bool:
        """By the magic number, or by name."""
        return head.startswith(MAGIC) or name.lower().endswith(".gguf")

    def scan(self, file: ReadAt) -> ScannedFile:
        """Read the header; the tensors themselves are not read.

        Raises CheckpointFormatError for a file that is truncated, malformed, of another version or of the other byte
        order, or holds a tensor type that is not known.
        """
        head = file.read(0, min(file.size, 512))
        refuse_pointer(head, file.size, file.shown)
        cursor = Cursor(file, kind="GGUF file", stop=min(file.size, MAX_HEADER_BYTES))
        if not head.startswith(MAGIC):
            cursor.refuse("it does not begin with `GGUF`")
        cursor.skip(4, "the magic number")
        version = cursor.unsigned(4, "the version")
        if version not in VERSIONS:
            big = int.from_bytes(version.to_bytes(4, "little"), "big")
            order = " in big-endian byte order" if big in VERSIONS else ""
            raise CheckpointFormatError(
                f"{file.shown} is a GGUF file of version {big if order else version}{order}; versions 2 and 3,"
                " little-endian, are read",
                hint="convert it with the tools of llama.cpp",
            )
        tensors, keys = cursor.unsigned(8, "the number of tensors"), cursor.unsigned(8, "the number of keys")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            cursor.refuse(f"it claims {tensors} tensors and {keys} keys (at most {MAX_TENSORS:,} and {MAX_KEYS:,})")
        cursor.require(tensors * MIN_TENSOR_BYTES + keys * MIN_KEY_BYTES, "the header")
        alignment = _read_keys(cursor, keys)
        found: list[_Found] = []
        scanned: list[ScannedTensor] = []
        names: set[str] = set()
        for number in range(tensors):
            item, spec = _read_tensor(cursor, number, alignment)
            if item.name in names:
                cursor.refuse(f"duplicate tensor {quoted(item.name)}")
            names.add(item.name)
            found.append(item)
            scanned.append(ScannedTensor(item.name, spec))
        data = -(-cursor.position // alignment) * alignment
        return ScannedFile(self.name, file.size, tuple(_ranges(cursor, found, data)), tuple(scanned))


GGUF = GgufFormat()
