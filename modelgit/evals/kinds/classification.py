"""`classification`: accuracy, macro F1, calibration, likelihood and churn of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from modelgit.config.suites import ClassificationTest, MetricLimit
from modelgit.evals.base import Dataset, Side, SuiteRun
from modelgit.evals.checks import Row, accuracy_row, failed, limit_text, metric_row, row
from modelgit.evals.means import AccuracyDraw, draw_accuracy
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
        drawable = (
            limit.max is None and limit.max_rise is None and (limit.min is not None or limit.max_drop is not None)
        )
        if side is not None and drawable and not run.in_full(data, run.candidate, side):
            pair = Pair(run, data, side)
            draw = draw_accuracy(pair, limit, alpha_fail=run.alpha_fail)
            if draw.drawn < pair.total:
                yield _drawn(pair, limit, draw)
                continue
        right = int(np.count_nonzero(right_at(run, run.candidate, data, labelled)))
        before = None if side is None else int(np.count_nonzero(right_at(run, side, data, labelled)))
        yield accuracy_row(limit, labelled.size, right, before, against="" if side is None else side.name)


def _drawn(pair: Pair, limit: MetricLimit, draw: AccuracyDraw) -> Row:
    """The line of a draw; the values are estimates where not everything was looked at."""
    before = value = None
    if draw.drawn:
        before = draw.right_before / draw.drawn if pair.right_before is None else pair.right_before / pair.total
        value = min(1.0, max(0.0, before + (draw.right - draw.right_before) / draw.drawn))
    proof = f"proven at alpha {pair.run.settings.alpha:g}"
    if draw.bound is not None:
        detail = f"holds, for at most {draw.bound:,} of {pair.total:,} examples went from right to wrong; {proof}"
    elif draw.verdict == "open":
        detail = f"not decided by {draw.drawn:,} of {pair.total:,} examples when the time was over"
    else:
        detail = f"of {draw.drawn:,} examples drawn from {pair.total:,}; {proof}"
    return row(
        CheckResult(
            name="accuracy",
            decision="inconclusive" if draw.verdict == "open" else draw.verdict,
            value=value,
            baseline=before,
            limit=limit_text("accuracy", limit),
            detail=detail,
            against=pair.baseline.name,
            examples=draw.drawn,
            total=pair.total,
        ),
        limit,
    )


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
