"""What a manifest records, by name: the tensors and views of its models, and the bytes of its small files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError
from modelgit.objects import ContentId, Manifest, ModelEntry, TensorEntry, TensorView
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["file_bytes", "models_of", "tensors_of", "views_of"]

_MAX_BYTES = 1 << 28  # of a file that is read whole


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


def file_bytes(
    repo: Repository, digest: ContentId, *, store: ObjectStore | None = None, limit: int = _MAX_BYTES
) -> bytes:
    """A whole small file that a manifest records.  Raises IntegrityError for one over `limit` bytes."""
    from modelgit.patching.files import StoredFile

    file = StoredFile(repo.reader(store), repo.content_at(digest, store=store), shown="a recorded file")
    if file.size > limit:
        raise IntegrityError(f"a file of {file.size} bytes where at most {limit} are expected")
    return file.read(0, file.size)
