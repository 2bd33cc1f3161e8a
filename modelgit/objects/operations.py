"""The view of all refs, and the log of operations that moved it."""

from __future__ import annotations

from collections.abc import Mapping

from modelgit.objects.canonical import Record
from modelgit.objects.ids import CommitId, OperationId, RetentionId, StatisticsId

__all__ = ["Operation", "Pruning", "Retention", "Root", "View"]


class View(Record, frozen=True, kw_only=True):
    """Where everything points.

    `refs` maps `heads/NAME`, `tags/NAME` and `remotes/REMOTE/NAME` to commits.  `branch` is the current branch's
    short name, whether or not it has a commit yet; None when `detached` holds a commit instead.
    """

    refs: dict[str, CommitId] = {}
    branch: str | None = None
    detached: CommitId | None = None

    @property
    def head(self) -> CommitId | None:
        """The commit that the work tree follows, if there is one."""
        if self.branch is None:
            return self.detached
        return self.refs.get(f"heads/{self.branch}")

    @property
    def tips(self) -> set[CommitId]:
        """The commits that it names."""
        return {*self.refs.values(), *filter(None, (self.detached,))}

    def with_refs(self, refs: Mapping[str, CommitId]) -> View:
        """The view with other refs; the current branch, or the detached head, stays."""
        return View(refs=dict(refs), branch=self.branch, detached=self.detached)

    def with_moved(self, refs: Mapping[str, CommitId | None]) -> View:
        """The view after some refs moved, or went (None)."""
        return self.with_refs({ref: commit for ref, commit in {**self.refs, **refs}.items() if commit is not None})

    def with_head(self, commit: CommitId) -> View:
        """The view after the current branch, or the detached head, moved to `commit`."""
        if self.branch is None:
            return View(refs=self.refs, detached=commit)
        return View(refs={**self.refs, f"heads/{self.branch}": commit}, branch=self.branch)


class Operation(Record, frozen=True, kw_only=True):
    """One published change: the view that it left behind, and its predecessor.

    `moves_files` says that the work tree's files changed with it (a switch), rather than being recorded by it (a
    commit): undoing it moves them back.

    `restores` names the operation whose view an undo or redo brought back, `redo` the operations that can be
    redone, last first.  `nonce` makes every attempt an object of its own: garbage collection may take one that lost
    its race, and must not take another that looks the same and won.

    `rescue` names the directory of the rescue area with files of the work tree as they were before: what changed was
    files that no commit has.
    """

    view: View
    parent: OperationId | None
    description: str
    author: str
    time_ms: int
    moves_files: bool = False
    restores: OperationId | None = None
    redo: tuple[OperationId, ...] = ()
    nonce: str = ""
    rescue: str = ""


class Pruning(Record, frozen=True, kw_only=True):
    """One pruning: when, by which family of `[retention]`, and the commits that lost their weights."""

    family: str
    time_ms: int
    commits: tuple[CommitId, ...]


class Retention(Record, frozen=True, kw_only=True):
    """Every commit of which the weights were pruned here: it is there, and its weights may be missing."""

    prunings: tuple[Pruning, ...] = ()


class Root(Record, frozen=True, kw_only=True):
    """The one mutable thing: which operation is current, and what garbage collection is about to delete.

    `epoch` counts garbage collections; `condemned` names packs that may vanish; `write_id` and `recent` let a
    writer whose acknowledgement was lost find out that its swap landed.  `retention` names the record of the commits
    whose weights were pruned, None where none were; `statistics` the record of the estimates that are kept.
    """

    format: int
    operation: OperationId
    epoch: int = 0
    condemned: tuple[str, ...] = ()
    write_id: str = ""
    recent: tuple[str, ...] = ()
    retention: RetentionId | None = None
    statistics: StatisticsId | None = None
