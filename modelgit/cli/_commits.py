"""How commits, patches and verdicts read in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from modelgit.cli._format import ago, count, duration, percent, plural
from modelgit.cli._output import Part, blue, bold, columns, dim, green, red, yellow

if TYPE_CHECKING:
    from modelgit.objects import CheckResult, EvalRecord, Patch, Signature

__all__ = ["date_line", "decorations", "gate_mark", "patch_words", "verdict_lines", "when"]

_MARKS: dict[str, Part] = {
    "pass": green("gates ✓"),
    "warn": yellow("gates !"),
    "fail": red("gates ✗"),
    "inconclusive": yellow("gates ?"),
    "error": red("gates ✗"),
    "baseline": dim("baseline"),
}


def gate_mark(verdict: str | None) -> Part:
    """The verdict of a commit in a log."""
    return _MARKS.get(verdict or "", "")


def decorations(refs: Sequence[str]) -> list[Part]:
    """`(HEAD → main, tag: v1)`, and nothing for a commit that nothing points at."""
    parts: list[Part] = []
    for ref in refs:
        head, arrow, name = ref.partition(" → ")
        parts.append(", " if parts else "(")
        if arrow:
            parts += [bold(f"{head} → "), blue(name)]
        else:
            parts.append(yellow(ref) if ref.startswith("tag: ") else bold(ref) if ref == "HEAD" else blue(ref))
    return [*parts, ")"] if parts else []


def when(signature: Signature, *, now_s: float | None = None) -> str:
    """How long ago somebody signed."""
    return ago((time.time() if now_s is None else now_s) - signature.time_s)


def date_line(signature: Signature) -> str:
    """A date in the author's own time zone."""
    offset = abs(signature.offset_min)
    zone = f"{'-' if signature.offset_min < 0 else '+'}{offset // 60:02d}{offset % 60:02d}"
    local = time.gmtime(signature.time_s + signature.offset_min * 60)
    return time.strftime("%Y-%m-%d %H:%M:%S ", local) + zone


def patch_words(patch: Patch) -> str:
    """A patch in a line: `74 tensors, 1.12 M of 361.8 M values (0.31 %), 1 file`."""
    words = []
    if patch.tensors:
        words.append(plural(len(patch.tensors), "tensor"))
        known = [change for change in patch.tensors if change.values_changed is not None]
        if known and patch.base is not None:
            changed = sum(change.values_changed or 0 for change in known)
            elements = sum(change.elements for change in known)
            words.append(f"{count(changed)} of their {count(elements)} values ({percent(changed / max(1, elements))})")
    if patch.files:
        words.append(plural(len(patch.files), "file"))
    if not patch.exact:
        words.append("lossy")
    return ", ".join(words) or "no changes"


def verdict_lines(records: Iterable[EvalRecord], *, indent: int = 0) -> list[list[Part]]:
    """The lines of verdicts: one heading a suite, one line a check."""
    lines: list[list[Part]] = []
    pad = " " * indent
    for record in records:
        took = f"{plural(len(record.results), 'metric')}, {duration(record.seconds)}"
        if record.decision == "baseline":
            lines.append([pad, f"eval {record.suite}: recorded as the first baseline ({took})"])
            continue
        against = f", baseline {record.baseline.short}" if record.baseline is not None else ""
        lines.append([pad, f"eval {record.suite}{against} ({took})"])
        lines += columns([_check_row(check) for check in record.results], indent=indent + 2)
    return lines


def _check_row(check: CheckResult) -> list[Part]:
    values, change = "", ""
    if check.value is not None and check.baseline is not None:
        values = f"{_measure(check.baseline, check.unit)} → {_measure(check.value, check.unit)}"
        change = _change(check)
    elif check.value is not None:
        values = _measure(check.value, check.unit)
    notes = ": ".join(note for note in (f"limit {check.limit}" if check.limit else "", check.detail) if note)
    return [check.name, values, change, _decision(check.decision), f"({notes})" if notes else ""]


def _decision(decision: str) -> Part:
    if decision in ("fail", "error"):
        return red(decision.upper())
    if decision == "pass":
        return green(decision)
    return yellow(decision) if decision in ("warn", "inconclusive") else dim(decision)


def _measure(value: float, unit: str) -> str:
    if unit == "":
        return f"{value * 100:.2f} %"
    if unit == "count":
        return count(int(value))
    return f"{value:.4g} {unit}"


def _change(check: CheckResult) -> str:
    difference = (check.value or 0.0) - (check.baseline or 0.0)
    if check.unit == "":
        return f"{difference * 100:+.2f} pt"
    if check.unit == "count":
        return f"{int(difference):+d}"
    return f"{difference:+.2g}"
