"""`lm-eval`: tasks of the lm-evaluation-harness, in a process of their own and without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from modelgit.config.suites import LmEvalTest
from modelgit.errors import MissingExtraError, UsageError
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.checks import Row
from modelgit.evals.child import HarnessRequest
from modelgit.evals.outcomes import Outcome
from modelgit.evals.programs import asked_python, kept_outcome, limits_of, outcome_key, plain_task, refuse_untrusted
from modelgit.evals.scored import scored_rows
from modelgit.objects.paths import path_problem

__all__ = ["run"]


def run(test: LmEvalTest, run: SuiteRun) -> Iterator[Row]:
    """A line for each metric and baseline, and one for documents that a baseline had right by `metric`.

    A task's YAML may name Python, so a suite with an `include_path` needs trust.  Raises MissingExtraError without the
    package, UsageError for a task of mgit.toml that is not loaded by transformers.
    """
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
    limits = limits_of(test.timeout, None)
    asked = (test.tasks, test.include_path, test.metric, test.limit, _version())

    def outcome_of(side: Side) -> Outcome:
        def compute() -> tuple[Outcome, dict[str, str]]:
            request = HarnessRequest(
                tasks=test.tasks,
                include_path=None if test.include_path is None else str(run.root / test.include_path),
                metric=test.metric,
                root=str(run.root),
                model=str(side.checkout() / side.model_path(task)),
                result="",
                seed=run.settings.seed,
                limit=test.limit,
                device=run.settings.device,
                dtype=run.settings.dtype,
            )
            return asked_python(run, request, what=f"test `{test.name}`", limits=limits)[0], {}

        return kept_outcome(run, side, outcome_key("lm-eval", run, side, asked, plain_task(side, task)), compute)

    yield from scored_rows(
        test.name, run, outcome_of, metrics=test.metrics, nfr_max=test.nfr_max, dead_band=test.dead_band
    )


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")
