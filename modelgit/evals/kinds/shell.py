"""`shell`: a command that prints one JSON object with metrics and scores of examples."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from modelgit.config.suites import ShellTest
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.checks import Row
from modelgit.evals.kept import outcome_key
from modelgit.evals.outcomes import Outcome, parse_outcome
from modelgit.evals.processes import run_program, shell_arguments
from modelgit.evals.programs import home_of_test, kept_outcome, limits_of, refuse_untrusted
from modelgit.evals.scored import scored_rows

__all__ = ["run"]

_PLACE = "{checkout}"


def run(test: ShellTest, run: SuiteRun) -> Iterator[Row]:
    """A line for each metric and baseline, and one for examples whose score fell.

    The command runs in the work tree, once for each side; `{checkout}`, and MGIT_CHECKOUT in its environment, is a
    directory with the files of that side.  Raises UsageError where it is not trusted, CheckFailed for a command that
    fails or prints anything but its outcome.
    """
    refuse_untrusted(run, f"the command of test `{test.name}`")
    limits = limits_of(test.timeout, test.memory_gib)
    what = f"the command of test `{test.name}`"

    def outcome_of(side: Side) -> Outcome:
        def compute() -> tuple[Outcome, dict[str, str]]:
            checkout = str(side.checkout())
            command = test.command.replace(_PLACE, shlex.quote(checkout))
            with home_of_test(run) as (_, environment):
                finished = run_program(
                    shell_arguments(command, memory_bytes=limits.memory_bytes),
                    what=what,
                    limits=limits,
                    directory=run.root,
                    environment={**environment, "MGIT_CHECKOUT": checkout},
                    check=run.check,
                )
            return parse_outcome(finished.output, what=what), {}

        key = None if test.cache == "none" else outcome_key("shell", run, side, test.command)
        return kept_outcome(run, side, key, compute)

    yield from scored_rows(
        test.name, run, outcome_of, metrics=test.metrics, nfr_max=test.nfr_max, dead_band=test.dead_band
    )
