"""The record of a tensor or blob: which codec, and a table of its units.

Header (canonical msgpack array): codec name, word size, float or not, raw bytes per unit, and a packed table of
`u32 payload length, u64 xxh3 of the payload` per unit.  The checksum is of the coded bytes: it is checked before
anything is decoded, on partial reads too, and costs less the better a unit is coded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import msgspec
import xxhash

from modelgit.codecs.base import CODECS, Codec, Layout
from modelgit.errors import IntegrityError, UsageError
from modelgit.store.base import Located

__all__ = ["MAX_UNIT_BYTES", "RecordHeader", "UnitChecks", "UnitTable", "checksum", "encode_header", "parse_header"]

MAX_UNIT_BYTES = 8 << 20
_UNIT = struct.Struct("<IQ")


class RecordHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What lies behind a record's payload."""

    codec: str
    word_bytes: int
    is_float: bool
    unit_bytes: int
    units: bytes


class UnitTable:
    """A parsed header: the codec, the layout, and where each unit's payload lies inside the record."""

    __slots__ = ("checksums", "codec", "layout", "offsets", "unit_bytes")

    def __init__(
        self, codec: Codec, layout: Layout, unit_bytes: int, offsets: Sequence[int], checksums: Sequence[int]
    ) -> None:
        self.codec = codec
        self.layout = layout
        self.unit_bytes = unit_bytes
        self.offsets = offsets
        self.checksums = checksums


def checksum(payload: bytes | bytearray | memoryview) -> int:
    """The xxh3-64 of one unit's payload: against accidents, not against malice (ids are for that)."""
    return xxhash.xxh3_64_intdigest(payload)


class UnitChecks:
    """The unit table of a record that is being written: lengths and checksums of payloads, which need not be kept."""

    def __init__(self) -> None:
        self._table = bytearray()

    @classmethod
    def of(cls, payloads: Iterable[bytes]) -> UnitChecks:
        """The table of `payloads`."""
        checks = cls()
        checks.add(payloads)
        return checks

    def add(self, payloads: Iterable[bytes]) -> None:
        """The next units."""
        for payload in payloads:
            self._table += _UNIT.pack(len(payload), checksum(payload))

    def packed(self) -> bytes:
        """The table as it stands in the header."""
        return bytes(self._table)


def encode_header(codec: Codec, layout: Layout, checks: UnitChecks) -> bytes:
    """The header of a record of units with these checks."""
    header = RecordHeader(codec.name, layout.word_bytes, layout.is_float, codec.unit_bytes, checks.packed())
    return msgspec.msgpack.encode(header)


def parse_header(data: bytes, located: Located) -> UnitTable:
    """Read and check a header; raises IntegrityError for one that cannot belong to the record."""
    what = f"{located.kind} b3:{located.digest.hex()}"
    try:
        header = msgspec.msgpack.decode(data, type=RecordHeader)
        codec = CODECS.get(header.codec)
    except (msgspec.MsgspecError, UsageError) as error:
        raise IntegrityError(f"{what} has an unreadable record: {error}") from None
    raw = located.stop - located.start
    size = header.unit_bytes
    if header.word_bytes not in (1, 2, 4, 8) or not 0 < size <= MAX_UNIT_BYTES or size & (size - 1):
        raise IntegrityError(f"{what} has an impossible record header")
    count = max(1, -(-raw // size))
    if len(header.units) != count * _UNIT.size or raw % header.word_bytes or located.start % size:
        raise IntegrityError(f"{what} has a unit table that does not fit its size")
    if codec.needs_base != (located.base is not None):
        raise IntegrityError(
            f"{what} is coded as {codec.name} " + ("without" if codec.needs_base else "with") + " a base"
        )
    offsets, checksums, position = [0], [], 0
    for length, digest in _UNIT.iter_unpack(header.units):
        position += length
        offsets.append(position)
        checksums.append(digest)
    if position != located.length - located.header:
        raise IntegrityError(f"{what} has units that do not fill its record")
    return UnitTable(codec, Layout(header.word_bytes, header.is_float), size, offsets, checksums)
