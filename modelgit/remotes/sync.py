"""Push and fetch: the records that the other side lacks, children before parents, and the refs last.

A failure at any point leaves the receiving side as it was, plus at worst packs that nothing refers to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from modelgit.errors import ConflictError, IntegrityError, MgitError, RemoteError
from modelgit.objects import BlobId, Commit, CommitId, KeptNote, ObjectId, Pruning, TensorId
from modelgit.objects.graph import ancestors
from modelgit.patching.foreign import Relied, settle
from modelgit.patching.materialise import TensorReader
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import Needed, RefUpdate, RemoteRoot, Transport, Upload
from modelgit.remotes.closure import closure, new_commits, weights_of
from modelgit.remotes.notes import needed_by_notes
from modelgit.remotes.reading import CombinedStore
from modelgit.remotes.receive import copy_records, verify_objects
from modelgit.remotes.selection import batches, select_records
from modelgit.remotes.updates import allowed_updates, contains_commit
from modelgit.store.base import ObjectStore
from modelgit.store.fs import FileSystemStore
from modelgit.store.metadata import read_record
from modelgit.store.session import PackSession

__all__ = ["FetchResult", "Guard", "PushResult", "fetch", "push"]

Guard = Callable[[RemoteRoot, Sequence[RefUpdate]], None]
"""Raises when moves (each with the ref's present place as `expected`) may not be made."""

_TRIES = 16


class PushResult(NamedTuple):
    """What a push did: the refs that moved (`expected` is where they were), and what was sent."""

    updates: tuple[RefUpdate, ...]
    commits: int
    objects: int
    bytes_sent: int
    notes: tuple[KeptNote, ...] = ()


class FetchResult(NamedTuple):
    """What a fetch brought: `commits` are new here, parents first.

    `session` is sealed; publish the view that refers to the commits with it, and `prunings`, which list those that come
    without their weights.
    """

    session: PackSession
    commits: tuple[CommitId, ...]
    objects: int
    bytes_received: int
    prunings: tuple[Pruning, ...] = ()


class _Sent(NamedTuple):
    commits: int = 0
    objects: int = 0
    size: int = 0


def push(
    local: FileSystemStore,
    transport: Transport,
    updates: Sequence[RefUpdate],
    *,
    author: str,
    remote: str = "origin",
    branch: str = "main",
    prunings: Sequence[Pruning] = (),
    notes: Sequence[KeptNote] = (),
    guard: Guard | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> PushResult:
    """Move refs of a remote, all or none, after sending what their commits need.

    A remote that does not exist yet is made, with `branch` as its default.  `remote` is what messages call it.
    `prunings` list the commits that are here without their weights: they are sent so, and listed there as well.
    Those of `notes` that the remote does not list go along, and are listed in the step that moves the refs.  `guard`
    is asked about the moves before anything is sent, each time anew when the remote has changed meanwhile.
    Raises RemoteError when a move is refused or the remote fails, IntegrityError when an object to send is missing or
    damaged.
    """
    transport.create(branch=branch, author=author)
    store = CombinedStore(local, transport, far_name=remote)
    sent = _Sent()
    for _ in range(_TRIES):
        state = transport.root()
        moves = allowed_updates(updates, state, store, local, remote=remote)
        there = {item.id for item in transport.statistics(state).notes} if notes else set()
        fresh = [msgspec.structs.replace(item, origin=author) for item in notes if item.id not in there]
        if not moves and not fresh:
            break
        if guard is not None:
            guard(state, moves)
        upload, more, bare = _send(local, transport, moves, state, prunings, fresh, threads=threads, progress=progress)
        sent = _Sent(max(sent.commits, more.commits), sent.objects + more.objects, sent.size + more.size)
        try:
            transport.swap(moves, upload=upload, description="push", author=author, prunings=bare, notes=fresh)
        except (ConflictError, RemoteError) as error:
            # The answer may be lost although the root moved: only the root can tell.
            if not _landed(transport, store, moves, fresh):
                if isinstance(error, ConflictError):
                    continue
                raise
        return PushResult(tuple(moves), *sent, tuple(fresh))
    else:
        raise ConflictError(f"{remote} is being changed too often to get a word in", hint="run `mgit push` again")
    return PushResult((), *sent)


def _send(
    local: FileSystemStore,
    transport: Transport,
    moves: Sequence[RefUpdate],
    state: RemoteRoot,
    prunings: Sequence[Pruning],
    notes: Sequence[KeptNote],
    *,
    threads: int,
    progress: Progress,
) -> tuple[Upload | None, _Sent, tuple[Pruning, ...]]:
    tips = [move.new for move in moves if move.new is not None]
    if not tips and not notes:
        return None, _Sent(), ()
    upload = transport.send(epoch=state.epoch)

    def missing(ids: Collection[ObjectId]) -> set[ObjectId]:
        return transport.missing(ids, upload=upload)

    try:
        shared = {commit for commit in state.view.refs.values() if local.has(commit)}
        stop = set(ancestors(shared - missing(shared), lambda commit: read_record(local, commit, Commit).parents))
        commits = new_commits(local, tips, stop=stop)
        missing([parent for commit in commits.values() for parent in commit.parents if parent in stop])
        wanted: list[Needed] = []
        for batch in batches(closure(local, commits, pruned=_pruned(prunings) | _pruned(state.prunings))):
            progress.check()
            absent = missing([item.id for item in batch])
            wanted += [item for item in batch if item.id in absent]
        noted = {item.id: item for item in needed_by_notes(local, notes)}
        absent = missing(list(noted))
        wanted += [item for item in noted.values() if item.id in absent]
        selection = select_records(
            lambda ids: {object_id: local.portable(object_id) for object_id in ids},
            list({item.id: item for item in wanted}.values()),
            missing,
            where="this repository",
            lacking=IntegrityError,
        )
        size = copy_records(local.read_part, selection.records, upload, task="send", progress=progress)
        bare = _bare(prunings, commits, local, missing)
        upload.finish(selection.items, threads=threads, progress=progress)
    except BaseException:
        with contextlib.suppress(MgitError):
            upload.abort()
        raise
    return upload, _Sent(len(commits), len(selection.items), size), bare


def _pruned(prunings: Iterable[Pruning]) -> set[CommitId]:
    return {commit for item in prunings for commit in item.commits}


def _bare(
    prunings: Iterable[Pruning],
    commits: Mapping[CommitId, Commit],
    store: ObjectStore,
    missing: Callable[[Collection[ObjectId]], set[ObjectId]],
) -> tuple[Pruning, ...]:
    """The prunings of those `commits` that the receiver has not got whole.

    It may have weights that the sender pruned, under refs that the sender knows nothing of: these are not pruned there.
    """
    found = []
    for item in prunings:
        bare = tuple(
            commit
            for commit in item.commits
            if commit in commits and any(map(missing, batches(sorted(weights_of(store, commits[commit])))))
        )
        if bare:
            found.append(Pruning(family=item.family, time_ms=item.time_ms, commits=bare))
    return tuple(found)


def _landed(transport: Transport, store: CombinedStore, moves: Sequence[RefUpdate], notes: Sequence[KeptNote]) -> bool:
    """Whether the refs are where the push wanted them, or where somebody took them from there, and notes are listed."""
    try:
        state = transport.root()
        listed = {item.id for item in transport.statistics(state).notes} if notes else set()
    except (RemoteError, IntegrityError):
        return False
    if not all(item.id in listed for item in notes):
        return False
    refs = state.view.refs
    for move in moves:
        there = refs.get(move.name)
        forward = move.new is not None and not move.force and contains_commit(store, there, move.new)
        if there != move.new and not forward:
            return False
    return True


def fetch(
    session: PackSession,
    transport: Transport,
    wanted: Iterable[CommitId],
    *,
    have: Iterable[CommitId],
    pruned: Collection[CommitId] = (),
    prunings: Sequence[Pruning] = (),
    remote: str = "origin",
    threads: int = 1,
    progress: Progress = SILENT,
) -> FetchResult:
    """Bring the commits `wanted`, and what they need, into `session`, and seal it.

    `have` are the commits that local refs name: what they reach is taken to be here, but for the
    weights of those that are `pruned`; `prunings` are
    the remote's, which has no weights for them.  Every object is checked against
    its id before it becomes visible.  Raises RemoteError when the remote fails or lacks an object, IntegrityError when
    it sends something else than what was asked for; nothing is kept then.
    """
    store = CombinedStore(session, transport, far_name=remote)

    def missing(ids: Collection[ObjectId]) -> set[ObjectId]:
        return {object_id for object_id in ids if not session.has(object_id)}

    try:
        shared = set(have)
        stop = set(ancestors(shared, lambda commit: read_record(session, commit, Commit).parents))
        session.relied_on |= shared
        session.borrows = "any"
        try:
            commits = new_commits(store, wanted, stop=stop)
            needed: list[Needed] = []
            found: list[Relied] = []
            for item in closure(store, commits, pruned={*pruned, *_pruned(prunings)}):
                if not session.has(item.id):
                    needed.append(item)
                elif item.id in session.unchecked and isinstance(item.id, TensorId | BlobId):
                    found.append(Relied(item.id, item.spec, item.name, item.size))
        except IntegrityError as error:
            raise IntegrityError(
                f"refuses what {remote} sent: {error.message}",
                hint=f"`mgit fsck` in {remote} shows what is damaged; nothing was recorded",
            ) from error
        settle(session, TensorReader, found)
        session.borrows = "checked"
        selection = select_records(
            transport.locate,
            needed,
            missing,
            where=remote,
            lacking=RemoteError,
        )
        size = copy_records(transport.fetch, selection.records, session, task="receive", progress=progress)
        bare = _bare(prunings, commits, store, missing)
        verify_objects(session, selection.items, threads=threads, where=remote, progress=progress)
        session.seal()
    except BaseException:
        with contextlib.suppress(MgitError):
            session.abort()
        raise
    return FetchResult(session, tuple(commits), len(selection.items), size, bare)
