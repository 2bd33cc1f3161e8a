"""`switch` and `restore`: bring recorded files back, bit for bit, and lose nothing that is not recorded."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from modelgit.errors import CheckpointFormatError, RepositoryError, UnknownRevision, UsageError
from modelgit.objects import ContentId, Manifest, View
from modelgit.objects.paths import is_within
from modelgit.objects.refs import check_ref_name
from modelgit.progress import SILENT, Progress
from modelgit.repo.merges.state import refuse_during_merge
from modelgit.repo.tracking.outside import stale_at
from modelgit.repo.tracking.training import joined, refuse_absent, training_of
from modelgit.repo.tracking.tree import WorkFile, hash_changed
from modelgit.repo.tracking.update import check_clean, files_at, move_worktree, rescue, strangers
from modelgit.worktree.checkout import find_regular

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["restore", "switch"]


def switch(
    repo: Repository,
    target: str,
    *,
    create: bool = False,
    start: str | None = None,
    detach: bool = False,
    discard: bool = False,
    progress: Progress = SILENT,
) -> View:
    """Make `target` current: a branch, with `create` a new one (at `start` or here), with `detach` any revision.

    `discard` overwrites changes, after copying them to the rescue area.  Raises RepositoryError for a dirty work tree
    and for a name that is no branch; the refs and the files are then as they were.
    """
    with repo.writing():
        refuse_during_merge(repo, "switching")
        view = repo.view()
        if create:
            check_ref_name(target)
            if f"heads/{target}" in view.refs:
                raise RepositoryError(f"branch {target} exists already", hint=f"`mgit switch {target}`")
            commit = repo.resolve(start) if start is not None else view.head
            refs = dict(view.refs)
            if commit is not None:
                refs[f"heads/{target}"] = commit
            after = View(refs=refs, branch=target)
        elif detach:
            commit = repo.resolve(target)
            after = View(refs=view.refs, branch=None, detached=commit)
        else:
            if f"heads/{target}" not in view.refs and target != view.branch:
                after = _remote_branch(view, target) or _not_a_branch(repo, target)
            else:
                after = View(refs=view.refs, branch=target)
            commit = after.head
        recorded = (repo.manifest_of(view.head), repo.manifest_of(commit))
        training = (training_of(repo, view.head).manifest, training_of(repo, commit).manifest)
        source, wanted = joined(recorded[0], training[0]), joined(recorded[1], training[1])
        if discard:
            _put_aside(repo, source, wanted, progress)
        elif source != wanted:
            check_clean(
                repo,
                source,
                wanted,
                verb="switching",
                hint=f"`mgit commit -m …`, or `mgit switch {target} --discard` (kept 7 days in .mgit/rescue)",
                progress=progress,
            )
        name = after.branch or (commit.short if commit else "nothing")
        description = f"switch: to {name}"
        if source == wanted and not discard:
            return repo.publish(
                lambda now: View(refs={**now.refs, **after.refs}, branch=after.branch, detached=after.detached),
                description,
            )
        move_worktree(
            repo,
            *recorded,
            training=training,
            description=description,
            view=view,
            after=after,
            progress=progress,
            paths=_all_paths(source, wanted) if discard else None,
        )
        return repo.view()


def _all_paths(source: Manifest, target: Manifest) -> set[str]:
    return {entry.path for manifest in (source, target) for entry in manifest.files}


def _remote_branch(view: View, name: str) -> View | None:
    """A branch that exists on one remote only becomes a local one."""
    found = [ref for ref in view.refs if ref.startswith("remotes/") and ref.split("/", 2)[2] == name]
    if len(found) != 1:
        return None
    return View(refs={**view.refs, f"heads/{name}": view.refs[found[0]]}, branch=name)


def _not_a_branch(repo: Repository, name: str) -> View:
    try:
        commit = repo.resolve(name)
    except UnknownRevision as error:
        raise UnknownRevision(
            error.message.replace("no branch, tag or commit", "no branch"),
            hint="`mgit branch` lists branches" if name.startswith("-") else f"`mgit switch -c {name}` makes it",
        ) from None
    raise RepositoryError(
        f"{name} is not a branch (it is commit {commit.short})",
        hint=f"`mgit switch --detach {name}` looks at it, `mgit switch -c NAME {name}` starts a branch there",
    )


def _put_aside(repo: Repository, source: Manifest, target: Manifest, progress: Progress) -> None:
    recorded = {entry.path: entry.digest for entry in source.files}
    wanted = _all_paths(source, target)
    _clear(repo, strangers(repo, source, target, paths=wanted))
    for path, digest in _digests(repo, files_at(repo, wanted), progress).items():
        if recorded.get(path) != digest:
            rescue(repo, path)


def _clear(repo: Repository, in_the_way: Sequence[str]) -> None:
    """Move into the rescue area what nobody recorded and lies where files must go."""
    for path in in_the_way:
        place = repo.worktree / path
        try:
            if path.endswith("/"):
                place.rmdir()
            elif find_regular(repo.worktree, path) is not None:
                rescue(repo, path)
                place.unlink()
            else:
                raise RepositoryError(f"{place} is in the way", hint=f"move it away: `mv {place} {place}.old`")
            # Directories that are empty now would be in the way as well.
            for folder in place.parents:
                if folder == repo.worktree or any(folder.iterdir()):
                    break
                folder.rmdir()
        except OSError as error:
            raise RepositoryError(f"cannot remove {place}: {error.strerror or error}") from error


def _digests(repo: Repository, files: dict[str, WorkFile], progress: Progress) -> dict[str, ContentId | None]:
    """The content ids of files that are about to be overwritten; None for one that is no readable checkpoint.

    A model that a killed training left half written must not keep anybody from getting the recorded one back.
    """
    try:
        return dict(hash_changed(repo, files, progress=progress)[0])
    except CheckpointFormatError:
        found: dict[str, ContentId | None] = {}
        for path, file in files.items():
            try:
                found[path] = hash_changed(repo, {path: file}, progress=progress)[0][path]
            except CheckpointFormatError:
                found[path] = None
        return found


def restore(
    repo: Repository,
    patterns: Sequence[str],
    *,
    source: str | None = None,
    progress: Progress = SILENT,
) -> list[str]:
    """Bring files back as they are in `source` (the current commit); returns the paths that were written.

    What is overwritten is copied to the rescue area first.  In a work tree that commits left behind (see `outside`),
    unchanged files that are not in `source` any more go.  Raises UsageError when no recorded file matches.
    """
    if not patterns:
        raise UsageError("nothing named to restore", hint="`mgit restore PATH`; `mgit restore .` for everything")
    with repo.writing():
        commit = repo.resolve(source or "HEAD")
        left = stale_at(repo)
        recorded = (repo.manifest_of(left or repo.head()), repo.manifest_of(commit))
        state = training_of(repo, commit)
        training = (training_of(repo, repo.head()).manifest, state.manifest)
        head, manifest = joined(recorded[0], training[0]), joined(recorded[1], training[1])
        chosen = {entry.path for entry in manifest.files if any(_matches(entry.path, pattern) for pattern in patterns)}
        if not chosen:
            if any(
                is_within(place, pattern) or is_within(pattern, place)
                for place in repo.settings.track.training_state
                for pattern in patterns
            ):
                refuse_absent(commit, state)
            raise UsageError(
                f"nothing in {commit.short} matches {', '.join(patterns)}",
                hint="`mgit show` lists its files",
            )
        digests = {entry.path: entry.digest for entry in head.files}
        wanted = {entry.path: entry.digest for entry in manifest.files if entry.path in chosen}
        kept = {entry.path for entry in manifest.files}
        gone = {
            entry.path
            for entry in (recorded[0].files if left is not None else ())
            if entry.path not in kept and any(_matches(entry.path, pattern) for pattern in patterns)
        }
        _clear(repo, strangers(repo, head, manifest, paths=chosen | gone))
        now = _digests(repo, files_at(repo, chosen | gone), progress)
        differing = sorted(
            [path for path in chosen if now.get(path) != wanted[path]]
            + [path for path in gone if path in now and now[path] == digests[path]]
        )
        for path in differing:
            if path in now and (now[path] is None or now[path] != digests.get(path)):
                rescue(repo, path)
        if differing:
            move_worktree(
                repo,
                *recorded,
                training=training,
                description="restore",
                view=None,
                after=None,
                paths=differing,
                progress=progress,
            )
        return differing


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.rstrip("/")
    if pattern.startswith("./"):
        pattern = pattern[2:]
    return is_within(path, pattern or ".") or fnmatchcase(path, pattern)
