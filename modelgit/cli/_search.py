"""`mgit merge --search`: what was tried, in a table, and the merge that was made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.cli._commits import refusal_lines
from modelgit.cli._format import plural
from modelgit.cli._merges import parse_strategies
from modelgit.cli._output import Part, blue, columns, dim, plain_data
from modelgit.cli._session import Session
from modelgit.cli.cmd_commit import say_commit
from modelgit.errors import GateRefused, UsageError

if TYPE_CHECKING:
    from modelgit.repo.merges.search import SearchResult

__all__ = ["search_merge"]

_SHOWN = 12


def search_merge(
    session: Session,
    revision: str,
    *,
    strategies: tuple[str, ...],
    candidates: tuple[str, ...],
    suites: tuple[str, ...],
    data: tuple[str, ...],
    exhaustive: bool,
    message: str | None,
    gate: str,
    as_json: bool,
) -> None:
    """Search, merge, and say what was tried."""
    chosen = parse_strategies(strategies)
    if chosen.name is not None:
        raise UsageError("--search looks for the strategy", hint=f"`--candidate '{chosen.name}'` names one to try")
    from modelgit.repo.gates.gate import RefusedWithRecords
    from modelgit.repo.merges.search import search

    repo, output = session.repository, session.output
    try:
        found = search(
            repo,
            revision,
            candidates=candidates,
            suites=suites,
            data=dict(_pair(text) for text in data),
            rules=chosen.rules,
            exhaustive=exhaustive,
            message=message,
            gate=gate,
            progress=session.progress,
        )
    except GateRefused as refusal:
        if isinstance(refusal, RefusedWithRecords):
            output.say_lines(refusal_lines(refusal))
        raise
    if as_json:
        document = {name: plain_data(value) for name, value in found._asdict().items() if name != "merged"}
        document["commit"] = None if found.merged.commit is None else found.merged.commit.id
        output.json("mgit.merge-search/1", document)
        return
    output.lines(_table(found))
    share = f"{100 * found.evaluated / max(1, found.exhaustive):.0f} %"
    output.say(
        f"{plural(len(found.scores), 'candidate')}, {plural(found.evaluated, 'example')} evaluated "
        f"({share} of what trying all on all would take)"
    )
    for text in found.refused:
        output.say(dim("note: "), f"{text} was better, and the gate refused it")
    for text in found.notes:
        output.say(dim("note: "), text)
    if found.merged.commit is not None:
        say_commit(output, found.merged.commit, note=f"   ({found.chosen})")


def _table(found: SearchResult) -> list[list[Part]]:
    suites = list(found.scores[0].by_suite)
    rows: list[list[Part]] = [["strategy", "mean", *suites, "examples"]]
    for score in found.scores[:_SHOWN]:
        name = blue(score.candidate) if score.candidate == found.chosen else score.candidate
        cells = [f"{100 * score.by_suite[suite]:.1f} %" for suite in suites]
        rows.append([name, f"{100 * score.mean:.1f} %", *cells, str(score.examples)])
    if len(found.scores) > _SHOWN:
        rows.append([dim(f"and {len(found.scores) - _SHOWN} more"), *[""] * (len(suites) + 2)])
    return columns(rows, right=list(range(1, len(suites) + 3)), indent=2)


def _pair(text: str) -> tuple[str, str]:
    suite, equals, file = text.partition("=")
    if not equals or not suite or not file:
        raise UsageError(f"`{text}` is not SUITE=FILE", hint="--search-data smoke=data/validation.jsonl")
    return suite, file
