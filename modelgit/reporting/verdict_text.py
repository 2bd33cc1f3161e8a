"""The verdict of a gate as lines of plain text."""

from __future__ import annotations

from modelgit.objects import CheckResult, EvalRecord
from modelgit.reporting.wording import change, points, printable, rate

__all__ = ["DECISION_WORDS", "measurement", "verdict_lines"]

# Only what refuses is in capitals.
DECISION_WORDS = {
    "pass": "pass",
    "warn": "warn",
    "fail": "FAIL",
    "inconclusive": "OPEN",
    "error": "ERROR",
    "baseline": "first",
    "pending": "later",
}
_NAME_WIDTH = 17
_VALUE_WIDTH = 28
# "91.2 % → " comes before the new value.
_BEFORE_WIDTH = 9


def verdict_lines(record: EvalRecord) -> list[str]:
    """A heading and one line per check: `  accuracy  91.2 % → 91.0 % -0.2 pt  pass  (limit -0.5 pt)`."""
    against = "first baseline" if record.baseline is None else f"baseline {record.baseline.short}"
    lines = [f"eval {printable(record.suite)}, {against}"]
    names = [printable(result.name) for result in record.results]
    name_width = max([_NAME_WIDTH, *(len(name) + 1 for name in names)])
    for name, result in zip(names, record.results, strict=True):
        before, after = measurement(result)
        values = f"{f'{before} → ' if before else '':>{_BEFORE_WIDTH}}{after}"
        tail = _parenthesis(result)
        lines.append(f"  {name:<{name_width}}{values:<{_VALUE_WIDTH}}{DECISION_WORDS[result.decision]:<4}{tail}")
    return lines


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


def _number(value: float, unit: str) -> str:
    if unit == "":
        return rate(value)
    if unit == "count":
        return f"{value:,.0f}"
    return f"{change(value)} {unit}"


def _parenthesis(result: CheckResult) -> str:
    limit = printable(result.limit.removeprefix("max "))
    detail = printable(result.detail)
    if limit:
        return f"  (limit {limit}: {detail})" if detail else f"  (limit {limit})"
    return f"  ({detail})" if detail else ""
