"""A checkpoint outside of the work tree as the new state of a tracked path, read where it lies.

A training run writes its checkpoints somewhere; recording one needs no second copy in the work tree.  When the work
tree is left as it was, it is behind its branch: `worktree/at` then names the commit that its files are of, so that
`status` can say so and the next commit does not take the new state back by accident.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import CheckpointFormatError, RepositoryError, UsageError
from modelgit.formats.layouts import TrackedModel, describe
from modelgit.formats.listing import list_files, matching_pattern
from modelgit.objects import CommitId, ContentId, Manifest, ModelEntry
from modelgit.objects.paths import is_within, join_path
from modelgit.repo.tracking.tree import ALWAYS_RECORDED, WorkFile, hash_changed, work_files
from modelgit.store.durable import write_durably

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Outside", "forget_stale", "left_behind", "open_outside", "refuse_stale", "remember_stale", "stale_at"]


class Outside(NamedTuple):
    """The checkpoint at `root`/`name`, a directory or file, that stands for `path` of the tree.

    `files` are by their path in the tree.
    """

    root: Path
    name: str
    path: str
    files: dict[str, WorkFile]

    def covers(self, path: str) -> bool:
        """Whether the checkpoint says what `path` of the tree holds."""
        # A model that is the whole repository lies among the settings, which no checkpoint holds.
        return is_within(path, self.path) and not (self.path == "." and _is_setting(path))

    def selection(self, before: Manifest, files: Mapping[str, WorkFile]) -> dict[str, bool]:
        """Which paths get a new state: those of the checkpoint, old ones that it does not have included."""
        chosen = {entry.path: self.covers(entry.path) for entry in before.files}
        return {**chosen, **dict.fromkeys(files, True)}

    def with_settings(self, repo: Repository, before: Manifest) -> dict[str, WorkFile]:
        """The files to record: those of the checkpoint; in a first commit also settings and suites of the work tree."""
        if before.files:
            return self.files
        always = {path: file for path, file in work_files(repo).items() if _is_setting(path)}
        return dict(sorted({**always, **self.files}.items()))

    def model(self, repo: Repository, path: str, parent: ModelEntry | None) -> ModelEntry | None:
        """The tracked model at `path` with the checkpoint in place of what it covers; None without weights."""
        if not (self.covers(path) or is_within(self.path, path)):
            return parent
        track = repo.settings.track
        found: TrackedModel = describe(self.root, self.name, ignore=track.left_out, opaque=track.opaque)
        weights = {_tree_path(self, name) for name in found.weights}
        kept = () if parent is None else tuple(name for name in parent.weights if not self.covers(name))
        layout = found.layout if parent is None or path == self.path else parent.layout
        everything = tuple(sorted({*kept, *weights}))
        return ModelEntry(path=path, layout=layout, weights=everything) if everything else None


def open_outside(repo: Repository, source: str, as_path: str | None, parent: Manifest) -> Outside:
    """Look at the checkpoint at `source` (seen from the current directory), which stands for `as_path`.

    Without `as_path` it stands for the only tracked model.  Raises UsageError when it is not clear for which,
    CheckpointFormatError for links and malformed files.
    """
    place = (repo.environment.cwd / source).resolve()
    path = _target(repo, as_path, source)
    is_file = any(entry.path == path for entry in parent.files)
    is_folder = any(entry.path != path and is_within(entry.path, path) for entry in parent.files)
    if place.is_dir() and is_file:
        inner = place / path.rpartition("/")[2]
        if not inner.is_file():
            raise UsageError(
                f"{path} is a file, and {source} a directory without a file of that name",
                hint=f"name the file: `mgit commit --from {source}/FILE`",
            )
        place = inner
    elif place.is_file() and is_folder:
        raise UsageError(
            f"{path} is a directory, and {source} a file", hint=f"say which file it is: `--as {path}/{place.name}`"
        )
    elif not place.is_dir() and not place.is_file():
        raise UsageError(f"there is nothing at {source}", hint="`mgit commit --from DIRECTORY --as models/bot -m …`")
    root, name = (place, ".") if place.is_dir() else (place.parent, place.name)
    track = repo.settings.track
    listing = list_files(root, name, ignore=track.left_out)
    if listing.links:
        raise CheckpointFormatError(
            f"{root / listing.links[0]} is a symbolic link, which is not followed",
            hint=f"`cp -rL {source} COPY` makes real files of them",
        )
    if not listing.files:
        raise UsageError(f"there is nothing to record in {source}")
    found = Outside(root, name, path, {})
    for inside in listing.files:
        target = _tree_path(found, inside)
        status = (root / inside).stat(follow_symlinks=False)
        opaque = matching_pattern(target, track.opaque, directory=False) is not None
        found.files[target] = WorkFile(target, status, None, opaque, root / inside)
    return found


def _is_setting(path: str) -> bool:
    return any(is_within(path, name) for name in ALWAYS_RECORDED)


def _tree_path(outside: Outside, inside: str) -> str:
    return outside.path if outside.name != "." else join_path(outside.path, inside)


def _target(repo: Repository, as_path: str | None, source: str) -> str:
    tracked = repo.settings.track.paths
    if as_path is None:
        if len(tracked) != 1:
            raise UsageError(
                f"which model is {source}? {len(tracked)} paths are tracked",
                hint=f"`--as PATH`; tracked: {', '.join(tracked)}" if tracked else "`mgit track PATH`",
            )
        return tracked[0]
    path = as_path.rstrip("/")
    if not any(is_within(path, known) for known in tracked):
        raise UsageError(
            f"{path} is not tracked",
            hint=f"add it to `paths` under [track] in mgit.toml; tracked: {', '.join(tracked) or 'nothing'}",
        )
    return path


# -- the work tree that stayed behind


def remember_stale(repo: Repository, commit: CommitId | None, manifest: Manifest) -> None:
    """Note that the work tree is still that of `commit` (`manifest`), unless it is that of an older one already."""
    if commit is None:
        return
    if stale_at(repo) is not None:
        now, _ = hash_changed(repo, work_files(repo))
        if left_behind(repo, manifest, now) is not None:
            return
    write_durably(repo.paths.stale, f"{commit}\n".encode())


def left_behind(repo: Repository, manifest: Manifest, now: Mapping[str, ContentId]) -> CommitId | None:
    """The commit that files of the work tree (`now`) are still of, though `manifest` has others in their place."""
    commit = stale_at(repo)
    if commit is None:
        return None
    old = {entry.path: entry.digest for entry in repo.manifest_of(commit).files}
    new = {entry.path: entry.digest for entry in manifest.files}
    return commit if any(now.get(path) == old.get(path) != new.get(path) for path in {*old, *new, *now}) else None


def forget_stale(repo: Repository) -> None:
    """The work tree is that of the current commit again."""
    with contextlib.suppress(OSError):
        repo.paths.stale.unlink(missing_ok=True)


def stale_at(repo: Repository) -> CommitId | None:
    """The commit that the work tree was left at, when the branch moved on without it."""
    try:
        text = repo.paths.stale.read_text(encoding="ascii").strip()
        commit = CommitId.parse(text)
    except (OSError, UnicodeDecodeError, UsageError):
        return None
    return commit if repo.store.has(commit) else None


def refuse_stale(repo: Repository, candidate: Manifest, before: Manifest) -> None:
    """Refuse to commit files that nobody changed, but that the branch left behind: they would take its commits back.

    Raises RepositoryError that names the first one.
    """
    commit = stale_at(repo)
    if commit is None:
        return
    old = {entry.path: entry for entry in repo.manifest_of(commit).files}
    now = {entry.path: entry for entry in before.files}
    new = {entry.path: entry for entry in candidate.files}
    stale = [
        path for path in sorted({*old, *now, *new}) if new.get(path) == old.get(path) and new.get(path) != now.get(path)
    ]
    if stale:
        raise RepositoryError(
            f"{stale[0]} is still as it was at {commit.short}, before commits that were made without the work tree",
            hint=f"`mgit restore {stale[0]}` brings it up to date, `--only` leaves it out",
        )
