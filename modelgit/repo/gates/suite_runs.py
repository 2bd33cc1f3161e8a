"""Suites run on a manifest: candidate, baselines and data are put together, and a verdict comes out of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from modelgit.config.suite_files import duration_s
from modelgit.errors import MgitError, UsageError
from modelgit.objects import CommitId, ComparedWith, EvalRecord, Manifest, ManifestId
from modelgit.objects.manifest import manifest_id
from modelgit.progress import SILENT, Progress
from modelgit.repo.gates.acceptances import accepted_examples
from modelgit.repo.gates.baselines import PARENT, Baseline, find_baselines, is_parent, parents_of_merge
from modelgit.repo.gates.suites import SuiteTexts, identity_of, recorded_suites, worktree_suites
from modelgit.repo.notes import allowed_signers
from modelgit.repo.trust import suite_code, suite_distrust
from modelgit.repo.weights import weights_tree
from modelgit.store.base import ObjectStore
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.config.schema import TaskSettings
    from modelgit.config.suites import RunSettings
    from modelgit.evals.base import Dataset, Deadline
    from modelgit.evals.suites import Suite
    from modelgit.repo.gates.sides import ManifestSide
    from modelgit.repo.repository import Repository

__all__ = ["EvalOptions", "evaluate_manifest"]


_ALL = 1 << 30


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What stands for what the suites say.

    `baselines` replace theirs, with `keep_baselines` the parent only (of a merge: the sides that they have).  `full`
    looks at every example, `fail_fast` ends a suite at its first broken limit, `budget_s` is wall time for all suites
    together, in place of their own.  `stages` leaves out suites that are due at others.  With `reuse`, a suite is not
    run again for the weights, data and baselines that the parent was passed with: a change of a message or of
    documentation costs nothing; with `defer`, what would have to run is "pending".  `verify_cache` random predictions
    of each cache are first computed again and compared; `verified` is told how many there were, cache by cache.
    `all_flips` keeps every example that broke, not the first few.
    """

    baselines: tuple[str, ...] = ()
    keep_baselines: bool = False
    full: bool = False
    fail_fast: bool = False
    budget_s: float | None = None
    stages: tuple[str, ...] = ()
    reuse: bool = False
    defer: bool = False
    verify_cache: int = 0
    verified: Callable[[int], None] | None = None
    all_flips: bool = False


def evaluate_manifest(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    parents: Sequence[CommitId],
    *,
    suites: Sequence[str] = (),
    texts: SuiteTexts | None = None,
    law: Manifest | None = None,
    options: EvalOptions | None = None,
    progress: Progress = SILENT,
) -> list[EvalRecord]:
    """Run the suites (or those named) on a manifest with these `parents`, whose new objects are in `store`.

    Suites are those of `texts`, by default of the work tree; their data those of `manifest`.  With `law` both are those
    that another manifest records: that of the tip of a protected branch, whose gate a change may not edit.  What
    cannot be compared is an "error" that says why.  Raises UsageError for suites that cannot be read.
    """
    options = options or EvalOptions()
    if texts is None:
        texts = worktree_suites(repo) if law is None else recorded_suites(repo, law)
    if not texts and not suites:
        return []
    candidate = _Candidate(repo, store, manifest, parents, law, options, progress)
    due = [suite for suite in texts.suites(suites) if suites or not options.stages or suite.run.stage in options.stages]
    return [candidate.verdict(suite) for suite in due]


