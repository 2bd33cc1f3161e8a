"""The gate: what runs before a commit or a merge is recorded, on the model as rebuilt from what would be recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from modelgit.config.suite_files import suite_name
from modelgit.errors import GateRefused
from modelgit.objects import LETS_IN, CommitId, EvalRecord, Manifest, ObjectId, TensorId
from modelgit.objects.canonical import to_builtins
from modelgit.objects.manifest import manifest_id
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import file_bytes, models_of
from modelgit.repo.gates.refusals import broken_words, refuses, way_on
from modelgit.repo.gates.suite_runs import EvalOptions, evaluate_manifest
from modelgit.repo.gates.suites import SuiteTexts, recorded_suites, worktree_suites
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.store.base import ObjectStore
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.evals.builtin import Side
    from modelgit.numerics.nonfinite import ValueCounts
    from modelgit.repo.repository import Repository

__all__ = ["RefusedWithRecords", "builtin_record", "recorded_verdicts", "run_gate"]


def run_gate(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    parents: Sequence[CommitId],
    *,
    mode: str = "block",
    counted: Mapping[TensorId, ValueCounts] | None = None,
    shown_by: str = "",
    progress: Progress = SILENT,
) -> list[EvalRecord]:
    """The verdicts on a candidate against its parents; `counted` is what the writer saw (see `run_builtin`).

    `shown_by` is a command that evaluates the candidate again after a refusal, "" where none does.
    Raises GateRefused in mode "block" unless every verdict is a pass (or the first baseline); the verdicts are then in
    `refused.records`.  In mode "warn" a broken limit is kept in the records, with the override noted.
    """
    parent = parents[0] if parents else None
    baseline = None if parent is None else repo.manifest_of(parent)
    records = [builtin_record(repo, store, manifest, baseline, counted=counted, progress=progress)]
    if records[0].decision not in ("fail", "error"):
        texts = _gate_suites(repo, store, manifest, parent)
        later = repo.settings.gate.when == "push"
        options = EvalOptions(stages=("commit", "push") if later else ("commit",), reuse=True, defer=later)
        records += evaluate_manifest(repo, store, manifest, parents, texts=texts, options=options, progress=progress)
    refused = [record for record in records if refuses(record.decision)]
    if not refused:
        return records
    if mode == "warn":
        return [_override(record) if refuses(record.decision) else record for record in records]
    raise RefusedWithRecords(
        f"commit refused: {broken_words(refused)}; nothing was recorded",
        hint=way_on(repo, records, shown_by=shown_by),
        records=tuple(records),
        baseline=parent,
        shown_by=shown_by,
    )


def _gate_suites(repo: Repository, store: ObjectStore, manifest: Manifest, parent: CommitId | None) -> SuiteTexts:
    """The suites of the work tree and those that the candidate brings: a merge must pass the suites of both sides.

    Where both have a suite of one name, the work tree's counts: a branch cannot relax a limit for its own merge.  A
    commit on another branch than the one that is checked out has that branch's suites in place of the work tree's.
    """
    elsewhere = repo.paths.worktree is None or parent != repo.head()
    here = worktree_suites(repo) if parent is None or not elsewhere else recorded_suites(repo, repo.manifest_of(parent))
    brings = any(entry.path == PROJECT_CONFIG or suite_name(entry.path) is not None for entry in manifest.files)
    return here.over(recorded_suites(repo, manifest, store=store)) if brings else here


class RefusedWithRecords(GateRefused):
    """A refusal that carries the verdicts and the commit that they compare with, for whoever shows them.

    `shown_by` is a command that evaluates the candidate again, "" for one that is nowhere any more.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        records: Sequence[EvalRecord] = (),
        baseline: CommitId | None = None,
        shown_by: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.records = tuple(records)
        self.baseline = baseline
        self.shown_by = shown_by


def _override(record: EvalRecord) -> EvalRecord:
    return msgspec.structs.replace(record, override="recorded all the same (--gate warn)")


def builtin_record(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    before: Manifest | None,
    *,
    counted: Mapping[TensorId, ValueCounts] | None = None,
    progress: Progress = SILENT,
) -> EvalRecord:
    """The verdict of the gate that needs no configuration: finite values, schema, readable files.

    One on two manifests that are recorded is the same every time: a pass is kept in the cache, so that the values of a
    commit are read once.
    """
    from modelgit import __version__
    from modelgit.evals.builtin import run_builtin
    from modelgit.evals.cache import ScoreCache, score_key

    recorded = store is repo.store
    cache = ScoreCache(repo.paths.predictions)
    key = ""
    if recorded:
        baseline = None if before is None else manifest_id(before)
        key = score_key(str(manifest_id(manifest)), f"builtin {__version__} {baseline}")
        if (kept := cache.read(key)) is not None:
            return msgspec.convert(kept, EvalRecord, dec_hook=_id_from_text)
    record = run_builtin(
        _side(repo, manifest, store),
        None if before is None else _side(repo, before, repo.store),
        repo.reader(store),
        counted=counted,
        progress=progress,
    )
    if recorded and record.decision in LETS_IN:
        cache.write(key, to_builtins(msgspec.structs.replace(record, seconds=0.0)))
    return record


def _id_from_text(kind: type[ObjectId], text: str) -> ObjectId:
    return kind.parse(text)


def _side(repo: Repository, manifest: Manifest, store: ObjectStore) -> Side:
    from modelgit.evals.builtin import Side

    weights = {path for model in manifest.models for path in model.weights}
    return Side(
        manifest=manifest_id(manifest),
        models=models_of(repo, manifest, store=store),
        files={
            entry.path: partial(file_bytes, repo, entry.digest, store=store)
            for entry in manifest.files
            if entry.path not in weights
        },
        weights={model.path: model.weights for model in manifest.models},
    )


def recorded_verdicts(repo: Repository, commit: CommitId) -> list[EvalRecord]:
    """The verdicts that let a commit in."""
    return [read_record(repo.store, verdict.record, EvalRecord) for verdict in repo.commit_at(commit).verdicts]
