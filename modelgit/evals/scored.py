"""Tests that a program of its own scores: its outcomes against limits, and its examples' scores against baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from modelgit.config.suites import MetricLimit
from modelgit.errors import CheckFailed
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.checks import Row, failed, flips_row, metric_row, rate_limit_text
from modelgit.evals.metrics import score_changes
from modelgit.evals.outcomes import Outcome
from modelgit.objects import CheckResult, Flip

__all__ = ["scored_rows"]


def scored_rows(
    name: str,
    run: SuiteRun,
    outcome_of: Callable[[Side], Outcome],
    *,
    metrics: Mapping[str, MetricLimit],
    nfr_max: float | None,
    dead_band: float,
) -> Iterator[Row]:
    """A line for each metric and baseline, and for the examples whose score fell by more than `dead_band`.

    `name` is that of the test.  `outcome_of` gives what its program says of a side; baselines are asked only where
    something is compared with them.
    """
    new = outcome_of(run.candidate)
    compared = nfr_max is not None or any(limit.relative for limit in metrics.values())
    before = {side.name: outcome_of(side) for side in run.baselines} if compared else {}
    for metric, limit in metrics.items():
        yield from _metric_rows(metric, limit, new, before, only=len(metrics) == 1)
    if nfr_max is not None or new.scores:
        yield from _flip_rows(name, run, new, before, nfr_max, dead_band)


def _metric_rows(
    metric: str, limit: MetricLimit, new: Outcome, before: Mapping[str, Outcome], *, only: bool
) -> Iterator[Row]:
    value = new.metric(metric, only=only)
    if value is None:
        given = ", ".join(f"`{name}`" for name in sorted(new.metrics)) or "scores of examples only"
        yield failed(metric, limit, f"the test gave no such metric; it gave {given}")
        return
    examples = len(new.scores)
    if not before or not limit.relative:
        yield metric_row(metric, limit, value, None, unit="number", examples=examples)
        return
    for against, outcome in before.items():
        old = outcome.metric(metric, only=only)
        if old is None:
            yield failed(metric, limit, f"the test gave no such metric for the baseline {against}")
        else:
            yield metric_row(metric, limit, value, old, unit="number", examples=examples, against=against)


def _flip_rows(
    name: str, run: SuiteRun, new: Outcome, before: Mapping[str, Outcome], limit: float | None, dead_band: float
) -> Iterator[Row]:
    text = rate_limit_text(limit)
    if limit is not None and not new.scores:
        raise CheckFailed(
            "the test gave no scores of examples, which `nfr_max` compares", hint='give a list of {"id", "score"}'
        )
    if limit is not None and not run.baselines:
        yield Row(CheckResult(name="negative flips", decision="baseline", limit=text), "baseline")
    for against, outcome in before.items():
        if not outcome.scores and limit is None:
            continue
        only = sorted(new.scores.keys() ^ outcome.scores.keys())
        if only:
            raise CheckFailed(
                f"the test gave {len(outcome.scores):,} examples for the baseline {against} and {len(new.scores):,} "
                f"for the candidate; `{only[0]}` is of one of them only"
            )
        ids = list(new.scores)
        old_scores = np.array([outcome.scores[example] for example in ids])
        new_scores = np.array([new.scores[example] for example in ids])
        fell = np.flatnonzero(score_changes(old_scores, new_scores, dead_band=dead_band) < 0)
        for at in fell[: run.show_flips].tolist():
            run.flips.append(
                Flip(
                    test=name,
                    example=ids[at],
                    gold="",
                    before=f"{old_scores[at]:g}",
                    after=f"{new_scores[at]:g}",
                    against=against,
                )
            )
        yield flips_row(fell.size, len(ids), limit, against=against)
