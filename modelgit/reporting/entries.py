"""Verdicts and checks as flat lists of lines: what the formats for machines (JUnit, SARIF, annotations) share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal as OneOf

from modelgit.objects import LETS_IN, CheckReport, CheckResult, CheckSection, Decision, EvalRecord, Finding, Outcome
from modelgit.objects.checks import HARMLESS
from modelgit.reporting.verdict_text import DECISION_WORDS, baseline_names, check_label, check_notes, measurement
from modelgit.reporting.wording import printable

__all__ = ["Entry", "Group", "Level", "check_groups", "verdict_groups"]

Level = OneOf["ok", "note", "warning", "error"]

_EXPLAINED: Mapping[str, str] = {
    "inconclusive": "not decided, which is not a pass",
    "error": "could not be evaluated, which is not a pass",
    "pending": "not evaluated yet, which is not a pass",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a report; all its texts are printable.

    `rule` is what was tested (stable between runs), `name` says on what.  Only the level "error" keeps a change out;
    `kind` is then the decision that does ("fail", "error", "inconclusive", "pending").  `file` is a path relative to
    the repository's root, "" where there is none.
    """

    rule: str
    name: str
    level: Level
    kind: str
    message: str
    details: tuple[str, ...] = ()
    file: str = ""

    @property
    def text(self) -> str:
        """The message and its details, a line each."""
        return "\n".join((self.message, *self.details))


@dataclass(frozen=True, kw_only=True)
class Group:
    """What belongs together: a suite with its lines, or a part of a check.

    `properties` are for readers of the report (ids, seeds, versions), in the order in which they are shown.
    """

    name: str
    entries: tuple[Entry, ...]
    seconds: float
    properties: Mapping[str, str]


def verdict_groups(records: Iterable[EvalRecord], *, files: Mapping[str, str] | None = None) -> list[Group]:
    """One group a suite.  `files` are the suites' files by name, relative to the root.

    A group has an error exactly when its verdict lets no change in: where no line says why, one more line does, and
    where the suite only warns, lines that are undecided only warn.
    """
    return [_suite(record, (files or {}).get(record.suite, "")) for record in records]


def check_groups(report: CheckReport, *, files: Mapping[str, str] | None = None) -> list[Group]:
    """One group for each part of a check; a part that is a suite has the lines of its verdict."""
    return [_section(section, files or {}) for section in report.sections]


def _suite(record: EvalRecord, file: str) -> Group:
    lets_in = record.decision in LETS_IN
    entries = [_line(record, result, file, lets_in=lets_in) for result in record.results]
    if not lets_in:
        entries += _reason(entries, record.decision, f"verdict {DECISION_WORDS[record.decision]}", file)
    return Group(
        name=printable(record.suite),
        entries=tuple(entries),
        seconds=record.seconds,
        properties={name: printable(value) for name, value in _properties(record)},
    )


def _reason(entries: Iterable[Entry], decision: Decision | Outcome, text: str, file: str = "") -> Iterator[Entry]:
    """A line of its own for what keeps a change out, where no other says so."""
    if not any(entry.level == "error" for entry in entries):
        message = _explained(printable(text), decision)
        yield Entry(rule="verdict", name="verdict", level="error", kind=decision, message=message, file=printable(file))


def _explained(message: str, decision: Decision | Outcome) -> str:
    return f"{message} ({_EXPLAINED[decision]})" if decision in _EXPLAINED else message


def _line(record: EvalRecord, result: CheckResult, file: str, *, lets_in: bool) -> Entry:
    before, after = measurement(result)
    parts = [f"{before} → {after}" if before else after, check_notes(result)]
    message = ", ".join(part for part in parts if part) or DECISION_WORDS[result.decision]
    level: Level = "ok"
    if result.decision not in LETS_IN:
        level = "warning" if lets_in else "error"
    elif result.decision == "warn":
        level = "warning"
    elif result.decision == "info":
        level = "note"
    named = result.test not in ("", result.name)
    return Entry(
        rule=printable(f"{result.test}: {result.name}" if named else result.name),
        name=check_label(record, result),
        level=level,
        kind=result.decision,
        message=_explained(message, result.decision),
        details=tuple(_flips(record, result)),
        file=printable(file),
    )


def _flips(record: EvalRecord, result: CheckResult) -> Iterator[str]:
    if result.slice or not result.broken:
        return
    for flip in record.flips:
        if flip.test == result.test and flip.against in ("", *baseline_names(record, result.against)):
            yield printable(f"{flip.example}: {flip.before} → {flip.after} (right: {flip.gold})")


def _properties(record: EvalRecord) -> Iterator[tuple[str, str]]:
    yield "verdict", record.decision
    yield "candidate", str(record.candidate)
    if record.weights:
        yield "weights", record.weights
    for side in record.baselines:
        yield f"baseline {printable(side.name)}", str(side.commit or side.manifest)
    if not record.baselines and record.baseline is not None:
        yield "baseline", str(record.baseline)
    if record.suite_id:
        yield "suite", record.suite_id
    if record.stage:
        yield "stage", record.stage
    if record.sampling:
        yield "sampling", record.sampling
    if record.alpha is not None:
        yield "alpha", f"{record.alpha:g}"
    yield "examples", str(record.examples)
    yield "seed", str(record.seed)
    for name, version in sorted(record.versions.items()):
        yield f"version {printable(name)}", version
    if record.override:
        yield "override", record.override
    for number, reason in enumerate(record.accepted, 1):
        yield f"accepted {number}", reason


def _section(section: CheckSection, files: Mapping[str, str]) -> Group:
    name = printable(section.name)
    lets_in = section.outcome in HARMLESS
    entries = [_finding(finding, lets_in=lets_in) for finding in section.findings]
    properties: Mapping[str, str] = {"outcome": section.outcome, "summary": printable(section.summary)}
    if section.evaluation is not None:
        verdict = _suite(section.evaluation, files.get(section.evaluation.suite, ""))
        lines = verdict.entries
        if lets_in:
            lines = tuple(replace(line, level="warning") if line.level == "error" else line for line in lines)
        entries += lines
        properties = {**properties, **verdict.properties}
    elif lets_in:
        level: Level = "warning" if section.outcome == "warn" and not entries else "ok"
        message = printable(section.summary)
        entries.insert(0, Entry(rule=name, name=name, level=level, kind=section.outcome, message=message))
    if not lets_in:
        entries += _reason(entries, section.outcome, section.summary)
    return Group(name=name, entries=tuple(entries), seconds=section.seconds, properties=properties)


def _finding(finding: Finding, *, lets_in: bool) -> Entry:
    level: Level = finding.level
    if lets_in and level == "error":
        level = "warning"
    shown = ", ".join(map(printable, finding.about))
    rule = printable(finding.rule)
    hint = (f"hint: {printable(finding.hint)}",) if finding.hint else ()
    return Entry(
        rule=rule,
        name=f"{rule} ({shown})" if shown else rule,
        level=level,
        kind="fail" if level == "error" else level,
        message=printable(finding.message),
        details=(*map(printable, finding.details), *hint),
        file=printable(finding.path),
    )
