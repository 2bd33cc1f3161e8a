"""Tensors of a revision by name, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from modelgit.errors import UsageError
from modelgit.objects import STORAGE_SUFFIX, Manifest, ModelEntry, TensorEntry, TensorSpec, TensorView
from modelgit.patching.base import windows

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from modelgit.patching.base import TensorReads
    from modelgit.repo.repository import Repository
    from modelgit.store.base import ObjectStore

__all__ = ["LazyTensor", "ModelState", "find_model", "load", "model_files", "model_state", "view_entries"]

_NUMPY = {
    "BOOL": "?", "U8": "<u1", "I8": "<i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4", "U32": "<u4",
    "F32": "<f4", "C64": "<c8", "I64": "<i8", "U64": "<u8", "F64": "<f8",
}  # fmt: skip
_TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16",
    "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64", "I64": "int64",
    "U64": "uint64", "F64": "float64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


class LazyTensor:
    """One stored tensor; nothing is read before `raw`, `numpy` or `torch`."""

    def __init__(self, name: str, entry: TensorEntry, reader: TensorReads) -> None:
        self.name = name
        self.entry = entry
        self._reader = reader

    @property
    def spec(self) -> TensorSpec:
        """Dtype and shape."""
        return self.entry.spec

    def raw(self) -> bytearray:
        """All raw little-endian bytes."""
        size = self.spec.size_bytes
        out = bytearray(size)
        for start, stop in windows(size):
            out[start:stop] = self._reader.read(self.entry.id, start, stop)
        return out

    def numpy(self) -> NDArray[np.generic]:
        """The tensor as an array of its own dtype; BF16 and 8-bit floats, which numpy lacks, widened to float32."""
        import numpy as np

        code = _NUMPY.get(self.spec.dtype)
        if code is not None:
            return np.frombuffer(self.raw(), code).reshape(self.spec.shape)
        from modelgit.numerics.floats import to_float32

        return to_float32(self.raw(), self.spec.dtype).reshape(self.spec.shape)

    def torch(self) -> torch.Tensor:
        """The tensor in its own dtype.  Raises UsageError when this torch has no such type."""
        import torch

        kind: Any = getattr(torch, _TORCH.get(self.spec.dtype, ""), None)
        if kind is None:
            raise UsageError(f"torch {torch.__version__} has no dtype for {self.spec.dtype} ({self.name})")
        raw = self.raw()
        if not raw:
            return torch.empty(self.spec.shape, dtype=kind)
        return torch.frombuffer(raw, dtype=torch.uint8).view(kind).reshape(self.spec.shape)

    def __repr__(self) -> str:
        return f"LazyTensor({self.name}, {self.spec.dtype} {list(self.spec.shape)})"


class ModelState(Mapping[str, LazyTensor]):
    """The tensors of one model of one revision, by logical name.

    `views` are names over (parts of) stored tensors, each with the tensor; what only views show is not listed.
    """

    def __init__(
        self,
        model: str,
        entries: Mapping[str, TensorEntry],
        reader: TensorReads,
        *,
        views: Mapping[str, tuple[TensorEntry, TensorView]] | None = None,
    ) -> None:
        self.model = model
        self._views = dict(views or {})
        shown = {entry.id for entry, _ in self._views.values()}
        self.entries: dict[str, TensorEntry] = {
            name: entry for name, entry in entries.items() if entry.id not in shown or not name.endswith(STORAGE_SUFFIX)
        }
        for name, (entry, view) in self._views.items():
            self.entries[name] = TensorEntry(name=name, spec=view.spec or entry.spec, id=entry.id)
        self._reader = reader

    def __getitem__(self, name: str) -> LazyTensor:
        entry = self.entries[name]
        if name in self._views:
            from modelgit.patching.views import ViewReader

            stored, view = self._views[name]
            return LazyTensor(name, entry, ViewReader(self._reader, view, stored.spec))
        return LazyTensor(name, entry, self._reader)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def arrays(self) -> ArrayState:
        """The same, giving numpy arrays: what models are built from."""
        return ArrayState(self)


class ArrayState:
    """A `TensorState` over a model's tensors."""

    def __init__(self, state: ModelState) -> None:
        self._state = state

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._state[name].numpy()

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def find_model(manifest: Manifest, name: str | None) -> ModelEntry:
    """The model at path `name`, or the only one.  Raises UsageError when that leaves a question."""
    known = ", ".join(model.path for model in manifest.models) or "none"
    if name is None:
        if len(manifest.models) == 1:
            return manifest.models[0]
        raise UsageError(f"which model? this commit has {len(manifest.models)}", hint=f"known: {known}")
    for model in manifest.models:
        if model.path == name.rstrip("/"):
            return model
    raise UsageError(f"no model `{name}` in this commit", hint=f"known: {known}")


def view_entries(views: Mapping[str, tuple[TensorEntry, TensorView]]) -> list[TensorEntry]:
    """The views as entries whose names say where they lie: what a key of a model's weights must cover."""
    return [
        TensorEntry(name=f"{name} @{view.offset} {list(view.strides)}", spec=view.spec or entry.spec, id=entry.id)
        for name, (entry, view) in views.items()
    ]


def load(repo: Repository, revision: str = "HEAD", *, model: str | None = None) -> ModelState:
    """The tensors of a model of a revision.  Reads metadata only."""
    manifest = repo.manifest_of(repo.resolve(revision))
    return model_state(repo, manifest, find_model(manifest, model))


def model_state(
    repo: Repository, manifest: Manifest, entry: ModelEntry, *, store: ObjectStore | None = None
) -> ModelState:
    """The tensors of one model of a manifest, views included.  Reads metadata only."""
    tensors = repo.tensors_of(manifest, entry, store=store)
    views = repo.views_of(manifest, entry, store=store)
    return ModelState(entry.path, tensors, repo.reader(store), views=views)


def model_files(
    repo: Repository, manifest: Manifest, model: str, *, store: ObjectStore | None = None
) -> dict[str, bytes]:
    """The small files beside a model's weights, by base name (configuration, tokenizer)."""
    weights = {path for entry in manifest.models for path in entry.weights}
    folder = model + "/"
    found = {}
    for entry in manifest.files:
        inside = entry.path.startswith(folder) and "/" not in entry.path[len(folder) :]
        if inside and entry.path not in weights and entry.size <= 64 << 20:
            found[entry.path[len(folder) :]] = repo.file_bytes(repo.content_at(entry.digest, store=store), store=store)
    return found
