"""What changed between two models on the same examples: pure functions over arrays.

Per example i, with gold label y, `old` and `new` say whether each model is right.  Over N examples, a are right in
both, b went from right to wrong (negative flips), c from wrong to right (positive flips), d are wrong in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelgit.errors import UsageError

__all__ = ["Flips", "churn", "count_flips", "score_changes"]


@dataclass(frozen=True, kw_only=True)
class Flips:
    """The 2 x 2 table of right and wrong, as counts of examples.

    Ratios are NaN where their denominator is zero.
    """

    both: int
    negative: int
    positive: int
    neither: int

    @property
    def total(self) -> int:
        """N, the number of examples compared."""
        return self.both + self.negative + self.positive + self.neither

    @property
    def negative_rate(self) -> float:
        """NFR = b/N, over all examples (Yan et al., "Positive-Congruent Training", CVPR 2021)."""
        return _ratio(self.negative, self.total)

    @property
    def positive_rate(self) -> float:
        """PFR = c/N; the change in accuracy is PFR - NFR."""
        return _ratio(self.positive, self.total)

    @property
    def old_accuracy(self) -> float:
        """(a + b)/N."""
        return _ratio(self.both + self.negative, self.total)

    @property
    def new_accuracy(self) -> float:
        """(a + c)/N."""
        return _ratio(self.both + self.positive, self.total)

    @property
    def relative_negative_rate(self) -> float:
        """NFR / ((1 - ER_old) ER_new), 1 where the errors of the two models are independent (Yan et al. 2021)."""
        error_new = 1.0 - self.new_accuracy
        return _ratio(self.negative_rate, self.old_accuracy * error_new)

    @property
    def trust_compatibility(self) -> float:
        """BTC = a/(a + b): what the old model had right and the new one still has (Bansal et al., AAAI 2019)."""
        return _ratio(self.both, self.both + self.negative)

    @property
    def error_compatibility(self) -> float:
        """BEC = d/(b + d): a mistake of the new model is not a new one (Srivastava et al., KDD 2020)."""
        return _ratio(self.neither, self.negative + self.neither)

    @property
    def negative_impact(self) -> float:
        """NFI = b/(b + d) = 1 - BEC: the share of new mistakes among mistakes (Cai et al. 2022)."""
        return _ratio(self.negative, self.negative + self.neither)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def count_flips(old: ArrayLike, new: ArrayLike) -> Flips:
    """Compare two bool arrays `[N]` of "was right".  Raises UsageError when their lengths differ."""
    before, after = np.asarray(old, dtype=bool), np.asarray(new, dtype=bool)
    _same_length(before, after)
    both = int(np.count_nonzero(before & after))
    negative = int(np.count_nonzero(before & ~after))
    positive = int(np.count_nonzero(~before & after))
    return Flips(both=both, negative=negative, positive=positive, neither=before.size - both - negative - positive)


def churn(old: ArrayLike, new: ArrayLike) -> float:
    """The share of examples with another predicted label (Milani Fard et al., NeurIPS 2016); needs no gold labels.

    `old` and `new` are integer arrays `[N]`.  Raises UsageError for no examples or two lengths.
    """
    before, after = np.asarray(old), np.asarray(new)
    _same_length(before, after)
    if not before.size:
        raise UsageError("churn needs at least one example")
    return float(np.count_nonzero(before != after) / before.size)


def score_changes(old: ArrayLike, new: ArrayLike, *, dead_band: float = 0.0) -> NDArray[np.int8]:
    """-1 where a score fell by more than `dead_band`, 1 where it rose by more, else 0; int8 `[N]`.

    A change that equals the dead band but for rounding is none.  Raises UsageError when the lengths differ or a score
    is NaN.
    """
    before, after = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    _same_length(before, after)
    with np.errstate(invalid="ignore"):
        change = after - before
    # Equal infinities are no change, and their difference is NaN.
    change[before == after] = 0.0
    if np.isnan(change).any():
        raise UsageError(f"{int(np.count_nonzero(np.isnan(change))):,} of {change.size:,} scores are NaN")
    edge = np.full(change.shape, dead_band)
    if dead_band:
        largest = np.maximum(np.abs(before), np.abs(after))
        edge += 4 * np.finfo(np.float64).eps * np.where(np.isfinite(largest), largest, 0.0)
    return (change > edge).astype(np.int8) - (change < -edge).astype(np.int8)


def _same_length(before: NDArray[np.generic], after: NDArray[np.generic]) -> None:
    if before.shape != after.shape or before.ndim != 1:
        raise UsageError(f"{before.size} and {after.size} outcomes do not compare example by example")
