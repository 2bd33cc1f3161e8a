"""What changed between two models on the same examples: pure functions over arrays.

Per example i, with gold label y, `old` and `new` say whether each model is right.  Over N examples, a are right in
both, b went from right to wrong (negative flips), c from wrong to right (positive flips), d are wrong in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelgit.errors import UsageError

__all__ = ["Flips", "accuracy", "churn", "count_flips", "kl_divergences", "log_softmax", "margins", "top_labels"]


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
    def error_overlap_old(self) -> float:
        """d/(c + d): old mistakes that remain.  Some libraries call this the error compatibility; it is not BEC."""
        return _ratio(self.neither, self.positive + self.neither)

    @property
    def negative_impact(self) -> float:
        """NFI = b/(b + d) = 1 - BEC: the share of new mistakes among mistakes (Cai et al. 2022)."""
        return _ratio(self.negative, self.negative + self.neither)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def accuracy(right: ArrayLike) -> float:
    """The share of True in `right`, a bool array `[N]`.  Raises UsageError without examples."""
    flags = np.asarray(right, dtype=bool)
    if not flags.size:
        raise UsageError("an accuracy needs at least one labelled example")
    return float(np.count_nonzero(flags) / flags.size)


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


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Log-probabilities in nats over the last axis of `[N, C]` logits; rows with NaN or +Inf become NaN."""
    values = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = values - values.max(axis=-1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kl_divergences(old: ArrayLike, new: ArrayLike) -> NDArray[np.float64]:
    """KL(old || new) of each example in nats, float64 `[N]`, from log-probabilities `[N, C]`.

    Classes to which `old` gives no probability add nothing; a class that only `new` excludes gives infinity; a row
    that is not finite gives NaN.  Rounding cannot make a divergence negative: it is clipped at zero.
    """
    before, after = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 2:
        raise UsageError(f"log-probabilities of shapes {list(before.shape)} and {list(after.shape)} do not compare")
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(before), 0.0, np.exp(before) * (before - after))
        total: NDArray[np.float64] = terms.sum(axis=1)
    total[np.isnan(before).any(axis=1) | np.isnan(after).any(axis=1)] = np.nan
    return np.maximum(total, 0.0)


def margins(log_probs: ArrayLike) -> NDArray[np.float64]:
    """p1 - p2, the gap between the two most likely classes, float64 `[N]`; 1 with a single class, NaN for NaN rows."""
    values = np.asarray(log_probs, dtype=np.float64)
    if values.shape[1] < 2:
        return np.where(np.isnan(values[:, 0]), np.nan, 1.0) if values.shape[1] else np.zeros(len(values))
    top = np.partition(values, -2, axis=1)[:, -2:]
    gap: NDArray[np.float64] = np.exp(top[:, 1]) - np.exp(top[:, 0])
    gap[np.isnan(values).any(axis=1)] = np.nan
    return gap


def top_labels(log_probs: ArrayLike) -> NDArray[np.int32]:
    """The most likely class of each row, int32 `[N]`; ties go to the lower class, and a row with NaN predicts -1.

    No gold label is -1, so a model that computes NaN is never right by luck.
    """
    values = np.asarray(log_probs)
    broken = np.isnan(values).any(axis=1)
    labels: NDArray[np.int32] = np.argmax(np.where(broken[:, None], 0.0, values), axis=1).astype(np.int32)
    labels[broken] = -1
    return labels


def _same_length(before: NDArray[np.generic], after: NDArray[np.generic]) -> None:
    if before.shape != after.shape or before.ndim != 1:
        raise UsageError(f"{before.size} and {after.size} outcomes do not compare example by example")
