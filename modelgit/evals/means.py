"""Limits on means that few units decide: accuracy against a floor and a baseline, flips by cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.config.schema import Limit
from modelgit.evals.betting import MeanTest
from modelgit.evals.checks import allowed_count, needed_count
from modelgit.evals.drawing import Units, next_batch
from modelgit.evals.paired import Pair
from modelgit.evals.sequential import FlipTest, SequentialVerdict

__all__ = ["AccuracyDraw", "ClusterDraw", "draw_accuracy", "draw_clusters"]


class AccuracyDraw(NamedTuple):
    """How far drawing went: `drawn` examples, what was right in them before and now, and the verdict.

    `bound` is the number of negative flips that were proven to be the most, where that decided.
    """

    verdict: SequentialVerdict
    drawn: int
    right_before: int
    right: int
    bound: int | None


class ClusterDraw(NamedTuple):
    """How far drawing went: `units` clusters of `of` with `drawn` examples, of which those at `flips` flipped."""

    verdict: SequentialVerdict
    units: int
    of: int
    drawn: int
    flips: NDArray[np.int64]


def _looks(total: int, pair: Pair) -> Iterator[int]:
    """Growing numbers of units, up to all; ends early when the time is over.  Looking costs no error."""
    drawn = 0
    while drawn < total and not pair.run.deadline.passed():
        pair.run.progress.check()
        drawn = min(total, drawn + next_batch(drawn))
        yield drawn


def draw_accuracy(pair: Pair, limit: Limit, *, alpha_fail: float) -> AccuracyDraw:
    """Draw until it is decided whether `min` and `max_drop` of a limit on accuracy hold.

    Two proofs of a pass run side by side, each at half of alpha: bets on the change of each example, and a bound on
    negative flips, of which the fall in accuracy is a part.  Both bounds of the limit have to hold, and each may fail.
    """
    units = pair.units()
    alpha = pair.run.settings.alpha
    bound = _flip_bound(pair, limit) if pair.data.clusters is None else None
    passing = alpha if bound is None else alpha / 2
    bounds = sum(value is not None for value in (limit.min, limit.max_drop))
    tests = list(_mean_tests(pair, limit, units, passing, alpha_fail / max(1, bounds)))
    verdicts: list[SequentialVerdict] = ["open"] * len(tests)
    population = pair.total if pair.right_before is None else pair.right_before
    flips = None if bound is None else FlipTest((population,), bound, alpha_pass=alpha / 2, alpha_fail=alpha / 2)
    drawn = before_sum = after_sum = 0
    for count in _looks(units.count, pair):
        positions = units.first(count)
        before, after = pair.changes_at(positions)
        drawn, before_sum, after_sum = positions.size, int(before.sum()), int(after.sum())
        for index, (test, relative) in enumerate(tests):
            if verdicts[index] == "open":
                verdicts[index] = test.decide(_scores(units, before, after, count, relative=relative))
        if "fail" in verdicts:
            return AccuracyDraw("fail", drawn, before_sum, after_sum, None)
        if "open" not in verdicts:
            return AccuracyDraw("pass", drawn, before_sum, after_sum, None)
        if flips is not None:
            among = drawn if pair.right_before is None else before_sum
            if flips.decide((among,), (int((before & ~after & 1).sum()),)) == "pass":
                return AccuracyDraw("pass", drawn, before_sum, after_sum, bound)
    return AccuracyDraw("open", drawn, before_sum, after_sum, None)


def _mean_tests(
    pair: Pair, limit: Limit, units: Units, alpha: float, alpha_fail: float
) -> Iterator[tuple[MeanTest, bool]]:
    """The tests of a limit, and whether each is about the change against the baseline.

    A unit has at most `largest` examples.  Those that smaller ones lack are as if nothing changed there, or as if they
    were wrong: what is needed counts examples only.
    """
    if limit.max_drop is not None:
        needed = units.largest * units.count - allowed_count(limit.max_drop, pair.total)
        yield MeanTest(units.count, 2 * units.largest, needed, alpha_pass=alpha, alpha_fail=alpha_fail), True
    if limit.min is not None:
        needed = needed_count(limit.min, pair.total)
        yield MeanTest(units.count, units.largest, needed, alpha_pass=alpha, alpha_fail=alpha_fail), False


def _scores(
    units: Units, before: NDArray[np.int64], after: NDArray[np.int64], count: int, *, relative: bool
) -> NDArray[np.int64]:
    return units.sums(after - before, count) + units.largest if relative else units.sums(after, count)


def _flip_bound(pair: Pair, limit: Limit) -> int | None:
    """How many negative flips leave the limit intact whatever else happens; None if unknown."""
    bounds = []
    if limit.max_drop is not None:
        bounds.append(allowed_count(limit.max_drop, pair.total))
    if limit.min is not None:
        if pair.right_before is None:
            return None
        bounds.append(pair.right_before - needed_count(limit.min, pair.total))
    return min(bounds) if bounds and min(bounds) >= 0 else None


def draw_clusters(pair: Pair, allowed: int, *, alpha_fail: float) -> ClusterDraw:
    """Draw whole clusters until it is decided whether at most `allowed` examples flip."""
    units = pair.units()
    # A cluster's score is what did not flip, out of as many as the largest has.
    needed = units.largest * units.count - allowed
    test = MeanTest(units.count, units.largest, needed, alpha_pass=pair.run.settings.alpha, alpha_fail=alpha_fail)
    verdict: SequentialVerdict = "open"
    count = 0
    flips = positions = np.zeros(0, np.int64)
    for count in _looks(units.count, pair):
        positions = units.first(count)
        before, after = pair.changes_at(positions)
        flipped = pair.run.counted(pair.test, pair.data, (before * (1 - after)).astype(bool), positions)
        flips = np.sort(positions[flipped])
        verdict = test.decide(units.largest - units.sums(flipped.astype(np.int64), count))
        if verdict != "open":
            break
    return ClusterDraw(verdict, count, units.count, positions.size, flips)
