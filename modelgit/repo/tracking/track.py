"""`track` and `untrack`: which paths are recorded, written into mgit.toml."""

from __future__ import annotations

import glob
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelgit.config.edit import add_tracked_path, remove_tracked_path
from modelgit.errors import UsageError
from modelgit.formats.layouts import TrackedModel, describe
from modelgit.formats.listing import list_files, matching_pattern
from modelgit.objects.paths import is_within
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.repo.tracking.tree import relative_path
from modelgit.store.durable import write_durably

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["track", "track_training", "untrack"]


def track(repo: Repository, path: str, *, opaque: bool = False) -> TrackedModel:
    """Record `path` from the next commit on; returns what was found there.

    With `opaque`, the file `path` is recorded byte for byte, whatever it holds (it becomes a pattern of
    `track.opaque`); inside of a directory that is tracked already, only that changes.
    Raises CheckpointFormatError for what cannot be recorded (an LFS pointer, a damaged header, a symbolic link).
    """
    relative = relative_path(repo, path)
    with repo.writing():
        settings = repo.settings.track
        patterns = settings.opaque
        if opaque:
            if list_files(repo.worktree, relative).is_directory:
                raise UsageError(
                    f"{relative} is a directory, and only files are recorded byte for byte",
                    hint="name the files, or set a pattern: `mgit config set --shared track.opaque '[\"*.pt\"]'`",
                )
            patterns = (*patterns, glob.escape(relative))
        found = describe(repo.worktree, relative, ignore=settings.left_out, opaque=patterns)
        if opaque and matching_pattern(relative, settings.opaque, directory=False) is None:
            _edit(repo, lambda text: add_tracked_path(text, patterns[-1], key="opaque"))
        if not opaque or not any(is_within(relative, path) for path in settings.paths):
            _edit(repo, lambda text: add_tracked_path(text, relative))
        return found


def track_training(repo: Repository, path: str) -> tuple[str, dict[str, int]]:
    """Record the training state at `path` beside the model from the next commit on.

    Returns the path and the files found, with their sizes.  Raises UsageError when there is nothing at `path`.
    """
    from modelgit.repo.tracking.training import training_files

    relative = relative_path(repo, path)
    with repo.writing():
        list_files(repo.worktree, relative)
        _edit(repo, lambda text: add_tracked_path(text, relative, key="training_state"))
        files = training_files(repo)
        return relative, {name: file.status.st_size for name, file in files.items() if is_within(name, relative)}


def untrack(repo: Repository, path: str) -> str:
    """Stop recording `path`, as a model, as training state, or byte for byte; the files stay where they are.

    A file inside of a tracked directory that was recorded byte for byte is read again from then on.
    Raises UsageError when it is none of these.
    """
    relative = relative_path(repo, path)
    with repo.writing():
        tracked = repo.settings.track
        keys = [key for key in ("paths", "training_state") if relative in getattr(tracked, key)]
        pattern = glob.escape(relative)
        if not keys and pattern not in tracked.opaque:
            known = ", ".join((*tracked.paths, *tracked.training_state)) or "nothing"
            raise UsageError(f"{relative} is not tracked", hint=f"tracked: {known}")
        for key in keys:
            _edit(repo, lambda text, key=key: remove_tracked_path(text, relative, key=key))  # type: ignore[misc]
        if pattern in tracked.opaque:
            _edit(repo, lambda text: remove_tracked_path(text, pattern, key="opaque"))
        return relative


def _edit(repo: Repository, edit: Callable[[str], str]) -> None:
    target = repo.worktree / PROJECT_CONFIG
    text = target.read_text(encoding="utf-8") if target.exists() else ""
    after = edit(text)
    if after != text:
        write_durably(target, after.encode())
    repo.forget_settings()
