"""What differs between two manifests, from ids alone: the patch of a commit, the lines of a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from modelgit.objects import FileChange, Manifest, TensorChange, TensorEntry
from modelgit.objects.patches import ChangeKind
from modelgit.repo.contents import tensors_of

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository
    from modelgit.store.base import ObjectStore

__all__ = ["Changes", "compare_manifests"]


class Changes(NamedTuple):
    """Differing tensors by model, and differing files that are not weights of a model on both sides."""

    tensors: tuple[TensorChange, ...]
    files: tuple[FileChange, ...]

    def __bool__(self) -> bool:
        return bool(self.tensors or self.files)


def _compare_tensors(
    model: str,
    old: Mapping[str, TensorEntry],
    new: Mapping[str, TensorEntry],
    counts: Mapping[tuple[str, str], int | None] | None = None,
) -> list[TensorChange]:
    """Tensors that differ, in the order of the new model, removed ones last."""
    changes = []
    for name, entry in new.items():
        before = old.get(name)
        if before is not None and before.id == entry.id:
            continue
        kind: ChangeKind
        if before is None:
            kind = "added"
        elif before.spec != entry.spec:
            kind = "respecified"
        else:
            kind = "changed"
        count = (counts or {}).get((model, name)) if kind == "changed" else None
        changes.append(
            TensorChange(model=model, name=name, kind=kind, elements=entry.spec.elements, values_changed=count)
        )
    for name, before in old.items():
        if name not in new:
            changes.append(TensorChange(model=model, name=name, kind="removed", elements=before.spec.elements))
    return changes


def compare_manifests(
    repo: Repository,
    old: Manifest,
    new: Manifest,
    *,
    new_store: ObjectStore | None = None,
    counts: Mapping[tuple[str, str], int | None] | None = None,
) -> Changes:
    """All differences.  A weights file that only re-arranges tensors counts as a changed file, not as tensors."""
    before = {entry.path: entry for entry in old.files}
    after = {entry.path: entry for entry in new.files}
    tensors: list[TensorChange] = []
    explained: set[str] = set()
    old_models = {model.path: model for model in old.models}
    new_models = {model.path: model for model in new.models}
    for path in sorted({*old_models, *new_models}):
        left, right = old_models.get(path), new_models.get(path)
        touched = {*(left.weights if left else ()), *(right.weights if right else ())}
        if left and right and all(before.get(name) == after.get(name) for name in touched):
            continue
        found = _compare_tensors(
            path,
            tensors_of(repo, old, left) if left else {},
            tensors_of(repo, new, right, store=new_store) if right else {},
            counts,
        )
        tensors += found
        if found and left and right:
            explained |= set(left.weights) & set(right.weights)
    files = []
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name) or name in explained:
            continue
        change: ChangeKind = "added" if name not in before else "removed" if name not in after else "changed"
        files.append(FileChange(path=name, kind=change))
    return Changes(tuple(tensors), tuple(files))
