"""Diffs and verdicts as GitHub-flavoured Markdown: for pull requests, step summaries and model cards."""

from __future__ import annotations

from collections.abc import Sequence

from modelgit.objects import EvalRecord
from modelgit.objects.diffs import ModelDiff
from modelgit.reporting.diff_text import diff_lines
from modelgit.reporting.verdict_text import DECISION_WORDS, measurement
from modelgit.reporting.wording import printable

__all__ = ["diff_markdown", "escape_markdown", "verdict_markdown"]

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]()#+!|~$@"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def escape_markdown(text: str) -> str:
    """`text` as Markdown that shows it and does nothing else: no markup, HTML, link or mention."""
    return printable(text).translate(_SPECIAL)


def verdict_markdown(records: Sequence[EvalRecord]) -> str:
    """One table over all suites, a row per check."""
    lines = ["| suite | check | baseline | candidate | limit | verdict | |", "|---|---|---|---|---|---|---|"]
    for record in records:
        for result in record.results:
            before, after = measurement(result)
            word = DECISION_WORDS[result.decision]
            cells = (record.suite, result.name, before, after, result.limit, word, result.detail)
            lines.append(f"| {' | '.join(escape_markdown(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def diff_markdown(diff: ModelDiff, *, width: int = 100) -> str:
    """The text of a diff as a code block, which keeps the heat map aligned."""
    lines = diff_lines(diff, width=width)
    longest = max((len(run) for line in lines for run in _backticks(line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}text", *lines, fence]) + "\n"


def _backticks(line: str) -> list[str]:
    """The runs of backticks in a line."""
    return "".join(c if c == "`" else " " for c in line).split()
