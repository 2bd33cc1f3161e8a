"""Putting a manifest's files into the work tree: beside the target, flushed, renamed; the others stay as they are."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import RepositoryError
from modelgit.objects import ContentId, FileContent, FileEntry
from modelgit.objects.paths import check_tree
from modelgit.patching.base import TensorReads
from modelgit.progress import SILENT, Progress
from modelgit.store.durable import sync_directory, temporary_name
from modelgit.worktree.index import StatIndex

if TYPE_CHECKING:
    from modelgit.worktree.rebuild import Predecessor

__all__ = ["find_regular", "obstacles", "remove_file", "resolve_path", "write_files"]

_NAME_KEPT = 80  # characters of a target's name that its temporary file has, too
_LEFTOVER = re.compile(r"\.(.+)\.tmp-[0-9]+-[0-9a-f]{12}\Z", re.DOTALL)


def resolve_path(root: Path, relative: str) -> Path:
    """`root / relative` after making sure that no directory on the way is a symbolic link.

    A hostile commit, or somebody at the same time, could otherwise have us write outside of the work tree.
    """
    current = root
    parts = relative.split("/")
    for part in parts[:-1]:
        current = current / part
        try:
            mode = current.lstat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a directory"
            raise RepositoryError(f"{current} is {kind}", hint=f"move it away: `mv {current} {current}.old`")
    target = root.joinpath(*parts)
    with contextlib.suppress(FileNotFoundError):
        mode = target.lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
            raise RepositoryError(f"{target} is {kind}", hint=f"move it away: `mv {target} {target}.old`")
    return target


def find_regular(root: Path, relative: str) -> os.stat_result | None:
    """The stat of the regular file at `root / relative`; None when there is none, or only behind a symbolic link."""
    current = root
    *folders, _ = parts = relative.split("/")
    status = None
    for depth, part in enumerate(parts):
        current = current / part
        try:
            status = current.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if depth < len(folders) and not stat.S_ISDIR(status.st_mode):
            return None
    return status if status is not None and stat.S_ISREG(status.st_mode) else None


def obstacles(root: Path, relative: str, leaving: Container[str]) -> list[str]:
    """What must go before a file can be written at `root / relative`, besides the files in `leaving`.

    A file where a directory is needed, or what lies in a directory where the file is needed: files, links and empty
    directories (with a trailing slash).  Raises RepositoryError for symbolic links and devices on the way.
    """
    parts = relative.split("/")
    for depth in range(1, len(parts)):
        above = "/".join(parts[:depth])
        if find_regular(root, above) is not None:
            return [] if above in leaving else [above]
    target = root.joinpath(*parts)
    if target.is_symlink() or not target.is_dir():
        resolve_path(root, relative)
        return []
    found: list[str] = []
    for folder, folders, names in os.walk(target):
        here = Path(folder).relative_to(root).as_posix()
        links = [name for name in folders if Path(folder, name).is_symlink()]
        found += [path for name in (*names, *links) if (path := f"{here}/{name}") not in leaving]
        if not folders and not names:
            found.append(f"{here}/")
    return sorted(found)


def write_files(
    root: Path,
    entries: list[FileEntry],
    content_of: Callable[[FileEntry], FileContent],
    reader: TensorReads,
    index: StatIndex,
    *,
    threads: int,
    known: Callable[[ContentId], FileContent | None] = lambda _: None,
    progress: Progress = SILENT,
) -> None:
    """Write every entry below `root`, each by an atomic rename; the caller is the only writer.

    `known` gives the content record of a file that is replaced, so that what stays the same in it can be copied.

    What a killed process left beside a target is removed first: it would look like a new file of the user.
    Raises IntegrityError for a path that is not safe to write.
    """
    check_tree([entry.path for entry in entries])
    _remove_leftovers(root, entries)
    if entries:  # what needs arrays is not loaded for a switch that writes nothing
        from modelgit.worktree.rebuild import write_content
    progress.start("checkout", sum(entry.size for entry in entries))
    for entry in entries:
        target = resolve_path(root, entry.path)
        temporary = target.with_name(f".{target.name[:_NAME_KEPT]}.{temporary_name()}")
        try:
            _make_directories(root, target.parent)
            write_content(
                reader,
                content_of(entry),
                entry.size,
                temporary,
                threads=threads,
                progress=progress,
                executable=entry.executable,
                predecessor=_predecessor(target, entry.path, index, known),
            )
            os.replace(temporary, target)
        except OSError as error:
            raise RepositoryError(
                f"cannot write {target}: {error.strerror or error}",
                hint="free some space; the next mgit command finishes what was begun",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        sync_directory(target.parent)
        index.remember(entry.path, target.stat(), entry.digest)
    progress.finish("checkout")


def _predecessor(
    target: Path, path: str, index: StatIndex, known: Callable[[ContentId], FileContent | None]
) -> Predecessor | None:
    try:
        status = target.lstat()
    except OSError:
        return None
    digest = index.lookup(path, status) if stat.S_ISREG(status.st_mode) else None
    content = None if digest is None else known(digest)
    if content is None:
        return None
    from modelgit.worktree.rebuild import Predecessor

    return Predecessor(target, content, status)


def _remove_leftovers(root: Path, entries: list[FileEntry]) -> None:
    names: dict[Path, set[str]] = {}
    for entry in entries:
        target = resolve_path(root, entry.path)
        names.setdefault(target.parent, set()).add(target.name[:_NAME_KEPT])
    for folder, kept in names.items():
        with contextlib.suppress(OSError), os.scandir(folder) as found:
            for item in found:
                match = _LEFTOVER.match(item.name)
                if match is not None and match.group(1) in kept and item.is_file(follow_symlinks=False):
                    Path(item.path).unlink()


def remove_file(root: Path, relative: str, index: StatIndex) -> None:
    """Remove a file and the directories that it leaves empty."""
    target = resolve_path(root, relative)
    try:
        target.unlink(missing_ok=True)
    except OSError as error:
        raise RepositoryError(
            f"cannot remove {target}: {error.strerror or error}",
            hint="the next mgit command finishes what was begun",
        ) from error
    if target.parent.is_dir():
        sync_directory(target.parent)
    index.forget(relative)
    parent = target.parent
    while parent != root:
        try:
            parent.rmdir()
        except OSError:
            return
        parent = parent.parent


def _make_directories(root: Path, directory: Path) -> None:
    missing = []
    while directory != root and not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)
