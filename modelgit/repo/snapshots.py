"""Snapshots: a directory with the files of a model at a revision, for programs that load one.

Locally it lies in the repository's cache, for a remote in the user's; either way it is read-only, is built once for a
manifest, and is used again without being read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.environment import Environment
from modelgit.errors import MgitError, UsageError
from modelgit.formats.detect import is_same_stat
from modelgit.objects import Commit, CommitId, ContentId, FileContent, Manifest, ModelEntry, View
from modelgit.objects.paths import is_within
from modelgit.patching.materialise import TensorReader
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import find_model
from modelgit.repo.layout import METADATA
from modelgit.repo.revisions import resolve
from modelgit.store.metadata import read_record
from modelgit.worktree.checkout import resolve_path
from modelgit.worktree.copying import copy_file
from modelgit.worktree.snapshots import SnapshotCache, SnapshotSource, Wanted

if TYPE_CHECKING:
    from modelgit.patching.leaves import VerifiedReads
    from modelgit.remotes.base import Transport
    from modelgit.repo.repository import Repository
    from modelgit.store.base import ObjectStore

__all__ = ["open_snapshot", "snapshot", "split_revision"]


def snapshot(
    repo: Repository, revision: str = "HEAD", *, model: str | None = None, progress: Progress = SILENT
) -> Path:
    """The directory of a model at a revision, made if it is not there yet.

    Files come from other snapshots (as links), from the work tree where it holds them unchanged (blocks are shared
    where the file system can), or from the store.  Raises UsageError when `model` leaves a question.
    """
    manifest_id = repo.commit_at(repo.resolve(revision)).manifest
    manifest = repo.manifest_at(manifest_id)
    entry = find_model(manifest, model)
    cache = SnapshotCache(repo.paths.snapshots)
    found = cache.find(manifest_id, entry.path)
    if found is not None:
        return found
    places = {item.digest: item.path for item in manifest.files}
    reader = repo.reader()
    source = SnapshotSource(
        content=repo.content_at,
        reads=lambda _: reader,
        copy=lambda digest, target: _copy_unchanged(repo, places[digest], digest, target),
    )
    files = _files(manifest, entry)
    return cache.build(
        manifest_id, entry.path, files, source, name=_name(entry), threads=repo.threads, progress=progress
    )


def open_snapshot(
    source: str | os.PathLike[str],
    *,
    model: str | None = None,
    environment: Environment | None = None,
    progress: Progress = SILENT,
) -> Path:
    """The directory of a model of a repository or remote, `PATH@REVISION` or `URL@REVISION` (its HEAD without one).

    What comes from a remote is checked against its ids, every byte, and kept in the user's cache.  Raises UsageError or
    UnknownRevision for what is not there, RemoteError and IntegrityError for what cannot be had.
    """
    from modelgit.remotes.base import open_transport

    environment = environment or Environment.capture()
    url, revision = split_revision(os.fspath(source), environment.cwd)
    if "://" not in url and (environment.cwd / url / METADATA / "format").is_file():
        from modelgit.repo.repository import Repository

        with Repository.open(url, environment=environment) as repo:
            return snapshot(repo, revision, model=model, progress=progress)
    transport = open_transport(url, environment=environment, relative_to=environment.cwd)
    try:
        return _remote_snapshot(transport, revision, model, environment, progress)
    finally:
        transport.close()


def split_revision(text: str, directory: Path) -> tuple[str, str]:
    """The place and the revision (HEAD if none is named) of `PLACE@REVISION`.

    The `@` of `user@host` is none of these, and neither is one in the name of a directory that exists.
    """
    scheme, separator, rest = text.partition("://")
    start = len(scheme) + len(separator) + rest.find("/") if separator else 0
    marks = [at for at in range(start, len(text)) if text[at] == "@" and at > 0]
    if not marks or (not separator and (directory / text).is_dir()):
        return text, "HEAD"
    if separator:
        return text[: marks[-1]], text[marks[-1] + 1 :] or "HEAD"
    at = next((at for at in marks if (directory / text[:at]).is_dir()), marks[-1])
    return text[:at], text[at + 1 :] or "HEAD"


class _RemoteCommits:
    """What finding a revision needs of a remote."""

    def __init__(self, view: View, store: ObjectStore) -> None:
        self._view = view
        self.store = store

    def view(self) -> View:
        return self._view

    def parents_of(self, commit: CommitId) -> Sequence[CommitId]:
        return read_record(self.store, commit, Commit).parents


def _remote_snapshot(
    transport: Transport, revision: str, model: str | None, environment: Environment, progress: Progress
) -> Path:
    from modelgit.remotes.reading import CombinedStore

    root = transport.root()
    store = CombinedStore(None, transport, far_name=transport.url)
    commit = resolve(_RemoteCommits(root.view, store), revision)
    manifest_id = read_record(store, commit, Commit).manifest
    manifest = read_record(store, manifest_id, Manifest)
    entry = find_model(manifest, model)
    cache = SnapshotCache(environment.cache_directory / "snapshots")
    found = cache.find(manifest_id, entry.path)
    if found is not None:
        return found
    reader = TensorReader(store)

    def reads(content: FileContent) -> VerifiedReads:
        return reader.verifying({item.id: item.spec for item in content.tensors})

    source = SnapshotSource(
        content=lambda digest: read_record(store, digest, FileContent), reads=reads, copy=lambda *_: False
    )
    files = _files(manifest, entry)
    threads = min(8, os.cpu_count() or 1)
    made = cache.build(manifest_id, entry.path, files, source, name=_name(entry), threads=threads, progress=progress)
    cache.tidy()  # nothing else looks after the user's cache
    return made


def _files(manifest: Manifest, model: ModelEntry) -> list[Wanted]:
    """The files of a model: all below its directory, or the one that it is."""
    whole = [entry for entry in manifest.files if entry.path == model.path]
    prefix = "" if model.path == "." else model.path + "/"
    chosen = whole or [entry for entry in manifest.files if is_within(entry.path, model.path)]
    cut = len(model.path) - len(_last(model.path)) if whole else len(prefix)
    if not chosen:
        raise UsageError(f"model {model.path} has no files in this commit")
    return [Wanted(entry.path[cut:], entry.size, entry.digest, entry.executable) for entry in chosen]


def _name(model: ModelEntry) -> str:
    return "model" if model.path == "." else _last(model.path)


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _copy_unchanged(repo: Repository, path: str, digest: ContentId, target: Path) -> bool:
    """Copy a file of the work tree that is known to hold `digest`; False, and nothing made, when it is not."""
    try:
        place = resolve_path(repo.worktree, path)
        before = place.lstat()
        if not stat.S_ISREG(before.st_mode) or repo.index.lookup(path, before) != digest:
            return False
        copy_file(place, target)
        after = place.lstat()
    except (OSError, MgitError):
        with contextlib.suppress(OSError):
            target.unlink()
        return False
    same = is_same_stat(before, after)
    if not same:  # it was written while it was copied
        target.unlink()
    return same
