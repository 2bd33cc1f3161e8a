"""safetensors files, by a header check stricter than the reference reader's.

The layout is that of https://github.com/huggingface/safetensors: eight bytes of little-endian header length, a JSON
object from names to dtype, shape and byte offsets, then the tensors without gaps.  The reference reader accepts
duplicate keys, names with NUL or of a megabyte, and any number of tensors; two readers that disagree on such a file
would see two models, so all of that is refused here.

The header is read entry by entry with one expression that cannot backtrack, and each entry is decoded into a typed
record.  So a hostile header is refused at its first wrong entry, before memory is spent on the rest.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, NoReturn

import msgspec

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt, ScannedFile, ScannedRange, ScannedTensor
from modelgit.formats.cursor import quoted
from modelgit.formats.lookalikes import refuse_lookalike
from modelgit.objects import DTYPES, TensorSpec

__all__ = ["SAFETENSORS", "SafetensorsFormat"]

MAX_HEADER_BYTES = 100_000_000  # the reference reader's limit
MAX_TENSORS = 1_000_000
MAX_NAME_BYTES = 4096
MAX_METADATA = 100_000
MAX_ENTRY_BYTES = 4096  # 64 dimensions of 19 digits fit twice
_LENGTH_BYTES = 8
_METADATA = "__metadata__"

_Int = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[_Int, ...], msgspec.Meta(max_length=64)]
    data_offsets: tuple[_Int, _Int]


_decode_entry = msgspec.json.Decoder(_Entry).decode
_decode_text = msgspec.json.Decoder(str).decode

# Atomic groups and possessive repeats: linear time on any input.
_STRING = rb'"(?>[^"\\]++|\\.)*+"'
_KEY_AND_OBJECT = re.compile(
    rb"[ \t\r\n]*+(" + _STRING + rb')[ \t\r\n]*+:[ \t\r\n]*+(\{(?>[^{}"]++|' + _STRING + rb")*+\})[ \t\r\n]*+",
    re.DOTALL,
)
_KEY_AND_STRING = re.compile(
    rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+", re.DOTALL
)
_EMPTY_OBJECT = re.compile(rb"\{[ \t\r\n]*+\}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WHITESPACE = b" \t\r\n"


class _Found:
    """A tensor as its header entry describes it, `start` and `end` relative to the end of the header."""

    __slots__ = ("end", "name", "spec", "start")

    def __init__(self, name: str, spec: TensorSpec, start: int, end: int) -> None:
        self.name = name
        self.spec = spec
        self.start = start
        self.end = end


def _refuse(shown: str, reason: str) -> NoReturn:
    raise CheckpointFormatError(
        f"{shown} has an invalid header: {reason}",
        hint=f"save the model again with `safetensors.torch.save_file`, or `mgit untrack {shown}`",
    )


def _truncated(shown: str, promise: str, size: int) -> NoReturn:
    raise CheckpointFormatError(
        f"{shown} is truncated: {promise}, the file holds {size}",
        hint="wait until it is written, or copy or download it again",
    )


def _text(raw: bytes, shown: str) -> str:
    """The value of a JSON string, quotes and escapes included in `raw`."""
    try:
        return _decode_text(raw)
    except ValueError:
        _refuse(shown, f"{raw[:40].decode('latin-1')!a} is not a JSON string in UTF-8")


def _check_metadata(raw: bytes, shown: str) -> None:
    """Refuse `__metadata__` unless it maps distinct strings to strings."""
    if _EMPTY_OBJECT.fullmatch(raw):
        return
    seen: set[str] = set()
    position = 1
    while True:
        match = _KEY_AND_STRING.match(raw, position)
        if match is None:
            _refuse(shown, "`__metadata__` does not map strings to strings")
        key = _text(match[1], shown)
        _text(match[2], shown)
        if key in seen:
            _refuse(shown, f"duplicate key {quoted(key)} in `__metadata__`")
        seen.add(key)
        if len(seen) > MAX_METADATA:
            _refuse(shown, f"more than {MAX_METADATA:,} entries in `__metadata__`")
        position = match.end()
        if raw[position : position + 1] != b",":
            if position != len(raw) - 1:
                _refuse(shown, "`__metadata__` does not map strings to strings")
            return
        position += 1


def _check_name(name: str, shown: str) -> None:
    if not name:
        _refuse(shown, "a tensor with an empty name")
    if _CONTROL.search(name):
        _refuse(shown, f"control characters in the tensor name {quoted(name)}")
    if len(name) > MAX_NAME_BYTES // 4 and len(name.encode()) > MAX_NAME_BYTES:
        _refuse(shown, f"a tensor name of {len(name.encode()):,} bytes (at most {MAX_NAME_BYTES:,})")


def _read_entry(name: str, raw: bytes, shown: str) -> _Found:
    if len(raw) > MAX_ENTRY_BYTES:
        _refuse(shown, f"the entry of tensor {quoted(name)} is {len(raw):,} bytes long")
    try:
        entry = _decode_entry(raw)
    except ValueError as error:
        # The decoder quotes the header's own words, so they are escaped and cut like a name.
        reason = ascii(str(error).split(" - at ")[0])[1:-1]
        _refuse(shown, f"tensor {quoted(name)}: {reason[:100]}")
    # Three keys and one string without escapes have eight quotes; more means that a key came twice.
    if raw.count(b'"') != 8:
        _refuse(shown, f"tensor {quoted(name)} has a duplicate key")
    kind = DTYPES.get(entry.dtype)
    if kind is None:
        _refuse(shown, f"tensor {quoted(name)} has the unknown dtype {quoted(entry.dtype)}")
    start, end = entry.data_offsets
    bits = math.prod(entry.shape) * kind.bits
    if bits % 8:
        _refuse(shown, f"tensor {quoted(name)} ({entry.dtype}) does not fill whole bytes")
    if bits != (end - start) * 8:
        dims = "x".join(map(str, entry.shape[:6])) + ("x..." if len(entry.shape) > 6 else "")
        need = bits // 8 if bits < 1 << 66 else "far too many"
        _refuse(
            shown,
            f"tensor {quoted(name)} ({entry.dtype} {dims or 'scalar'}) needs {need} bytes"
            f" and its offsets [{start}, {end}] span {end - start}",
        )
    return _Found(name, TensorSpec(dtype=entry.dtype, shape=entry.shape), start, end)


def _read_header(header: bytes, shown: str) -> list[_Found]:
    """All tensors of the JSON text `header`, in its order."""
    text = header.rstrip(_WHITESPACE)
    found: list[_Found] = []
    if _EMPTY_OBJECT.fullmatch(text):
        return found
    seen: set[str] = set()
    position = 1
    while True:
        match = _KEY_AND_OBJECT.match(text, position)
        if match is None:
            _refuse(shown, f"not a JSON object of tensors at byte {_LENGTH_BYTES + position}")
        name = _text(match[1], shown)
        if name in seen:
            _refuse(shown, f"duplicate key {quoted(name)}")
        seen.add(name)
        if name == _METADATA:
            _check_metadata(match[2], shown)
        else:
            _check_name(name, shown)
            found.append(_read_entry(name, match[2], shown))
            if len(found) > MAX_TENSORS:
                _refuse(shown, f"more than {MAX_TENSORS:,} tensors")
        position = match.end()
        if text[position : position + 1] != b",":
            break
        position += 1
    if text[position:] != b"}":
        _refuse(shown, f"not a JSON object of tensors at byte {_LENGTH_BYTES + position}")
    return found


def _check_layout(found: list[_Found], data_bytes: int, shown: str) -> None:
    """Refuse overlaps, holes, truncation and trailing bytes; `found` is in data order."""
    position = 0
    previous = ""
    for tensor in found:
        if tensor.start < position:
            _refuse(shown, f"tensors {quoted(previous)} and {quoted(tensor.name)} overlap")
        if tensor.start > position:
            _refuse(shown, f"a hole of {tensor.start - position} bytes before tensor {quoted(tensor.name)}")
        position = tensor.end
        previous = tensor.name
    if position > data_bytes:
        _truncated(shown, f"its header promises {position} bytes of tensors", data_bytes)
    if position < data_bytes:
        _refuse(shown, f"{data_bytes - position} trailing bytes after the last tensor")


class SafetensorsFormat:
    """One literal range for length and header (padding included), then the tensors in data order."""

    name = "safetensors"

    def detect(self, head: bytes, name: str) -> bool:
        """By name, or by a plausible length before the opening of a JSON object."""
        if name.lower().endswith((".safetensors", ".sft")):
            return True
        length = int.from_bytes(head[:_LENGTH_BYTES], "little")
        return (
            2 <= length <= MAX_HEADER_BYTES and head[8:9] == b"{" and head[9:].lstrip(_WHITESPACE)[:1] in (b'"', b"}")
        )

    def scan(self, file: ReadAt) -> ScannedFile:
        """Read and check the header; the tensors themselves are not read.

        Raises CheckpointFormatError for a file that is truncated, malformed, hostile or something else altogether.
        """
        shown = file.shown
        head = file.read(0, min(file.size, 512))
        refuse_lookalike(head, file.size, shown)
        if file.size < _LENGTH_BYTES:
            _truncated(shown, "a safetensors file begins with 8 bytes of header length", file.size)
        length = int.from_bytes(head[:_LENGTH_BYTES], "little")
        if length > MAX_HEADER_BYTES:
            _refuse(shown, f"its length is given as {length} bytes (at most {MAX_HEADER_BYTES})")
        if length < 2 or (len(head) > _LENGTH_BYTES and head[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{"):
            _refuse(shown, "it does not begin with `{`")
        literal = _LENGTH_BYTES + length
        if literal > file.size:
            _truncated(shown, f"its header alone is {literal} bytes", file.size)
        found = _read_header(file.read(_LENGTH_BYTES, length), shown)
        # Empty tensors sort before what begins at the same byte, so that they neither overlap nor leave a hole.
        found.sort(key=lambda tensor: (tensor.start, tensor.end))
        _check_layout(found, file.size - literal, shown)
        ranges = [ScannedRange(0, literal, None)]
        ranges += [
            ScannedRange(literal + tensor.start, tensor.end - tensor.start, index) for index, tensor in enumerate(found)
        ]
        tensors = tuple(ScannedTensor(tensor.name, tensor.spec) for tensor in found)
        return ScannedFile(self.name, file.size, tuple(ranges), tensors)


SAFETENSORS = SafetensorsFormat()
