"""Merging along great circles: the angle between two models is shared out, not the chord."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from modelgit.errors import UsageError
from modelgit.merging.base import Array, side_shares, strategy
from modelgit.merging.options import Between

__all__ = ["nuslerp", "slerp"]

_STRAIGHT = 1e-12  # 1 - cos^2 below which two directions are one (or opposite) in float64


@strategy(scope="tensor")
def slerp(
    sides: Sequence[Array],
    *,
    t: Annotated[float, Between(0, 1)] = 0.5,
    linear_above: Annotated[float, Between(0, 1)] = 0.9995,
) -> Array:
    """Go the part `t` of the angle from ours to theirs, each tensor being one vector.

    Shoemake 1985.  Straight instead where the cosine of the angle is beyond +-`linear_above`, as other tools do, and
    where one side is 0.  Two sides.
    """
    ours, theirs = _two(sides, "slerp")
    norms = np.linalg.norm(ours), np.linalg.norm(theirs)
    if not all(0 < norm < math.inf for norm in norms):
        return (1 - t) * ours + t * theirs
    cosine = float(np.clip(np.sum((ours / norms[0]) * (theirs / norms[1])), -1, 1))
    if abs(cosine) > linear_above or 1 - cosine * cosine < _STRAIGHT:
        return (1 - t) * ours + t * theirs
    angle = math.acos(cosine)
    return np.asarray((math.sin((1 - t) * angle) * ours + math.sin(t * angle) * theirs) / math.sin(angle))


@strategy(scope="tensor")
def nuslerp(
    base: Array,
    sides: Sequence[Array],
    *,
    weights: tuple[float, ...] = (),
    of: Literal["changes", "weights"] = "changes",
    rows: bool = False,
) -> Array:
    """Spherical interpolation of the sides' changes (or of their weights), by the sides' weights.

    As `slerp`, with t the second side's share, straight only where the two directions are one; `rows` does each row
    of a matrix (its last axis) on its own.  Two sides.
    """
    ours, theirs = _two(sides, "nuslerp")
    start = base if of == "changes" else np.zeros_like(base)
    t = side_shares(weights, 2)[1]
    one, other = ours - start, theirs - start
    if rows and base.ndim:
        return start + _arc(one, other, t)
    return start + _arc(one.reshape(-1), other.reshape(-1), t).reshape(base.shape)


def _arc(one: Array, other: Array, t: float) -> Array:
    """The point at the part `t` of the angle between vectors along the last axis."""
    lengths = [np.linalg.norm(vector, axis=-1, keepdims=True) for vector in (one, other)]
    usable = (lengths[0] > 0) & (lengths[1] > 0)
    units = [vector / np.where(length > 0, length, 1) for vector, length in zip((one, other), lengths, strict=True)]
    cosine = np.clip(np.sum(units[0] * units[1], axis=-1, keepdims=True), -1, 1)
    curved: npt.NDArray[np.bool_] = usable & (1 - cosine * cosine >= _STRAIGHT)
    angle = np.arccos(np.where(curved, cosine, 0.0))
    arc = (np.sin((1 - t) * angle) * one + np.sin(t * angle) * other) / np.sin(angle)
    return np.where(curved, arc, (1 - t) * one + t * other)


def _two(sides: Sequence[Array], name: str) -> tuple[Array, Array]:
    if len(sides) != 2:
        raise UsageError(
            f"`{name}` is for two sides, and there are {len(sides)}", hint="`karcher` is the same for more"
        )
    return sides[0], sides[1]
