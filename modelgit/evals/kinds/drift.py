"""`kl`: how far the outputs moved, KL(baseline || candidate) of each example in nats; no labels are needed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modelgit.config.suites import KlTest
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.checks import Row, divergence_row
from modelgit.evals.metrics import kl_divergences
from modelgit.evals.paired import predictions_at
from modelgit.objects import CheckResult

__all__ = ["run"]


def run(test: KlTest, run: SuiteRun) -> Iterator[Row]:
    """The mean against each baseline, and with `p99_max` the 99th percentile."""
    data = run.data_of(test)
    indices = np.sort(run.order(data))
    if not run.baselines:
        decision = CheckResult(
            name="kl", decision="baseline", unit="nats", limit="" if test.max is None else f"max {test.max:g} nats"
        )
        yield Row(decision, "baseline")
        return
    new = predictions_at(run, run.candidate, data, indices)
    for side in run.baselines:
        old = predictions_at(run, side, data, indices)
        classes = new.log_probs.shape[1], old.log_probs.shape[1]
        if classes[0] != classes[1]:
            yield _other_classes(side, *classes)
            continue
        divergences = kl_divergences(old.log_probs, new.log_probs)
        yield divergence_row("kl", divergences, test.max, against=side.name)
        if test.p99_max is not None:
            yield divergence_row("kl p99", divergences, test.p99_max, against=side.name, percentile=99)


def _other_classes(side: Side, new: int, old: int) -> Row:
    detail = f"the candidate has {new} classes, the baseline {old}"
    return Row(CheckResult(name="kl", decision="error", unit="nats", detail=detail, against=side.name), "error")