class _Candidate:
    """A manifest under test, and what its suites share: loaded models, and the wall time that is left."""

    def __init__(
        self,
        repo: Repository,
        store: ObjectStore,
        manifest: Manifest,
        parents: Sequence[CommitId],
        law: Manifest | None,
        options: EvalOptions,
        progress: Progress,
    ) -> None:
        from modelgit.evals.runner import WallTime

        self.repo = repo
        self.store = store
        self.manifest = manifest
        self.parents = tuple(parents)
        self.data_from = (store, manifest) if law is None else (repo.store, law)
        self.law = law
        self.options = options
        self.progress = progress
        self.time = WallTime(options.budget_s)

    def verdict(self, suite: Suite) -> EvalRecord:
        """Run one suite, unless the parent's verdict says it all; an "error" when it cannot start."""
        from modelgit.evals.runner import run_settings, unavailable
        from modelgit.repo.gates.sides import read_dataset

        settings = run_settings(
            suite.run,
            full=self.options.full,
            baselines=self.options.baselines,
            keep=self.options.keep_baselines,
        )
        if self.options.budget_s is not None:
            settings = msgspec.structs.replace(settings, budget=f"{max(self.options.budget_s, 0.001):.3f}s")
        try:
            found, missing = find_baselines(
                self.repo, settings.baselines, self.parents, candidate=manifest_id(self.manifest)
            )
            if self.options.baselines and self.options.keep_baselines and PARENT in suite.run.baselines:
                given = [self.repo.resolve(name) for name in self.options.baselines]
                found += parents_of_merge(self.repo, self.parents, given)
            self._refuse_own_data(suite)
            datasets = {
                name: read_dataset(self.repo, self.data_from[0], self.data_from[1], source)
                for name, source in suite.data.items()
            }
            identity = identity_of(self.repo, suite, datasets)
            known = self._known(suite.name, identity, found) if self.options.reuse else None
            if known is not None:
                return known
            if self.options.defer:
                return self._pending(suite.name, settings, identity)
            with ExitStack() as stack:
                return self._run(suite, settings, identity, datasets, found, missing, stack)
        except MgitError as error:
            if self.options.defer:
                return self._pending(suite.name, settings, "")  # the machine that runs it may have what is missing here
            # What cannot be compared is never a pass; it is a verdict of its own that names the reason.
            return unavailable(
                suite.name, manifest_id(self.manifest), self._before(), error.message, stage=settings.stage
            )

    def _before(self) -> ManifestId | None:
        return self.repo.commit_at(self.parents[0]).manifest if self.parents else None

    def _refuse_own_data(self, suite: Suite) -> None:
        """Data that the law does not record are those of the work tree, which may be the candidate's: its own gate."""
        for source in suite.data.values() if self.law is not None else ():
            if self.law is not None and self.law.file(source.path) is None and self.manifest.file(source.path):
                raise UsageError(
                    f"{source.path} is recorded by what is judged, and not where suite {suite.name} comes from",
                    hint=f"record {source.path} there first",
                )

    def _pending(self, name: str, settings: RunSettings, identity: str) -> EvalRecord:
        return EvalRecord(
            candidate=manifest_id(self.manifest),
            baseline=self._before(),
            suite=name,
            suite_id=identity,
            results=(),
            decision="pending",
            seconds=0.0,
            weights=weights_tree(self.repo, self.manifest, store=self.store),
            stage=settings.stage,
        )

    def _run(
        self,
        suite: Suite,
        settings: RunSettings,
        identity: str,
        datasets: Mapping[str, Dataset],
        found: Sequence[Baseline],
        missing: Sequence[str],
        stack: ExitStack,
    ) -> EvalRecord:
        from modelgit.evals.base import SuiteRun
        from modelgit.evals.runner import run_suite, sampled_limits
        from modelgit.repo.gates.sides import LoadedModels, ManifestSide

        models = LoadedModels()

        def side(name: str, store: ObjectStore, manifest: Manifest) -> ManifestSide:
            return ManifestSide(
                self.repo,
                store,
                manifest,
                name=name,
                settings=settings,
                models=models,
                stack=stack,
                path_from=None if name == "candidate" else (self.store, self.manifest),
                progress=self.progress,
            )

        candidate = side("candidate", self.store, self.manifest)
        baselines: dict[str, ManifestSide] = {}  # by their weights: names that mean the same are compared once
        names: dict[str, tuple[str, ...]] = {}
        compared, absent = [], list(missing)
        for baseline in found:
            manifest = self.repo.manifest_of(baseline.commit)
            other = side(baseline.name, self.repo.store, manifest)
            if all(other.has_model(task) for task in _tasks(suite)):
                first = baselines.setdefault(other.weights, other).name
                names[first] = (*names.get(first, ()), baseline.name)
                compared.append(
                    ComparedWith(
                        name=baseline.name, manifest=other.manifest, weights=other.weights, commit=baseline.commit
                    )
                )
            else:
                absent.append(baseline.name)
        sides = list(baselines.values())
        run = SuiteRun(
            identity=identity,
            settings=settings,
            candidate=candidate,
            baselines=sides,
            names=names,
            datasets=datasets,
            deadline=self._deadline(settings),
            root=self.repo.worktree,
            task=suite.task,
            tasks=suite.tasks,
            distrust=suite_distrust(self.repo, suite),
            code=suite_code(self.repo, suite),
            surroundings=self.repo.environment.surroundings,
            failing=sampled_limits(suite.tests, baselines=len(sides), names=len(compared)),
            fail_fast=self.options.fail_fast,
            show_flips=_ALL if self.options.all_flips else suite.report.show_flips,
            accepted=accepted_examples(self.repo, suite.name, signers=allowed_signers(self.repo, self.law)),
            progress=self.progress,
        )
        for one in sides:
            one.compare_with(candidate)
        if sides:
            candidate.compare_with(sides[0])
        if self.options.verify_cache:
            self._verify([candidate, *sides], datasets)
        return run_suite(suite, run, compared=compared, missing=absent)

    def _verify(self, sides: Sequence[ManifestSide], datasets: Mapping[str, Dataset]) -> None:
        import numpy as np

        from modelgit.models.kinds import PER_EXAMPLE_KINDS

        rng = np.random.default_rng()
        for one in sides:
            for data in datasets.values():
                if data.task.kind in PER_EXAMPLE_KINDS:
                    count = one.verify(data, self.options.verify_cache, rng)
                    if self.options.verified is not None:
                        self.options.verified(count)

    def _deadline(self, settings: RunSettings) -> _Either:
        from modelgit.evals.runner import WallTime

        own = None if settings.budget is None else duration_s(settings.budget, where="the budget of the suite")
        return _Either(self.time, WallTime(own))

    def _known(self, name: str, identity: str, found: Sequence[Baseline]) -> EvalRecord | None:
        """The parent's verdict, when it was a pass on the very same weights, data, suite and baselines."""
        if not self.parents:
            return None
        before, *others = (self.repo.commit_at(parent) for parent in self.parents)
        verdict = next((item for item in before.verdicts if item.suite == name), None)
        if verdict is None or verdict.decision not in ("pass", "warn"):
            return None
        record = read_record(self.repo.store, verdict.record, EvalRecord)
        if record.suite_id != identity or record.override is not None or record.accepted:
            return None  # what was accepted then may have lapsed
        weights = weights_tree(self.repo, self.manifest, store=self.store)
        # The other sides of a merge were never compared with these weights, unless they have them, too.
        sides = {weights_tree(self.repo, self.repo.manifest_at(item.manifest)) for item in (before, *others)}
        if sides != {weights} or record.weights != weights:
            return None
        now = {baseline.name: baseline.commit for baseline in found if not is_parent(baseline.name)}
        then = {baseline.name: baseline.commit for baseline in record.baselines if not is_parent(baseline.name)}
        if now != then:
            return None
        return msgspec.structs.replace(record, candidate=manifest_id(self.manifest), seconds=0.0)


class _Either:
    """Over when one of two budgets is."""

    def __init__(self, *deadlines: Deadline) -> None:
        self._deadlines = deadlines

    def passed(self) -> bool:
        """Whether the first of them is."""
        return any(deadline.passed() for deadline in self._deadlines)


def _tasks(suite: Suite) -> list[TaskSettings]:
    return [*suite.tasks.values(), *(source.task for source in suite.data.values())]
