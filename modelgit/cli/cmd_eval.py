"""`mgit eval`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from modelgit.cli._commits import verdict_lines
from modelgit.cli._complete import complete_revision
from modelgit.cli._errors import Quit
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import plain_data
from modelgit.cli._reports import Reports, no_commands, report_options, write_verdicts
from modelgit.cli._session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelgit.objects import EvalRecord

__all__ = ["evaluate", "exit_code_of"]

FAILED, INCONCLUSIVE, COULD_NOT_RUN = 1, 8, 9
_SHOWN_FLIPS = 20


@command("eval", example="mgit eval main --suite smoke --baseline v1.0")
@click.argument("revision", required=False, shell_complete=complete_revision, metavar="[REV]")
@click.option("--suite", "suites", multiple=True, metavar="NAME", help="Run this suite; may be repeated (all suites).")
@click.option(
    "--baseline", shell_complete=complete_revision, metavar="REV", help="Compare with REV (the parent, or HEAD)."
)
@report_options(github=True)
@json_option
@pass_session
def evaluate(
    session: Session,
    revision: str | None,
    suites: tuple[str, ...],
    baseline: str | None,
    reports: Reports,
    as_json: bool,
) -> None:
    """Run suites on REV, or on the work tree as it would be committed, and compare with a baseline.

    Nothing is recorded.  Exit code 0: passed; 1: a limit is broken; 8: undecided; 9: a suite could not run or had no
    data.
    """
    from modelgit.repo.evaluate import evaluate as run_suites
    from modelgit.repo.suite_runs import EvalOptions

    repo = session.repository
    options = EvalOptions(baselines=(baseline,) if baseline else ())
    records = run_suites(repo, revision, suites=suites, options=options, progress=session.progress)
    if as_json:
        session.output.json("mgit.eval/1", {"evaluations": plain_data(records)})
    else:
        parents = repo.parents_of(repo.resolve(revision)) if revision else [head] if (head := repo.head()) else []
        against = repo.resolve(baseline) if baseline else next(iter(parents), None)
        with no_commands(session) if reports.github else contextlib.nullcontext():
            session.output.lines(verdict_lines(records, baseline=against, flips=_SHOWN_FLIPS))
    write_verdicts(session, records, reports)
    code = exit_code_of(records)
    if code:
        raise Quit(code)


def exit_code_of(records: Iterable[EvalRecord]) -> int:
    """A broken limit outweighs what could not run, and that what stayed undecided; only 0 is a pass."""
    decisions = {record.decision for record in records}
    for decision, code in (("fail", FAILED), ("error", COULD_NOT_RUN), ("inconclusive", INCONCLUSIVE)):
        if decision in decisions:
            return code
    return 0
