"""The mean on a sphere, of any number of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from modelgit.merging.base import Array, ordered_sum, side_shares, strategy

__all__ = ["karcher"]

_ROUNDS = 100
_STILL = 1e-14


@strategy(scope="tensor")
def karcher(sides: Sequence[Array], *, weights: tuple[float, ...] = ()) -> Array:
    """The Karcher mean of the tensors' directions by `weights`, times the mean of their lengths.

    Karcher 1977: the point of the unit sphere from which the weighted tangents to all directions add up to 0, found by
    steps along them.  A tensor that is 0 has no direction and counts in the length alone; opposite directions have no
    mean, and the first side's is taken.
    """
    shares = side_shares(weights, len(sides))
    lengths = [float(np.linalg.norm(side)) for side in sides]
    length = math.fsum(share * size for share, size in zip(shares, lengths, strict=True))
    counted = [
        (share, side / size) for share, side, size in zip(shares, sides, lengths, strict=True) if share and size > 0
    ]
    if not counted or not math.isfinite(length):
        return ordered_sum([share * side for share, side in zip(shares, sides, strict=True) if share])
    whole = math.fsum(share for share, _ in counted)
    mean = ordered_sum([share / whole * unit for share, unit in counted])
    size = float(np.linalg.norm(mean))
    if size < _STILL:
        return length * counted[0][1]
    mean /= size
    for _ in range(_ROUNDS):
        step = ordered_sum([share / whole * _tangent(mean, unit) for share, unit in counted])
        size = float(np.linalg.norm(step))
        if size < _STILL:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean /= np.linalg.norm(mean)
    return length * mean


def _tangent(at: Array, unit: Array) -> Array:
    """The vector from `at` along the sphere to `unit`, as long as the angle between them."""
    across = unit - float(np.sum(at * unit)) * at
    sine = float(np.linalg.norm(across))
    if sine < _STILL:
        return np.zeros_like(at)
    return across * (math.atan2(sine, float(np.sum(at * unit))) / sine)
