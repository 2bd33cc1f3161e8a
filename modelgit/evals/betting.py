"""Deciding on a mean with few examples, with a guaranteed bound on the error.

The question is finite, as in `sequential`: N units (examples, or clusters of them that belong together) have scores
between 0 and 1, and the whole run passes when their sum reaches what is needed.  Units are drawn without replacement in
a random order.  A gambler who starts with 1 and bets on each score against the mean that the rest would have if the sum
were just too small, (B - S) / (units left), has on average no more than he had, whatever he stakes; his wealth exceeds
1/alpha with a probability of at most alpha, however often one looks (Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting", JRSS B 2024, section 5).  Stakes are theirs (approximate GRAPA): what would have
been best for the scores seen so far.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.evals.sequential import SequentialVerdict

__all__ = ["MeanTest"]

# Of what can be lost with one bet.
_STAKE = 0.9
# What is believed before anything is seen: a variance of the scores, with the weight of one of them.
_PRIOR_VARIANCE = 0.05


class MeanTest:
    """Decides whether the scores of `total` units, integers from 0 to `top`, add up to at least `needed`.

    `alpha_pass` bounds the probability of ever saying "pass" where the full run would fail, `alpha_fail` that of ever
    saying "fail" where it would pass.
    """

    def __init__(
        self, total: int, top: int, needed: int, *, alpha_pass: float = 0.05, alpha_fail: float = 0.05
    ) -> None:
        if total < 0 or top < 1:
            raise UsageError(f"a test of means takes scores up to 1 or more of some units, not {top} of {total}")
        if not (0 < alpha_pass < 1 and 0 < alpha_fail < 1):
            raise UsageError(f"alpha must lie between 0 and 1, not {alpha_pass} and {alpha_fail}")
        self.total = total
        self.top = top
        self.needed = needed
        self._threshold_pass = -np.log(alpha_pass)
        self._threshold_fail = -np.log(alpha_fail)

    def decide(self, scores: NDArray[np.int64]) -> SequentialVerdict:
        """The verdict after the first units, whose `scores` (`[n]`) are in drawing order."""
        seen, left = int(scores.sum()), self.total - scores.size
        if seen >= self.needed:
            return "pass"
        if seen + left * self.top < self.needed:
            return "fail"
        if not scores.size:
            return "open"
        if self._wealth(scores, self.needed - 1) >= self._threshold_pass:
            return "pass"
        # The same game on what is missing: "fail" when the sum of `top - score` is too large.
        if self._wealth(self.top - scores, self.total * self.top - self.needed) >= self._threshold_fail:
            return "fail"
        return "open"

    def _wealth(self, scores: NDArray[np.int64], bound: int) -> float:
        """log of the most that betting against "the sum is at most `bound`" ever made."""
        values = scores / self.top
        drawn = np.arange(values.size)
        before = np.concatenate(([0.0], np.cumsum(values)[:-1]))
        squares = np.concatenate(([0.0], np.cumsum(values * values)[:-1]))
        mean = (bound / self.top - before) / (self.total - drawn)
        if mean[-1] <= 0:
            return np.inf  # the scores seen exceed the bound already
        # The believed mean starts at the boundary itself: nothing is staked before there is a reason.
        first = min(1.0, max(0.0, bound / self.top / self.total))
        believed = (before + first) / (drawn + 1)
        variance = (squares + first * first + _PRIOR_VARIANCE) / (drawn + 1) - believed**2
        edge = believed - mean
        stake = np.clip(edge / (np.maximum(variance, 1e-12) + edge**2), 0.0, _STAKE / mean)
        # A mean above 1 cannot be reached: then nothing is to be won by betting on more.
        gains = np.where(mean < 1, np.log1p(stake * (values - mean)), 0.0)
        return float(np.maximum.accumulate(np.cumsum(gains))[-1])
