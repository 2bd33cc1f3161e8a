"""Verdicts and checks as GitHub-flavoured Markdown: for pull requests and step summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from modelgit.objects import LETS_IN, CheckReport, EvalRecord, Finding
from modelgit.reporting.verdict_text import (
    DECISION_WORDS,
    OUTCOME_MARKS,
    baseline_names,
    baseline_words,
    check_label,
    measurement,
    notes_of,
)
from modelgit.reporting.wording import printable, shortened

__all__ = ["STEP_SUMMARY_BYTES", "check_markdown", "verdict_markdown"]

STEP_SUMMARY_BYTES = 1 << 20
"""What GitHub takes as the summary of a step; it shows nothing of a longer one."""
_MAX_CELL = 300
_CUT = "\n{:,} more lines did not fit.\n"

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]()#+!|~$@:"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def _escape_markdown(text: str) -> str:
    """`text` as Markdown that shows it and does nothing else: no markup, HTML, link or mention."""
    # Addresses become links without any markup, at "://" and at "www.".
    return printable(text).translate(_SPECIAL).replace("www.", "www\\.")


def verdict_markdown(records: Sequence[EvalRecord], *, max_bytes: int = STEP_SUMMARY_BYTES) -> str:
    """A section for each suite: the verdict, a table with a row per check, and the known negative flips.

    At most `max_bytes` of UTF-8: what does not fit is left out, flips first, then rows that pass, then the end, and
    the text says so.
    """
    return _fitted(lambda detail: (line for record in records for line in _verdict(record, detail)), max_bytes)


def check_markdown(report: CheckReport, *, max_bytes: int = STEP_SUMMARY_BYTES) -> str:
    """A table with a row for each part of the check, what was found, and the verdicts of suites.

    Bounded as `verdict_markdown`.
    """
    return _fitted(lambda detail: _check(report, detail), max_bytes)


class _Detail(NamedTuple):
    flips: bool
    passing: bool


def _fitted(render: Callable[[_Detail], Iterable[str]], max_bytes: int) -> str:
    lines: list[str] = []
    for detail in (_Detail(True, True), _Detail(False, True), _Detail(False, False)):
        lines = list(render(detail))
        text = "\n".join(lines) + "\n"
        if len(text.encode()) <= max_bytes:
            return text
    return _cut(lines, max_bytes)


def _check(report: CheckReport, detail: _Detail) -> Iterator[str]:
    what = f"{_cell(report.revision)} ({report.commit.short}) against {_cell(report.base)}"
    yield f"## {'✓' if report.passed else '✗'} mgit check: {what}"
    yield ""
    yield "| | part | |"
    yield "|---|---|---|"
    for section in report.sections:
        yield f"| {OUTCOME_MARKS[section.outcome]} | {_cell(section.name)} | {_cell(section.summary)} |"
    yield ""
    for section in report.sections:
        if section.findings:
            yield f"### {_cell(section.name)}"
            yield ""
            for finding in section.findings:
                yield from _finding(finding)
            yield ""
    for section in report.sections:
        if section.evaluation is not None:
            yield from _verdict(section.evaluation, detail)


def _finding(finding: Finding) -> Iterator[str]:
    place = f" ({_cell(', '.join(finding.about))})" if finding.about else ""
    yield f"- **{finding.level}** {_cell(finding.message)}{place}"
    for line in finding.details:
        yield f"  - {_cell(line)}"
    if finding.hint:
        yield f"  - hint: {_cell(finding.hint)}"


def _verdict(record: EvalRecord, detail: _Detail) -> Iterator[str]:
    mark = "✓" if record.decision in LETS_IN else "✗"
    yield f"### {mark} {_cell(record.suite)}: {DECISION_WORDS[record.decision]}"
    yield ""
    drawn = f", {record.examples:,} examples" if record.examples else ""
    yield f"{_cell(baseline_words(record))}{drawn}, candidate tree {record.candidate.short}"
    yield ""
    shown = [result for result in record.results if detail.passing or result.decision != "pass"]
    if shown:
        yield "| check | baseline | candidate | limit | verdict | |"
        yield "|---|---:|---:|---|---|---|"
    for result in shown:
        before, after = measurement(result)
        word = DECISION_WORDS[result.decision]
        cells = (check_label(record, result), before, after, result.limit, word, result.detail)
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"
    if len(shown) < len(record.results):
        yield ""
        yield f"{len(record.results) - len(shown):,} more checks pass."
    for note in notes_of(record):
        yield ""
        yield f"> {_cell(note)}"
    yield ""
    if detail.flips and record.flips:
        yield from _flips(record)


def _flips(record: EvalRecord) -> Iterator[str]:
    yield f"<details><summary>Right before and wrong now ({len(record.flips):,} known)</summary>"
    yield ""
    yield "| test | against | example | right | before | now |"
    yield "|---|---|---|---|---|---|"
    for flip in record.flips:
        against = ", ".join(baseline_names(record, flip.against))
        cells = (flip.test, against, flip.example, flip.gold, flip.before, flip.after)
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"
    yield ""
    yield "</details>"
    yield ""


def _cell(text: str) -> str:
    return _escape_markdown(shortened(text, _MAX_CELL))


def _cut(lines: Sequence[str], max_bytes: int) -> str:
    """As many whole lines as fit, and how many do not."""
    kept: list[str] = []
    left = max_bytes - len(_CUT.format(len(lines)).encode())
    for line in lines:
        left -= len(line.encode()) + 1
        if left < 0:
            break
        kept.append(line)
    return "\n".join([*kept, _CUT.format(len(lines) - len(kept))])
