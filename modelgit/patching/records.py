"""The record of a tensor or blob: which codec, and a table of its units.

Header (canonical msgpack array): codec name, word size, float or not, raw bytes per unit, and a packed table of
`u32 payload length, u64 xxh3 of the payload` per unit.  A record whose base is corrected before the units are decoded
against it (`codecs.lowrank`) says so by two more elements, the length and the xxh3 of the correction, which lies before
the units.  A record under a mask (`codecs.masked`) has zeros there and two elements more, the place of its positions in
the blob that the pack's index names.  The checksum is of the coded bytes: it is checked before
anything is decoded, on partial reads too, and costs less the better a unit is coded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import msgspec
import xxhash

from modelgit.codecs.base import CODECS, Codec, Layout
from modelgit.codecs.masked import MaskedCodec
from modelgit.errors import IntegrityError, UsageError
from modelgit.numerics.sparse import MAX_SPAN
from modelgit.objects import BlobId, ObjectId, TensorId
from modelgit.patching.positions import Section
from modelgit.store.base import Located, ObjectStore, is_foreign

__all__ = [
    "MAX_PRELUDE_BYTES",
    "MAX_UNIT_BYTES",
    "RecordHeader",
    "UnitChecks",
    "UnitTable",
    "checksum",
    "encode_header",
    "parse_header",
    "sections_of",
]

MAX_UNIT_BYTES = 8 << 20
MAX_PRELUDE_BYTES = 32 << 20
_UNIT = struct.Struct("<IQ")


class RecordHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What lies behind a record's payload."""

    codec: str
    word_bytes: int
    is_float: bool
    unit_bytes: int
    units: bytes
    prelude_bytes: int = 0
    prelude_check: int = 0
    section_offset: int = 0
    section_length: int = 0


class UnitTable:
    """A parsed header: the codec, the layout, and where each unit's payload lies inside the record.

    The prelude, if there is one, ends where the first unit begins; its checksum is `prelude_check`.  `section` are the
    positions of a record under a mask.
    """

    __slots__ = ("checksums", "codec", "layout", "offsets", "prelude_check", "section", "unit_bytes")

    def __init__(
        self,
        codec: Codec,
        layout: Layout,
        unit_bytes: int,
        offsets: Sequence[int],
        checksums: Sequence[int],
        *,
        prelude_check: int = 0,
        section: Section | None = None,
    ) -> None:
        self.codec = codec
        self.layout = layout
        self.unit_bytes = unit_bytes
        self.offsets = offsets
        self.checksums = checksums
        self.prelude_check = prelude_check
        self.section = section

    @property
    def prelude_bytes(self) -> int:
        """The length of the prelude; 0 for none."""
        return self.offsets[0]


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

    def extend(self, checks: UnitChecks) -> None:
        """The next units, looked at elsewhere."""
        self._table += checks._table

    def packed(self) -> bytes:
        """The table as it stands in the header."""
        return bytes(self._table)


def encode_header(
    codec: Codec, layout: Layout, checks: UnitChecks, *, prelude: bytes = b"", section: Section | None = None
) -> bytes:
    """The header of a record of units with these checks, behind `prelude` or with positions from `section`."""
    fields = (codec.name, layout.word_bytes, layout.is_float, codec.unit_bytes, checks.packed())
    if section is not None:
        return msgspec.msgpack.encode((*fields, 0, 0, section.offset, section.length))
    return msgspec.msgpack.encode((*fields, len(prelude), checksum(prelude)) if prelude else fields)


def parse_header(data: bytes, located: Located) -> UnitTable:
    """Read and check a header; raises IntegrityError for one that cannot belong to the record."""
    what = f"{located.kind} b3:{located.digest.hex()}"
    try:
        header = msgspec.msgpack.decode(data, type=RecordHeader)
        codec = CODECS.get(header.codec)
    except (msgspec.MsgspecError, UnicodeDecodeError, UsageError) as error:
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
    if header.prelude_bytes and (not codec.needs_base or not 0 < header.prelude_bytes <= MAX_PRELUDE_BYTES):
        raise IntegrityError(f"{what} has a prelude that it cannot have")
    section = _section(header, codec, located, what)
    position = header.prelude_bytes
    offsets, checksums = [position], []
    for length, digest in _UNIT.iter_unpack(header.units):
        position += length
        offsets.append(position)
        checksums.append(digest)
    if position != located.payload_bytes:
        raise IntegrityError(f"{what} has units that do not fill its record")
    layout = Layout(header.word_bytes, header.is_float)
    return UnitTable(codec, layout, size, offsets, checksums, prelude_check=header.prelude_check, section=section)


def read_header(store: ObjectStore, located: Located) -> UnitTable:
    """The table of the units of a record.  Raises as `parse_header` does."""
    return parse_header(store.read_part(located, located.payload_bytes, located.length), located)


def sections_of(store: ObjectStore, object_id: ObjectId) -> list[Section]:
    """The positions that the records of an object refer to: those of the masks that it was changed under."""
    found = []
    for item in store.locate(object_id):
        if item.positions is not None and not is_foreign(item):
            section = read_header(store, item).section
            if section is not None and section not in found:
                found.append(section)
    return found


def _section(header: RecordHeader, codec: Codec, located: Located, what: str) -> Section | None:
    is_masked = isinstance(codec, MaskedCodec)
    has_section = header.section_length > 0 and header.section_offset >= 0
    if (header.section_offset or header.section_length) and not has_section:
        raise IntegrityError(f"{what} takes its positions from an impossible place")
    if not is_masked == has_section == (located.positions is not None) or (is_masked and header.prelude_bytes):
        raise IntegrityError(f"{what} is coded as {codec.name} " + ("without" if is_masked else "with") + " a mask")
    if located.positions is None:
        return None
    if located.kind != TensorId.KIND or located.total > MAX_SPAN * header.word_bytes:
        raise IntegrityError(f"{what} cannot be coded under a mask")
    return Section(BlobId(located.positions), header.section_offset, header.section_length)
