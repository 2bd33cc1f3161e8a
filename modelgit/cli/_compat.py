"""The compatibility budget in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.cli._format import plural
from modelgit.cli._output import Part, bold, columns, dim, plain_data, yellow
from modelgit.cli._session import Session

if TYPE_CHECKING:
    from modelgit.repo.gates.compat import CompatLine

__all__ = ["show_compat"]


def show_compat(session: Session, revision: str, as_json: bool) -> None:
    """`mgit log --compat`."""
    from modelgit.repo.gates.compat import compatibility

    report = compatibility(session.repository, revision)
    output = session.output
    if as_json:
        output.json("mgit.compat/1", plain_data(report))
        return
    commits = plural(report.commits, "commit")
    output.line("since ", bold(f"tag {report.tag}"), " (", yellow(report.tagged.short), f"): {commits}")
    if not report.lines:
        output.say("no verdict on the way says anything of negative flips or churn")
        return
    changed = {change.suite for change in report.changes}
    output.lines(columns([_row(line, changed=line.suite in changed) for line in report.lines], indent=2))
    for change in report.changes:
        words = ": what was recorded before answers another question"
        output.line(f"  suite {change.suite} changed at ", yellow(change.commit.short), words)


def _row(line: CompatLine, *, changed: bool) -> list[Part]:
    name = " ".join(filter(None, (line.suite, line.test if line.test != line.metric else "")))
    if line.bound is None:
        gaps = [step.commit.short for step in line.steps if step.bound is None]
        by = " by the suite as it is now" if changed else ""
        total: Part = dim(f"not known: nothing recorded{by} for {', '.join(gaps[:3])}{', …' if len(gaps) > 3 else ''}")
    else:
        terms = [_percent(step.bound) for step in line.steps if step.bound]
        total = f"at most {_percent(line.bound)} %" + (f" = {' + '.join(terms)}" if len(terms) > 1 else "")
    notes = []
    if line.direct is not None:
        word = "measured" if line.direct_how == "measured" else "proven, at most"
        notes.append(f"against the tag itself: {word} {_percent(line.direct)} %")
        if line.budget:
            notes.append(f"limit {line.budget.removeprefix('max ')}")
    if line.alpha:
        notes.append(f"alpha {line.alpha:g}")
    return [name, line.metric, total, dim("; ".join(notes))]


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.4g}"
