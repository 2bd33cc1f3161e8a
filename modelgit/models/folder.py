"""The tensors of a model that lies in a directory, without a repository around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import FileReader, scan_file
from modelgit.formats.layouts import describe
from modelgit.numerics.floats import has_float_values, to_float32
from modelgit.objects import STORAGE_SUFFIX, TensorSpec, TensorView, numpy_code
from modelgit.objects.paths import join_path
from modelgit.patching.base import windows
from modelgit.patching.views import ViewBytes

__all__ = ["FolderState", "small_files"]

_MAX_SMALL_BYTES = 64 << 20


class _Place(NamedTuple):
    """Where a tensor lies: file, first byte, spec as stored, and the view of it if the name is one."""

    path: str
    offset: int
    spec: TensorSpec
    view: TensorView | None = None


class FolderState:
    """A `TensorState` over the weights of the model at `relative` below `root`, in any format that names its tensors.

    Headers are read at once, a tensor when it is asked for: numpy's own dtypes as they are, BF16 and 8-bit floats as
    float32.  A name that occurs in several files is qualified by its file.  Raises CheckpointFormatError for malformed
    files, UsageError when there is nothing.
    """

    def __init__(self, root: Path, relative: str) -> None:
        self.weights = frozenset(describe(root, relative).weights)
        """The files that hold the tensors, relative to the root."""
        self._root = root
        self._places: dict[str, _Place] = {}
        for path in sorted(self.weights):
            self._add(path, scan_file(root / path, shown=path))

    def _add(self, path: str, scanned: ScannedFile) -> None:
        offsets = {part.tensor: part.offset for part in reversed(scanned.ranges) if part.tensor is not None}
        shown = {view.tensor for view in scanned.views}
        found: dict[str, _Place] = {}
        for number, tensor in enumerate(scanned.tensors):
            if number not in shown or not tensor.name.endswith(STORAGE_SUFFIX):
                found[tensor.name] = _Place(path, offsets.get(number, 0), tensor.spec)
        for view in scanned.views:
            found[view.name] = _Place(path, offsets.get(view.tensor, 0), scanned.tensors[view.tensor].spec, view)
        for name, place in found.items():
            self._places[name if name not in self._places else f"{path}:{name}"] = place

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        place = self._places[name]
        spec = place.spec if place.view is None else place.view.spec or place.spec
        with FileReader(self._root / place.path, shown=place.path) as file:

            def read(start: int, stop: int) -> bytes:
                return file.read(place.offset + start, stop - start)

            source = read if place.view is None else ViewBytes(read, place.view, place.spec).read
            data = bytearray(spec.size_bytes)
            for start, stop in windows(spec.size_bytes):
                data[start:stop] = source(start, stop)
        code = numpy_code(spec.dtype)
        if code is not None:
            return np.frombuffer(data, code).reshape(spec.shape)
        if not has_float_values(spec.dtype):
            raise UsageError(f"{name} holds {spec.dtype}, which has no values to compute with")
        return to_float32(data, spec.dtype).reshape(spec.shape)


def small_files(root: Path, relative: str, *, weights: frozenset[str] = frozenset()) -> dict[str, bytes]:
    """The small files of the model's directory by base name (configuration, tokenizer); none for a single file."""
    folder = root / relative
    if not folder.is_dir():
        return {}
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir())
        if entry.is_file()
        and not entry.is_symlink()
        and join_path(relative, entry.name) not in weights
        and entry.stat().st_size <= _MAX_SMALL_BYTES
    }
