"""How commits, patches and verdicts read in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from modelgit.cli._format import ago, duration, plural
from modelgit.cli._output import Painted, Part, blue, bold, columns, dim, green, red, yellow
from modelgit.reporting.verdict_text import DECISION_WORDS, measurement
from modelgit.reporting.wording import amount, share

if TYPE_CHECKING:
    from modelgit.objects import CheckResult, CommitId, EvalRecord, Patch, Signature

__all__ = ["date_line", "decorations", "gate_mark", "patch_words", "verdict_lines", "when"]

_MARKS: dict[str, Part] = {
    "pass": green("gates ✓"),
    "warn": yellow("gates !"),
    "fail": red("gates ✗"),
    "inconclusive": yellow("gates ?"),
    "error": red("gates ✗"),
    "baseline": dim("baseline"),
}


_PAINTS: dict[str, Callable[[object], Painted]] = {"pass": green, "fail": red, "error": red, "baseline": dim}


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
    """A date in the author's own time zone; seconds since 1970 for a time that no calendar has."""
    offset = abs(signature.offset_min)
    zone = f"{'-' if signature.offset_min < 0 else '+'}{offset // 60:02d}{offset % 60:02d}"
    try:
        local = time.gmtime(signature.time_s + signature.offset_min * 60)
        return time.strftime("%Y-%m-%d %H:%M:%S ", local) + zone
    except (OverflowError, ValueError, OSError):
        return f"{signature.time_s} s {zone}"


def patch_words(patch: Patch) -> str:
    """A patch in a line: `74 tensors, 1.12 M of 361.8 M values (0.31 %), 1 file`."""
    words = []
    if patch.tensors:
        words.append(plural(len(patch.tensors), "tensor"))
        known = [change for change in patch.tensors if change.values_changed is not None]
        if known and patch.base is not None:
            changed = sum(change.values_changed or 0 for change in known)
            elements = sum(change.elements for change in known)
            words.append(f"{amount(changed)} of their {amount(elements)} values ({share(changed, elements)})")
    if patch.files:
        words.append(plural(len(patch.files), "file"))
    if not patch.exact:
        words.append("lossy")
    return ", ".join(words) or "no changes"


def verdict_lines(
    records: Iterable[EvalRecord], *, baseline: CommitId | None = None, indent: int = 0
) -> list[list[Part]]:
    """The lines of verdicts: one heading a suite, one line a check.  `baseline` is the commit compared with."""
    lines: list[list[Part]] = []
    pad = " " * indent
    for record in records:
        took = f"{plural(len(record.results), 'metric')}, {duration(record.seconds)}"
        if record.decision == "baseline":
            lines.append([pad, f"eval {record.suite}: recorded as the first baseline ({took})"])
            measured = [check for check in record.results if check.value is not None]
            lines += columns([[check.name, measurement(check)[1]] for check in measured], indent=indent + 2)
            continue
        known = baseline.short if baseline is not None else record.baseline and f"tree {record.baseline.short}"
        against = f", baseline {known}" if known else ""
        lines.append([pad, f"eval {record.suite}{against} ({took})"])
        lines += columns([_check_row(check) for check in record.results], indent=indent + 2)
        if record.override:
            lines.append([pad, yellow(f"  {record.override}")])
    return lines


def _check_row(check: CheckResult) -> list[Part]:
    before, after = measurement(check)
    limit = check.limit.removeprefix("max ")
    notes = ": ".join(note for note in (f"limit {limit}" if limit else "", check.detail) if note)
    paint = _PAINTS.get(check.decision, yellow)
    word = paint(DECISION_WORDS[check.decision])
    return [check.name, f"{before} → {after}" if before else after, word, f"({notes})" if notes else ""]
