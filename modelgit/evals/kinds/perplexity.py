"""`perplexity`: exp of the mean loss per token of a language model on texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from modelgit.config.suites import MetricLimit, PerplexityTest
from modelgit.errors import CheckFailed, UsageError
from modelgit.evals.base import Dataset, Side, SuiteRun
from modelgit.evals.checks import Row, failed, metric_row
from modelgit.evals.kept import output_key
from modelgit.evals.losses import Losses
from modelgit.models.kinds import LANGUAGE_KINDS
from modelgit.objects import CheckResult

__all__ = ["run"]

_NAME = "perplexity"


def run(test: PerplexityTest, run: SuiteRun) -> Iterator[Row]:
    """One line, or one for each baseline where `max_ratio` compares with it.

    The losses of the examples are kept by the weights, so that a baseline is read once.  Held are one model at a time,
    the logits of one batch, and two numbers for each example.  Raises UsageError for a task of another kind.
    """
    data = run.data_of(test)
    if data.task.kind is not None and data.task.kind not in LANGUAGE_KINDS:
        raise UsageError(
            f"test `{test.name}` is for language models, and the task of `{data.name}` is of kind `{data.task.kind}`",
            hint='`kind = "causal-lm"` under the task in mgit.toml',
        )
    limit = MetricLimit(max=test.max, max_ratio=test.max_ratio)
    try:
        new = _losses(run, run.candidate, data)
    except CheckFailed as error:
        # Logits that are no numbers are a bad model, and no fault of the test.
        yield failed(_NAME, limit, error.message, decision="fail")
        return
    if test.max_ratio is None or not run.baselines:
        yield _line(limit, data, new)
        return
    for side in run.baselines:
        yield _line(limit, data, new, _losses(run, side, data), against=side.name)


def _line(limit: MetricLimit, data: Dataset, new: Losses, old: Losses | None = None, *, against: str = "") -> Row:
    if not new.outputs:
        raise UsageError(f"the texts of `{data.name}` have no token to predict")
    line = metric_row(
        _NAME,
        limit,
        _perplexity(new),
        None if old is None else _perplexity(old),
        unit="number",
        examples=len(data),
        against=against,
    )
    detail = line.result.detail or f"{new.mean:.4g} nats for each of {new.outputs:,} tokens"
    result: CheckResult = msgspec.structs.replace(line.result, detail=detail)
    return Row(result, line.decision)


def _perplexity(losses: Losses) -> float:
    try:
        return math.exp(losses.mean)
    except OverflowError:
        return math.inf


def _losses(run: SuiteRun, side: Side, data: Dataset) -> Losses:
    """From what is kept for the weights, or computed now and kept."""
    key = output_key("losses", run, side, data)
    known = _known(side.scores(key), len(data))
    if known is not None:
        return known
    from modelgit.evals.streams import output_losses

    everything = np.arange(len(data), dtype=np.int64)
    losses = output_losses(side.model(data), side.encode(data, everything), check=run.check, progress=run.progress)
    side.keep_scores(key, {"sums": losses.sums.tolist(), "counts": losses.counts.tolist()})
    return losses


def _known(value: Mapping[str, Any] | None, count: int) -> Losses | None:
    """What was kept; None for anything that is not one number and one count for each example."""
    if value is None:
        return None
    try:
        sums = np.array(value.get("sums"), dtype=np.float64)
        counts = np.array(value.get("counts"), dtype=np.int64)
    except (TypeError, ValueError):
        return None
    return Losses(sums, counts) if sums.shape == counts.shape == (count,) else None
