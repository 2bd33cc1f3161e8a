"""`gc`: packs that nothing reaches go, packs that are mostly dead are written again, caches are made anew.

No clock decides what is safe.  The root first says which packs are condemned and that a collection took place (its
epoch); only then are they deleted.  A writer that was busy meanwhile sees the epoch before its own step, and makes sure
that nothing it relies on is condemned (`store.publish`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from modelgit.errors import ConflictError, RootMoved
from modelgit.objects import OperationId, Pruning, Record, Retention, RetentionId, Root, View
from modelgit.progress import SILENT, Progress
from modelgit.repo.upkeep.collection import REWRITE_ABOVE, Key, Marking, pack_sizes, place_of, rewrite_records
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.store.base import ObjectStore, VersionedRoot
from modelgit.store.durable import process_space
from modelgit.store.root import RECENT_WRITES
from modelgit.worktree.lockfile import is_alive
from modelgit.worktree.snapshots import SnapshotCache

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["GcReport", "collect", "finish_collection", "retire_packs", "tidy"]

RESCUE_DAYS = 7
_STALE_INCOMING_S = 14 * 86400
_TRIES = 200


class GcReport(Record, frozen=True, kw_only=True):
    """What a collection did (or, dry, would do).

    `bytes_freed` is the size of the packs that went, less that of the packs that were written in their place.
    """

    packs_before: int
    packs_deleted: int
    packs_rewritten: int
    bytes_freed: int
    objects_kept: int
    operations_dropped: int
    dry_run: bool = False


def collect(
    repo: Repository,
    *,
    prune_now: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> GcReport:
    """Collect garbage.

    Operations older than 30 days beyond the last 200 are dropped first, with `prune_now` all but the current one: then
    nothing can be undone, and everything that no ref reaches is freed.
    """
    with repo.writing():
        marking = Marking(repo, prune_now=prune_now, pruned=pruned_commits(repo))
        report = finish_collection(repo, marking, dry_run=dry_run, progress=progress)
        if not dry_run:
            tidy(repo)
            repo.store.lookup.write_cache()
        return report


def finish_collection(
    repo: Repository,
    marking: Marking,
    *,
    rewrite_above: float = REWRITE_ABOVE,
    forced: Collection[Key] = (),
    retention: Retention | None = None,
    still_right: Callable[[View], bool] | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> GcReport:
    """Mark, write again what is worth it, and retire what is left over.

    Packs with a dead object of `forced` are written again however little of them is dead, and go before all others.
    `retention` becomes the root's record of pruned commits in the same step.  Raises RootMoved when `still_right` says
    of the view that is about to be served that what is pruned has to be thought over.
    """
    rewrite: list[str] | None = None
    copied: set[tuple[str, int]] = set()
    written: list[str] = []
    for _ in range(_TRIES):
        marking.mark()
        if still_right is not None and not still_right(repo.operations.read(marking.root.root.operation).view):
            raise RootMoved("a commit that was to be pruned is needed now", hint="run the command again")
        if rewrite is None:
            rewrite = marking.wasteful_packs(above=rewrite_above, forced=forced)
            records = marking.kept_records(rewrite)
            if dry_run:
                return _report(marking, rewrite, sum(pack_sizes(records)), dry_run=True)
            written = rewrite_records(repo, records, progress)
            copied = {place_of(item) for item in records}
        # What has come to life since it was decided what to copy keeps its pack.
        rewrite = [name for name in rewrite if all(place_of(item) in copied for item in marking.kept_records([name]))]
        condemned = [*rewrite, *marking.dead_packs()]
        if not condemned and not marking.dropped_operations and retention is None:
            break
        urgent = {name for name in condemned if any((i.kind, i.digest) in forced for i in marking.packs[name])}
        try:
            order = sorted(condemned, key=lambda name: name not in urgent)
            record = None
            if retention is not None:  # with what others recorded since it was made
                known = repo.retention_records.read(marking.root.root.retention).prunings
                record = repo.retention_records.write(joined(retention, known, repo.store))
            # A writer's operation is there before its root is: "not in the history" does not mean "not needed".  But
            # what was listed before the root that our swap replaces can no longer be published: its writer lost to us.
            # What lies behind that root has been published: nobody is about to.
            forget = (marking.listed | marking.history) - marking.kept_operations
            retire_packs(repo, marking.root, order, retention=record, forget=forget)
        except RootMoved:
            continue
        break
    else:
        raise ConflictError("the repository is being changed too often to collect", hint="run `mgit gc` again later")
    repo.store.lookup.refresh()
    sizes = sum((repo.store.packs_path / name).stat().st_size for name in written)
    return _report(marking, rewrite or [], sizes, dry_run=False)


def joined(fresh: Retention, known: Iterable[Pruning], store: ObjectStore) -> Retention:
    """What was pruned before, as far as it is still there, and what is pruned now."""
    kept = []
    for item in known:
        commits = tuple(commit for commit in item.commits if store.has(commit))
        if commits:
            kept.append(Pruning(family=item.family, time_ms=item.time_ms, commits=commits))
    return Retention(prunings=(*kept, *fresh.prunings))


def _report(marking: Marking, rewrite: Sequence[str], written: int, *, dry_run: bool) -> GcReport:
    dead = marking.dead_packs()
    return GcReport(
        packs_before=len(marking.sizes),
        packs_deleted=len(dead),
        packs_rewritten=len(rewrite),
        bytes_freed=marking.size_of(dead) + marking.size_of(rewrite) - written,
        objects_kept=len(marking.needed),
        operations_dropped=marking.dropped_operations,
        dry_run=dry_run,
    )


def retire_packs(
    repo: Repository,
    current: VersionedRoot,
    packs: Sequence[str],
    *,
    retention: RetentionId | None = None,
    forget: Collection[OperationId] = (),
) -> None:
    """Delete packs: condemned in the root first, so that a writer that relies on one finds out before it publishes.

    The operations `forget` go before any pack: what can still be undone must be whole at every moment.

    Raises RootMoved, with nothing deleted, when the root is no longer `current`.
    """
    moved = _swap(repo, current, condemned=tuple(packs), epoch=current.root.epoch + 1, retention=retention)
    repo.operations.remove(forget)
    for name in packs:
        repo.store.delete(name)
    with contextlib.suppress(RootMoved):  # somebody moved on: the names stay listed, which harms nobody
        _swap(repo, moved, condemned=(), epoch=moved.root.epoch)


def _swap(
    repo: Repository,
    current: VersionedRoot,
    *,
    condemned: tuple[str, ...],
    epoch: int,
    retention: RetentionId | None = None,
) -> VersionedRoot:
    write_id = os.urandom(16).hex()
    root: Root = msgspec.structs.replace(
        current.root,
        condemned=condemned,
        epoch=epoch,
        retention=retention or current.root.retention,
        write_id=write_id,
        recent=(*current.root.recent, write_id)[-RECENT_WRITES:],
    )
    return repo.roots.swap(current.version, root)


def tidy(repo: Repository) -> None:
    """Leftovers of commands that were killed, expired rescues, and caches that point at nothing."""
    now = time.time()
    root = repo.roots.read().root
    repo.retention_records.remove(repo.retention_records.listed() - {root.retention})
    repo.statistics_records.remove(repo.statistics_records.listed() - {root.statistics})
    with contextlib.suppress(FileNotFoundError):
        for folder in repo.store.incoming_path.iterdir():
            _, pid, _, space = [*folder.name.split("-"), "", "", ""][:4]
            # The number of a process means nothing when it is one of another host, or of another container.
            gone = space == process_space() and pid.isdigit() and not is_alive(int(pid))
            age_s = now - folder.stat().st_mtime
            if age_s > _STALE_INCOMING_S or (gone and age_s > 60):
                shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        for folder in repo.paths.rescue.iterdir():
            if now - folder.stat().st_mtime > RESCUE_DAYS * 86400:
                shutil.rmtree(folder, ignore_errors=True)
    SnapshotCache(repo.paths.snapshots).tidy()
    for directory in (repo.paths.contents, repo.paths.passes):
        with contextlib.suppress(FileNotFoundError):
            for file in directory.iterdir():
                if now - file.stat().st_mtime > RESCUE_DAYS * 86400:
                    file.unlink(missing_ok=True)
