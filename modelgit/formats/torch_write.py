"""Writing PyTorch checkpoints without PyTorch: the pickle of a state dict, and the zip archive around its storages.

The result is what `torch.save` makes of an `OrderedDict` of contiguous tensors, so `torch.load(weights_only=True)`
takes it, memory-mapped if asked.  Everything but the checksums is known before the first byte of a tensor.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modelgit.errors import UsageError
from modelgit.formats.torch_globals import DTYPE_NAMES, STORAGE_DTYPES
from modelgit.objects import TensorSpec, row_major

__all__ = ["ArchiveMember", "ArchivePlan", "central_directory", "local_header", "pickle_state", "plan_archive"]

CRC_OFFSET = 14
"""Where in a local header the checksum lies, which is known last."""

_ALIGNMENT = 64
_FULL = 0xFFFFFFFF
_VERSION = 45  # of zip: the one with 64-bit sizes
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_TORCH_NAMES = {ours: theirs for theirs, ours in DTYPE_NAMES.items()}
_CLASSES = {dtype: name for name, (dtype, _) in STORAGE_DTYPES.items() if dtype and name != "UntypedStorage"}


class _Pickler:
    """The few opcodes that a state dict needs; names that come again are remembered."""

    def __init__(self) -> None:
        self.parts = [b"\x80\x02"]
        self._memo: dict[bytes, int] = {}

    def once(self, code: bytes) -> None:
        """Push what `code` makes: by itself the first time, from the memo afterwards."""
        known = self._memo.get(code)
        if known is not None:
            self.parts.append(b"h" + bytes([known]))
            return
        number = self._memo[code] = len(self._memo)
        self.parts.append(code + b"q" + bytes([number]))

    def name(self, module: str, name: str) -> None:
        """Push a global."""
        self.once(f"c{module}\n{name}\n".encode())

    def integer(self, value: int) -> None:
        """Push an integer that is not negative."""
        if value < 1 << 8:
            self.parts.append(b"K" + bytes([value]))
        elif value < 1 << 31:
            self.parts.append(b"J" + value.to_bytes(4, "little"))
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
            self.parts.append(b"\x8a" + bytes([len(raw)]) + raw)

    def numbers(self, values: Sequence[int]) -> None:
        """Push a tuple of integers."""
        self.parts.append(b"(")
        for value in values:
            self.integer(value)
        self.parts.append(b"t")


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def pickle_state(tensors: Sequence[tuple[str, TensorSpec, int]]) -> bytes:
    """The pickle of an ordered dictionary of tensors, each (name, spec, number of its storage).

    Raises UsageError for a dtype that PyTorch does not have.
    """
    out = _Pickler()
    out.name("collections", "OrderedDict")
    out.parts.append(b")R(")
    for name, spec, number in tensors:
        kind = _CLASSES.get(spec.dtype)
        theirs = _TORCH_NAMES.get(spec.dtype)
        if theirs is None:
            raise UsageError(
                f"PyTorch has no dtype for {spec.dtype} (tensor {name[:60]!a})", hint="write a .safetensors file"
            )
        out.parts.append(_text(name))
        out.name("torch._utils", "_rebuild_tensor_v2" if kind else "_rebuild_tensor_v3")
        out.parts.append(b"((")
        out.once(_text("storage"))
        if kind:
            out.name("torch", kind)
        else:
            out.name("torch.storage", "UntypedStorage")
        out.parts.append(_text(str(number)))
        out.once(_text("cpu"))
        out.integer(spec.elements if kind else spec.size_bytes)
        out.parts.append(b"tQK\x00")
        out.numbers(spec.shape)
        out.numbers(row_major(spec.shape))
        out.parts.append(b"\x89")
        out.name("collections", "OrderedDict")
        out.parts.append(b")R")
        if not kind:
            out.name("torch", theirs)
        out.parts.append(b"tR")
    out.parts.append(b"u.")
    return b"".join(out.parts)


class ArchiveMember(NamedTuple):
    """A member to be written: `data` is None for a storage, whose bytes come from elsewhere; `header` is its offset."""

    name: str
    size: int
    header: int
    data: bytes | None


class ArchivePlan(NamedTuple):
    """All members in order, storages last and in the order of their numbers, and where the directory begins."""

    members: tuple[ArchiveMember, ...]
    central: int


def plan_archive(pickle: bytes, storages: Sequence[int]) -> ArchivePlan:
    """Lay out an archive of `pickle` and of storages of these sizes in bytes."""
    contents: list[tuple[str, int, bytes | None]] = [
        (name, len(data), data) for name, data in (("data.pkl", pickle), ("byteorder", b"little"), ("version", b"3\n"))
    ]
    contents += [(f"data/{number}", size, None) for number, size in enumerate(storages)]
    members: list[ArchiveMember] = []
    position = 0
    for name, size, data in contents:
        member = ArchiveMember(f"archive/{name}", size, position, data)
        members.append(member)
        position += len(local_header(member)) + size
    return ArchivePlan(tuple(members), position)


def local_header(member: ArchiveMember) -> bytes:
    """The header before a member, padded so that the data begin at a multiple of 64; its checksum is 0 for now."""
    name = member.name.encode()
    wide = struct.pack("<2H2Q", 1, 16, member.size, member.size) if member.size >= _FULL else b""
    begin = member.header + _LOCAL.size + len(name) + len(wide) + 4
    padding = -begin % _ALIGNMENT
    extra = wide + b"FB" + struct.pack("<H", padding) + b"Z" * padding
    size = min(member.size, _FULL)
    return _LOCAL.pack(b"PK\3\4", _VERSION, 1 << 11, 0, 0, 0, 0, size, size, len(name), len(extra)) + name + extra


def central_directory(plan: ArchivePlan, checksums: Mapping[str, int]) -> bytes:
    """The directory and the end of an archive, from the CRC-32 of each member by name."""
    out = []
    for member in plan.members:
        name = member.name.encode()
        wide = [value for value in (member.size, member.header) if value >= _FULL]
        if member.size >= _FULL:
            wide.insert(0, member.size)
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        size, header = min(member.size, _FULL), min(member.header, _FULL)
        out.append(
            _CENTRAL.pack(b"PK\1\2", _VERSION, _VERSION, 1 << 11, 0, 0, 0, checksums[member.name], size, size,
                          len(name), len(extra), 0, 0, 0, 0, header)
            + name + extra
        )  # fmt: skip
    directory = b"".join(out)
    count, length = len(plan.members), len(directory)
    end = plan.central + length
    wide_end = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, _VERSION, _VERSION, 0, 0, count, count, length, plan.central
    ) + struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    few, short = min(count, 0xFFFF), min(plan.central, _FULL)
    return directory + wide_end + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, few, few, min(length, _FULL), short, 0)
