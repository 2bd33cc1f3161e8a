"""Nearest neighbours between two sets of embeddings, a block at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelgit.errors import UsageError

__all__ = ["Recall", "cosines", "recall_at_k"]

_BLOCK = 1024


@dataclass(frozen=True)
class Recall:
    """`hits` of the `queries` that have an example with the same label among the others; `queries` may be 0.

    `found` is bool `[N]`, in the order of the queries, and `first` int64 `[N]` the nearest other example of each.
    """

    hits: int
    queries: int
    found: NDArray[np.bool_]
    first: NDArray[np.int64]

    @property
    def rate(self) -> float:
        """hits / queries; NaN without queries."""
        return self.hits / self.queries if self.queries else float("nan")


def recall_at_k(queries: ArrayLike, index: ArrayLike, labels: ArrayLike, *, k: int = 1) -> Recall:
    """R@k: how many queries find an example with their own label among the `k` nearest others, by cosine.

    `queries` and `index` are embeddings `[N, D]` of the same N examples, by a new and by an old model for instance
    (Shen et al., "Towards Backward-Compatible Representation Learning", CVPR 2020); `labels` are integers `[N]`, below
    0 for none.  An example is not its own neighbour, and of equally near ones the earlier counts.  A query whose label
    no other example has cannot find anything and is not counted.  Held are blocks of 1,024 rows and their similarities.
    Raises UsageError for shapes that do not fit, or values that are not finite.
    """
    asked, known = _rows(queries), _rows(index)
    gold = np.asarray(labels, dtype=np.int64)
    if asked.shape != known.shape or gold.shape != asked.shape[:1]:
        raise UsageError(
            f"embeddings of shapes {list(asked.shape)} and {list(known.shape)} with {gold.size} labels do not compare"
        )
    count = gold.size
    _, place, times = np.unique(gold, return_inverse=True, return_counts=True)
    counted = (gold >= 0) & (times[place] > 1)
    found = np.zeros(count, dtype=bool)
    first = np.zeros(count, dtype=np.int64)
    wanted = min(k, count - 1)
    for start in range(0, count if wanted > 0 else 0, _BLOCK):
        rows = np.arange(start, min(count, start + _BLOCK))
        nearest = _nearest(_unit(asked[rows]), known, rows, wanted)
        first[rows] = nearest[:, 0]
        found[rows] = (gold[nearest] == gold[rows, None]).any(axis=1)
    found &= counted
    return Recall(int(np.count_nonzero(found)), int(np.count_nonzero(counted)), found, first)


def _nearest(
    asked: NDArray[np.float64], known: NDArray[np.floating], own: NDArray[np.int64], k: int
) -> NDArray[np.intp]:
    """Positions of the `k` rows of `known` that are nearest to each row of `asked`, nearest first; never its own."""
    best = np.full((len(asked), 0), -np.inf)
    places = np.zeros((len(asked), 0), dtype=np.intp)
    for start in range(0, len(known), _BLOCK):
        block = _unit(known[start : start + _BLOCK])
        similar = asked @ block.T
        inside = (own >= start) & (own < start + len(block))
        similar[np.flatnonzero(inside), own[inside] - start] = -np.inf
        # Earlier candidates come first, and a stable sort keeps them there where similarities are equal.
        best = np.concatenate((best, similar), axis=1)
        places = np.concatenate((places, np.broadcast_to(np.arange(start, start + len(block)), similar.shape)), axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, places = np.take_along_axis(best, order, axis=1), np.take_along_axis(places, order, axis=1)
    return places


def cosines(old: ArrayLike, new: ArrayLike) -> NDArray[np.float64]:
    """The cosine of the two embeddings of each example, float64 `[N]`, from arrays `[N, D]`.

    0 where one of them is zero.  Raises UsageError for two shapes, or values that are not finite.
    """
    before, after = _rows(old), _rows(new)
    if before.shape != after.shape:
        raise UsageError(f"embeddings of shapes {list(before.shape)} and {list(after.shape)} do not compare")
    result = np.zeros(len(before))
    for start in range(0, len(before), _BLOCK):
        part = slice(start, start + _BLOCK)
        result[part] = np.einsum("nd,nd->n", _unit(before[part]), _unit(after[part]))
    return np.clip(result, -1.0, 1.0)


def _rows(values: ArrayLike) -> NDArray[np.floating]:
    rows = np.asarray(values)
    if rows.dtype.kind != "f":
        rows = rows.astype(np.float64)
    if rows.ndim != 2:
        raise UsageError(f"embeddings are one row for each example, not an array of shape {list(rows.shape)}")
    broken = sum(
        int(np.count_nonzero(~np.isfinite(rows[start : start + _BLOCK]).all(axis=1)))
        for start in range(0, len(rows), _BLOCK)
    )
    if broken:
        raise UsageError(f"{broken:,} of {len(rows):,} embeddings are not finite")
    return rows


def _unit(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1 in float64; a row of zeros stays one."""
    # By the largest value first, so that squares neither overflow nor vanish.
    rows = values.astype(np.float64)
    rows /= np.where((largest := np.abs(rows).max(axis=1, keepdims=True, initial=0.0)) > 0, largest, 1.0)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    rows /= np.where(lengths > 0, lengths, 1.0)[:, None]
    return rows
