"""Moving the root: the one place where a repository changes, locally and on a directory remote alike.

Packs are sealed before, the operation is written before, and the compare-and-swap comes last, so that a crash at any
point leaves the old view and some unreachable bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import msgspec

from modelgit.errors import ConflictError, IntegrityError, RootMoved
from modelgit.objects import ObjectId, Operation, OperationId, Pruning, Root, Statistics, View
from modelgit.store.base import RootStore, covers
from modelgit.store.fs import FileSystemStore
from modelgit.store.oplog import OperationLog
from modelgit.store.root import FORMAT, RECENT_WRITES
from modelgit.store.session import PackSession
from modelgit.store.side_records import retention_records, statistics_records, with_prunings

__all__ = ["initialise", "publish"]

_TRIES = 64


def initialise(roots: RootStore, operations: OperationLog, *, view: View, author: str) -> None:
    """Publish the first root of an empty repository."""
    first = Operation(
        view=view, parent=None, description="initialise", author=author, time_ms=time.time_ns() // 1_000_000
    )
    roots.swap(0, Root(format=FORMAT, operation=operations.write(first), write_id=os.urandom(16).hex()))


def publish(
    roots: RootStore,
    operations: OperationLog,
    store: FileSystemStore,
    change: Callable[[View], View],
    *,
    description: str,
    author: str,
    session: PackSession | None = None,
    moves_files: bool = False,
    restores: OperationId | None = None,
    redo: tuple[OperationId, ...] = (),
    prunings: Sequence[Pruning] = (),
    keep: Callable[[Statistics], Statistics] | Statistics | None = None,
    rescue: str = "",
) -> View:
    """Apply `change` to the current view and publish the result; returns the new view.

    `prunings` say of commits that become reachable which of them come without their weights.  `keep` makes the new list
    of kept statistics of the current one, or is it, whatever became of that; where nothing else changes,
    this is no operation that could be undone.

    `change` is called again when another writer was first, and raises ConflictError itself when a ref that it moves
    is not where it was.  Packs of `session` must be sealed; what they rely on is checked against garbage collection.
    """
    write_id = os.urandom(16).hex()
    pruned_log, kept_log = retention_records(store.path), statistics_records(store.path)
    for _ in range(_TRIES):
        current, before = operations.current(roots)
        if session is not None and session.epoch != current.root.epoch:
            _check_survival(store, session, set(current.root.condemned))
        after = change(before.view)
        retention, statistics = current.root.retention, current.root.statistics
        kept = keep(kept_log.read(statistics)) if callable(keep) else keep
        if kept is not None:
            statistics = kept_log.write(kept)
        operation = current.root.operation
        if after == before.view and restores is None and not rescue:
            if statistics == current.root.statistics:
                return after
        else:
            operation = operations.write(
                Operation(
                    view=after,
                    parent=current.root.operation,
                    description=description,
                    author=author,
                    time_ms=time.time_ns() // 1_000_000,
                    moves_files=moves_files,
                    restores=restores,
                    redo=redo,
                    nonce=os.urandom(8).hex(),
                    rescue=rescue,
                )
            )
        pruned = with_prunings(pruned_log.read(retention), prunings) if prunings else None
        if pruned is not None:
            retention = pruned_log.write(pruned)
        root = msgspec.structs.replace(
            current.root,
            format=FORMAT,
            retention=retention,
            statistics=statistics,
            operation=operation,
            write_id=write_id,
            recent=(*current.root.recent, write_id)[-RECENT_WRITES:],
        )
        try:
            roots.swap(current.version, root)
        except RootMoved:
            if write_id not in roots.read().root.recent:
                continue  # else it landed, only the answer was lost
        # A collection may have tidied them away before the root named them.
        if pruned is not None:
            pruned_log.write(pruned)
        if kept is not None:
            kept_log.write(kept)
        return after
    raise ConflictError("the repository is being changed too often to get a word in", hint="run the command again")


def _check_survival(store: FileSystemStore, session: PackSession, condemned: set[str]) -> None:
    """A garbage collection ran while we worked: nothing that we are about to refer to may be going away.

    Our own packs may have been condemned, since nothing referred to them yet: they are published again under a name
    that is not.
    """
    store.lookup.refresh()
    for name in list(session.sealed):
        if name in condemned or not (store.packs_path / name).exists():
            try:
                session.rename_sealed(name)
            except FileNotFoundError:
                raise ConflictError(
                    "garbage collection ran at the same moment and took what was being written",
                    hint="run the command again",
                ) from None
    store.lookup.refresh()
    for object_id in session.relied_on:
        _require(store, object_id, condemned)


def _require(store: FileSystemStore, object_id: ObjectId, condemned: set[str]) -> None:
    safe = [item for item in store.locate(object_id) if item.pack not in condemned]
    if not safe or not covers(safe):
        raise IntegrityError(
            f"{object_id.KIND} {object_id} was collected as garbage while it was being used",
            hint="run the command again",
        )
