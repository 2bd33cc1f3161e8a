"""The work tree as the settings see it: which files are recorded, and which changed since `stat` last looked."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import IntegrityError, UsageError
from modelgit.formats.listing import list_files, matching_pattern
from modelgit.objects import ContentId, FileContent, decode, encode
from modelgit.objects.manifest import content_id
from modelgit.progress import SILENT, Progress
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.store.durable import write_cache_file
from modelgit.worktree.content import hash_file

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["ALWAYS_RECORDED", "WorkFile", "content_of", "hash_changed", "look_at", "relative_path", "work_files"]

ALWAYS_RECORDED = (PROJECT_CONFIG, "evals", "allowed_signers")


class WorkFile(NamedTuple):
    """A file of the work tree: its stat, and its content if the stat cache vouches for it.

    `opaque` says that a pattern wants it recorded byte for byte; `place` is where it lies if not in the work tree.
    """

    path: str
    status: os.stat_result
    known: ContentId | None
    opaque: bool = False
    place: Path | None = None

    @property
    def executable(self) -> bool | None:
        """Whether its owner may run it; None where files have no such bit."""
        return bool(self.status.st_mode & 0o100) if os.name == "posix" else None


def relative_path(repo: Repository, path: str) -> str:
    """`path`, as typed in the current directory, relative to the repository root with forward slashes.

    Raises UsageError for a path outside of the repository.
    """
    joined = os.path.normpath(repo.environment.cwd / path)
    relative = os.path.relpath(joined, repo.worktree)
    parts = relative.replace(os.sep, "/")
    if parts == ".." or parts.startswith("../") or Path(relative).is_absolute():
        raise UsageError(f"{path} lies outside of the repository {repo.worktree}", hint="move or copy it inside")
    return parts


def content_of(repo: Repository, digest: ContentId) -> FileContent | None:
    """The content record of a file that was recorded, or hashed by an earlier command; None when it is forgotten."""
    if repo.store.has(digest):
        return repo.content_at(digest)
    try:
        data = (repo.paths.contents / digest.hex).read_bytes()
        return decode(FileContent, data) if ContentId.of(data) == digest else None
    except (OSError, IntegrityError):
        return None


def _keep(repo: Repository, digest: ContentId, content: FileContent) -> None:
    """Remember what was read, so that the next `status` need not read the file again to say which tensors changed."""
    if not content.tensors or repo.store.has(digest):
        return
    write_cache_file(repo.paths.contents / digest.hex, encode(content))


def work_files(repo: Repository) -> dict[str, WorkFile]:
    """Every file that a commit would record now, by path.  Reads directories and stats, no file contents."""
    root = repo.worktree
    settings = repo.settings.track
    found: dict[str, WorkFile] = {}
    for tracked in (*ALWAYS_RECORDED, *settings.paths):
        try:
            listing = list_files(root, tracked, ignore=settings.left_out)
        except UsageError:
            continue  # a tracked path that is gone shows up as deleted files
        for path in listing.files:
            if path not in found:
                found[path] = look_at(repo, path)
    return dict(sorted(found.items()))


def look_at(repo: Repository, path: str) -> WorkFile:
    """A file of the work tree as the settings and the stat cache see it."""
    status = (repo.worktree / path).stat(follow_symlinks=False)
    opaque = matching_pattern(path, repo.settings.track.opaque, directory=False) is not None
    return WorkFile(path, status, repo.index.lookup(path, status), opaque)


def hash_changed(
    repo: Repository, files: dict[str, WorkFile], *, progress: Progress = SILENT
) -> tuple[dict[str, ContentId], dict[str, FileContent]]:
    """The content id of every file; files whose stat is not vouched for are read.

    Returns (ids by path, contents of the files that were read).
    """
    ids: dict[str, ContentId] = {}
    read: dict[str, FileContent] = {}
    unknown = [file for file in files.values() if file.known is None]
    progress.start("hash", sum(file.status.st_size for file in unknown))
    for file in files.values():
        if file.known is not None:
            ids[file.path] = file.known
            continue
        seen_ns = time.time_ns()
        content, status = hash_file(
            repo.worktree / file.path, shown=file.path, threads=repo.threads, opaque=file.opaque, progress=progress
        )
        digest = content_id(content)
        repo.index.remember(file.path, status, digest, seen_ns=seen_ns)
        _keep(repo, digest, content)
        ids[file.path] = digest
        read[file.path] = content
        progress.advance("hash", status.st_size)
    progress.finish("hash")
    return ids, read
