"""The format contract: which byte ranges of a file are which tensors.

A format never decodes a tensor and never executes anything.  Whatever a scan returns, the concatenation of its
ranges is the file, so a file of any format is restored exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from modelgit.objects import TensorSpec, TensorView
from modelgit.registry import Registry

__all__ = ["FORMATS", "CheckpointFormat", "ReadAt", "ScannedFile", "ScannedRange", "ScannedTensor"]


class ScannedTensor(NamedTuple):
    """A tensor found in a file."""

    name: str
    spec: TensorSpec


class ScannedRange(NamedTuple):
    """`length` bytes at `offset`; `tensor` indexes `ScannedFile.tensors`, or is None for literal bytes."""

    offset: int
    length: int
    tensor: int | None


class ScannedFile(NamedTuple):
    """What a scan found: ranges in file order without gaps or overlaps, and the tensors they hold.

    `views` are further names over the bytes of those tensors.  `note` says, for people, why a file of weights is
    recorded byte for byte.
    """

    format: str
    size: int
    ranges: tuple[ScannedRange, ...]
    tensors: tuple[ScannedTensor, ...]
    views: tuple[TensorView, ...] = ()
    note: str = ""


class ReadAt(Protocol):
    """A file opened for positional reads; `shown` is its path as the user knows it, for messages."""

    path: Path
    shown: str
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; raises CheckpointFormatError when the file is shorter."""


class CheckpointFormat(Protocol):
    """One file format."""

    name: str

    def detect(self, head: bytes, name: str) -> bool:
        """Whether a file whose first (up to) 4096 bytes are `head` and whose base name is `name` is of this format.

        Installed formats are not asked about files that are text by name (`.json`, `.txt`, `.py`, ...).
        """

    def scan(self, file: ReadAt) -> ScannedFile:
        """Find the tensors.

        Raises CheckpointFormatError, in one sentence that names the file, for a truncated, lying or hostile file.
        """


FORMATS: Registry[CheckpointFormat] = Registry(
    "checkpoint format",
    "modelgit.formats",
    {
        "safetensors": "modelgit.formats.safetensors:SAFETENSORS",
        "distcp": "modelgit.formats.distcp:DISTCP",  # before torch-zip: its files begin like one of its archives
        "torch-zip": "modelgit.formats.torch_zip:TORCH_ZIP",
        "torch-legacy": "modelgit.formats.torch_legacy:TORCH_LEGACY",
        "npz": "modelgit.formats.npz:NPZ",
        "npy": "modelgit.formats.npy:NPY",
        "gguf": "modelgit.formats.gguf:GGUF",
        "onnx": "modelgit.formats.onnx:ONNX",
        "onnx-data": "modelgit.formats.onnx:ONNX_DATA",
        "opaque": "modelgit.formats.opaque:OPAQUE",
    },
)
