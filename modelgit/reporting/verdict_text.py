"""How a verdict reads: the words of a decision, of a measurement, and of what a line is about."""

from __future__ import annotations

from typing import NamedTuple

from modelgit.objects import CheckResult, Decision, EvalRecord, Flip, Outcome
from modelgit.reporting.wording import change, points, printable, rate

__all__ = [
    "DECISION_WORDS",
    "OUTCOME_MARKS",
    "baseline_names",
    "baseline_words",
    "check_label",
    "check_notes",
    "flip_words",
    "measurement",
    "notes_of",
]

# Only what refuses is in capitals.
DECISION_WORDS: dict[Decision, str] = {
    "pass": "pass",
    "info": "info",
    "warn": "warn",
    "fail": "FAIL",
    "inconclusive": "OPEN",
    "error": "ERROR",
    "baseline": "first",
    "pending": "later",
}
OUTCOME_MARKS: dict[Outcome, str] = {
    "pass": "✓",
    "warn": "!",
    "fail": "✗",
    "error": "✗",
    "inconclusive": "?",
    "skip": "·",
}
"""Parts of a check in one character."""


def measurement(result: CheckResult) -> tuple[str, str]:
    """(value of the baseline, value of the candidate with its difference), each "" when not known."""
    before = "" if result.baseline is None else _number(result.baseline, result.unit)
    if result.value is None:
        return (before, "?") if before else ("", "")
    after = _number(result.value, result.unit)
    if result.baseline is None:
        return before, after
    if result.unit == "":
        return before, f"{after} {points(result.value - result.baseline)}"
    return before, f"{after} {100 * (result.value / result.baseline - 1):+.1f} %" if result.baseline else after


def check_label(record: EvalRecord, result: CheckResult) -> str:
    """What a line is about: `accuracy`, or `intents: accuracy vs tag:v1, lang=de`.

    A baseline is named only where there are several to confuse it with.
    """
    named = result.test and result.test != result.name
    label = printable(f"{result.test}: {result.name}" if named else result.name)
    if result.against and len(record.baselines) > 1:
        mine = (result.test, result.name)
        apart = {line.against for line in record.results if (line.test, line.name) == mine} - {result.against}
        names = [name for name in baseline_names(record, result.against) if name not in apart]
        label += f" vs {printable(', '.join(names))}"
    return f"{label}, {printable(result.slice)}" if result.slice else label


def baseline_names(record: EvalRecord, against: str) -> list[str]:
    """Every name of the baseline that a line calls `against`: those with its weights were compared once."""
    weights = next((side.weights for side in record.baselines if side.name == against), "")
    return [side.name for side in record.baselines if side.weights == weights] if weights else [against]


def check_notes(result: CheckResult) -> str:
    """The limit and what was found: `limit 1.0 %: 9 of 412 examples`; "" when there is nothing to say."""
    limit = printable(result.limit.removeprefix("max "))
    detail = printable(result.detail)
    return ": ".join(note for note in (f"limit {limit}" if limit else "", detail) if note)


class CheckCells(NamedTuple):
    """One line of a verdict in four cells, all of them printable."""

    label: str
    values: str
    word: str
    notes: str


def check_cells(record: EvalRecord, result: CheckResult) -> CheckCells:
    """`accuracy`, `91.2 % → 91.0 % -0.2 pt`, `pass`, `(limit -0.5 pt)`."""
    before, after = measurement(result)
    notes = check_notes(result)
    return CheckCells(
        check_label(record, result),
        f"{before} → {after}" if before else after,
        DECISION_WORDS[result.decision],
        f"({notes})" if notes else "",
    )


def baseline_words(record: EvalRecord) -> str:
    """What a verdict compares with: `baseline 0b77f1ac9e21`, `baselines parent 0b77f1ac9e21, tag:v1 91cd04e6b7aa`."""
    if not record.baselines:
        return "first baseline" if record.baseline is None else f"baseline tree {record.baseline.short}"
    known = [(side.name, side.commit or side.manifest) for side in record.baselines]
    if len(known) == 1:
        name, what = known[0]
        return f"baseline {what.short}" if name == "parent" else f"baseline {printable(name)} {what.short}"
    return "baselines " + ", ".join(f"{printable(name)} {what.short}" for name, what in known)


def notes_of(record: EvalRecord) -> list[str]:
    """What a verdict says besides its lines: that it was overridden, and which acceptances made a difference to it."""
    notes = [record.override] if record.override else []
    for note in record.accepted:
        called = note.removeprefix("b3:")[:12] if note.startswith("b3:") else note
        notes.append(f"examples that broke were accepted: {called} of `mgit eval accept --list`")
    return notes


def flip_words(flip: Flip) -> str:
    """`q7: place → person` (what the baseline said, what the candidate says)."""
    return f"{printable(flip.example)}: {printable(flip.before)} → {printable(flip.after)}"


def _number(value: float, unit: str) -> str:
    if unit == "":
        return rate(value)
    if unit in ("count", "bytes"):
        return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:,.0f}"
    if unit == "number":
        return f"{value:.4g}"
    return f"{change(value)} {printable(unit)}"
