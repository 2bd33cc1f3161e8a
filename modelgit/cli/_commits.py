"""How commits, patches and verdicts read in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from modelgit.cli._format import ago, duration, plural
from modelgit.cli._output import Painted, Part, blue, bold, columns, dim, green, red, yellow
from modelgit.reporting.verdict_text import (
    DECISION_WORDS,
    baseline_names,
    baseline_words,
    check_cells,
    check_label,
    flip_words,
    measurement,
    notes_of,
)
from modelgit.reporting.wording import amount, printable, share

if TYPE_CHECKING:
    from modelgit.objects import CheckResult, CommitId, EvalRecord, Patch, Signature
    from modelgit.repo.gates.gate import RefusedWithRecords
    from modelgit.repo.reviews.last_words import Attested

__all__ = [
    "SHOWN_FLIPS",
    "date_line",
    "decorations",
    "gate_mark",
    "note_rows",
    "patch_words",
    "refusal_lines",
    "verdict_lines",
    "when",
]

SHOWN_FLIPS = 3

_MARKS: dict[str, tuple[Callable[[object], Painted], str]] = {
    "pass": (green, "gates ✓"),
    "warn": (yellow, "gates !"),
    "fail": (red, "gates ✗"),
    "inconclusive": (yellow, "gates ?"),
    "pending": (yellow, "gates due"),
    "error": (red, "gates ✗"),
    "baseline": (dim, "baseline"),
}


_PAINTS: dict[str, Callable[[object], Painted]] = {
    "pass": green,
    "fail": red,
    "error": red,
    "baseline": dim,
    "info": dim,
}


def gate_mark(verdict: str | None, signers: Sequence[str] = ()) -> Part:
    """The verdict of a commit in a log, and who vouches for it: `gates ✓ signed ci@example.org`."""
    if verdict not in _MARKS:
        return ""
    paint, text = _MARKS[verdict]
    return paint(f"{text} signed {', '.join(signers)}" if signers else text)


def note_rows(attested: Iterable[Attested], *, now_s: float | None = None) -> list[list[Part]]:
    """Notes about the weights of a commit, one row each: suite, word, who vouches for it or why nobody does, age."""
    now = time.time() if now_s is None else now_s
    rows: list[list[Part]] = []
    for note in attested:
        if note.problem:
            who: Part = red(note.problem)
        elif note.signers:
            who = f"signed {', '.join(note.signers)}"
        else:
            who = dim("unsigned" if note.counts else f"unsigned, from {note.origin}: does not count")
        word = _PAINTS.get(note.decision, yellow)(DECISION_WORDS[note.decision])
        rows.append(
            [note.suite, word, who, dim("" if note.time_s is None else ago(now - note.time_s)), note.note.short]
        )
    return rows


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


def refusal_lines(refusal: RefusedWithRecords) -> list[list[Part]]:
    """The verdicts that refused a change, with the first examples that broke.

    Of a candidate that is nowhere any more all are shown that the verdicts name.
    """
    shown = SHOWN_FLIPS if refusal.shown_by else max((len(record.flips) for record in refusal.records), default=0)
    return verdict_lines(refusal.records, baseline=refusal.baseline, flips=shown, shown_by=refusal.shown_by)


def verdict_lines(
    records: Iterable[EvalRecord],
    *,
    baseline: CommitId | None = None,
    indent: int = 0,
    flips: int = 0,
    shown_by: str = "",
) -> list[list[Part]]:
    """The lines of verdicts: one heading a suite, one line a check, and the first `flips` examples that broke.

    `baseline` is the commit compared with, where a record does not name its own.  Slices that pass are counted only.
    `shown_by` is the command that evaluates once more, and can list the other examples.
    """
    lines: list[list[Part]] = []
    pad = " " * indent
    for record in records:
        took = f"{plural(len(record.results), 'metric')}, {duration(record.seconds)}"
        if record.decision == "pending":
            lines.append([pad, yellow(f"eval {record.suite}: pending"), dim("  (runs before others take the commit)")])
            continue
        if record.decision == "baseline":
            lines.append([pad, f"eval {record.suite}: recorded as the first baseline ({took})"])
            measured = [check for check in record.results if check.value is not None]
            rows: list[list[Part]] = [[check_label(record, check), measurement(check)[1]] for check in measured]
            lines += columns(rows, indent=indent + 2)
            continue
        lines.append([pad, f"eval {record.suite}{_against(record, baseline)} ({took})"])
        shown = [check for check in record.results if not (check.slice and check.decision == "pass")]
        lines += columns([_check_row(record, check) for check in shown], indent=indent + 2)
        if len(shown) < len(record.results):
            lines.append([pad, dim(f"  {plural(len(record.results) - len(shown), 'slice')} within the limit")])
        lines += [[pad, "  ", yellow(note)] for note in notes_of(record)]
        several = len(record.baselines) > 1
        for flip in record.flips[:flips]:
            names = printable(", ".join(baseline_names(record, flip.against)))
            against = dim(f"  vs {names}") if several and flip.against else ""
            lines.append([pad, "  ", red("↯ "), flip_words(flip), against])
        if flips and len(record.flips) > flips:
            more = f": `{shown_by} --show flips` lists them" if shown_by else ""
            lines.append([pad, dim(f"  and more{more}")])
    return lines


def _against(record: EvalRecord, baseline: CommitId | None) -> str:
    if record.baselines:
        return f", {baseline_words(record)}"
    known = baseline.short if baseline is not None else record.baseline and f"tree {record.baseline.short}"
    return f", baseline {known}" if known else ""


def _check_row(record: EvalRecord, check: CheckResult) -> list[Part]:
    cells = check_cells(record, check)
    paint = _PAINTS.get(check.decision, yellow)
    return [cells.label, cells.values, paint(cells.word), cells.notes]
