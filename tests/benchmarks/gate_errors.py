"""How often an early verdict is wrong: 2,000 suites of 4,000 examples with flips on the limit, and with one more.

Flips lie at random, or, for two strata, nine of ten among the fragile tenth.  Verdicts that need the whole suite are
never wrong; what counts is what was said before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from unittest import mock

import numpy as np
from parts import Plan
from table import Row

from modelgit.evals import drawing
from modelgit.evals.sequential import FlipTest, SequentialVerdict

__all__ = ["remembered", "rows"]

EXAMPLES, RUNS, SEED = 4000, 2000, 5
ALPHA = 0.05
_FRAGILE = 0.15


def rows(plan: Plan) -> Iterator[Row]:
    """The worst error over limits, one and two strata, and numbers of flips at and around the limit."""
    runs = 40 if plan.quick else RUNS
    for strata in (1, 2):
        for limit in (0.01, 0.02):
            allowed = round(limit * EXAMPLES)
            for flips in (allowed, allowed + 1):
                with mock.patch.object(drawing, "FlipTest", remembered):
                    wrong, drawn = _simulated(strata, allowed, flips, runs)
                side = "on the limit" if flips == allowed else "one too many"
                yield Row(
                    f"Wrong early verdicts, {runs:,} suites each, alpha {100 * ALPHA:g} %",
                    f"{strata} strata, limit {100 * limit:g} %, {flips} flips ({side})",
                    100 * wrong,
                    "%",
                    100 * ALPHA,
                    "at most",
                    f"{100 * drawn / EXAMPLES:.0f} % drawn on average",
                )


class _Remembering:
    """A test whose answers are kept: many runs ask the same."""

    def __init__(self, test: FlipTest) -> None:
        self._decide = cache(test.decide)

    def decide(self, drawn: Sequence[int], flipped: Sequence[int]) -> SequentialVerdict:
        """The verdict."""
        return self._decide(tuple(drawn), tuple(flipped))


@cache
def _made(sizes: tuple[int, ...], allowed: int, alpha_pass: float, alpha_fail: float) -> _Remembering:
    return _Remembering(FlipTest(sizes, allowed, alpha_pass=alpha_pass, alpha_fail=alpha_fail))


def remembered(sizes: Sequence[int], allowed: int, *, alpha_pass: float, alpha_fail: float) -> _Remembering:
    """In place of `FlipTest`: one for all runs that ask the same."""
    return _made(tuple(sizes), allowed, alpha_pass, alpha_fail)


def _simulated(strata: int, allowed: int, flips: int, runs: int) -> tuple[float, float]:
    """(share of wrong verdicts, mean number of examples drawn)."""
    truth = "pass" if flips <= allowed else "fail"
    wrong = drawn = 0
    for run in range(runs):
        draw = np.random.default_rng((SEED, strata, allowed, flips, run))
        order = draw.permutation(EXAMPLES).astype(np.int64)
        fragile = round(_FRAGILE * EXAMPLES)
        flipped = np.zeros(EXAMPLES, dtype=bool)
        if strata == 1:
            parts = [order]
            flipped[draw.choice(EXAMPLES, flips, replace=False)] = True
        else:
            parts = [order[order < fragile], order[order >= fragile]]
            inside = round(0.9 * flips)
            flipped[draw.choice(fragile, inside, replace=False)] = True
            flipped[fragile + draw.choice(EXAMPLES - fragile, flips - inside, replace=False)] = True
        found = drawing.draw_until_decided(
            parts, [allowed], lambda indices, flipped=flipped: flipped[indices], alpha=ALPHA
        )
        wrong += found.verdicts[0] != truth
        drawn += found.drawn
    return wrong / runs, drawn / runs
