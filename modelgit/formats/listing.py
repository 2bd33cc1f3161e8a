"""Which files lie under a tracked path: ignore patterns applied, symbolic links never followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from modelgit.errors import CheckpointFormatError, UsageError
from modelgit.objects.paths import find_twins, path_problem

__all__ = ["Listing", "list_files", "matching_pattern"]

_HIDDEN = frozenset({".mgit", ".git"})


class Listing(NamedTuple):
    """What lies under one tracked path; all paths are relative to the repository root, with forward slashes, sorted.

    `ignored` holds files and (with a trailing slash) directories that a pattern left out, `patterns` the patterns
    that did so, in the user's order; `links` are symbolic links and `special` devices, sockets and FIFOs: neither is
    ever recorded.
    """

    path: str
    is_directory: bool
    files: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    special: tuple[str, ...] = ()


def matching_pattern(path: str, patterns: Sequence[str], *, directory: bool) -> str | None:
    """The first pattern that leaves `path` out, or None.

    A pattern is a shell glob, case-sensitive, tried on the last component and on the whole path; with a trailing
    slash it is for directories only.
    """
    name = path.rpartition("/")[2]
    for pattern in patterns:
        glob = pattern.rstrip("/")
        if (directory or glob == pattern) and (fnmatchcase(name, glob) or fnmatchcase(path, glob)):
            return pattern
    return None


def _check(path: str) -> None:
    problem = path_problem(path)
    if problem is not None:
        raise CheckpointFormatError(
            f"{path!a} cannot be recorded: {problem} does not work on every file system",
            hint="rename it, or add it to `ignore` under [track] in mgit.toml",
        )


def _status_of(root: Path, relative: str) -> os.stat_result:
    """`lstat` of the tracked path, after every directory on the way proved to be no symbolic link."""
    place = root
    status = root.stat()
    for component in () if relative == "." else relative.split("/"):
        place /= component
        try:
            status = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"there is nothing at {relative}") from None
        if stat.S_ISLNK(status.st_mode):
            shown = place.relative_to(root).as_posix()
            raise CheckpointFormatError(
                f"{shown} is a symbolic link, which is not followed",
                hint=f"`cp -rL` puts a copy at {shown}, or track what it points to",
            )
    return status


def list_files(root: Path, relative: str, *, ignore: Sequence[str] = ()) -> Listing:
    """List what lies at `relative` (a path with forward slashes, or `.`) under the repository root `root`.

    `.mgit` and `.git` are passed over wherever they are; an ignore pattern does not apply to `relative` itself.
    Raises UsageError when there is nothing, or outside the repository; CheckpointFormatError for symbolic links on
    the way and for names that not every file system can hold.
    """
    problem = None if relative == "." else path_problem(relative)
    if problem is not None:
        raise UsageError(f"{relative!a} cannot be tracked: {problem}")
    status = _status_of(root, relative)
    if stat.S_ISREG(status.st_mode):
        return Listing(relative, False, (relative,))
    if not stat.S_ISDIR(status.st_mode):
        raise CheckpointFormatError(f"{relative} is neither a file nor a directory")
    files: list[str] = []
    ignored: list[str] = []
    links: list[str] = []
    special: list[str] = []
    used: set[str] = set()
    pending = ["" if relative == "." else relative + "/"]
    while pending:
        prefix = pending.pop()
        try:
            entries = list(os.scandir(root / prefix))
        except OSError as error:
            raise CheckpointFormatError(f"{prefix or '.'} cannot be listed: {error.strerror or error}") from error
        for entry in entries:
            if entry.name in _HIDDEN:
                continue
            path = prefix + entry.name
            is_link = entry.is_symlink()
            is_directory = not is_link and entry.is_dir(follow_symlinks=False)
            pattern = matching_pattern(path, ignore, directory=is_directory)
            if pattern is not None:
                used.add(pattern)
                ignored.append(path + "/" * is_directory)
            elif is_link:
                links.append(path)
            elif is_directory:
                pending.append(path + "/")
            elif entry.is_file(follow_symlinks=False):
                files.append(path)
            else:
                special.append(path)
    files.sort()
    for path in files:
        _check(path)
    twins = find_twins(files)
    if twins is not None:
        raise CheckpointFormatError(
            f"{twins[0]!a} and {twins[1]!a} are one name on file systems that ignore case or Unicode form",
            hint="rename one of them",
        )
    return Listing(
        relative,
        True,
        tuple(files),
        tuple(sorted(ignored)),
        tuple(pattern for pattern in dict.fromkeys(ignore) if pattern in used),
        tuple(sorted(links)),
        tuple(sorted(special)),
    )
