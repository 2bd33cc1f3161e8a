"""Verdicts: the only thing that the gate, the log and remotes need to know of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal as OneOf

from modelgit.objects.canonical import Record
from modelgit.objects.ids import CommitId, ManifestId

__all__ = ["LETS_IN", "CheckResult", "ComparedWith", "Decision", "EvalRecord", "Flip", "worst_decision"]

Decision = OneOf["pass", "info", "warn", "fail", "inconclusive", "error", "baseline", "pending"]
"""The last word on a suite or on one line of it.

"info": a limit that does not hold and is only told (lines alone); "baseline": nothing to compare with yet; "pending":
recorded before the suite ran, by a machine that leaves it to another.  Only those of `LETS_IN` let a change in.
"""
LETS_IN: frozenset[Decision] = frozenset({"pass", "info", "warn", "baseline"})

# The first that occurs decides.
_WORST_FIRST: tuple[Decision, ...] = ("fail", "error", "inconclusive", "pending", "warn", "baseline", "info", "pass")


def worst_decision(decisions: Iterable[Decision]) -> Decision:
    """Many decisions in one: the worst, where "error" and "inconclusive" are worse than "warn".

    None at all is an "error": a gate that checked nothing has passed nothing.
    """
    found = set(decisions)
    return next((decision for decision in _WORST_FIRST if decision in found), "error")


class CheckResult(Record, frozen=True, kw_only=True):
    """One line of a verdict.

    `value` and `baseline` are in `unit` ("" for a ratio in [0, 1], "number" for one that is none, "nats", "count",
    "bytes", "ms"); `limit` is the sentence that was tested ("max 1.0 %"); `detail` says on how many examples, and what
    was found.  `test` is the test of the suite that the line belongs to, "" where a suite has lines only; `against`
    names the baseline that it compares with ("parent", "parent:2", "tag:v1.0"), "" for an absolute limit; `slice` is
    "FIELD=VALUE" for a part of the examples.  `broken` counts the examples that speak against the candidate among the
    `examples` evaluated of `total` (negative flips, failed pins).
    """

    name: str
    decision: Decision
    value: float | None = None
    baseline: float | None = None
    unit: str = ""
    limit: str = ""
    detail: str = ""
    test: str = ""
    against: str = ""
    slice: str = ""
    examples: int = 0
    total: int = 0
    broken: int = 0


class ComparedWith(Record, frozen=True, kw_only=True):
    """A baseline of a verdict: `name` as the suite calls it, its weights (`repo.weights.weights_tree`), its manifest.

    `commit` is the commit that the name meant when the suite ran; None for what is no commit.
    """

    name: str
    manifest: ManifestId
    weights: str
    commit: CommitId | None = None


class Flip(Record, frozen=True, kw_only=True):
    """An example that was right in a baseline and is wrong now: its id, and the labels (gold, before, after)."""

    test: str
    example: str
    gold: str
    before: str
    after: str
    against: str = ""


class EvalRecord(Record, frozen=True, kw_only=True):
    """The verdict of one suite run on a candidate manifest against baselines.

    `baseline` is the manifest of the first of `baselines` (None for the first verdict of a history).  `weights` names
    what was measured: equal for commits that differ in their message only.  `alpha` bounds the probability of a wrong
    early verdict, `sampling` says how examples were chosen, `stage` when the suite is due.  `flips` are the first few
    negative flips; `accepted` names the acceptances that excused a broken limit.
    """

    candidate: ManifestId
    baseline: ManifestId | None
    suite: str
    suite_id: str
    results: tuple[CheckResult, ...]
    decision: Decision
    examples: int = 0
    seconds: float
    seed: int = 0
    versions: dict[str, str] = {}
    override: str | None = None
    weights: str = ""
    baselines: tuple[ComparedWith, ...] = ()
    stage: str = ""
    alpha: float | None = None
    sampling: str = ""
    flips: tuple[Flip, ...] = ()
    accepted: tuple[str, ...] = ()
