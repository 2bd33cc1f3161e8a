"""`track` and `untrack`: which paths are recorded, written into mgit.toml."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.config.edit import add_tracked_path, remove_tracked_path
from modelgit.errors import UsageError
from modelgit.formats.layouts import TrackedModel, describe
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.store.durable import write_durably

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["relative_path", "track", "untrack"]


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


def track(repo: Repository, path: str) -> TrackedModel:
    """Record `path` from the next commit on; returns what was found there.

    Raises CheckpointFormatError for what cannot be recorded (an LFS pointer, a damaged header, a symbolic link).
    """
    relative = relative_path(repo, path)
    with repo.writing():
        found = describe(repo.worktree, relative, ignore=repo.settings.track.ignore)
        _edit(repo, lambda text: add_tracked_path(text, relative))
        return found


def untrack(repo: Repository, path: str) -> str:
    """Stop recording `path`; the files stay where they are.  Raises UsageError when it is not tracked."""
    relative = relative_path(repo, path)
    with repo.writing():
        if relative not in repo.settings.track.paths:
            raise UsageError(
                f"{relative} is not tracked", hint="tracked: " + (", ".join(repo.settings.track.paths) or "nothing")
            )
        _edit(repo, lambda text: remove_tracked_path(text, relative))
        return relative


def _edit(repo: Repository, edit: Callable[[str], str]) -> None:
    target = repo.worktree / PROJECT_CONFIG
    text = target.read_text(encoding="utf-8") if target.exists() else ""
    after = edit(text)
    if after != text:
        write_durably(target, after.encode())
    repo.forget_settings()
