"""The gate: what runs before a commit or a merge is recorded, on the model as rebuilt from what would be recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from modelgit.errors import GateRefused, MgitError
from modelgit.objects import CommitId, EvalRecord, FileEntry, Manifest, TensorId
from modelgit.objects.manifest import manifest_id
from modelgit.progress import SILENT, Progress
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.repo.settings import load as load_settings
from modelgit.store.base import ObjectStore
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.config.schema import Settings
    from modelgit.evals.builtin import Side
    from modelgit.numerics.nonfinite import ValueCounts
    from modelgit.repo.repository import Repository

__all__ = ["builtin_record", "evaluate_manifest", "recorded_verdicts", "run_gate"]


def run_gate(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    parent: CommitId | None,
    *,
    mode: str = "block",
    counted: Mapping[TensorId, ValueCounts] | None = None,
    progress: Progress = SILENT,
) -> list[EvalRecord]:
    """The verdicts on a candidate against its parent; `counted` is what the writer saw (see `run_builtin`).

    Raises GateRefused in mode "block" unless every verdict is a pass (or the first baseline); the verdicts are then in
    `refused.records`.  In mode "warn" a broken limit is kept in the records, with the override noted.
    """
    before = repo.manifest_of(parent)
    baseline = before if parent is not None else None
    records = [builtin_record(repo, store, manifest, baseline, counted=counted, progress=progress)]
    if records[0].decision not in ("fail", "error"):
        settings = _gate_settings(repo, store, manifest)
        records += evaluate_manifest(repo, store, manifest, parent, settings=settings, progress=progress)
    refused = [record for record in records if record.decision in ("fail", "error", "inconclusive")]
    if not refused:
        return records
    if mode == "warn":
        return [
            _override(record) if record.decision in ("fail", "error", "inconclusive") else record for record in records
        ]
    broken = sum(
        result.decision in ("fail", "error", "inconclusive") for record in refused for result in record.results
    )
    raise RefusedWithRecords(
        f"commit refused: {broken} gate{'s' if broken != 1 else ''} failed; nothing was recorded",
        hint="`--gate warn` records anyway and marks the commit",
        records=tuple(records),
        baseline=parent,
    )


def _gate_settings(repo: Repository, store: ObjectStore, manifest: Manifest) -> Settings:
    """The suites of the work tree and those that the candidate brings: a merge must pass the suites of both sides.

    Where both have a suite of one name, the work tree's counts: a branch cannot relax a limit for its own merge.
    """
    entry = manifest.file(PROJECT_CONFIG)
    if entry is None:
        return repo.settings
    text = repo.file_bytes(repo.content_at(entry.digest, store=store), store=store).decode("utf-8", errors="replace")
    brought = load_settings(repo, project=text).settings
    return msgspec.structs.replace(
        repo.settings,
        eval={**brought.eval, **repo.settings.eval},
        task={**brought.task, **repo.settings.task},
    )


class RefusedWithRecords(GateRefused):
    """A refusal that carries the verdicts and the commit that they compare with, for whoever shows them."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        records: Sequence[EvalRecord] = (),
        baseline: CommitId | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.records = tuple(records)
        self.baseline = baseline


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
    """The verdict of the gate that needs no configuration: finite values, schema, readable files."""
    from modelgit.evals.builtin import run_builtin

    return run_builtin(
        _side(repo, manifest, store),
        None if before is None else _side(repo, before, repo.store),
        repo.reader(store),
        counted=counted,
        progress=progress,
    )


def _bytes_of(repo: Repository, store: ObjectStore, entry: FileEntry) -> bytes:
    return repo.file_bytes(repo.content_at(entry.digest, store=store), store=store)


def _side(repo: Repository, manifest: Manifest, store: ObjectStore) -> Side:
    from modelgit.evals.builtin import Side

    weights = {path for model in manifest.models for path in model.weights}
    return Side(
        manifest=manifest_id(manifest),
        models=repo.models_of(manifest, store=store),
        files={
            entry.path: partial(_bytes_of, repo, store, entry) for entry in manifest.files if entry.path not in weights
        },
        weights={model.path: model.weights for model in manifest.models},
    )


def evaluate_manifest(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    parent: CommitId | None,
    *,
    suites: Sequence[str] = (),
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> list[EvalRecord]:
    """Run the configured suites (or those named) on a manifest against the manifest of `parent`.

    `settings` are those of the work tree unless given.
    """
    settings = settings or repo.settings
    if not settings.eval and not suites:
        return []
    from modelgit.evals.gate import run_suite, unavailable
    from modelgit.evals.suites import load_suites
    from modelgit.repo.tasks import suite_candidate

    before = repo.manifest_of(parent) if parent is not None else None
    candidate_id = manifest_id(manifest)
    baseline_id = None if before is None else manifest_id(before)
    records = []
    for suite in load_suites(settings, names=suites or None):
        try:
            candidate = suite_candidate(repo, store, manifest, suite, progress=progress)
            baseline = None
            path = None if before is None else _same_model(repo, store, manifest, before, suite.task.model)
            if before is not None and path is not None:
                task = msgspec.structs.replace(suite.task, model=path)
                baseline = suite_candidate(
                    repo,
                    repo.store,
                    before,
                    replace(suite, task=task),
                    data_from=manifest,
                    data_store=store,
                    progress=progress,
                )
            records.append(run_suite(suite.name, suite.settings, candidate, baseline, progress=progress))
        except MgitError as error:
            # What cannot be compared is never a pass; it is a verdict of its own that names the reason.
            records.append(unavailable(suite.name, candidate_id, baseline_id, error.message))
    return records


def _same_model(repo: Repository, store: ObjectStore, manifest: Manifest, before: Manifest, path: str) -> str | None:
    """Where the model at `path` was before: there, or where one with the same tensors went away.

    Moving a model to another directory must not be a way around limits against the parent.
    """
    if any(model.path == path for model in before.models):
        return path
    here = {model.path for model in manifest.models}
    names = set(repo.models_of(manifest, store=store).get(path, ()))
    gone = [model for model in before.models if model.path not in here]
    return next((model.path for model in gone if set(repo.tensors_of(before, model)) == names), None)


def recorded_verdicts(repo: Repository, commit: CommitId) -> list[EvalRecord]:
    """The verdicts that let a commit in."""
    return [read_record(repo.store, verdict.record, EvalRecord) for verdict in repo.commit_at(commit).verdicts]
