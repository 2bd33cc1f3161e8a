"""The checksums of a zip archive whose stored members were changed in place, as a merge does.

torch does not look at them, but numpy and `unzip` do.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from modelgit.formats.base import ReadAt
from modelgit.formats.zip_members import Member, read_directory

__all__ = ["ZIP_FORMATS", "stale_checksums"]

ZIP_FORMATS = frozenset({"npz", "torch-zip"})

_WINDOW_BYTES = 8 << 20
_IN_CENTRAL = 16  # where the CRC-32 lies in an entry of the directory, and in a local header
_IN_LOCAL = 14
_DESCRIPTOR = b"PK\7\x08"


def stale_checksums(file: ReadAt, changed: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """What must be written where (offset, 4 bytes) for the archive `file` to agree with itself.

    `changed` are the ranges (start, stop) of bytes that are new; members elsewhere are not read.
    """
    for member in read_directory(file).members:
        if not any(start < member.start + member.packed and member.start < stop for start, stop in changed):
            continue
        checksum = _checksum(file, member)
        if checksum == member.crc:
            continue
        old, new = member.crc.to_bytes(4, "little"), checksum.to_bytes(4, "little")
        yield member.central + _IN_CENTRAL, new
        if file.read(member.header + _IN_LOCAL, 4) == old:
            yield member.header + _IN_LOCAL, new
        if member.flags & 1 << 3:
            end = member.start + member.packed
            end += 4 if file.read(end, 4) == _DESCRIPTOR else 0
            if file.read(end, 4) == old:
                yield end, new


def _checksum(file: ReadAt, member: Member) -> int:
    checksum = 0
    for at in range(member.start, member.start + member.packed, _WINDOW_BYTES):
        checksum = zlib.crc32(file.read(at, min(_WINDOW_BYTES, member.start + member.packed - at)), checksum)
    return checksum
