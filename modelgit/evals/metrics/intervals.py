"""Exact intervals and tests on counts, for reports.

The gate itself decides by the martingales of `evals.sequential`: these tests are for one look at a fixed number of
examples, and McNemar's asks whether there is a difference, not whether it is larger than a limit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError

__all__ = ["clopper_pearson", "mcnemar_exact"]


def mcnemar_exact(negative: int, positive: int) -> float:
    """Two-sided p-value of McNemar's exact test: `negative` of b + c discordant examples, each with probability 1/2.

    1 without a discordant example (McNemar, Psychometrika 1947).  Raises UsageError for a count below 0.
    """
    if negative < 0 or positive < 0:
        raise UsageError(f"{negative} and {positive} flips are no counts")
    discordant, fewer = negative + positive, min(negative, positive)
    tail = _log_binomial(discordant, 0, fewer) - discordant * math.log(2.0)
    return min(1.0, 2.0 * float(np.exp(np.logaddexp.reduce(tail))))


def clopper_pearson(count: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a binomial proportion (Clopper & Pearson, Biometrika 1934), as (low, high).

    `count` of `total` independent examples.  Without an event the upper bound at 95 % is about 3.7 / total.  Raises
    UsageError for a count outside of 0..total, no examples, or a confidence outside of (0, 1).
    """
    if total < 1 or not 0 <= count <= total:
        raise UsageError(f"{count} of {total} examples are no proportion")
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence lies between 0 and 1, not {confidence:g}")
    tail = math.log((1.0 - confidence) / 2.0)
    # By symmetry the lower bound is 1 - the upper bound on the other events.
    return 1.0 - _upper(total - count, total, tail), _upper(count, total, tail)


def _upper(count: int, total: int, log_tail: float) -> float:
    """The p at which at most `count` of `total` events have the probability exp(`log_tail`)."""
    if count == total:
        return 1.0
    events = np.arange(count + 1, dtype=np.float64)
    ways = _log_binomial(total, 0, count)
    low, high = count / total, 1.0
    while True:
        middle = (low + high) / 2.0
        if middle in (low, high):
            return middle
        log_probabilities = ways + events * math.log(middle) + (total - events) * math.log1p(-middle)
        if float(np.logaddexp.reduce(log_probabilities)) > log_tail:
            low = middle
        else:
            high = middle


def _log_binomial(total: int, first: int, last: int) -> NDArray[np.float64]:
    """log C(total, k) for k = first..last."""
    return np.array(
        [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(first, last + 1)]
    )
