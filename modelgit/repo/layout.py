"""Where things lie in a repository directory."""

from __future__ import annotations

from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.store.root import FORMAT_LINE

__all__ = ["METADATA", "PROJECT_CONFIG", "RepositoryPaths", "discover"]

METADATA = ".mgit"
PROJECT_CONFIG = "mgit.toml"


class RepositoryPaths:
    """Paths below `directory` (`.mgit`, or the directory itself for a bare repository)."""

    def __init__(self, directory: Path, *, worktree: Path | None) -> None:
        self.directory = directory
        self.worktree = worktree
        self.format = directory / "format"
        self.config = directory / "config.toml"
        self.cache = directory / "cache"
        self.lookup = self.cache / "packs"
        self.predictions = self.cache / "predictions"
        self.activations = self.cache / "activations"
        self.contents = self.cache / "contents"
        self.repacked = self.cache / "repacked"
        self.passes = self.cache / "passes"
        self.snapshots = self.cache / "snapshots"
        self.weights = self.cache / "weights"
        self.signatures = self.cache / "signatures"
        self.stat_index = directory / "worktree" / "index"
        self.journal = directory / "worktree" / "journal"
        self.merge = directory / "worktree" / "merge"
        self.bisect = directory / "worktree" / "bisect"
        self.lock = directory / "worktree" / "lock"
        self.stale = directory / "worktree" / "at"
        self.rescue = directory / "rescue"
        self.masks = directory / "masks"


def discover(start: Path) -> RepositoryPaths:
    """The repository whose work tree `start` lies in.

    Raises RepositoryError when there is none up to the root, or one of a format that this version does not read.
    """
    current = start.resolve()
    for candidate in (current, *current.parents):
        paths = RepositoryPaths(candidate / METADATA, worktree=candidate)
        if not paths.format.is_file():
            continue
        found = paths.format.read_text(encoding="utf-8", errors="replace")
        if found != FORMAT_LINE:
            raise RepositoryError(
                f"{candidate} has repository format {found.strip()[:60]!r}, which this mgit does not read",
                hint="`pip install --upgrade modelgit`",
            )
        return paths
    raise RepositoryError(
        "not inside an mgit repository (looked from here up to /)",
        hint="`mgit init` makes one here, `mgit clone URL` copies one",
    )
