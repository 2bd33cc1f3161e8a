"""What tests of a suite see: data, the models that are compared, and how a test writes its lines.

A kind of test is a function `run(test, run) -> Iterable[Row]` in a module of `evals/kinds/`; it asks the sides of the
run for what they say about the data and knows nothing of repositories, caches or how a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modelgit.config.suites import RunSettings, TestTable
from modelgit.errors import UsageError
from modelgit.evals.checks import Row
from modelgit.evals.drawing import draw_order
from modelgit.objects import Flip, ManifestId
from modelgit.progress import SILENT, Progress
from modelgit.registry import Registry

if TYPE_CHECKING:
    from modelgit.config.schema import TaskSettings
    from modelgit.evals.predictions import Predictions
    from modelgit.models.base import Example, ExampleSet, TaskModel

__all__ = ["KINDS", "BudgetSpent", "Dataset", "Deadline", "Kind", "Side", "SuiteRun", "data_name"]


class BudgetSpent(Exception):
    """The wall time of the suite is over: the runner makes the test inconclusive."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples of a suite: `labels` int64 `[N]` (-1 for none), and the values of the slice fields, `[N]` each.

    `fingerprint` is the hex BLAKE3 of the raw data; `clusters` int64 `[N]` are equal for examples that belong together
    (None: each is its own).  Held are all records of the file.
    """

    name: str
    task: TaskSettings
    examples: tuple[Example, ...]
    fingerprint: str
    labels: NDArray[np.int64]
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    clusters: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.examples)


class Side(Protocol):
    """One model of a comparison.

    `name` is "candidate" or what the suite calls the baseline ("parent", "tag:v1.0"); `weights` names what is
    measured.  Methods raise MgitError when what they are asked for cannot be computed.
    """

    name: str
    manifest: ManifestId
    weights: str
    versions: Mapping[str, str]

    def complete(self, data: Dataset) -> bool:
        """Whether every prediction on `data` is known already, so that asking for them costs nothing."""

    def predictions(self, data: Dataset, indices: NDArray[np.int64] | None = None) -> Predictions:
        """One class for each example, at ascending `indices` or for all; computed at most once, and kept."""

    def model(self, data: Dataset) -> TaskModel:
        """The task model that `data` are for, with its weights; loaded at most once at a time."""

    def encode(self, data: Dataset, indices: NDArray[np.int64]) -> ExampleSet:
        """The inputs of the examples at `indices`, in that order."""

    def scores(self, key: str) -> Mapping[str, Any] | None:
        """What was kept under `key` for these weights by `keep_scores`; None when nothing was."""

    def keep_scores(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a JSON object by the weights and `key` (which names everything else that it depends on)."""

    def checkout(self) -> Path:
        """A directory with the files of the side, read-only, kept until the run ends."""

    def model_path(self, task: TaskSettings) -> str:
        """The path of the task's model below `checkout()`."""

    def size(self, task: TaskSettings) -> tuple[int, int]:
        """Bytes and parameters of the task's model."""


