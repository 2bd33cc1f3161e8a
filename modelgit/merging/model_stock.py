"""Model Stock: how far to trust the average, from the angle between the changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from modelgit.merging.base import Array, ordered_sum, strategy

__all__ = ["model_stock"]

_SINGULAR = 1e-6


@strategy(scope="tensor", name="model-stock")
def model_stock(base: Array, sides: Sequence[Array], *, rows: bool = False) -> Array:
    """Go from the base towards the average of the sides, as far as their changes point the same way.

    Jang et al. 2024, "Model Stock": t = N c / (1 + (N - 1) c), with c the mean cosine of the angles between changes, by
    tensor, or by row with `rows`.  Made for fine-tunes of one task: of unrelated changes (c near 0) little is left.
    """
    changes = [side - base for side in sides]
    vectors = [change if rows and base.ndim else change.reshape(1, -1) for change in changes]
    lengths = [np.linalg.norm(vector, axis=-1, keepdims=True) for vector in vectors]
    units = [vector / np.where(length > 0, length, 1) for vector, length in zip(vectors, lengths, strict=True)]
    cosines = [np.clip(np.sum(a * b, axis=-1, keepdims=True), -1, 1) for a, b in combinations(units, 2)]
    count = len(sides)
    cosine = ordered_sum(cosines) / math.comb(count, 2)
    divisor = 1 + (count - 1) * cosine
    regular = np.abs(divisor) >= _SINGULAR  # a cosine has no scale, so neither has this bound
    ratio = np.where(regular, count * cosine / np.where(regular, divisor, 1), 0.0)
    mean = ordered_sum([vector / count for vector in vectors])
    return base + (ratio * mean).reshape(base.shape)
