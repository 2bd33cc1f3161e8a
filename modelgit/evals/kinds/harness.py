"""`lm-eval`: tasks of the lm-evaluation-harness, in a process of their own and without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence

from modelgit.config.schema import TaskSettings
from modelgit.config.suites import LmEvalTest
from modelgit.errors import MissingExtraError, UsageError
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.checks import Row
from modelgit.evals.child import HarnessRequest
from modelgit.evals.kept import outcome_key, plain_task
from modelgit.evals.outcomes import Outcome
from modelgit.evals.programs import asked_python, kept_outcome, limits_of, refuse_untrusted
from modelgit.evals.scored import scored_rows
from modelgit.objects.paths import path_problem

__all__ = ["document_scores", "run"]


def run(test: LmEvalTest, run: SuiteRun) -> Iterator[Row]:
    """A line for each metric and baseline, and one for documents that a baseline had right by `metric`.

    A task's YAML may name Python, so a suite with an `include_path` needs trust.  Raises MissingExtraError without the
    package, UsageError for a task of mgit.toml that is not loaded by transformers.
    """
    task = _loaded_by_transformers(test, run)
    yield from scored_rows(
        test.name,
        run,
        lambda side: _asked(test, run, side, task, None),
        metrics=test.metrics,
        nfr_max=test.nfr_max,
        dead_band=test.dead_band,
    )


def document_scores(
    test: LmEvalTest, run: SuiteRun, side: Side, documents: Mapping[str, Sequence[int]] | None = None
) -> dict[str, dict[int, float]]:
    """The value of `metric` for single documents of the candidate, by the harness's task and the document's number.

    `documents` are the numbers to score, ascending, by task (None: all of the test).  What a task draws as examples for
    its prompts may depend on which documents are scored together.  Raises what `run` raises, and UsageError for tasks
    that have no such value.
    """
    outcome = _asked(test, run, side, _loaded_by_transformers(test, run), documents)
    found: dict[str, dict[int, float]] = {}
    for example, score in outcome.scores.items():
        task, _, number = example.rpartition("/")
        found.setdefault(task, {})[int(number)] = score
    if not found:
        known = ", ".join(sorted(outcome.metrics)[:5])
        raise UsageError(
            f"test `{test.name}` has no `{test.metric}` of single documents; its metrics are {known}",
            hint='write `metric = "acc"` (or another that is a mean over documents) into the test',
        )
    return found


def _loaded_by_transformers(test: LmEvalTest, run: SuiteRun) -> TaskSettings:
    """The task of a test that can run."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError(
            "tests of kind `lm-eval` need the lm-evaluation-harness", hint="`pip install 'modelgit[lm-eval]'`"
        )
    task = run.task_of(test)
    if task.entry is not None:
        raise UsageError(
            f"test `{test.name}` loads its model by transformers, and the task has an `entry`",
            hint="write a test of kind `python`, whose model is what the entry builds",
        )
    if test.include_path is not None:
        refuse_untrusted(run, f"what the tasks in {test.include_path} name")
        problem = path_problem(test.include_path)
        if problem is not None or not (run.root / test.include_path).is_dir():
            raise UsageError(f"`include_path` {test.include_path!a} is no directory: {problem or 'it is not there'}")
    return task


def _asked(
    test: LmEvalTest, run: SuiteRun, side: Side, task: TaskSettings, documents: Mapping[str, Sequence[int]] | None
) -> Outcome:
    """What the harness says of a side, from the cache where these weights have been asked before."""
    tasks = test.tasks if documents is None else tuple(sorted(documents))
    numbers = None if documents is None else {name: tuple(documents[name]) for name in tasks}
    asked = (tasks, test.include_path, test.metric, test.limit if numbers is None else numbers, _version())

    def compute() -> tuple[Outcome, dict[str, str]]:
        request = HarnessRequest(
            tasks=tasks,
            include_path=None if test.include_path is None else str(run.root / test.include_path),
            metric=test.metric,
            root=str(run.root),
            model=str(side.checkout() / side.model_path(task)),
            result="",
            seed=run.settings.seed,
            limit=test.limit if numbers is None else None,
            documents=numbers,
            device=run.settings.device,
            dtype=run.settings.dtype,
        )
        limits = limits_of(test.timeout, None)
        return asked_python(run, request, what=f"test `{test.name}`", limits=limits)[0], {}

    return kept_outcome(run, side, outcome_key("lm-eval", run, side, asked, plain_task(side, task)), compute)


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")
