"""The gate: does a candidate keep what its baseline could do, within the limits of a suite?

A comparison that cannot be made is never a pass.  Everything is decided on integer counts of examples, so that a
limit of 1 % of 4,000 means 40 and not a rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.config.schema import EvalSettings, Limit
from modelgit.errors import MgitError, UsageError
from modelgit.evals.checks import (
    Row,
    accuracy_check,
    allowed_count,
    failed,
    flips_check,
    kl_check,
    limit_text,
    needed_count,
    row,
)
from modelgit.evals.drawing import Draw, draw_order, draw_until_decided, fragile_first
from modelgit.evals.metrics import count_flips, kl_divergences
from modelgit.evals.predictions import Predictions, SuiteData
from modelgit.objects import CheckResult, Decision, EvalRecord, ManifestId, domain
from modelgit.progress import SILENT, Progress

__all__ = ["Candidate", "decide", "run_suite", "suite_id", "unavailable"]

_STOPPED = "not decided: the suite stopped at a proven failure"
# The first that occurs decides.
_PRECEDENCE: tuple[Decision, ...] = ("fail", "error", "inconclusive", "pending", "warn", "baseline", "pass")


class Candidate(Protocol):
    """A model of a manifest together with a suite's data.

    `complete` says that `predictions()` costs nothing; `versions` names the libraries that compute.
    """

    manifest: ManifestId
    data: SuiteData
    versions: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether every prediction is known already."""

    def predictions(self, indices: NDArray[np.int64] | None = None) -> Predictions:
        """Predictions at ascending `indices`, or all.  Raises MgitError when they cannot be made."""


def decide(decisions: Iterable[Decision]) -> Decision:
    """Many decisions in one: the worst, where "error" and "inconclusive" are worse than "warn".

    None at all is an "error": a gate that checked nothing has passed nothing.
    """
    found = set(decisions)
    return next((decision for decision in _PRECEDENCE if decision in found), "error")


def suite_id(name: str, settings: EvalSettings, data: SuiteData) -> str:
    """What was asked: `b3:` and the BLAKE3 of the suite's settings, its task and the fingerprint of its data.

    Two verdicts compare only under one suite id.
    """
    task = msgspec.structs.replace(data.task, train=None, test=None)
    content = msgspec.json.encode(
        (name, msgspec.structs.replace(settings, data=None), task, data.fingerprint), order="deterministic"
    )
    return "b3:" + blake3(domain("suite") + content).hexdigest()


def unavailable(name: str, candidate: ManifestId, baseline: ManifestId | None, reason: str) -> EvalRecord:
    """The record of a suite that could not even start; an "error", never a pass."""
    return EvalRecord(
        candidate=candidate,
        baseline=baseline,
        suite=name,
        suite_id="",
        results=(CheckResult(name="run", decision="error", detail=reason),),
        decision="error",
        seconds=0.0,
    )


def run_suite(
    name: str,
    settings: EvalSettings,
    candidate: Candidate,
    baseline: Candidate | None,
    *,
    progress: Progress = SILENT,
) -> EvalRecord:
    """Evaluate `candidate` against the limits of a suite, those against the baseline included.

    `settings.sampling` "full" evaluates every example; "random" and "adaptive" draw in an order fixed by the seed and
    the suite until the limit on negative flips is decided with error at most alpha (see `sequential`), and go on to
    the whole suite when another limit needs it.  Without a baseline, relative limits come out as "baseline".
    A model or data that cannot be used makes the decision "error".
    """
    started = time.monotonic()
    identity = suite_id(name, settings, candidate.data)
    examples = 0
    try:
        run = _Run(settings, candidate, baseline, identity, progress)
        rows = run.results()
        examples = run.evaluated
    except MgitError as error:
        rows = [Row(CheckResult(name="run", decision="error", detail=error.message), "error")]
    return EvalRecord(
        candidate=candidate.manifest,
        baseline=None if baseline is None else baseline.manifest,
        suite=name,
        suite_id=identity,
        results=tuple(line.result for line in rows),
        decision=decide(line.decision for line in rows),
        examples=examples,
        seconds=round(time.monotonic() - started, 3),
        seed=settings.seed,
        versions={"numpy": np.__version__, **candidate.versions},
    )


