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
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from modelgit.errors import ConflictError, RootMoved
from modelgit.objects import ObjectId, OperationId, Record, Root, id_class
from modelgit.progress import SILENT, Progress
from modelgit.repo.reach import commit_roots, kept_objects, needed_objects
from modelgit.store.base import Located, VersionedRoot
from modelgit.store.root import RECENT_WRITES
from modelgit.worktree.lockfile import is_alive

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["GcReport", "collect", "retire_packs"]

KEEP_OPERATIONS = 200
KEEP_DAYS = 30
RESCUE_DAYS = 7
_REWRITE_ABOVE = 0.3  # share of dead bytes at which a pack is worth writing again
_STALE_INCOMING_S = 14 * 86400
_TRIES = 8


class GcReport(Record, frozen=True, kw_only=True):
    """What a collection did (or, dry, would do)."""

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
        for _ in range(_TRIES):
            try:
                return _collect(repo, prune_now, dry_run, progress)
            except RootMoved:
                continue
    raise ConflictError("the repository is being changed too often to collect", hint="run `mgit gc` again later")


def _collect(repo: Repository, prune_now: bool, dry_run: bool, progress: Progress) -> GcReport:
    listed = repo.operations.listed()
    current = repo.roots.read()
    kept_operations, dropped = _operations(repo, current, prune_now)
    roots = commit_roots(repo, operations=len(kept_operations))
    needed = {object_id for object_id, _ in needed_objects(repo, roots, kept=kept_objects(repo))}
    live = _with_bases(repo, needed)
    repo.store.lookup.refresh()
    packs: dict[str, list[Located]] = {}
    for item in repo.store.objects():
        packs.setdefault(item.pack, []).append(item)
    for name in repo.store.lookup.packs():
        packs.setdefault(name, [])
    chosen = _choose(packs, live)
    dead = [name for name, records in packs.items() if not any(_is_kept(item, chosen) for item in records)]
    rewrite = [
        name for name, records in packs.items() if name not in dead and _dead_share(records, chosen) > _REWRITE_ABOVE
    ]
    sizes = {name: (repo.store.packs_path / name).stat().st_size for name in packs}
    freed = sum(sizes[name] for name in dead)
    freed += sum(item.length for name in rewrite for item in packs[name] if not _is_kept(item, chosen))
    report = GcReport(
        packs_before=len(packs),
        packs_deleted=len(dead),
        packs_rewritten=len(rewrite),
        bytes_freed=freed,
        objects_kept=len(needed),
        operations_dropped=len(dropped),
        dry_run=dry_run,
    )
    if dry_run:
        return report
    if rewrite:
        _rewrite(repo, [item for name in rewrite for item in packs[name] if _is_kept(item, chosen)], progress)
    condemned = [*dead, *rewrite]
    if condemned or dropped:
        retire_packs(repo, current, condemned)
        # A writer's operation is there before its root is: "not in the history" does not mean "not needed".  But what
        # was listed before the root that our first swap replaced can no longer be published: its writer lost to us.
        repo.operations.remove(listed - kept_operations)
    _tidy(repo)
    repo.store.lookup.refresh()
    repo.store.lookup.write_cache()
    return report


def retire_packs(repo: Repository, current: VersionedRoot, packs: Sequence[str]) -> None:
    """Delete packs: condemned in the root first, so that a writer that relies on one finds out before it publishes.

    Raises RootMoved, with nothing deleted, when the root is no longer `current`.
    """
    moved = _swap(repo, current, condemned=tuple(packs), epoch=current.root.epoch + 1)
    for name in packs:
        repo.store.delete(name)
    with contextlib.suppress(RootMoved):  # somebody moved on: the names stay listed, which harms nobody
        _swap(repo, moved, condemned=(), epoch=moved.root.epoch)


