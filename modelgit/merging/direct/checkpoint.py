"""Checkpoints outside of any repository, opened: which tensors they have, and what lies beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from modelgit.errors import CheckpointFormatError, UsageError
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.formats.layouts import ADAPTER_CONFIG
from modelgit.objects import TensorSpec
from modelgit.store.lent_files import fence_of, resolve_inside

__all__ = ["Checkpoint", "Located", "open_checkpoint"]

_INDEX = ".safetensors.index.json"
_ONE_FILE = "model.safetensors"
_WEIGHTS = frozenset(
    {".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", ".ot"}
)
_MAX_TEXT_BYTES = 100_000_000


class Located(NamedTuple):
    """A tensor of a file: from byte `offset` on, with the dtype and shape of `spec`."""

    file: FileReader
    offset: int
    spec: TensorSpec

    def read(self, start: int, stop: int) -> bytes:
        """Raw bytes `start` to `stop` of the tensor."""
        return self.file.read(self.offset + start, stop - start)


class Checkpoint:
    """One safetensors file, or a Hugging Face directory with its shards; a context manager that closes the files.

    `tensors` are in the order in which they lie in the files.  `files` names what else the directory has, weights in
    other formats left out.  `shown` is what the user typed; `source` is what a recipe says: a published model with
    its commit, or the last part of the path.
    """

    def __init__(self, root: Path, *, shown: str, source: str, is_file: bool) -> None:
        self.root = root
        self.shown = shown
        self.source = source
        self.is_file = is_file
        self.tensors: dict[str, Located] = {}
        self.files: tuple[str, ...] = ()
        self._fence = fence_of(root)
        self._readers: list[FileReader] = []

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers:
            reader.close()

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.spec.size_bytes for tensor in self.tensors.values())

    def add(self, path: Path, name: str) -> None:
        """Open one file of weights, called `name` in messages, and take its tensors.

        Raises CheckpointFormatError for another format than safetensors, and for a tensor that comes twice.
        """
        shown = self.shown if self.is_file else f"{self.shown}/{name}"
        reader = FileReader(path, shown=shown)
        self._readers.append(reader)
        scanned = scan_reader(reader)
        if scanned.format != "safetensors":
            raise CheckpointFormatError(
                f"{shown} is no safetensors file", hint=f"`mgit import {shown} -o NAME.safetensors` makes one of it"
            )
        for item in scanned.ranges:
            if item.tensor is None:
                continue
            found = scanned.tensors[item.tensor]
            if found.name in self.tensors:
                raise CheckpointFormatError(f"{self.shown} has the tensor {found.name[:100]!a} in two files")
            self.tensors[found.name] = Located(reader, item.offset, found.spec)

    def text(self, name: str) -> bytes | None:
        """The content of a file beside the weights; None when there is none, or a very large one."""
        if name not in self.files:
            return None
        path = self.path(name)
        return path.read_bytes() if path.stat().st_size <= _MAX_TEXT_BYTES else None

    def path(self, name: str) -> Path:
        """Where a file of the directory really lies.  Raises CheckpointFormatError for a link that leads out of it."""
        found = resolve_inside(self.root, name, self._fence)
        if found is None:
            raise CheckpointFormatError(f"{self.shown}/{name} is a link that leads out of the directory")
        return found

    def is_unchanged(self) -> bool:
        """Whether no file of weights changed since it was opened."""
        return all(reader.is_unchanged() for reader in self._readers)


def open_checkpoint(path: Path, *, shown: str, source: str | None = None) -> Checkpoint:
    """Open the safetensors file or the Hugging Face directory at `path`; only headers are read.

    Raises UsageError when there is nothing, CheckpointFormatError for other formats, adapters, missing shards and
    malformed files.
    """
    if not path.exists():
        raise UsageError(f"there is nothing at {shown}", hint="a file, a directory, or `hf:org/name`")
    checkpoint = Checkpoint(
        path if path.is_dir() else path.resolve().parent,
        shown=shown,
        source=source or path.resolve().name,
        is_file=not path.is_dir(),
    )
    try:
        if checkpoint.is_file:
            checkpoint.add(path.resolve(), path.name)
            return checkpoint
        names = list(_names(path))
        if ADAPTER_CONFIG in names and "config.json" not in names:
            raise CheckpointFormatError(
                f"{shown} is an adapter: the product of its factors can be merged, and the factors cannot",
                hint="merge it into its base model first (`merge_and_unload` of peft)",
            )
        for name in _weights(checkpoint, names):
            checkpoint.add(checkpoint.path(name), name)
        checkpoint.files = tuple(name for name in names if Path(name).suffix.lower() not in _WEIGHTS)
        checkpoint.files = tuple(name for name in checkpoint.files if not name.endswith(".index.json"))
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _names(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _weights(checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    """The files that a library would load the model from."""
    top = [name for name in names if "/" not in name]
    index = next((name for name in top if name.endswith(_INDEX)), None)
    if _ONE_FILE in top:
        return [_ONE_FILE]
    if index is not None:
        try:
            shards = sorted(set(json.loads(checkpoint.path(index).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CheckpointFormatError(f"{checkpoint.shown}/{index} is not an index of shards") from None
        missing = [name for name in shards if name not in names]
        if missing:
            raise CheckpointFormatError(
                f"{checkpoint.shown}/{index} names the shard {missing[0][:100]!a}, which is missing",
                hint="download or copy the whole checkpoint",
            )
        return shards
    found = [name for name in top if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if not found:
        other = next((name for name in top if Path(name).suffix.lower() in _WEIGHTS), None)
        raise CheckpointFormatError(
            f"{checkpoint.shown} has no safetensors files",
            hint=None if other is None else f"`mgit import {checkpoint.shown}/{other} -o model.safetensors` makes one",
        )
    return found
