"""The weights that a lossy commit left out: kept in the rescue area, file by file, and brought back by `undo`.

A commit of a sparse patch replaces the dense weights in the work tree by what it recorded.  Before that happens they
are copied to `.mgit/rescue/dense-<commit>/`, flushed, and compared with what was read: whatever dies when, they lie
there or still in the work tree.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.formats.listing import matching_pattern
from modelgit.objects import CommitId, ContentId, Manifest, Operation
from modelgit.objects.manifest import content_id
from modelgit.patching.jobs import SourceChangedError
from modelgit.repo.tracking.tree import hash_changed
from modelgit.repo.tracking.update import files_at, rescue
from modelgit.store.durable import make_directory, publish, sync_directory, temporary_name
from modelgit.worktree.content import hash_file
from modelgit.worktree.copying import copy_file

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "bring_back_dense",
    "dense_in_tree",
    "digest_of_copy",
    "keep_dense",
    "kept_dense",
    "put_back",
]


def _dense_folder(repo: Repository, commit: CommitId) -> Path:
    """Where the dense weights of a lossy commit are kept, if they still are."""
    return repo.paths.rescue / f"dense-{commit.hex[:16]}"


def keep_dense(repo: Repository, commit: CommitId, files: Mapping[str, ContentId]) -> Path:
    """Copy weights files of the work tree, which hold `files`, to the rescue area; returns the directory.

    Raises SourceChangedError when one is something else by now, RepositoryError when the disk refuses.
    """
    folder = _dense_folder(repo, commit)
    if folder.exists():  # of an attempt at the very same commit that was killed before it was made
        shutil.rmtree(folder)
    for path, digest in files.items():
        copy = Path(rescue(repo, path, under=folder.name))
        if digest_of_copy(repo, copy, path) != digest:
            raise SourceChangedError(
                f"{path} changed while it was being committed",
                hint="wait until nothing writes the file, then run `mgit commit` again",
            )
        for parent in copy.parents:  # the names of new directories, up to the rescue area's own
            sync_directory(parent)
            if parent == repo.paths.directory:
                break
    return folder


def kept_dense(repo: Repository, undone: Operation) -> dict[str, Path]:
    """The dense weights that the last commit of an operation left out, by path; empty when there are none."""
    commit = undone.view.head
    if commit is None or not undone.moves_files or repo.patch_of(commit).exact:
        return {}
    folder = _dense_folder(repo, commit)
    if not folder.is_dir():
        return {}
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def dense_in_tree(repo: Repository, files: Mapping[str, Path]) -> dict[str, ContentId]:
    """Those of the kept files that the work tree holds too, by path, with what they hold."""
    now, _ = hash_changed(repo, files_at(repo, set(files)))
    return {
        path: now[path] for path, file in files.items() if path in now and now[path] == digest_of_copy(repo, file, path)
    }


def bring_back_dense(repo: Repository, recorded: Manifest, files: Mapping[str, Path]) -> None:
    """Put dense weights back in place of the patched ones of `recorded`, bit for bit.  It can be done again.

    Raises RepositoryError when a file in the work tree holds neither of the two: that would be lost.
    """
    wanted = {path: digest_of_copy(repo, file, path) for path, file in files.items()}
    now, _ = hash_changed(repo, files_at(repo, set(files)))
    digests = {entry.path: entry.digest for entry in recorded.files}
    for path in files:
        if path in now and now[path] not in (digests.get(path), wanted[path]):
            raise RepositoryError(
                f"{path} has changes that undoing would overwrite", hint="`mgit commit -m …` or `mgit restore .` first"
            )
    for path, file in files.items():
        if now.get(path) != wanted[path]:
            put_back(repo, file, path)


def put_back(repo: Repository, file: Path, path: str) -> None:
    """Copy a kept file over `path` of the work tree, all of it or nothing."""
    target = repo.worktree / path
    temporary = target.with_name(f".{target.name[:80]}.{temporary_name()}")
    try:
        make_directory(target.parent)
        copy_file(file, temporary)
        status = file.stat()
        if os.name == "posix":
            temporary.chmod(status.st_mode & 0o777)
        publish(temporary, target)
    except OSError as error:
        raise RepositoryError(f"cannot write {target}: {error.strerror or error}", hint="free some space") from error
    finally:
        temporary.unlink(missing_ok=True)
    repo.index.forget(path)


def digest_of_copy(repo: Repository, file: Path, path: str) -> ContentId:
    """The id of what `file` holds, read as the content of `path` in the work tree."""
    opaque = matching_pattern(path, repo.settings.track.opaque, directory=False) is not None
    try:
        return content_id(hash_file(file, shown=path, threads=repo.threads, opaque=opaque)[0])
    except OSError as error:
        raise IntegrityError(f"{file} cannot be read: {error.strerror or error}") from error
