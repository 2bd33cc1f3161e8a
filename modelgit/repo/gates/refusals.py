"""What a refusal of the gate says: how many lines let nothing in, and which commands go on from there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelgit.errors import MgitError
from modelgit.objects import LETS_IN, CheckResult, Decision, EvalRecord

if TYPE_CHECKING:
    from modelgit.evals.suites import Suite
    from modelgit.repo.repository import Repository

__all__ = ["broken_words", "refuses", "way_on"]

_ANYWAY = "`--gate warn` records anyway and marks the commit"
_MAX_IDS = 5
_Line = tuple[EvalRecord, CheckResult]


def refuses(decision: Decision) -> bool:
    """Whether a verdict keeps a change out."""
    return decision not in LETS_IN and decision != "pending"


def broken_words(refused: Sequence[EvalRecord]) -> str:
    """`2 gates failed, 1 could not run`: how many lines let nothing in, by what happened to them."""
    decisions = [result.decision for record in refused for result in record.results]
    words: list[str] = []
    named: dict[Decision, str] = {"fail": "failed", "error": "could not run", "inconclusive": "undecided"}
    for what, word in named.items():
        if count := decisions.count(what):
            words.append(f"{count}{'' if words else ' gate' if count == 1 else ' gates'} {word}")
    return ", ".join(words)


def way_on(repo: Repository, records: Sequence[EvalRecord], *, shown_by: str) -> str:
    """The hint of a refusal: how to see what broke, how to let it, and how to record it all the same.

    `shown_by` is the command that evaluates the candidate once more, "" for one that is nowhere any more (a merge).
    What is named works in this state: examples can be accepted where nothing else stands in the way.
    """
    lines = [
        (record, line)
        for record in records
        if refuses(record.decision)
        for line in record.results
        if refuses(line.decision)
    ]
    failed = [item for item in lines if item[1].decision == "fail"]
    words: list[str] = []
    if shown_by and any(record.flips for record, _ in failed):
        whole = all(line.examples == line.total for _, line in failed)
        words.append(f"`{shown_by}{'' if whole else ' --full'} --show flips` lists what broke")
    if len(failed) == len(lines) and (accepted := _accepting(repo, failed)):
        words.append(accepted)
    if shown_by and lines and all(line.decision == "inconclusive" for _, line in lines):
        words.append(f"`{shown_by} --budget 1h` decides it, and what it computes is kept")
    words.append(_ANYWAY)
    if not shown_by and any(len(record.flips) < line.broken for record, line in failed if record.flips):
        words.append("`mgit eval REV --full --show flips` of that commit lists what broke")
    return "; ".join(words)


def _accepting(repo: Repository, failed: Sequence[_Line]) -> str:
    """How the examples that broke are accepted; "" where a limit broke that no acceptance moves."""
    tests = list(dict.fromkeys((record.suite, line.test) for record, line in failed))
    if not tests or not all(_counts_examples(repo, *test) for test in tests):
        return ""
    suite, test = tests[0]
    ids = _all_ids([item for item in failed if (item[0].suite, item[1].test) == (suite, test)])
    shown = shlex.quote(",".join(ids)) if ids else "IDS"
    command = f"mgit eval accept {shlex.quote(test)} --suite {suite} --examples {shown} -m REASON"
    return f"`{command}` lets them break" + (", and so for each test" if len(tests) > 1 else "")


def _counts_examples(repo: Repository, suite: str, test: str) -> bool:
    """Whether examples of a test can be accepted here: its suite is one of the work tree's, and looks at each."""
    from modelgit.config.suites import CheckListTest, NfrTest, PinTest
    from modelgit.repo.gates.suites import worktree_suites

    try:
        found: tuple[Suite, ...] = worktree_suites(repo).suites([suite])
    except MgitError:
        return False  # another branch's, which this work tree cannot read
    tables = [table for item in found for table in item.tests if table.name == test]
    return any(isinstance(table, NfrTest | PinTest | CheckListTest) for table in tables)


def _all_ids(lines: Sequence[_Line]) -> list[str]:
    """The ids of all examples of one test that broke; none where they are many, or some may not be known."""
    found: dict[str, None] = {}
    for record, line in lines:
        ids = {flip.example for flip in record.flips if flip.test == line.test and flip.against == line.against}
        if line.slice or line.examples < line.total or len(ids) < line.broken:
            return []
        found |= dict.fromkeys(sorted(ids))
    return list(found) if len(found) <= _MAX_IDS and not any("," in name for name in found) else []
