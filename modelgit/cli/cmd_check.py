"""`mgit check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from modelgit.cli._check_formats import CHECK_FORMATS, check_data, check_document
from modelgit.cli._complete import complete_revision
from modelgit.cli._errors import Quit
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Painted, Part, bold, dim, green, red, yellow
from modelgit.cli._reports import Reports, no_commands, report_options, write_check
from modelgit.cli._session import Session
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.objects import CheckReport, Outcome

__all__ = ["check"]

_CODES: dict[Outcome, int] = {"pass": 0, "warn": 0, "skip": 0, "fail": 1, "inconclusive": 8, "error": 9}
_PAINTS: dict[Outcome, Callable[[object], Painted]] = {
    "pass": green,
    "warn": yellow,
    "fail": red,
    "error": red,
    "inconclusive": yellow,
    "skip": dim,
}


@command("check", example="mgit check --base origin/main --suite smoke --format github")
@click.argument("revision", required=False, shell_complete=complete_revision, metavar="[REV]")
@click.option(
    "--base",
    required=True,
    shell_complete=complete_revision,
    metavar="REF",
    help="What the update is to land on; its suites, signers and policies count.",
)
@click.option("--suite", "suites", multiple=True, metavar="NAME", help="Run this suite; may be repeated (all of REF).")
@click.option("--no-suites", is_flag=True, help="Run none: check what needs no model.")
@click.option("--strict", is_flag=True, help="Take a warning for a failure.")
@click.option("--format", "form", type=click.Choice(CHECK_FORMATS), default="text", help="How the report is written.")
@report_options(sarif=True)
@json_option
@pass_session
def check(
    session: Session,
    revision: str | None,
    base: str,
    suites: tuple[str, ...],
    no_suites: bool,
    strict: bool,
    form: str,
    reports: Reports,
    as_json: bool,
) -> None:
    """Check whether REV (HEAD) may land on REF.

    Looks at every new object, the size and exactness of the patch, names and shapes, finite values, code and pickles,
    what stands out in the weights, signatures, the suites of REF and the policies of its branch.

    --format says what goes to stdout; "github" is the text with annotations, and the summary of the step besides.

    Exit code 0: all of it passed; 1: something failed; 8: a suite is undecided; 9: a part could not be checked.
    """
    from modelgit.repo.reviews.check import check as run_check

    if no_suites and suites:
        raise UsageError("--suite and --no-suites exclude each other", hint=f"`mgit check --base {base} --no-suites`")
    chosen = () if no_suites else suites or None
    report = run_check(session.repository, base, revision, suites=chosen, progress=session.progress)
    if as_json or form == "json":
        session.output.json("mgit.check/1", check_data(report))
    elif form == "text":
        session.output.lines(_lines(report))
    elif form == "github":
        with no_commands(session):
            session.output.lines(_lines(report))
    else:
        session.output.raw(check_document(report, form))
    write_check(session, report, reports, github=form == "github" and not as_json)
    code = 1 if strict and report.outcome == "warn" else _CODES[report.outcome]
    if code:
        raise Quit(code)


def _lines(report: CheckReport) -> list[list[Part]]:
    from modelgit.reporting.check_text import check_lines

    rows: list[list[Part]] = []
    for line in check_lines(report):
        if line.outcome is not None:
            rows.append(["  ", _PAINTS[line.outcome](line.mark), " ", line.text])
        else:
            rows.append([line.text if line.text.startswith(" ") else bold(line.text)])
    return rows
