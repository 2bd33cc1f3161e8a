"""`prune`: retention is carried out; weights that it does not keep go, and their bytes really do.

What survives and was coded against what goes is coded again first.  The list of pruned commits, the condemned packs and
the epoch change in one step of the root: before it nothing is lost, after it nothing that is missing looks like damage.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from modelgit.errors import ConflictError, RootMoved, UsageError
from modelgit.objects import CommitId, Pruning, Record, Retention, View
from modelgit.progress import SILENT, Progress
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.repo.upkeep.repack import reorganise
from modelgit.repo.upkeep.retention import RetentionPlan, plan_retention

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["PruneReport", "PrunedFamily", "RetentionDecision", "prune"]

_TRIES = 5


class RetentionDecision(Record, frozen=True, kw_only=True):
    """What becomes of one commit of a branch: `kept` says why it keeps its weights, None that it does not."""

    commit: CommitId
    branch: str
    subject: str
    kept: str | None = None
    pruned_before: bool = False


class PrunedFamily(Record, frozen=True, kw_only=True):
    """One family of `[retention]`, the commits of its branches newest first."""

    family: str
    commits: tuple[RetentionDecision, ...]


class PruneReport(Record, frozen=True, kw_only=True):
    """What a pruning did (or, dry, would do).

    `pruned` commits lost their weights and `expired` ones their training state; `reanchored` objects that stay were
    coded again, because they were coded against what went.  `bytes_before` and `bytes_after` are the sizes of all
    packs.
    """

    families: tuple[PrunedFamily, ...]
    pruned: int
    expired: int
    reanchored: int
    bytes_before: int
    bytes_after: int
    dry_run: bool = False


def prune(repo: Repository, *, dry_run: bool = False, progress: Progress = SILENT) -> PruneReport:
    """Take the weights of the commits that `[retention]` does not keep.

    It cannot be undone, and `undo` cannot bring back the files of a commit without weights.  Raises UsageError without
    any `[retention]`, and for a `best` that nothing was measured by; ConflictError, with nothing pruned, when garbage
    was collected meanwhile.
    """
    if not repo.settings.retention:
        raise UsageError(
            "there is no [retention] in the settings",
            hint="`mgit config set --shared 'retention.\"runs/*\".last' 10` keeps ten commits of each",
        )
    for _ in range(_TRIES):
        plan = plan_retention(repo, repo.view())
        _refuse_unmeasured(plan)
        try:
            return _prune(repo, plan, dry_run, progress)
        except RootMoved:
            continue
    raise ConflictError("the repository is being changed too often to prune", hint="run `mgit prune` again later")


def _refuse_unmeasured(plan: RetentionPlan) -> None:
    """A metric that is misspelt must not take the weights that it was to keep."""
    losing = {*plan.pruned.values(), *plan.expired.values()}
    for family, metric in plan.unmeasured.items():
        if family in losing:
            raise UsageError(
                f'`retention."{family}".best` is `{metric}`, which no commit of {family} has recorded; '
                "nothing was pruned",
                hint=f"`mgit show` lists what the gate recorded; `mgit config unset --shared "
                f"'retention.\"{family}\".best'` prunes without it",
            )


def _prune(repo: Repository, plan: RetentionPlan, dry_run: bool, progress: Progress) -> PruneReport:
    before = pruned_commits(repo)
    families = tuple(
        PrunedFamily(
            family=name,
            commits=tuple(
                RetentionDecision(
                    commit=item.commit,
                    branch=item.branch,
                    subject=repo.commit_at(item.commit).subject,
                    kept=item.kept,
                    pruned_before=item.commit in before,
                )
                for item in items
            ),
        )
        for name, items in plan.families.items()
    )

    def still_right(view: View) -> bool:
        now = plan_retention(repo, view)
        return plan.pruned.keys() <= now.pruned.keys() and plan.expired.keys() <= now.expired.keys()

    done = reorganise(
        repo,
        effort=repo.settings.storage.effort,
        pruned={*before, *plan.pruned},
        expired=set(plan.expired),
        everything=False,
        retention=_record(plan) if plan.pruned else None,
        still_right=still_right if plan.pruned or plan.expired else None,
        dry_run=dry_run,
        progress=progress,
    ).report
    return PruneReport(
        families=families,
        pruned=len(plan.pruned),
        expired=len(plan.expired),
        reanchored=done.reanchored,
        bytes_before=done.bytes_before,
        bytes_after=done.bytes_after,
        dry_run=dry_run,
    )


def _record(plan: RetentionPlan) -> Retention:
    """What is pruned now; `gc` puts it behind what was pruned before."""
    now = time.time_ns() // 1_000_000
    fresh = tuple(
        Pruning(
            family=name, time_ms=now, commits=tuple(sorted(c for c, family in plan.pruned.items() if family == name))
        )
        for name in dict.fromkeys(plan.pruned.values())
    )
    return Retention(prunings=fresh)
