"""What one model's log-probabilities say about classes, and how far two models are apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelgit.errors import UsageError

__all__ = [
    "expected_calibration_error",
    "kl_divergences",
    "log_softmax",
    "macro_f1",
    "margins",
    "mean_negative_log_likelihood",
    "top_labels",
]


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


def macro_f1(predicted: ArrayLike, gold: ArrayLike) -> float:
    """The unweighted mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur in `gold` or in `predicted`.

    Both are integer arrays `[N]`.  A prediction of -1 (a model that computed NaN) is a miss and no class of its own.
    Raises UsageError without examples, for a gold label below 0, or for two lengths.
    """
    guess, truth = _labelled(predicted, gold)
    classes = int(max(guess.max(), truth.max())) + 1
    hits = np.bincount(truth[guess == truth], minlength=classes)
    taken = np.bincount(guess[guess >= 0], minlength=classes)
    there = np.bincount(truth, minlength=classes)
    both = taken + there
    present = both > 0
    return float((2.0 * hits[present] / both[present]).mean())


def expected_calibration_error(log_probs: ArrayLike, gold: ArrayLike, *, bins: int = 15) -> float:
    """The mean of |accuracy - confidence| over `bins` equal bins of confidence, weighted by their examples.

    Confidence is the probability of the predicted class, bins are (0, 1/bins], (1/bins, 2/bins] ... (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017).  `log_probs` are in nats `[N, C]`, `gold` integers `[N]`.  NaN
    where a row is.  Raises UsageError as `macro_f1` does.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    guess, truth = _labelled(top_labels(values), gold)
    confidence = np.exp(values.max(axis=1))
    if np.isnan(confidence).any():
        return float("nan")
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    surplus = np.bincount(place, weights=(guess == truth) - confidence, minlength=bins)
    return float(np.abs(surplus).sum() / truth.size)


def mean_negative_log_likelihood(log_probs: ArrayLike, gold: ArrayLike) -> float:
    """The mean of -log p(gold) in nats, from log-probabilities `[N, C]` and labels `[N]`.

    Infinite where a gold class was excluded, or is not among the classes; NaN where a row is.  Raises UsageError as
    `macro_f1` does.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    _, truth = _labelled(top_labels(values), gold)
    inside = truth < values.shape[1]
    losses = np.full(truth.size, np.inf)
    losses[inside] = -values[inside, truth[inside]]
    losses[np.isnan(values).any(axis=1)] = np.nan
    return float(losses.mean())


def _labelled(predicted: ArrayLike, gold: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    guess, truth = np.asarray(predicted, dtype=np.int64), np.asarray(gold, dtype=np.int64)
    if guess.shape != truth.shape or guess.ndim != 1:
        raise UsageError(f"{guess.size} predictions and {truth.size} labels do not compare example by example")
    if not truth.size:
        raise UsageError("a score of classes needs at least one labelled example")
    if truth.min() < 0:
        raise UsageError(f"{int(np.count_nonzero(truth < 0))} of {truth.size} examples have no label")
    return guess, truth
