"""Commits whose weights were pruned: how the rest of the package finds out, and what it says then."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from modelgit.errors import WeightsPruned
from modelgit.objects import BlobId, CommitId, Literal, Manifest, ObjectId, Pruning, TensorId

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["explain", "pruned_commits", "pruned_on", "refuse_missing", "refuse_pruned"]


def pruned_commits(repo: Repository) -> dict[CommitId, Pruning]:
    """The commits whose weights were pruned, each with the pruning that took them."""
    retention = repo.retention_records.read_current(lambda: repo.roots.read().root.retention)
    return {commit: pruning for pruning in retention.prunings for commit in pruning.commits}


def pruned_on(pruning: Pruning) -> str:
    """The day of a pruning, in UTC, as people write it."""
    return time.strftime("%Y-%m-%d", time.gmtime(pruning.time_ms / 1000))


def _weights_of(repo: Repository, manifest: Manifest, *, paths: Collection[str] | None = None) -> Iterator[ObjectId]:
    """The tensors and literals of the files that a model of `manifest` calls weights (those of `paths`)."""
    weights = {path for model in manifest.models for path in model.weights}
    for entry in manifest.files:
        if entry.path in weights and (paths is None or entry.path in paths):
            content = repo.content_at(entry.digest)
            yield from (tensor.id for tensor in content.tensors)
            yield from (segment.blob for segment in content.segments if isinstance(segment, Literal))


def explain(repo: Repository, object_id: ObjectId) -> WeightsPruned | None:
    """Why an object is missing, if it belongs to a commit whose weights were pruned."""
    if not isinstance(object_id, (TensorId, BlobId)):
        return None
    for commit, pruning in pruned_commits(repo).items():
        if any(item == object_id for item in _weights_of(repo, repo.manifest_of(commit))):
            return _error(commit, pruning)
    return None


def refuse_pruned(repo: Repository, commits: Iterable[CommitId]) -> None:
    """Raise WeightsPruned when weights of one of `commits` are missing because they were pruned.

    A pruned commit whose weights all are here (another commit has them) is as good as any.
    """
    pruned = pruned_commits(repo)
    for commit in commits if pruned else ():
        if commit in pruned and not all(map(repo.store.has, _weights_of(repo, repo.manifest_of(commit)))):
            raise _error(commit, pruned[commit])


def refuse_missing(repo: Repository, manifest: Manifest, paths: Collection[str]) -> None:
    """Raise WeightsPruned before files of `manifest` at `paths` are written whose weights were pruned."""
    if not pruned_commits(repo):
        return
    for item in _weights_of(repo, manifest, paths=paths):
        error = None if repo.store.has(item) else explain(repo, item)
        if error is not None:
            raise error


def _error(commit: CommitId, pruning: Pruning) -> WeightsPruned:
    return WeightsPruned(
        f"the weights of commit {commit.short} were pruned by retention `{pruning.family}` on {pruned_on(pruning)}",
        hint="`mgit log` marks the commits whose weights are gone",
    )
