"""`eval`: suites on a revision or on the work tree, against the parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelgit.objects import CommitId, EvalRecord, Manifest
from modelgit.progress import SILENT, Progress
from modelgit.repo.gate import builtin_record, evaluate_manifest
from modelgit.repo.record import record_worktree
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["evaluate"]


def evaluate(
    repo: Repository,
    revision: str | None = None,
    *,
    suites: Sequence[str] = (),
    baseline: str | None = None,
    progress: Progress = SILENT,
) -> list[EvalRecord]:
    """The verdicts of the built-in gate and of the configured suites (or those named).

    A revision is compared with its first parent, the work tree (revision None) with the current commit, unless
    `baseline` names another one.  Nothing is recorded.
    """
    if revision is not None:
        commit = repo.resolve(revision)
        parents = repo.parents_of(commit)
        against = repo.resolve(baseline) if baseline else (parents[0] if parents else None)
        manifest = repo.manifest_of(commit)
        return _run(repo, repo.store, manifest, against, suites, progress)
    with repo.writing():
        head = repo.head()
        against = repo.resolve(baseline) if baseline else head
        session = repo.session()
        try:
            tree = record_worktree(repo, session, repo.manifest_of(head), progress=progress)
            return _run(repo, session, tree.manifest, against, suites, progress)
        finally:
            session.abort()


def _run(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    against: CommitId | None,
    suites: Sequence[str],
    progress: Progress,
) -> list[EvalRecord]:
    before = None if against is None else repo.manifest_of(against)
    records: list[EvalRecord] = []
    if not suites:
        records.append(builtin_record(repo, store, manifest, before, progress=progress))
    records += evaluate_manifest(repo, store, manifest, against, suites=suites, progress=progress)
    return records
