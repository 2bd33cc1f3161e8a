"""A check as lines of text: one for each part, then what was found, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from modelgit.objects import CheckReport, CheckSection, Outcome
from modelgit.reporting.verdict_text import verdict_lines
from modelgit.reporting.wording import printable

__all__ = ["OUTCOME_MARKS", "CheckLine", "check_lines", "check_text"]

OUTCOME_MARKS: dict[Outcome, str] = {
    "pass": "✓",
    "warn": "!",
    "fail": "✗",
    "error": "✗",
    "inconclusive": "?",
    "skip": "-",
}
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
    """One line: `outcome` says how to paint its `mark`, "" of both where it belongs to the line above."""

    mark: str
    outcome: Outcome | None
    text: str


def check_lines(report: CheckReport) -> Iterator[CheckLine]:
    """Everything that was found; only what speaks against the update is told at length."""
    against = f"{printable(report.base)} ({report.base_commit.short})" if report.base_commit else "nothing"
    yield CheckLine("", None, f"check {printable(report.revision)} ({report.commit.short}) against {against}")
    width = max([_NAME_WIDTH, *(len(printable(section.name)) for section in report.sections)])
    for section in report.sections:
        name, summary = printable(section.name), printable(section.summary)
        yield CheckLine(OUTCOME_MARKS[section.outcome], section.outcome, f"{name:<{width}}  {summary}")
        yield from _details(section, " " * (width + 4))
    yield CheckLine("", None, _CLOSING[report.outcome])


def _details(section: CheckSection, pad: str) -> Iterator[CheckLine]:
    if section.evaluation is not None:
        for line in verdict_lines(section.evaluation)[1:]:
            yield CheckLine("", None, f"{pad}{line.strip()}")
    for finding in section.findings:
        if finding.message != section.summary:
            yield CheckLine("", None, f"{pad}{printable(finding.message)}")
        for detail in finding.details:
            yield CheckLine("", None, f"{pad}  {printable(detail)}")
        if finding.hint:
            yield CheckLine("", None, f"{pad}hint: {printable(finding.hint)}")


def check_text(report: CheckReport) -> str:
    """The lines as one text."""
    lines = (f"  {line.mark} {line.text}" if line.mark else line.text for line in check_lines(report))
    return "\n".join(line.rstrip() for line in lines) + "\n"
