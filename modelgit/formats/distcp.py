"""Shards of `torch.distributed.checkpoint` (`__0_0.distcp`): one archive of `torch.save` per item, end to end.

The pickle `.metadata` beside the shards says which item lies where, and is not needed: each archive ends with a record
that says how long it is, so the file is read from its end, archive by archive, and every byte belongs to exactly one.
What that record cannot know is the item's name; tensors are called after the number of their item in the file, which is
the same from save to save of one model.
"""

from __future__ import annotations

import struct

import msgspec

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt, ScannedFile, ScannedRange, ScannedTensor
from modelgit.formats.lookalikes import refuse_pointer
from modelgit.formats.torch_zip import TORCH_ZIP
from modelgit.objects import TensorView

__all__ = ["DISTCP", "DistcpFormat"]

MAX_ITEMS = 1_000_000
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_FULL32 = (1 << 32) - 1


class _Item:
    """One archive of the file, as a file of its own."""

    def __init__(self, file: ReadAt, start: int, size: int) -> None:
        self.path = file.path
        self.shown = file.shown
        self.size = size
        self.start = start
        self._file = file

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointFormatError(
                f"{self.shown} has an item of {self.size} bytes, {offset + length} are asked for"
            )
        return self._file.read(self.start + offset, length)


def _size_of_last(file: ReadAt, stop: int) -> int:
    """Length of the archive that ends at byte `stop`."""
    tail = file.read(max(0, stop - _END.size), min(stop, _END.size))
    if len(tail) < _END.size or tail[:4] != b"PK\5\6" or tail[20:] != b"\0\0":
        raise CheckpointFormatError(
            f"{file.shown} is truncated, or no checkpoint shard: no archive of torch ends at byte {stop}",
            hint="wait until it is written, or copy it again",
        )
    size, offset = _END.unpack(tail)[5:7]
    length: int = offset + size + _END.size
    at = stop - _END.size - _LOCATOR.size - _END64.size
    if at >= 0:
        wide = file.read(at, _END64.size + _LOCATOR.size)
        if wide[:4] == b"PK\6\6" and wide[_END64.size : _END64.size + 4] == b"PK\6\7":
            size, offset = _END64.unpack_from(wide)[8:10]
            length = offset + size + _END64.size + _LOCATOR.size + _END.size
        elif _FULL32 in (size, offset):
            length = stop + 1
    if not 0 < length <= stop:
        raise CheckpointFormatError(
            f"{file.shown} is damaged: the archive that ends at byte {stop} claims {length} bytes",
            hint="copy it again, or save the checkpoint again",
        )
    return length


def _items(file: ReadAt) -> list[_Item]:
    found: list[_Item] = []
    stop = file.size
    while stop:
        if len(found) == MAX_ITEMS:
            raise CheckpointFormatError(f"{file.shown} holds more than {MAX_ITEMS:,} items")
        size = _size_of_last(file, stop)
        stop -= size
        found.append(_Item(file, stop, size))
    found.reverse()
    return found


class DistcpFormat:
    """Literal ranges for the archives' own bytes and pickles, one tensor per storage."""

    name = "distcp"

    def detect(self, head: bytes, name: str) -> bool:
        """By name: the contents begin like any archive of torch."""
        return name.endswith(".distcp") and (not head or head.startswith(b"PK\3\4"))

    def scan(self, file: ReadAt) -> ScannedFile:
        """Read the directory and pickle of every archive; the storages themselves are not read.

        Raises CheckpointFormatError for a truncated or misleading file, and for a pickle with a foreign global.
        """
        refuse_pointer(file.read(0, min(file.size, 256)), file.size, file.shown)
        ranges: list[ScannedRange] = []
        tensors: list[ScannedTensor] = []
        views: list[TensorView] = []
        for number, item in enumerate(_items(file)):
            found = TORCH_ZIP.scan(item)
            first = len(tensors)
            for part in found.ranges:
                index = None if part.tensor is None else first + part.tensor
                _extend(ranges, ScannedRange(item.start + part.offset, part.length, index))
            tensors += [tensor._replace(name=_named(number, tensor.name)) for tensor in found.tensors]
            views += [
                msgspec.structs.replace(view, name=_named(number, view.name), tensor=first + view.tensor)
                for view in found.views
            ]
        return ScannedFile(self.name, file.size, tuple(ranges), tuple(tensors), tuple(views))


def _named(number: int, inner: str) -> str:
    return f"item {number}" if inner == "tensor" else f"item {number}: {inner}"


def _extend(ranges: list[ScannedRange], part: ScannedRange) -> None:
    """Append `part`, as one literal with the literal before it: the bytes between two storages are one blob."""
    if ranges and part.tensor is None and ranges[-1].tensor is None:
        ranges[-1] = ranges[-1]._replace(length=ranges[-1].length + part.length)
    else:
        ranges.append(part)


DISTCP = DistcpFormat()
