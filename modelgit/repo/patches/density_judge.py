"""What a sparse patch is judged by: the dense model of a task, inputs that choose it, and others that measure it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.objects import Manifest
from modelgit.progress import SILENT, Progress
from modelgit.repo.tasks import encoded, open_task, task_examples
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.fisher.changes import Diagonal
    from modelgit.models.base import ExampleSet, TaskModel
    from modelgit.repo.repository import Repository

__all__ = ["Compared", "Judge", "open_judge"]

_MEASURED = 1000


class Compared(NamedTuple):
    """The patched model against the dense one on `examples` inputs with `outputs` in all; KL in nats per example.

    `agreement` is the share of equal top classes; of `labelled` outputs the dense model has `dense_correct` right, the
    patched one `patched_correct`.
    """

    examples: int
    outputs: int
    kl: float
    agreement: float
    labelled: int
    dense_correct: int
    patched_correct: int


class Judge(NamedTuple):
    """A task's dense model, inputs for the Fisher information and for choosing, and others to measure on."""

    repo: Repository
    name: str
    settings: TaskSettings
    model: TaskModel
    estimate_on: ExampleSet
    measure_on: ExampleSet

    @property
    def head(self) -> frozenset[str]:
        """The tensors of the task's head."""
        return frozenset(self.model.tensor_of[name] for name in self.model.head)

    def diagonal(self, *, examples: int, seed: int, progress: Progress = SILENT) -> tuple[Diagonal, str]:
        """The diagonal of the true Fisher information at the dense weights, and what it is of; labels do not count."""
        from modelgit.fisher.estimate import estimate

        found = estimate(
            self.model, self.estimate_on, estimator="rademacher", limit=examples, seed=seed, progress=progress
        )
        words = f"{found.estimator}, {found.examples} inputs of task {self.name} ({found.data[:16]}), seed {seed}"
        return found.values, words

    def compare(
        self, session: PackSession, manifest: Manifest, inputs: ExampleSet, *, progress: Progress = SILENT
    ) -> Compared:
        """The model of `manifest`, which may lie in `session`, against the dense one."""
        from modelgit.fisher.kl import measure

        patched = open_task(self.repo, manifest, self.settings, store=session)
        found = measure(self.model, patched, inputs, limit=_MEASURED, listed=0, progress=progress)
        return Compared(
            found.examples,
            found.outputs,
            found.kl,
            found.agreement,
            found.labelled,
            found.old_correct,
            found.new_correct,
        )


def open_judge(repo: Repository, session: PackSession, manifest: Manifest, model: str, name: str | None) -> Judge:
    """The task `name` of the model at `model` of `manifest`, which may lie in `session`.

    Raises UsageError where no task is named or clear, or it names no data.
    """
    if name is None:
        tasks = [key for key, item in repo.settings.task.items() if item.model == model]
        if tasks:
            raise UsageError(f"which task? {model} has {', '.join(tasks)}", hint="`--task NAME`")
        raise UsageError(
            f"no task of mgit.toml computes with {model}, so nothing says what its weights do",
            hint='add a table `[task.NAME]` with `model`, `adapter` (or `entry`) and `test = "data/test.jsonl"`',
        )
    settings = repo.settings.task[name]
    path = settings.test or settings.train
    if path is None:
        raise UsageError(
            f"task {name} names no data",
            hint=f'write `test = "data/test.jsonl"` under [task.{name}]; labels or not',
        )
    rows, fingerprint = task_examples(repo, settings, path)
    # Every other input is for the Fisher information, so that nothing is measured on what chose the patch.
    parts = (rows[1::2], rows[0::2]) if len(rows) > 1 else (rows, rows)
    sets = [encoded(repo, manifest, settings, part, fingerprint, store=session) for part in parts]
    return Judge(repo, name, settings, open_task(repo, manifest, settings, store=session), *sets)
