"""What a manifest records, by name: its models, their tensors and views, and the bytes of small files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError, UsageError
from modelgit.objects import ContentId, Manifest, ModelEntry, TensorEntry, TensorView
from modelgit.objects.paths import join_path
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["file_bytes", "find_model", "model_files", "models_of", "tensors_of", "view_entries", "views_of"]

_MAX_BYTES = 1 << 28  # of a file that is read whole
_MAX_BESIDE_BYTES = 64 << 20


def find_model(manifest: Manifest, name: str | None) -> ModelEntry:
    """The model at path `name`, or the only one.  Raises UsageError when that leaves a question."""
    known = ", ".join(model.path for model in manifest.models) or "none"
    if name is None:
        if len(manifest.models) == 1:
            return manifest.models[0]
        raise UsageError(f"which model? this commit has {len(manifest.models)}", hint=f"known: {known}")
    found = manifest.model(name.rstrip("/"))
    if found is None:
        raise UsageError(f"no model `{name}` in this commit", hint=f"known: {known}")
    return found


def models_of(
    repo: Repository, manifest: Manifest, *, store: ObjectStore | None = None
) -> dict[str, dict[str, TensorEntry]]:
    """All models of a manifest by path, each with its tensors by logical name."""
    return {model.path: tensors_of(repo, manifest, model, store=store) for model in manifest.models}


def tensors_of(
    repo: Repository, manifest: Manifest, model: ModelEntry, *, store: ObjectStore | None = None
) -> dict[str, TensorEntry]:
    """The stored tensors of a model by name, across its files (see `views_of` for names over parts of them).

    A name that occurs in several files is qualified by its file.
    """
    found: dict[str, TensorEntry] = {}
    for path in model.weights:
        entry = manifest.file(path)
        if entry is None:
            continue
        for tensor in repo.content_at(entry.digest, store=store).tensors:
            name = tensor.name if tensor.name not in found else f"{path}:{tensor.name}"
            found[name] = tensor
    return found


def views_of(
    repo: Repository, manifest: Manifest, model: ModelEntry, *, store: ObjectStore | None = None
) -> dict[str, tuple[TensorEntry, TensorView]]:
    """The views of a model by name: tied tensors, slices and transpositions, each with the stored tensor.

    Raises IntegrityError for a view of a tensor that its file does not have.
    """
    found: dict[str, tuple[TensorEntry, TensorView]] = {}
    for path in model.weights:
        entry = manifest.file(path)
        if entry is None:
            continue
        content = repo.content_at(entry.digest, store=store)
        for view in content.views:
            if not 0 <= view.tensor < len(content.tensors):
                raise IntegrityError(f"{path} has a view of a tensor that it does not have")
            name = view.name if view.name not in found else f"{path}:{view.name}"
            found[name] = (content.tensors[view.tensor], view)
    return found


def view_entries(views: Mapping[str, tuple[TensorEntry, TensorView]]) -> list[TensorEntry]:
    """The views as entries whose names say where they lie: what a key of a model's weights must cover."""
    return [
        TensorEntry(name=f"{name} @{view.offset} {list(view.strides)}", spec=view.spec or entry.spec, id=entry.id)
        for name, (entry, view) in views.items()
    ]


def model_files(
    repo: Repository, manifest: Manifest, model: str, *, store: ObjectStore | None = None
) -> dict[str, bytes]:
    """The small files beside a model's weights, by base name (configuration, tokenizer)."""
    weights = {path for entry in manifest.models for path in entry.weights}
    found = {}
    for entry in manifest.files:
        name = entry.path.rpartition("/")[2]
        beside = entry.path == join_path(model, name) and entry.path not in weights and entry.path != PROJECT_CONFIG
        if beside and entry.size <= _MAX_BESIDE_BYTES:
            found[name] = file_bytes(repo, entry.digest, store=store)
    return found


def file_bytes(
    repo: Repository, digest: ContentId, *, store: ObjectStore | None = None, limit: int = _MAX_BYTES
) -> bytes:
    """A whole small file that a manifest records.  Raises IntegrityError for one over `limit` bytes."""
    from modelgit.patching.files import StoredFile

    file = StoredFile(repo.reader(store), repo.content_at(digest, store=store), shown="a recorded file")
    if file.size > limit:
        raise IntegrityError(f"a file of {file.size} bytes where at most {limit} are expected")
    return file.read(0, file.size)