class _Run:
    """One run of a suite: chooses the examples, draws or evaluates them all, and writes the lines."""

    def __init__(
        self,
        settings: EvalSettings,
        candidate: Candidate,
        baseline: Candidate | None,
        identity: str,
        progress: Progress,
    ) -> None:
        if baseline is not None and baseline.data.fingerprint != candidate.data.fingerprint:
            raise UsageError("candidate and baseline were given different data")
        self.settings = settings
        self.candidate = candidate
        self.baseline = baseline
        self.progress = progress
        self.evaluated = 0
        self.gold = candidate.data.labels
        order = draw_order(len(self.gold), seed=settings.seed, suite=identity)[: settings.examples]
        if not order.size:
            raise UsageError("the data of the suite hold no examples")
        self.all = np.sort(order)
        self.order = order[self.gold[order] >= 0]
        self.labelled = np.sort(self.order)
        self.total = int(self.order.size)

    def results(self) -> list[Row]:
        """The lines of the verdict, by drawing where that can decide, else in full."""
        limit = self.settings.negative_flips
        drawing = self.settings.sampling != "full" and self.total > 0
        rows = None
        if drawing and self.baseline is not None and limit is not None and limit.max is not None:
            rows = self._by_drawing(self.baseline, limit, limit.max)
        return self._in_full() if rows is None else rows

    def _right(self, side: Candidate, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = side.predictions(indices).labels == self.gold[indices]
        return right

    def _by_drawing(self, baseline: Candidate, limit: Limit, rate: float) -> list[Row] | None:
        """Lines decided by few examples, or None when the whole suite has to say."""
        right_before = None
        strata = [self.order]
        if baseline.complete:
            # Only what was right can flip, and what was right by a small margin flips first.
            known = baseline.predictions(self.labelled)
            right = known.labels == self.gold[self.labelled]
            right_before = int(np.count_nonzero(right))
            strata = self._strata(self.labelled[right], known.margins[right])

        def flips_at(indices: NDArray[np.int64]) -> NDArray[np.bool_]:
            wrong: NDArray[np.bool_] = ~self._right(self.candidate, indices)
            return wrong if right_before is not None else wrong & self._right(baseline, indices)

        allowed = [allowed_count(rate, self.total)]
        bound = self._accuracy_bound(right_before)
        if bound is not None:
            allowed.append(bound)
        blocks = limit.level == "block"
        draw = draw_until_decided(
            strata,
            allowed,
            flips_at,
            alpha=self.settings.alpha,
            stop_at_failure=blocks,
            progress=self.progress,
        )
        stopped = blocks and draw.verdicts[0] == "fail"
        accuracy, kl = self.settings.accuracy, self.settings.kl
        proven = draw.verdicts[1:] == ("pass",)
        if not stopped and (kl is not None or not (accuracy is None or proven)):
            return None
        self.evaluated = draw.drawn
        rows = []
        if accuracy is not None and proven and bound is not None:
            rows.append(self._proven_accuracy(accuracy, right_before, bound))
        elif accuracy is not None:
            rows.append(failed("accuracy", accuracy, _STOPPED, decision="inconclusive"))
        rows.append(self._drawn_flips(limit, draw, allowed[0]))
        if kl is not None:
            rows.append(failed("kl", kl, _STOPPED, decision="inconclusive"))
        return rows

    def _strata(self, indices: NDArray[np.int64], margins: NDArray[np.float64]) -> list[NDArray[np.int64]]:
        """The examples that can flip, in drawing order; fragile ones apart when sampling is adaptive."""
        parts = [indices]
        if self.settings.sampling == "adaptive":
            parts = [indices[positions] for positions in fragile_first(margins)]
        return [self.order[np.isin(self.order, part)] for part in parts]

    def _accuracy_bound(self, right_before: int | None) -> int | None:
        """How many negative flips leave the limits on accuracy intact whatever else happens; None if unknown.

        The fall in accuracy is at most the share of negative flips, so that a bound on these proves it.
        """
        limit = self.settings.accuracy
        if limit is None or limit.max is not None or limit.max_rise is not None:
            return None
        bounds = []
        if limit.max_drop is not None:
            bounds.append(allowed_count(limit.max_drop, self.total))
        if limit.min is not None:
            if right_before is None:
                return None
            bounds.append(right_before - needed_count(limit.min, self.total))
        return min(bounds) if bounds and min(bounds) >= 0 else None

    def _proven_accuracy(self, limit: Limit, right_before: int | None, bound: int) -> Row:
        detail = f"holds, for at most {bound:,} of {self.total:,} examples went from right to wrong"
        return row(
            CheckResult(
                name="accuracy",
                decision="pass",
                baseline=None if right_before is None else right_before / self.total,
                limit=limit_text("accuracy", limit),
                detail=f"{detail}; proven at alpha {self.settings.alpha:g}",
            ),
            limit,
        )

    def _drawn_flips(self, limit: Limit, draw: Draw, allowed: int) -> Row:
        certain = draw.flipped > allowed or draw.flipped + draw.population - draw.drawn <= allowed
        proof = "certain without the rest" if certain else f"proven at alpha {self.settings.alpha:g}"
        among = f"{self.total:,}" if draw.population == self.total else f"the {draw.population:,} right before"
        return row(
            CheckResult(
                name="negative flips",
                decision="fail" if draw.verdicts[0] == "fail" else "pass",
                value=draw.expected / self.total,
                limit=limit_text("negative flips", limit),
                detail=f"{draw.flipped:,} of the {draw.drawn:,} examples drawn from {among} "
                f"{'' if draw.population == self.total else f'(of {self.total:,}) '}went from right to wrong; {proof}",
            ),
            limit,
        )

    def _in_full(self) -> list[Row]:
        """Every example of the suite, on both sides."""
        settings = self.settings
        self.evaluated = int(self.all.size)
        new = self.candidate.predictions(self.all)
        old = None if self.baseline is None else self.baseline.predictions(self.all)
        known = self.gold[self.all] >= 0
        right = (new.labels == self.gold[self.all])[known]
        before = None if old is None else (old.labels == self.gold[self.all])[known]
        rows = []
        if settings.accuracy is not None:
            if self.total:
                count = None if before is None else int(np.count_nonzero(before))
                rows.append(accuracy_check(settings.accuracy, self.total, int(np.count_nonzero(right)), count))
            else:
                rows.append(failed("accuracy", settings.accuracy, "no example has a label"))
        if settings.negative_flips is not None:
            if self.total:
                flips = None if before is None else count_flips(before, right).negative
                rows.append(flips_check(settings.negative_flips, self.total, flips))
            else:
                rows.append(failed("negative flips", settings.negative_flips, "no example has a label"))
        if settings.kl is not None:
            rows.append(self._divergence(settings.kl, new, old))
        return rows

    def _divergence(self, limit: Limit, new: Predictions, old: Predictions | None) -> Row:
        if old is None:
            return kl_check(limit, None)
        classes = new.log_probs.shape[1], old.log_probs.shape[1]
        if classes[0] != classes[1]:
            return failed("kl", limit, f"the candidate has {classes[0]} classes, the baseline {classes[1]}")
        return kl_check(limit, kl_divergences(old.log_probs, new.log_probs))
