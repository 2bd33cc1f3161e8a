"""`eval`: suites on a revision or on the work tree, against the baselines that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelgit.objects import CommitId, EvalRecord, Manifest
from modelgit.progress import SILENT, Progress
from modelgit.repo.gates.gate import builtin_record
from modelgit.repo.gates.suite_runs import EvalOptions, evaluate_manifest
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["evaluate"]


def evaluate(
    repo: Repository,
    revision: str | None = None,
    *,
    suites: Sequence[str] = (),
    options: EvalOptions | None = None,
    law: Manifest | None = None,
    progress: Progress = SILENT,
) -> list[EvalRecord]:
    """The verdicts of the built-in gate and of the suites (or of those named only).

    "parent" is every parent of a revision, and the current commit for the work tree (revision None), unless
    `options.baselines` says what to compare with.  `law` is the manifest whose suites and data count in place of the
    work tree's suites and the revision's data.  Nothing is recorded.
    """
    options = options or EvalOptions()
    if revision is not None:
        commit = repo.resolve(revision)
        return _run(repo, repo.store, repo.manifest_of(commit), repo.parents_of(commit), suites, options, law, progress)
    from modelgit.repo.tracking.record import record_worktree

    with repo.writing():
        head = repo.head()
        session = repo.session()
        try:
            tree = record_worktree(repo, session, repo.manifest_of(head), progress=progress)
            return _run(repo, session, tree.manifest, () if head is None else (head,), suites, options, law, progress)
        finally:
            session.abort()


def _run(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    parents: Sequence[CommitId],
    suites: Sequence[str],
    options: EvalOptions,
    law: Manifest | None,
    progress: Progress,
) -> list[EvalRecord]:
    records: list[EvalRecord] = []
    if not suites:
        against = repo.resolve(options.baselines[0]) if options.baselines else next(iter(parents), None)
        before = None if against is None else repo.manifest_of(against)
        records.append(builtin_record(repo, store, manifest, before, progress=progress))
    records += evaluate_manifest(
        repo, store, manifest, parents, suites=suites, law=law, options=options, progress=progress
    )
    return records