class Deadline(Protocol):
    """The wall time that is left to a suite."""

    def passed(self) -> bool:
        """Whether it is over; a test then stops as inconclusive."""


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What a test is given.

    `baselines` are those of different weights; `names` has all names of each by its own: "parent" and "tag:v1" may have
    the same weights.  `identity` is the id of the suite; `datasets` holds the data by the name that a test gives;
    `task` is the suite's own and `tasks` are those that tests name.  With `fail_fast` a failure is looked for first,
    and ends the run.  `failing` counts the limits that a draw of examples may find broken: each may do so wrongly with
    probability alpha / `failing`, so that the whole suite does with at most alpha. `flips` collects the first negative
    flips for reports.  `root` is the repository's work tree, from which trusted code runs; `distrust` says why the
    code that the suite names may not run (None: it may), `code` is that code (hashes by path), and `surroundings` are
    the environment variables that its programs are given. `accepted` are the examples, by id, that each test lets
    break, with the acceptance that says so; `excused` collects the acceptances that made a difference.
    """

    identity: str
    settings: RunSettings
    candidate: Side
    baselines: Sequence[Side]
    datasets: Mapping[str, Dataset]
    deadline: Deadline
    root: Path
    task: TaskSettings | None = None
    tasks: Mapping[str, TaskSettings] = field(default_factory=dict)
    distrust: str | None = "the code that this suite names is not trusted here"
    code: Mapping[str, str] = field(default_factory=dict)
    surroundings: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failing: int = 1
    fail_fast: bool = False
    show_flips: int = 20
    flips: list[Flip] = field(default_factory=list)
    accepted: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)
    progress: Progress = SILENT

    @property
    def alpha_fail(self) -> float:
        """The error that one limit may make when it fails early (Bonferroni over the limits)."""
        return self.settings.alpha / max(1, self.failing)

    def names_of(self, side: Side) -> tuple[str, ...]:
        """Every name that the suite has for a baseline, the one of its lines first."""
        return self.names.get(side.name, (side.name,))

    def data_of(self, test: TestTable) -> Dataset:
        """The data of a test.  Raises UsageError when it has none, or none are in it."""
        data = self.datasets.get(data_name(test) or "")
        if data is None or not len(data):
            raise UsageError("the data of the suite hold no examples" if data else f"test `{test.name}` has no data")
        return data

    def task_of(self, test: TestTable) -> TaskSettings:
        """The task that a test without data names, or the suite's own.  Raises UsageError when there is none."""
        named = getattr(test, "task", None)
        task = self.task if named is None else self.tasks.get(named)
        if task is None:
            raise UsageError(f"test `{test.name}` has no task", hint='write `task = "NAME"` at the top of the suite')
        return task

    def order(self, data: Dataset) -> NDArray[np.int64]:
        """The positions of the examples that count, in the order in which they are drawn."""
        return draw_order(len(data), seed=self.settings.seed, suite=self.identity)[: self.settings.examples]

    def in_full(self, data: Dataset, *sides: Side) -> bool:
        """Whether every example is looked at: asked for, or free because the predictions of `sides` are known."""
        return self.settings.sampling == "full" or all(side.complete(data) for side in sides)

    def counted(
        self, test: str, data: Dataset, broken: NDArray[np.bool_], indices: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """`broken` (of the examples at `indices`, one each) without those that an acceptance lets break."""
        leave = self.accepted.get(test)
        if not leave:
            return broken
        kept = broken.copy()
        for place in np.flatnonzero(broken).tolist():
            note = leave.get(data.examples[int(indices[place])].id)
            if note is not None:
                kept[place] = False
                self.excused.add(note)
        return kept

    def check(self) -> None:
        """Raise BudgetSpent when the time is over, KeyboardInterrupt when the user wants to stop."""
        self.progress.check()
        if self.deadline.passed():
            raise BudgetSpent


class Kind(Protocol):
    """A kind of test; `entry` is a function of this form in a module of `evals/kinds`."""

    def __call__(self, test: Any, run: SuiteRun) -> Iterable[Row]:
        """The lines of one test.

        MgitError makes the test an "error".  A limit against a baseline with no baseline at hand is a line
        "baseline".  The runner puts the test's name and level to each line.
        """


KINDS: Registry[Kind] = Registry(
    "kind of test",
    "modelgit.test_kinds",
    {
        "classification": "modelgit.evals.kinds.classification:run",
        "nfr": "modelgit.evals.kinds.flips:run",
        "kl": "modelgit.evals.kinds.drift:run",
        "perplexity": "modelgit.evals.kinds.perplexity:run",
        "pin": "modelgit.evals.kinds.checklist:run_pin",
        "mft": "modelgit.evals.kinds.checklist:run_mft",
        "inv": "modelgit.evals.kinds.checklist:run_inv",
        "dir": "modelgit.evals.kinds.checklist:run_dir",
        "retrieval-compat": "modelgit.evals.kinds.retrieval:run",
        "lm-eval": "modelgit.evals.kinds.harness:run",
        "python": "modelgit.evals.kinds.python:run",
        "shell": "modelgit.evals.kinds.shell:run",
        "resources": "modelgit.evals.kinds.resources:run",
    },
)


def data_name(test: TestTable) -> str | None:
    """The key of a test's data in `SuiteRun.datasets`: what `data` names, or the `path` itself."""
    return getattr(test, "data", None) or getattr(test, "path", None)
