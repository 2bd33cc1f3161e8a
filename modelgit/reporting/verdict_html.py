"""Verdicts and checks as one HTML file: no script, no request to anywhere, every name escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from modelgit.objects import LETS_IN, CheckReport, CheckResult, CheckSection, Decision, EvalRecord, worst_decision
from modelgit.objects.checks import HARMLESS
from modelgit.reporting.entries import verdict_groups
from modelgit.reporting.markup import STYLE, document, text
from modelgit.reporting.verdict_text import (
    DECISION_WORDS,
    OUTCOME_MARKS,
    baseline_names,
    baseline_words,
    check_label,
    check_notes,
    measurement,
    notes_of,
)
from modelgit.reporting.wording import shortened

__all__ = ["check_html", "verdict_html"]

_STYLE = (
    STYLE
    + """
.mgit .good{color:#2b8a3e;color:light-dark(#2b8a3e,#69db7c)}.mgit .bad{color:#c92a2a;color:light-dark(#c92a2a,#ff8787)}
.mgit .warn{color:#a65100;color:light-dark(#a65100,#ffc078)}.mgit td{overflow-wrap:anywhere}
.mgit svg rect.good{fill:#2f9e44}.mgit svg rect.bad{fill:#e03131}.mgit svg rect.warn{fill:#f08c00}
.mgit svg rect.note{fill:#868e96}
"""
)
_LABEL, _WIDTH, _STEP, _NUMBERS, _LABEL_CHARACTERS = 230, 320, 20, 260, 30


def verdict_html(records: Sequence[EvalRecord]) -> str:
    """A complete document: for each suite its lines, a bar for each slice, and the first negative flips."""
    decision = worst_decision(record.decision for record in records)
    title = f"mgit eval: {DECISION_WORDS[decision]}"
    parts = [f'<style>{_STYLE}</style><div class="mgit"><h1>{text(title)}</h1>']
    for record in records:
        parts += _suite(record)
    parts.append("</div>")
    return document(title, "".join(parts))


def check_html(report: CheckReport) -> str:
    """A complete document: the parts of a check, what was found, and the verdicts of suites."""
    title = f"mgit check: {report.revision} against {report.base}"
    parts = [f'<style>{_STYLE}</style><div class="mgit"><h1>{text(title)}</h1><table>']
    for section in report.sections:
        kind = "good" if section.outcome in HARMLESS else "bad"
        mark = f'<b class="{"warn" if section.outcome == "warn" else kind}">{OUTCOME_MARKS[section.outcome]}</b>'
        parts.append(f"<tr><td>{mark}</td><th>{text(section.name)}</th><td>{text(section.summary)}</td></tr>")
    parts.append("</table>")
    for section in report.sections:
        parts += _findings(section)
    for section in report.sections:
        if section.evaluation is not None:
            parts += _suite(section.evaluation)
    parts.append("</div>")
    return document(title, "".join(parts))


def _findings(section: CheckSection) -> Iterator[str]:
    if not section.findings:
        return
    yield f"<h2>{text(section.name)}</h2><ul>"
    for finding in section.findings:
        kind = {"error": "bad", "warning": "warn", "note": "note"}[finding.level]
        yield f'<li><b class="{kind}">{finding.level}</b> {text(finding.message)}'
        yield f" <code>{text(', '.join(finding.about))}</code>" if finding.about else ""
        yield "".join(f"<br>{text(line)}" for line in finding.details)
        yield f'<br><span class="note">hint: {text(finding.hint)}</span></li>' if finding.hint else "</li>"
    yield "</ul>"


def _kind(decision: Decision) -> str:
    if decision in ("pass", "baseline"):
        return "good"
    if decision == "info":
        return "note"
    return "warn" if decision in LETS_IN else "bad"


def _word(decision: Decision) -> str:
    return f'<b class="{_kind(decision)}">{DECISION_WORDS[decision]}</b>'


def _suite(record: EvalRecord) -> Iterator[str]:
    yield f"<h2>{text(record.suite)}: {_word(record.decision)}</h2>"
    drawn = f", {record.examples:,} examples" if record.examples else ""
    yield f'<p class="note">{text(baseline_words(record))}{drawn}, {record.seconds:.1f} s</p>'
    yield from (f"<p>{text(note)}</p>" for note in notes_of(record))
    lines = [result for result in record.results if not result.slice]
    if lines:
        heads = '<th class="n">baseline</th><th class="n">candidate</th><th>verdict</th><th></th>'
        yield f"<table><tr><th>check</th>{heads}</tr>"
        yield from (_row(record, result) for result in lines)
        yield "</table>"
    slices: dict[tuple[str, str, str], list[CheckResult]] = {}
    for result in record.results:
        if result.slice:
            slices.setdefault((result.test, result.name, result.against), []).append(result)
    for found in slices.values():
        yield from _slices(record, found)
    yield from _flips(record)
    yield "<details><summary>What was measured</summary><table>"
    for name, value in verdict_groups([record])[0].properties.items():
        yield f"<tr><th>{text(name)}</th><td><code>{text(value)}</code></td></tr>"
    yield "</table></details>"


def _row(record: EvalRecord, result: CheckResult) -> str:
    before, after = measurement(result)
    numbers = f'<td class="n">{text(before)}</td><td class="n">{text(after)}</td>'
    notes = text(check_notes(result))
    return (
        f"<tr><td>{text(check_label(record, result))}</td>{numbers}<td>{_word(result.decision)}</td>"
        f"<td>{notes}</td></tr>"
    )


def _slices(record: EvalRecord, found: Sequence[CheckResult]) -> Iterator[str]:
    """Bars as long as the values, those of one test on one scale."""
    whole = check_label(record, found[0]).removesuffix(f", {found[0].slice}")
    sizes = [abs(result.value) if result.value is not None and math.isfinite(result.value) else 0.0 for result in found]
    scale = max(sizes) or 1.0
    yield f"<h3>{text(whole)} by slice</h3>"
    yield (
        f'<svg role="img" aria-label="{text(whole)} by slice" width="{_LABEL + _WIDTH + _NUMBERS}" '
        f'height="{_STEP * len(found)}">'
    )
    for row, (result, size) in enumerate(zip(found, sizes, strict=True)):
        y = row * _STEP
        width = round(_WIDTH * size / scale, 2)
        _, after = measurement(result)
        counted = f", {result.broken:,} of {result.total or result.examples:,}" if result.examples else ""
        name = text(shortened(result.slice, _LABEL_CHARACTERS))
        yield f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{name}</text>'
        yield (
            f'<rect class="{_kind(result.decision)}" x="{_LABEL}" y="{y + 3}" width="{width:g}" '
            f'height="{_STEP - 6}"><title>{text(f"{result.slice}: {check_notes(result)}")}</title></rect>'
        )
        label = text(f"{after}{counted}  {DECISION_WORDS[result.decision]}")
        yield f'<text x="{_LABEL + width + 6:g}" y="{y + 14}">{label}</text>'
    yield "</svg>"


def _flips(record: EvalRecord) -> Iterator[str]:
    if not record.flips:
        return
    yield f"<h3>Right before and wrong now ({len(record.flips):,} known)</h3>"
    names = ("test", "against", "example", "right", "before", "now")
    yield f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    for flip in record.flips:
        against = ", ".join(baseline_names(record, flip.against))
        cells = (flip.test, against, flip.example, flip.gold, flip.before, flip.after)
        yield f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"
    yield "</table>"
