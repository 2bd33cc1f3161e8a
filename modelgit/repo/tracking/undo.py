"""`undo`, `redo` and `op log`: the view goes back to what it was, by one more operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from modelgit.errors import ConflictError, NothingToDo
from modelgit.objects import ContentId, Manifest, Operation, OperationId, View
from modelgit.progress import SILENT, Progress
from modelgit.repo.merges.state import refuse_during_merge
from modelgit.repo.tracking.training import joined, training_of
from modelgit.repo.tracking.update import check_clean, move_worktree

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["operation_log", "redo", "undo"]


def operation_log(repo: Repository) -> Iterator[tuple[OperationId, Operation]]:
    """Operations, newest first, as far as they are kept."""
    return repo.operations.history(repo.roots.read().root.operation)


def undo(repo: Repository, *, progress: Progress = SILENT) -> Operation:
    """Take back the last operation that is not taken back yet; returns it.

    What a commit recorded stays in the work tree, as changes (of a sparse patch the dense weights, while they are kept
    in the rescue area); what a switch, merge or pull brought is taken out again; files that `mask apply` changed are
    as they were.
    Raises NothingToDo at the beginning of the log, RepositoryError when files would be lost.
    """
    # These load numpy, which `op log` does without.
    from modelgit.repo.tracking.dense_weights import bring_back_dense, kept_dense
    from modelgit.repo.tracking.rescued_files import after_folder, swap_rescued

    with repo.writing():
        refuse_during_merge(repo, "undo")
        current_id = repo.roots.read().root.operation
        current = repo.operations.read(current_id)
        position = current.restores or current_id
        undone = _kept(repo, position)
        if undone.restores is not None:
            raise _pruned()
        if undone.parent is None:
            raise NothingToDo("there is nothing to undo", hint="`mgit op log` shows the operations")
        dense = kept_dense(repo, undone)
        if dense:
            bring_back_dense(repo, repo.manifest_of(undone.view.head), dense)
        if undone.rescue:
            swap_rescued(repo, undone.rescue, after_folder(undone.rescue))
        # The state before an undo or redo is the one it restored from: follow it to the operation that made that state.
        target = _state_of(repo, undone.parent)
        _move(
            repo,
            current.view,
            target[1].view,
            moves_files=undone.moves_files and not dense,
            description=f"undo: {undone.description}",
            restores=target[0],
            redo=(position, *current.redo),
            verb="undoing",
            progress=progress,
        )
        return undone


def redo(repo: Repository, *, progress: Progress = SILENT) -> Operation:
    """Bring back the operation that was undone last; returns it.  Raises NothingToDo when there is none."""
    from modelgit.repo.tracking.dense_weights import dense_in_tree, kept_dense
    from modelgit.repo.tracking.rescued_files import after_folder, swap_rescued

    with repo.writing():
        refuse_during_merge(repo, "redo")
        current = repo.operations.read(repo.roots.read().root.operation)
        if not current.redo:
            raise NothingToDo("there is nothing to redo", hint="`mgit op log` shows the operations")
        target_id = current.redo[0]
        target = _kept(repo, target_id)
        dense = kept_dense(repo, target)
        if target.rescue:
            swap_rescued(repo, after_folder(target.rescue), target.rescue)
        _move(
            repo,
            current.view,
            target.view,
            moves_files=target.moves_files,
            description=f"redo: {target.description}",
            restores=target_id,
            redo=current.redo[1:],
            verb="redoing",
            spare=dense_in_tree(repo, dense),
            progress=progress,
        )
        return target


def _with(manifest: Manifest, digests: Mapping[str, ContentId]) -> Manifest:
    files = tuple(
        msgspec.structs.replace(entry, digest=digests.get(entry.path, entry.digest)) for entry in manifest.files
    )
    return msgspec.structs.replace(manifest, files=files)


def _state_of(repo: Repository, operation_id: OperationId) -> tuple[OperationId, Operation]:
    operation = _kept(repo, operation_id)
    if operation.restores is not None and repo.operations.has(operation.restores):
        return operation.restores, repo.operations.read(operation.restores)
    return operation_id, operation  # an undo whose own target was pruned still holds the view that it brought back


def _kept(repo: Repository, operation_id: OperationId) -> Operation:
    if not repo.operations.has(operation_id):
        raise _pruned()
    return repo.operations.read(operation_id)


def _pruned() -> NothingToDo:
    return NothingToDo(
        "older operations were pruned: there is nothing further to undo or redo",
        hint="`mgit op log` shows the operations",
    )


def _move(
    repo: Repository,
    view: View,
    after: View,
    *,
    moves_files: bool,
    description: str,
    restores: OperationId,
    redo: tuple[OperationId, ...],
    verb: str,
    progress: Progress,
    spare: Mapping[str, ContentId] | None = None,
) -> None:
    """Publish a step from `view` to `after`; `spare` is what files may hold beside what is recorded, kept elsewhere."""
    recorded = (repo.manifest_of(view.head), repo.manifest_of(after.head))
    training = (training_of(repo, view.head).manifest, training_of(repo, after.head).manifest)
    source, target = joined(recorded[0], training[0]), joined(recorded[1], training[1])
    if not moves_files or source == target:

        def change(now: View) -> View:
            if now != view:
                raise ConflictError("the branches moved meanwhile", hint="`mgit op log`, then run the command again")
            return after

        repo.publish(change, description, moves_files=moves_files, restores=restores, redo=redo)
        return
    expected = _with(source, spare or {})
    check_clean(
        repo, expected, target, verb=verb, hint="`mgit commit -m …` or `mgit restore .` first", progress=progress
    )
    move_worktree(
        repo,
        *recorded,
        training=training,
        description=description,
        view=view,
        after=after,
        restores=restores,
        redo=redo,
        progress=progress,
    )
