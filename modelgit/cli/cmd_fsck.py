"""`mgit fsck`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, dim, plain_data, red, yellow
from modelgit.cli._session import Session
from modelgit.errors import IntegrityError

if TYPE_CHECKING:
    from modelgit.repo.upkeep.fsck import Finding

__all__ = ["fsck"]

_SHOWN = 5


@command("fsck", example="mgit fsck --quick")
@click.option("--quick", is_flag=True, help="Check that everything is there, without rebuilding tensors.")
@json_option
@pass_session
def fsck(session: Session, quick: bool, as_json: bool) -> None:
    """Check every stored byte: each object is rebuilt and compared with its id.  Exit code 4 if anything is wrong."""
    from modelgit.repo.upkeep.fsck import fsck as check

    report = check(session.repository, quick=quick, progress=session.progress)
    output = session.output
    if as_json:
        output.json("mgit.fsck/1", {**plain_data(report), "sound": report.is_sound})
    else:
        for finding in report.findings:
            output.line(*_line(finding))
        looked = ", ".join(
            plural(number, noun)
            for number, noun in (
                (report.packs, "pack"),
                (report.objects, "object"),
                (report.commits, "commit"),
                (report.operations, "operation"),
            )
        )
        output.say(f"{'Checked quickly' if quick else 'Checked'}: {looked}")
        if report.training_absent:
            output.say(f"  the training state of {plural(report.training_absent, 'commit')} is not kept here")
        if report.pruned:
            output.say(f"  the weights of {plural(report.pruned, 'commit')} were pruned by retention")
        if report.borrowed:
            output.say(f"  {plural(report.borrowed, 'object')} borrowed (`mgit borrow list`)")
        if report.external:
            output.say(f"  {plural(report.external, 'object')} in published models")
        if report.absent:
            output.say(
                f"  {plural(len(report.absent), 'object')} cannot be read: a published model is not on this machine"
            )
        for finding in report.absent[:_SHOWN]:
            output.line(yellow("absent "), _short(finding.subject), dim(f"  {finding.problem}"))
    if report.findings:
        raise _error(report.findings)


def _line(finding: Finding) -> list[Part]:
    used = f" ({', '.join(_users(finding))})" if _users(finding) else ""
    return [red("damaged "), yellow(_short(finding.subject)), used, dim(f"  {finding.problem}")]


def _users(finding: Finding) -> list[str]:
    found = [finding.used_by] if finding.used_by else []
    return found + ([f"used by {plural(finding.commits, 'commit')}"] if finding.commits else [])


def _short(subject: str) -> str:
    return f"object {subject[:15]}…" if subject.startswith("b3:") else subject


def _error(findings: tuple[Finding, ...]) -> IntegrityError:
    first = findings[0]
    used = f" ({', '.join(_users(first))})" if _users(first) else ""
    more = (
        f", and {len(findings) - 1} more findings" if len(findings) > 2 else ", and 1 more" if len(findings) > 1 else ""
    )
    if "borrowed" in first.problem:
        return IntegrityError(f"{first.problem}{more}", hint="`mgit borrow list` shows who lends")
    wrong = "is missing" if "missing" in first.problem else "does not match its id"
    return IntegrityError(
        f"{_short(first.subject)}{used} {wrong}{more}",
        hint="`mgit clone` of a remote that has these commits gets good copies",
    )
