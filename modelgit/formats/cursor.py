"""Reading a file's header step by step: buffered, never past a limit, and every step refused in the file's name."""

from __future__ import annotations

import struct
from typing import NoReturn

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt

__all__ = ["Cursor", "check_tensor_name", "quoted"]

_LENGTH = struct.Struct("<Q")
_BUFFER_BYTES = 256 << 10
MAX_NAME_BYTES = 4096


def quoted(name: str) -> str:
    """`name`, which a stranger chose, as it may be shown: control characters escaped, cut to 60 characters."""
    return ascii(name if len(name) <= 60 else name[:57] + "...")


class Cursor:
    """A position in `file` that moves from `start` towards `stop`.

    `buffer_bytes` are read at a time.  `kind` is what the file is said to be ("GGUF file"), for messages.  Every method
    raises CheckpointFormatError, and reads nothing, when it would pass `stop`.
    """

    def __init__(
        self,
        file: ReadAt,
        *,
        kind: str,
        start: int = 0,
        stop: int | None = None,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self._buffer_bytes = buffer_bytes
        self.file = file
        self.kind = kind
        self.position = start
        self.stop = file.size if stop is None else stop
        self._buffer = b""
        self._buffer_start = start

    def refuse(self, reason: str) -> NoReturn:
        """Raise CheckpointFormatError for a malformed file."""
        raise CheckpointFormatError(
            f"{self.file.shown} is not a well-formed {self.kind}: {reason}",
            hint=f"save or download it again, or leave it out: `mgit untrack {self.file.shown}`",
        )

    @property
    def left(self) -> int:
        """Bytes between here and the end."""
        return self.stop - self.position

    def require(self, length: int, what: str) -> None:
        """Refuse unless `length` more bytes are there."""
        if not 0 <= length <= self.left:
            self.refuse(f"{what} at byte {self.position} needs {length} bytes, {self.left} are left")

    def skip(self, length: int, what: str) -> None:
        """Move on without reading."""
        self.require(length, what)
        self.position += length

    def take(self, length: int, what: str) -> bytes:
        """The next `length` bytes."""
        self.require(length, what)
        at = self.position - self._buffer_start
        if at < 0 or at + length > len(self._buffer):
            size = min(max(length, self._buffer_bytes), self.left)
            self._buffer = self.file.read(self.position, size)
            self._buffer_start = self.position
            at = 0
        self.position += length
        return self._buffer[at : at + length]

    def skip_strings(self, count: int, what: str) -> None:
        """Move past `count` strings, each after its length in 8 bytes: a vocabulary holds hundreds of thousands."""
        for _ in range(count):
            at = self.position - self._buffer_start
            if 0 <= at <= len(self._buffer) - 8:
                length: int = _LENGTH.unpack_from(self._buffer, at)[0]
                self.position += 8
            else:
                length = self.unsigned(8, what)
            if length > self.stop - self.position:
                self.require(length, what)
            self.position += length

    def unsigned(self, length: int, what: str) -> int:
        """A little-endian unsigned integer of `length` bytes."""
        return int.from_bytes(self.take(length, what), "little")

    def varint(self, what: str) -> int:
        """An unsigned LEB128 integer of at most 64 bits."""
        value = shift = 0
        while True:
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if value >> 64 or (byte >= 0x80 and shift == 70):
                self.refuse(f"{what} before byte {self.position} is an integer of more than 64 bits")
            if byte < 0x80:
                return value

    def text(self, length: int, what: str, *, limit: int) -> str:
        """`length` bytes of UTF-8; at most `limit`."""
        if length > limit:
            self.refuse(f"{what} of {length} bytes (at most {limit})")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"{what} at byte {self.position} is not UTF-8")


def check_tensor_name(cursor: Cursor, name: str) -> None:
    """Refuse a name that is empty or could not be shown."""
    if not name:
        cursor.refuse("a tensor with an empty name")
    if not name.isprintable():
        cursor.refuse(f"control characters in the tensor name {quoted(name)}")
