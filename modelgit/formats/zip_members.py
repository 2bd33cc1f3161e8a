"""Zip archives as PyTorch and numpy write them, read strictly: where each member's bytes lie in the file.

The format is PKWARE's APPNOTE 6.3, zip64 included.  Readers that trust only the central directory, or only the local
headers, can be shown two different archives; here both must agree, members may neither overlap nor share a name, and
nothing is ever decompressed.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, NoReturn

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt
from modelgit.formats.cursor import quoted
from modelgit.formats.pickle_walker import opaque_hint

__all__ = ["Member", "ZipDirectory", "read_directory"]

STORED = 0
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_EXTRA = struct.Struct("<2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_MAX_DIRECTORY_BYTES = 64 << 20
_MAX_MEMBERS = 1_000_000
_HAS_DESCRIPTOR = 1 << 3
_ALLOWED_FLAGS = _HAS_DESCRIPTOR | 1 << 11 | 0b110  # sizes behind the data, UTF-8 names, how hard deflate tried
_LOCAL_READ = 512  # a header with a name and padding, in one read as a rule


class Member(NamedTuple):
    """A member of an archive: `start` is where its bytes begin in the file, `packed` how many they are.

    `size` is what they unpack to (the same if `method` is 0, "stored"); `crc` and `central` (the offset of its entry
    in the central directory) are as the archive says.
    """

    name: str
    method: int
    flags: int
    start: int
    packed: int
    size: int
    crc: int
    header: int
    central: int

    @property
    def is_stored(self) -> bool:
        """Whether the bytes lie in the file as they are."""
        return self.method == STORED


class ZipDirectory(NamedTuple):
    """The members in the order of the file, and where the central directory begins."""

    members: tuple[Member, ...]
    central: int

    def named(self) -> dict[str, Member]:
        """The members by name."""
        return {member.name: member for member in self.members}


def _refuse(file: ReadAt, reason: str) -> NoReturn:
    raise CheckpointFormatError(
        f"{file.shown} is a damaged or misleading zip archive: {reason}", hint=opaque_hint(file.shown)
    )


def _find_end(file: ReadAt) -> tuple[int, int, int]:
    """(number of members, offset, size) of the central directory, after it was found to end where it should."""
    tail_start = max(0, file.size - _END.size - _FULL16)
    tail = file.read(max(tail_start, file.size - _END.size), min(file.size, _END.size))
    at = file.size - _END.size
    if len(tail) < _END.size or tail[:4] != b"PK\5\6":
        tail = file.read(tail_start, file.size - tail_start)
        found = tail.rfind(b"PK\5\6")
        at = tail_start + found
        tail = tail[found:]
        if found < 0 or len(tail) < _END.size:
            raise CheckpointFormatError(
                f"{file.shown} is truncated: it begins as a zip archive (a PyTorch or numpy file) and has no end",
                hint="wait until it is written, or copy or download it again",
            )
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(tail)
    if at + _END.size + comment != file.size:
        _refuse(file, "bytes follow its end")
    if disk not in (0, _FULL16) or first_disk not in (0, _FULL16) or here != count:
        _refuse(file, "it is a part of several")
    end = at
    if at >= _LOCATOR.size + _END64.size:
        magic, _, record, _ = _LOCATOR.unpack(file.read(at - _LOCATOR.size, _LOCATOR.size))
        if magic == b"PK\6\7":
            if record != at - _LOCATOR.size - _END64.size:
                _refuse(file, "its 64-bit end is not where it says")
            fields = _END64.unpack(file.read(record, _END64.size))
            if fields[0] != b"PK\6\6" or fields[1] != _END64.size - 12 or fields[4:6] != (0, 0):
                _refuse(file, "its 64-bit end is malformed")
            wide = fields[6:]
            if wide[0] != wide[1] or any(
                narrow not in (full, value)
                for narrow, full, value in zip(
                    (count, size, offset), (_FULL16, _FULL32, _FULL32), wide[1:], strict=True
                )
            ):
                _refuse(file, "its two ends disagree")
            count, size, offset = wide[1:]
            end = record
    if offset + size != end:
        _refuse(file, "its directory does not lie before its end")
    if size > _MAX_DIRECTORY_BYTES or count > _MAX_MEMBERS or count * _CENTRAL.size > size:
        _refuse(file, f"it claims {count} members in {size} bytes of directory")
    return count, offset, size


def _wide(file: ReadAt, extra: bytes, wanted: int) -> list[int]:
    """The `wanted` 64-bit numbers of the zip64 field among the extra fields."""
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if kind == 1 and at + length <= len(extra):
            if length < 8 * wanted:
                break
            return list(struct.unpack_from(f"<{wanted}Q", extra, at))
        at += length
    _refuse(file, "a size of 64 bits is missing")


def _read_central(file: ReadAt, directory: bytes, at: int, offset: int) -> tuple[Member, int]:
    if at + _CENTRAL.size > len(directory):
        _refuse(file, "its directory is cut short")
    (magic, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length, disk, _, _, header
     ) = _CENTRAL.unpack_from(directory, at)  # fmt: skip
    begin = at + _CENTRAL.size
    end = begin + name_length + extra_length + comment_length
    if magic != b"PK\1\2" or end > len(directory) or disk not in (0, _FULL16):
        _refuse(file, "an entry of its directory is malformed")
    if flags & ~_ALLOWED_FLAGS:
        _refuse(file, "a member is encrypted or patched")
    raw = directory[begin : begin + name_length]
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(file, f"the name {raw[:40]!a} is not UTF-8")
    if not name.isprintable() or not name:
        _refuse(file, f"a member is called {quoted(name)}")
    if _FULL32 in (size, packed, header):
        saturated = [value == _FULL32 for value in (size, packed, header)]
        extra = directory[begin + name_length : begin + name_length + extra_length]
        wide = iter(_wide(file, extra, sum(saturated)))
        size, packed, header = (
            next(wide) if full else value for full, value in zip(saturated, (size, packed, header), strict=True)
        )
    if method == STORED and packed != size:
        _refuse(file, f"{quoted(name)} is stored, and has two sizes")
    return Member(name, method, flags, 0, packed, size, crc, header, offset + at), end


def _place(file: ReadAt, member: Member, limit: int) -> Member:
    """`member` with its start, after its local header was found to agree; it must end before `limit`."""
    room = limit - member.header
    head = file.read(member.header, min(room, _LOCAL_READ)) if room > 0 else b""
    shown = quoted(member.name)
    if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
        _refuse(file, f"{shown} is not where the directory says")
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack_from(head)
    start = member.header + _LOCAL.size + name_length + extra_length
    if start + member.packed > limit:
        _refuse(file, f"{shown} overlaps what follows it")
    if len(head) < start - member.header:
        head = file.read(member.header, start - member.header)
    if head[_LOCAL.size : _LOCAL.size + name_length] != member.name.encode() or method != member.method:
        _refuse(file, f"the directory calls {shown} what its header calls something else")
    if (flags ^ member.flags) & ~0b110:
        _refuse(file, f"the directory and the header of {shown} disagree")
    if _FULL32 in (packed, size):
        saturated = [value == _FULL32 for value in (size, packed)]
        wide = iter(_wide(file, head[_LOCAL.size + name_length : start - member.header], sum(saturated)))
        size, packed = (next(wide) if full else value for full, value in zip(saturated, (size, packed), strict=True))
    behind = bool(flags & _HAS_DESCRIPTOR)
    if not (behind and (packed, size) == (0, 0)) and (packed, size) != (member.packed, member.size):
        _refuse(file, f"the directory and the header of {shown} disagree about its size")
    if crc != member.crc and not (behind and crc == 0):
        _refuse(file, f"the directory and the header of {shown} disagree about its checksum")
    return member._replace(start=start)


def read_directory(file: ReadAt) -> ZipDirectory:
    """All members of the archive that is the whole of `file`; their contents are not read.

    Raises CheckpointFormatError for a truncated file, and for one that does not agree with itself.
    """
    count, offset, size = _find_end(file)
    directory = file.read(offset, size)
    found: list[Member] = []
    names: set[str] = set()
    at = 0
    for _ in range(count):
        member, at = _read_central(file, directory, at, offset)
        if member.name in names:
            _refuse(file, f"two members are called {quoted(member.name)}")
        names.add(member.name)
        found.append(member)
    if at != size:
        _refuse(file, "its directory has bytes behind its entries")
    found.sort(key=lambda member: member.header)
    if found and found[0].header != 0:
        _refuse(file, "something lies before its first member")
    limits = [*(member.header for member in found[1:]), offset][: len(found)]
    placed = [_place(file, member, limit) for member, limit in zip(found, limits, strict=True)]
    return ZipDirectory(tuple(placed), offset)
