"""Everything that something still needs: what garbage collection keeps and what a check walks."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError, UsageError
from modelgit.objects import (
    BlobId,
    Commit,
    CommitId,
    FileContent,
    FisherEstimate,
    Literal,
    Manifest,
    ManifestId,
    Mask,
    MaskId,
    Note,
    ObjectId,
    Patch,
    TensorId,
    TensorSpec,
)
from modelgit.repo.statistics import kept_statistics
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Needed", "commit_roots", "kept_objects", "mask_files", "merge_roots", "needed_objects"]

_HEX = re.compile(r"[0-9a-f]{64}\Z")

Needed = tuple[ObjectId, TensorSpec | None]


def commit_roots(repo: Repository) -> set[CommitId]:
    """Commits that a ref, a merge under way, or any operation that is kept points at."""
    roots: set[CommitId] = set()
    newest = repo.roots.read().root.operation
    for _, operation in repo.operations.history(newest):
        roots |= operation.view.tips
    return roots | merge_roots(repo)


def merge_roots(repo: Repository) -> set[CommitId]:
    """The commits of a merge under way."""
    if not repo.paths.merge.exists():
        return set()
    from modelgit.repo.merges.state import read_state

    state = read_state(repo)
    return (
        set() if state is None else {*filter(None, (state.base, state.source)), state.ours, state.theirs, *state.todo}
    )


def mask_files(repo: Repository) -> Iterator[tuple[Path, MaskId]]:
    """The files by which this clone keeps masks, in the order of their names, and what each keeps.

    One that is called by the id of a mask keeps that mask, whatever became of its content; one that is called by a name
    and holds no id is passed over: the name is free, and the mask has a file of its own.
    """
    for file in sorted(repo.paths.masks.iterdir()) if repo.paths.masks.is_dir() else ():
        if _HEX.match(file.name):
            yield file, MaskId(bytes.fromhex(file.name))
            continue
        with contextlib.suppress(OSError, IntegrityError, UsageError):
            yield file, MaskId.parse(file.read_text(encoding="ascii", errors="replace").strip())


def damaged_mask_files(repo: Repository) -> list[Path]:
    """The files by which this clone keeps masks that do not hold what they should.

    One that is called by an id keeps its mask all the same; one that is called by a name keeps none.
    """
    sound = set()
    for file, mask in mask_files(repo):
        with contextlib.suppress(OSError):
            if file.read_text(encoding="ascii", errors="replace").strip() == str(mask):
                sound.add(file)
    listed = sorted(repo.paths.masks.iterdir()) if repo.paths.masks.is_dir() else []
    return [file for file in listed if file not in sound and not file.name.endswith(".tmp")]


def kept_objects(repo: Repository) -> set[ObjectId]:
    """The masks that this clone keeps by name, and the Fisher estimates and notes that the root lists.

    Raises IntegrityError when the list of these is missing or damaged.
    """
    kept: set[ObjectId] = set()
    kept.update(mask for _, mask in mask_files(repo))
    record = kept_statistics(repo)
    return kept | {item.id for item in record.fishers} | {item.id for item in record.notes}


def needed_objects(
    repo: Repository,
    commits: Iterable[CommitId],
    *,
    kept: Iterable[ObjectId] = (),
    expired: Collection[CommitId] = (),
    pruned: Collection[CommitId] = (),
    seen: set[ObjectId] | None = None,
) -> Iterator[Needed]:
    """Every object that the commits and `kept` reach, once each, tensors with their specs.

    Training state that is not here is passed over, and so is that of the commits `expired`.  Of the commits `pruned`
    everything else is needed but the contents of their weights' files.  What is in `seen` is passed over and not walked
    through; what is walked is added to it, so that a later call goes on where this one ended.

    Raises IntegrityError when a record on the way is missing or damaged.
    """
    seen = set() if seen is None else seen
    pending: list[ObjectId] = sorted({*commits, *kept})
    thin: list[ManifestId] = []
    while pending:
        object_id = pending.pop()
        if object_id in seen:
            continue
        seen.add(object_id)
        yield object_id, None
        for child, spec in children_of(repo, object_id, training=object_id not in expired):
            if isinstance(child, (TensorId, BlobId)):
                if child not in seen:
                    seen.add(child)
                    yield child, spec
            elif (
                object_id in pruned and isinstance(object_id, CommitId) and child == repo.commit_at(object_id).manifest
            ):
                thin.append(repo.commit_at(object_id).manifest)
            elif child not in seen:
                pending.append(child)
    for manifest in thin:
        yield from _without_weights(repo, manifest, seen)


def _without_weights(repo: Repository, manifest_id: ManifestId, seen: set[ObjectId]) -> Iterator[Needed]:
    """A manifest that only pruned commits have.

    Neither it nor the content records of its weights are added to `seen`: another commit may need all of them.
    """
    if manifest_id in seen:
        return
    manifest = read_record(repo.store, manifest_id, Manifest)
    yield manifest_id, None
    weights = {path for model in manifest.models for path in model.weights}
    for entry in manifest.files:
        if entry.digest in seen:
            continue
        if entry.path in weights:
            yield entry.digest, None
        else:
            yield from needed_objects(repo, (), kept=(entry.digest,), seen=seen)


def children_of(repo: Repository, object_id: ObjectId, *, training: bool = True) -> Iterator[Needed]:
    """What a record names directly; a commit's training state only if it is here, and `training`."""
    store = repo.store
    if isinstance(object_id, CommitId):
        commit = read_record(store, object_id, Commit)
        yield from ((parent, None) for parent in commit.parents)
        yield commit.manifest, None
        yield commit.patch, None
        yield from ((verdict.record, None) for verdict in commit.verdicts)
        if training and commit.training is not None and store.has(commit.training):
            yield commit.training, None
        return
    match object_id.KIND:
        case "manifest":
            yield from ((entry.digest, None) for entry in read_record(store, object_id, Manifest).files)
        case "patch":
            yield from ((mask, None) for mask in read_record(store, object_id, Patch).masks)
        case "content":
            content = read_record(store, object_id, FileContent)
            yield from ((tensor.id, tensor.spec) for tensor in content.tensors)
            yield from ((segment.blob, None) for segment in content.segments if isinstance(segment, Literal))
        case "mask":
            mask = read_record(store, object_id, Mask)
            yield from ((region.positions, None) for region in mask.regions if region.positions is not None)
        case "fisher":
            estimate = read_record(store, object_id, FisherEstimate)
            yield from ((entry.id, entry.spec) for entry in estimate.stored)
        case "note":
            note = read_record(store, object_id, Note)
            yield from ((record, None) for record in (note.record,) if record is not None)
        case "eval":
            if not store.has(object_id):
                raise IntegrityError(f"eval {object_id} is missing from the store")
        case _:
            raise IntegrityError(f"a record names {object_id.KIND} {object_id}, which is no kind of record")
