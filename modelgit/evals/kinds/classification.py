"""`classification`: accuracy, macro F1, calibration, likelihood and churn of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from modelgit.config.suites import ClassificationTest, MetricLimit
from modelgit.evals.base import Dataset, Side, SuiteRun
from modelgit.evals.checks import Row, accuracy_row, allowed_count, failed, limit_text, metric_row, needed_count, row
from modelgit.evals.metrics import churn, expected_calibration_error, macro_f1, mean_negative_log_likelihood
from modelgit.evals.paired import Pair, predictions_at, right_at
from modelgit.evals.predictions import Predictions
from modelgit.objects import CheckResult

__all__ = ["run"]

_Measure = Callable[[Predictions, NDArray[np.int64]], float]
_SCORES: dict[str, tuple[_Measure, str]] = {
    "macro_f1": (lambda found, gold: macro_f1(found.labels, gold), ""),
    "ece": (lambda found, gold: expected_calibration_error(found.log_probs, gold), ""),
    "nll": (lambda found, gold: mean_negative_log_likelihood(found.log_probs, gold), "nats"),
}


def run(test: ClassificationTest, run: SuiteRun) -> Iterator[Row]:
    """A line for each metric and baseline.

    Accuracy may be decided by drawing; the other metrics are no means over examples, and are measured in full.
    """
    data = run.data_of(test)
    order = run.order(data)
    labelled = np.sort(order[data.labels[order] >= 0])
    for name, limit in test.metrics.items():
        if name == "churn":
            yield from _churn(run, data, limit, np.sort(order))
        elif not labelled.size:
            yield failed(name, limit, "no example has a label")
        elif name == "accuracy":
            yield from _accuracy(run, data, limit, labelled)
        else:
            yield from _score(name, run, data, limit, labelled)


def _compared(run: SuiteRun, limit: MetricLimit) -> Sequence[Side | None]:
    """The baselines that a metric is compared with: all by a relative limit, else the first, to show it."""
    if not run.baselines:
        return [None]
    relative = limit.max_drop is not None or limit.max_rise is not None
    return run.baselines if relative else run.baselines[:1]


def _accuracy(run: SuiteRun, data: Dataset, limit: MetricLimit, labelled: NDArray[np.int64]) -> Iterator[Row]:
    for side in _compared(run, limit):
        if side is not None and not run.in_full(data, run.candidate, side):
            proven = _by_few_flips(run, Pair(run, data, side), limit)
            if proven is not None:
                yield proven
                continue
        right = int(np.count_nonzero(right_at(run, run.candidate, data, labelled)))
        before = None if side is None else int(np.count_nonzero(right_at(run, side, data, labelled)))
        yield accuracy_row(limit, labelled.size, right, before, against="" if side is None else side.name)


def _by_few_flips(run: SuiteRun, pair: Pair, limit: MetricLimit) -> Row | None:
    """The line that a bound on negative flips proves, or None when it proves nothing.

    The fall in accuracy is at most the share of negative flips.
    """
    bound = _accuracy_bound(pair, limit)
    if bound is None:
        return None
    draw = pair.draw([bound], alpha_fail=run.alpha_fail)
    if draw.verdicts != ("pass",):
        return None
    detail = f"holds, for at most {bound:,} of {pair.total:,} examples went from right to wrong"
    return row(
        CheckResult(
            name="accuracy",
            decision="pass",
            baseline=None if pair.right_before is None else pair.right_before / pair.total,
            limit=limit_text("accuracy", limit),
            detail=f"{detail}; proven at alpha {run.settings.alpha:g}",
            against=pair.baseline.name,
            examples=draw.drawn,
            total=pair.total,
        ),
        limit,
    )


def _accuracy_bound(pair: Pair, limit: MetricLimit) -> int | None:
    """How many negative flips leave the limits intact whatever else happens; None if unknown."""
    if limit.max is not None or limit.max_rise is not None:
        return None
    bounds = []
    if limit.max_drop is not None:
        bounds.append(allowed_count(limit.max_drop, pair.total))
    if limit.min is not None:
        if pair.right_before is None:
            return None
        bounds.append(pair.right_before - needed_count(limit.min, pair.total))
    return min(bounds) if bounds and min(bounds) >= 0 else None


def _score(name: str, run: SuiteRun, data: Dataset, limit: MetricLimit, labelled: NDArray[np.int64]) -> Iterator[Row]:
    measure, unit = _SCORES[name]
    gold = data.labels[labelled]
    value = measure(predictions_at(run, run.candidate, data, labelled), gold)
    for side in _compared(run, limit):
        before = None if side is None else measure(predictions_at(run, side, data, labelled), gold)
        against = "" if side is None else side.name
        yield metric_row(name, limit, value, before, unit=unit, examples=labelled.size, against=against)


def _churn(run: SuiteRun, data: Dataset, limit: MetricLimit, indices: NDArray[np.int64]) -> Iterator[Row]:
    """Churn compares with a baseline by itself, and needs no labels."""
    if not run.baselines:
        yield row(CheckResult(name="churn", decision="baseline", limit=limit_text("churn", limit)), limit)
    for side in run.baselines:
        new = predictions_at(run, run.candidate, data, indices).labels
        old = predictions_at(run, side, data, indices).labels
        yield metric_row("churn", limit, churn(old, new), None, examples=indices.size, against=side.name)
