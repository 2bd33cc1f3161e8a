"""How often an early verdict is wrong: 2,000 suites of 4,000 examples for each number of flips on and beside the limit.

Flips lie at random, or, for two strata, nine of ten among the fragile tenth.  Verdicts that need the whole suite are
never wrong; what counts is what was said before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from parts import Plan
from table import Row

from modelgit.evals.drawing import draw_until_decided

__all__ = ["rows"]

EXAMPLES, RUNS, SEED = 4000, 2000, 5
ALPHA = 0.05
_FRAGILE = 0.15


def rows(plan: Plan) -> Iterator[Row]:
    """The worst error over limits, one and two strata, and numbers of flips at and around the limit."""
    runs = 40 if plan.quick else RUNS
    for strata in (1, 2):
        for limit in (0.01, 0.02):
            allowed = round(limit * EXAMPLES)
            for flips in (allowed - 4, allowed, allowed + 1, allowed + 5):
                wrong, drawn = _simulated(strata, allowed, flips, runs)
                side = "on the limit" if flips == allowed else f"{flips - allowed:+d} of the limit"
                yield Row(
                    f"Wrong early verdicts, {runs:,} suites each, alpha {100 * ALPHA:g} %",
                    f"{strata} strata, limit {100 * limit:g} %, {flips} flips ({side})",
                    100 * wrong,
                    "%",
                    100 * ALPHA,
                    "at most",
                    f"{100 * drawn / EXAMPLES:.0f} % drawn on average",
                )


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
        found = draw_until_decided(parts, [allowed], lambda indices, flipped=flipped: flipped[indices], alpha=ALPHA)
        wrong += found.verdicts[0] != truth
        drawn += found.drawn
    return wrong / runs, drawn / runs
