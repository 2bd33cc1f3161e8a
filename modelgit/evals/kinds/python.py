"""`python`: a function of the repository, called with the model in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from modelgit.config.suites import PythonTest
from modelgit.errors import UsageError
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.checks import Row
from modelgit.evals.child import PythonRequest
from modelgit.evals.kept import outcome_key, plain_task
from modelgit.evals.outcomes import Outcome
from modelgit.evals.programs import asked_python, kept_outcome, limits_of, refuse_untrusted
from modelgit.evals.scored import scored_rows

__all__ = ["run"]


def run(test: PythonTest, run: SuiteRun) -> Iterator[Row]:
    """A line for each metric and baseline, and one for examples whose score fell.

    The code is that of the work tree, for the candidate and for baselines.  Raises UsageError where it is not trusted
    or not there, CheckFailed for what goes wrong while it runs.
    """
    refuse_untrusted(run, f"`{test.entry}`")
    path, _, function = test.entry.partition(":")
    if not (run.root / path).is_file():
        raise UsageError(
            f"`{test.entry}` names {path}, which is not there", hint="`mgit restore` brings recorded files back"
        )
    task = run.task_of(test)
    limits = limits_of(test.timeout, test.memory_gib)

    def outcome_of(side: Side) -> Outcome:
        def compute() -> tuple[Outcome, dict[str, str]]:
            request = PythonRequest(
                source=str(run.root / path),
                function=function,
                root=str(run.root),
                checkout=str(side.checkout()),
                task=msgspec.structs.replace(task, model=side.model_path(task)),
                result="",
                seed=run.settings.seed,
                device=run.settings.device,
                dtype=run.settings.dtype,
            )
            outcome, read = asked_python(run, request, what=f"`{test.entry}`", limits=limits)
            return outcome, dict(read)

        key = None if test.cache == "none" else outcome_key("python", run, side, test.entry, plain_task(side, task))
        return kept_outcome(run, side, key, compute)

    yield from scored_rows(
        test.name, run, outcome_of, metrics=test.metrics, nfr_max=test.nfr_max, dead_band=test.dead_band
    )
