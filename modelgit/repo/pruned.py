"""Commits whose weights were pruned: how the rest of the package finds out, and what it says then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError, WeightsPruned
from modelgit.objects import CommitId, Literal, Manifest, ObjectId, Pruning

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Pruning", "pruned_commits", "pruned_on", "refuse_pruned", "weights_missing"]


def pruned_commits(repo: Repository) -> dict[CommitId, Pruning]:
    """The commits whose weights were pruned, each with the pruning that took them."""
    current = repo.roots.read().root.retention
    try:
        retention = repo.retention_log.read(current)
    except IntegrityError:
        newer = repo.roots.read().root.retention  # a pruning may have put another list in its place meanwhile
        if newer == current:
            raise
        retention = repo.retention_log.read(newer)
    return {commit: pruning for pruning in retention.prunings for commit in pruning.commits}


def pruned_on(pruning: Pruning) -> str:
    """The day of a pruning, in UTC, as people write it."""
    return time.strftime("%Y-%m-%d", time.gmtime(pruning.time_ms / 1000))


def weights_missing(repo: Repository, manifest: Manifest) -> bool:
    """Whether a tensor or a literal of a model of `manifest` is not here."""
    weights = {path for model in manifest.models for path in model.weights}
    for entry in manifest.files:
        if entry.path not in weights:
            continue
        content = repo.content_at(entry.digest)
        needed: list[ObjectId] = [tensor.id for tensor in content.tensors]
        needed += [segment.blob for segment in content.segments if isinstance(segment, Literal)]
        if not all(repo.store.has(item) for item in needed):
            return True
    return False


def refuse_pruned(
    repo: Repository, commits: Iterable[CommitId | None], *, pruned: Mapping[CommitId, Pruning] | None = None
) -> None:
    """Raise WeightsPruned when the weights of one of `commits` are needed and were pruned.

    A pruned commit whose weights all are here (another commit has them) is as good as any.
    """
    pruned = pruned_commits(repo) if pruned is None else pruned
    for commit in commits:
        pruning = pruned.get(commit) if commit is not None else None
        if commit is not None and pruning is not None and weights_missing(repo, repo.manifest_of(commit)):
            raise WeightsPruned(
                f"the weights of commit {commit.short} were pruned by retention `{pruning.family}`"
                f" on {pruned_on(pruning)}",
                hint="`mgit log` marks the commits whose weights are gone",
            )
