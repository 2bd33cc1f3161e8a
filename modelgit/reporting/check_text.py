"""A check as lines of text: one for each part, then what was found, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from modelgit.objects import CheckReport, CheckSection, EvalRecord, Outcome
from modelgit.reporting.verdict_text import OUTCOME_MARKS, check_cells
from modelgit.reporting.wording import printable

__all__ = ["CheckLine", "check_lines"]

_NAME_WIDTH = 10
_CLOSING: dict[Outcome, str] = {
    "pass": "check passed",
    "skip": "nothing to check",
    "warn": "check passed, with warnings",
    "fail": "check failed",
    "error": "check not passed: a part could not be checked",
    "inconclusive": "check not passed: a suite is undecided",
}


class CheckLine(NamedTuple):
    """One line: `outcome` says how to paint its `mark`; None where it belongs to the line above."""

    mark: str
    outcome: Outcome | None
    text: str


def check_lines(report: CheckReport) -> Iterator[CheckLine]:
    """Everything that was found."""
    against = f"{printable(report.base)} ({report.base_commit.short})" if report.base_commit else "nothing"
    yield CheckLine("", None, f"check {printable(report.revision)} ({report.commit.short}) against {against}")
    width = max([_NAME_WIDTH, *(len(printable(section.name)) for section in report.sections)])
    for section in report.sections:
        name, summary = printable(section.name), printable(section.summary)
        yield CheckLine(OUTCOME_MARKS[section.outcome], section.outcome, f"{name:<{width}}  {summary}")
        for line in _details(section):
            yield CheckLine("", None, f"{'':{width + 6}}{line}")
    yield CheckLine("", None, _CLOSING[report.outcome])


def _details(section: CheckSection) -> Iterator[str]:
    if section.evaluation is not None:
        yield from _verdict(section.evaluation)
    for finding in section.findings:
        if finding.message != section.summary:
            yield printable(finding.message)
        yield from (f"  {printable(detail)}" for detail in finding.details)
        if finding.hint:
            yield f"hint: {printable(finding.hint)}"


def _verdict(record: EvalRecord) -> Iterator[str]:
    for result in record.results:
        yield "  ".join(cell for cell in check_cells(record, result) if cell)
