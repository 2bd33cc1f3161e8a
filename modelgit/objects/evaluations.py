"""Verdicts: the only thing that the gate, the log and remotes need to know of an evaluation."""

from __future__ import annotations

from typing import Literal as OneOf

from modelgit.objects.canonical import Record
from modelgit.objects.ids import ManifestId

__all__ = ["CheckResult", "Decision", "EvalRecord"]

Decision = OneOf["pass", "warn", "fail", "inconclusive", "error", "baseline"]


class CheckResult(Record, frozen=True, kw_only=True):
    """One line of a verdict.

    `value` and `baseline` are in `unit` ("" for a ratio in [0, 1], "nats", "count"); `limit` is the sentence that
    was tested ("max 1.0 %"); `detail` says on how many examples, and what was found.
    """

    name: str
    decision: Decision
    value: float | None = None
    baseline: float | None = None
    unit: str = ""
    limit: str = ""
    detail: str = ""


class EvalRecord(Record, frozen=True, kw_only=True):
    """The verdict of one suite run on a candidate manifest against a baseline manifest (None for the first)."""

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