def _operations(repo: Repository, current: VersionedRoot, prune_now: bool) -> tuple[set[OperationId], set[OperationId]]:
    """Operations to keep and to drop; what an undo or redo points at stays with it."""
    horizon_ms = (time.time() - KEEP_DAYS * 86400) * 1000
    kept: set[OperationId] = set()
    dropped: set[OperationId] = set()
    for number, (object_id, operation) in enumerate(repo.operations.history(current.root.operation)):
        keep = number == 0 if prune_now else number < KEEP_OPERATIONS or operation.time_ms > horizon_ms
        if keep and not dropped:
            kept.add(object_id)
        else:
            dropped.add(object_id)
    return kept, dropped


def _with_bases(repo: Repository, needed: set[ObjectId]) -> set[tuple[str, bytes]]:
    """The needed objects and those that their records are coded against."""
    live = {(object_id.KIND, object_id.digest) for object_id in needed}
    pending = list(live)
    while pending:
        kind, digest = pending.pop()
        for item in repo.store.locate(id_class(kind)(digest)):
            if item.base is not None and (kind, item.base) not in live:
                live.add((kind, item.base))
                pending.append((kind, item.base))
    return live


def _choose(packs: dict[str, list[Located]], live: set[tuple[str, bytes]]) -> set[tuple[str, int]]:
    """One record for each range of each live object: places as (pack, offset)."""
    best: dict[tuple[str, bytes, int, int], Located] = {}
    for records in packs.values():
        for item in records:
            if (item.kind, item.digest) not in live:
                continue
            key = (item.kind, item.digest, item.start, item.stop)
            known = best.get(key)
            if known is None or (item.base is not None, item.length, item.pack) < (
                known.base is not None,
                known.length,
                known.pack,
            ):
                best[key] = item
    return {(item.pack, item.offset) for item in best.values()}


def _is_kept(item: Located, chosen: set[tuple[str, int]]) -> bool:
    return (item.pack, item.offset) in chosen


def _dead_share(records: list[Located], chosen: set[tuple[str, int]]) -> float:
    total = sum(item.length for item in records)
    dead = sum(item.length for item in records if not _is_kept(item, chosen))
    return dead / total if total else 0.0


def _rewrite(repo: Repository, records: list[Located], progress: Progress) -> None:
    """Copy live records, as they are, into new packs."""
    session = repo.session()
    progress.start("rewrite", sum(item.length for item in records))
    try:
        for item in sorted(records, key=lambda item: (item.pack, item.offset)):
            progress.check()
            header, payload = repo.store.read(item)
            kind = id_class(item.kind)
            session.append(
                kind(item.digest),
                start=item.start,
                stop=item.stop,
                total=item.total,
                header=header,
                payload=(payload,),
                base=None if item.base is None else kind(item.base),
            )
            progress.advance("rewrite", item.length)
        session.seal()
    except BaseException:
        session.abort()
        raise
    progress.finish("rewrite")


def _swap(repo: Repository, current: VersionedRoot, *, condemned: tuple[str, ...], epoch: int) -> VersionedRoot:
    write_id = os.urandom(16).hex()
    root: Root = msgspec.structs.replace(
        current.root,
        condemned=condemned,
        epoch=epoch,
        write_id=write_id,
        recent=(*current.root.recent, write_id)[-RECENT_WRITES:],
    )
    return repo.roots.swap(current.version, root)


def _tidy(repo: Repository) -> None:
    """Leftovers of commands that were killed, expired rescues, and caches that point at nothing."""
    now = time.time()
    with contextlib.suppress(FileNotFoundError):
        for folder in repo.store.incoming_path.iterdir():
            pid = folder.name.split("-")[1] if folder.name.startswith("tmp-") else ""
            age_s = now - folder.stat().st_mtime
            if age_s > _STALE_INCOMING_S or (pid.isdigit() and not is_alive(int(pid)) and age_s > 60):
                shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        for folder in repo.paths.rescue.iterdir():
            if now - folder.stat().st_mtime > RESCUE_DAYS * 86400:
                shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        for file in repo.paths.contents.iterdir():
            if now - file.stat().st_mtime > RESCUE_DAYS * 86400:
                file.unlink(missing_ok=True)
