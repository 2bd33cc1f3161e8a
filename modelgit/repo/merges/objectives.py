"""What a search over merges scores candidates by: accuracies on labelled data, and tasks of the lm-evaluation-harness.

A round of a search scores every candidate on a share of the examples.  They are drawn once, so that a round sees the
same ones for all candidates and each of those that the round before has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from modelgit.config.suites import ClassificationTest, LmEvalTest, NfrTest, RunSettings
from modelgit.errors import UsageError, did_you_mean
from modelgit.evals.base import Dataset, SuiteRun, data_name
from modelgit.evals.runner import WallTime
from modelgit.evals.suites import DataSource, Suite
from modelgit.models.data import UNLABELLED
from modelgit.objects import Manifest
from modelgit.progress import SILENT, Progress
from modelgit.repo.gates.sides import LoadedModels, ManifestSide, read_dataset
from modelgit.repo.gates.suites import worktree_suites
from modelgit.repo.trust import suite_code, suite_distrust
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Objective", "objectives", "side_of"]


class Objective(Protocol):
    """Something that a candidate is scored by."""

    @property
    def name(self) -> str:
        """The suite, with the test where the suite has several."""

    @property
    def size(self) -> int:
        """How many examples there are."""

    @property
    def note(self) -> str:
        """What belongs beside the figures; "" for nothing."""

    @property
    def settings(self) -> RunSettings:
        """How its suite runs: the device and the dtype are those of the gate."""

    def score(self, side: ManifestSide, share: float) -> tuple[float, int]:
        """The score on a share of the examples, higher for better, and how many these are."""


class _Draw(NamedTuple):
    """The first examples of a seeded order."""

    order: NDArray[np.int64]

    def first(self, share: float) -> NDArray[np.int64]:
        """That share of them, at least one, ascending."""
        return np.sort(self.order[: max(1, round(share * self.order.size))])


@dataclass(frozen=True, eq=False)
class _Labelled:
    """The accuracy on the labelled examples of a suite."""

    name: str
    examples: Dataset
    draw: _Draw
    settings: RunSettings
    note: str = ""

    @property
    def size(self) -> int:
        return self.draw.order.size

    def score(self, side: ManifestSide, share: float) -> tuple[float, int]:
        rows = self.draw.first(share)
        right = side.predictions(self.examples, rows).labels == self.examples.labels[rows]
        return float(np.mean(right)), rows.size


@dataclass(frozen=True, eq=False)
class _Harness:
    """The mean, over the tasks of a test of kind `lm-eval`, of its `metric` over single documents.

    Documents that a candidate was scored on in an earlier round are not asked again: `known` keeps their scores by the
    candidate's weights.
    """

    name: str
    test: LmEvalTest
    run: SuiteRun
    draws: Mapping[str, _Draw]
    note: str = ""
    known: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)

    @property
    def settings(self) -> RunSettings:
        return self.run.settings

    @property
    def size(self) -> int:
        return sum(draw.order.size for draw in self.draws.values())

    def score(self, side: ManifestSide, share: float) -> tuple[float, int]:
        from modelgit.evals.kinds.harness import document_scores

        wanted = {task: draw.first(share).tolist() for task, draw in self.draws.items()}
        held = self.known.setdefault(side.weights, {task: {} for task in wanted})
        new = {task: [at for at in numbers if at not in held[task]] for task, numbers in wanted.items()}
        new = {task: numbers for task, numbers in new.items() if numbers}
        if new:
            found = document_scores(self.test, replace(self.run, candidate=side), side, new)
            for task, numbers in new.items():
                missing = [at for at in numbers if at not in found.get(task, {})]
                if missing:
                    raise UsageError(
                        f"test `{self.test.name}` gave no `{self.test.metric}` for document {missing[0]} of {task}",
                        hint="tasks of the lm-evaluation-harness have to be the same for all models",
                    )
                held[task] |= {at: found[task][at] for at in numbers}
        means = [float(np.mean([held[task][at] for at in numbers])) for task, numbers in wanted.items()]
        return float(np.mean(means)), sum(map(len, wanted.values()))


def objectives(
    repo: Repository,
    manifest: Manifest,
    *,
    suites: Sequence[str] = (),
    files: Mapping[str, str],
    seed: int,
    progress: Progress = SILENT,
) -> list[Objective]:
    """What the suites of the work tree (or those named) score candidates by, with data as `manifest` records them.

    `files` are other labelled data by suite name.  The documents of tasks of the harness are counted by scoring
    `manifest` on all of them, which a gate that compares with it would do anyway.  Raises UsageError for suites that
    score nothing, and what tests of kind `lm-eval` raise.
    """
    texts = worktree_suites(repo)
    every = texts.suites()
    unknown = sorted({*files, *suites} - {suite.name for suite in every})
    if unknown:
        raise UsageError(
            f"no suite `{unknown[0]}`{did_you_mean(unknown[0], [suite.name for suite in every])}",
            hint="`mgit config list` shows those of mgit.toml",
        )
    beside = sorted(set(files) - set(suites)) if suites else []
    if beside:
        raise UsageError(
            f"suite `{beside[0]}` has data and does not score", hint=f"`--search-suite {beside[0]}` makes it score, too"
        )
    found: list[Objective] = []
    for suite in every:
        if suites and suite.name not in suites:
            continue
        labelled = _labelled(repo, manifest, suite, files, seed)
        tests = [test for test in suite.tests if isinstance(test, LmEvalTest)]
        if labelled is None and suite.name in files:
            raise UsageError(
                f"suite `{suite.name}` has no labelled data that others could stand for",
                hint="`--search-suite NAME` searches by another suite",
            )
        several = len(tests) + (labelled is not None) > 1
        found += [] if labelled is None else [labelled]
        for test in tests:
            name = f"{suite.name}/{test.name}" if several else suite.name
            found.append(_harness(repo, manifest, suite, test, name, seed, progress))
    if not found:
        raise UsageError(
            "a search needs a suite with labelled data, or with a test of kind `lm-eval`, to score merges on",
            hint='write `task = "NAME"` and `accuracy = { max_drop = 0.02 }` under [eval.NAME] in mgit.toml',
        )
    return found


def side_of(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    settings: RunSettings,
    stack: ExitStack,
    progress: Progress,
) -> ManifestSide:
    """A model to score; what is written of it for programs goes with `stack`."""
    return ManifestSide(
        repo,
        store,
        manifest,
        name="candidate",
        settings=settings,
        models=LoadedModels(),
        stack=stack,
        progress=progress,
    )


def _labelled(
    repo: Repository, manifest: Manifest, suite: Suite, files: Mapping[str, str], seed: int
) -> _Labelled | None:
    source = _labelled_source(suite)
    if source is None:
        return None
    source = replace(source, name=suite.name, path=files.get(suite.name, source.path))
    examples = read_dataset(repo, repo.store, manifest, source)
    labelled = np.flatnonzero(examples.labels != UNLABELLED)
    if not labelled.size:
        return None
    note = (
        f"suite {suite.name}: the data that chose are the data that the gate reports on; "
        f"`--search-data {suite.name}=FILE` takes others"
    )
    return _Labelled(suite.name, examples, _drawn(labelled, seed), suite.run, "" if suite.name in files else note)


def _labelled_source(suite: Suite) -> DataSource | None:
    """The data of the first test that counts right and wrong; those of any test of an [eval.NAME]."""
    counting = tuple(test for test in suite.tests if isinstance(test, NfrTest | ClassificationTest))
    keys = [data_name(test) or "" for test in counting or suite.tests]
    return next((suite.data[key] for key in keys if key in suite.data), None)


def _harness(
    repo: Repository, manifest: Manifest, suite: Suite, test: LmEvalTest, name: str, seed: int, progress: Progress
) -> _Harness:
    from modelgit.evals.kinds.harness import document_scores

    with ExitStack() as stack:
        side = side_of(repo, repo.store, manifest, suite.run, stack, progress)
        run = SuiteRun(
            identity="",
            settings=suite.run,
            candidate=side,
            baselines=(),
            datasets={},
            deadline=WallTime(None),
            root=repo.worktree,
            task=suite.task,
            tasks=suite.tasks,
            distrust=suite_distrust(repo, suite),
            code=suite_code(repo, suite),
            surroundings=repo.environment.surroundings,
            progress=progress,
        )
        documents = document_scores(test, run, side)
    draws = {task: _drawn(np.array(sorted(numbers)), seed) for task, numbers in sorted(documents.items())}
    note = (
        f"suite {name}: the documents that chose are those that the gate reports on; "
        "`--search-suite NAME` searches by another suite"
    )
    return _Harness(name, test, run, draws, note)


def _drawn(positions: NDArray[np.int64], seed: int) -> _Draw:
    order = np.random.Generator(np.random.Philox(seed)).permutation(positions)
    return _Draw(order.astype(np.int64))
