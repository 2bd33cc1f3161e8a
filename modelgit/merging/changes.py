"""Task vectors: what each side changed, thinned out, agreed upon, and added to the base again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from modelgit.errors import UsageError
from modelgit.merging.base import Array, Where, ordered_sum
from modelgit.merging.options import recipe_form
from modelgit.numerics.draws import uniform

__all__ = ["Consensus", "add_changes", "changes_of", "draws", "per_side", "side_weights"]

Consensus = Literal["none", "ties", "ties-sum"]
"""How changes become one: "none" adds them, "ties" takes the mean of those that have the sign of their sum, and
"ties-sum" their sum."""


def side_weights(weights: Sequence[float], sides: int) -> tuple[float, ...]:
    """The factor of each side's change: `weights` as they are, 1 each when there are none.

    A negative one takes a change back.  Raises UsageError for a wrong number of weights.
    """
    if not weights:
        return (1.0,) * sides
    if len(weights) != sides:
        raise UsageError(
            f"{len(weights)} weights ({recipe_form(tuple(weights))}) for {sides} sides",
            hint="give one weight a side: ours first, then theirs",
        )
    return tuple(weights)


def per_side(numbers: Sequence[float], sides: int, option: str) -> tuple[float, ...]:
    """An option with one number for all sides, or one a side.  Raises UsageError for any other number of them."""
    if len(numbers) == 1:
        return tuple(numbers) * sides
    if len(numbers) != sides:
        raise UsageError(
            f"{len(numbers)} values of `{option}` for {sides} sides", hint="give one for all, or one a side: ours first"
        )
    return tuple(numbers)


def changes_of(base: Array, sides: Sequence[Array], weights: Sequence[float]) -> list[Array]:
    """Side - base of every side; zeros for a side of weight 0, which does not count even where it is infinite."""
    return [side - base if weight else np.zeros_like(base) for side, weight in zip(sides, weights, strict=True)]


def draws(where: Where, sides: int, seed: int) -> list[Array]:
    """Per side numbers from [0, 1) for the elements of `where`, which depend on seed, tensor, side and position alone.

    A side is known by its content: in whatever order sides come, each keeps what was drawn for it.
    """
    found = []
    for side in range(sides):
        key = where.keys[side] if side < len(where.keys) else str(side)
        numbers = uniform(f"{seed}:{where.name}:{key}", where.start, where.count)
        found.append(numbers if where.picked is None else numbers[where.picked])
    return found


def add_changes(
    base: Array,
    changes: Sequence[Array],
    weights: Sequence[float],
    *,
    scale: float = 1.0,
    consensus: Consensus = "none",
) -> Array:
    """base + scale * (the weighted changes, in one).

    With consensus "ties" the sign of the weighted sum is elected at each value (plus where it is 0), and the mean by
    weight of the changes with that sign is taken (Yadav et al. 2023, "TIES-Merging"), or with "ties-sum" their weighted
    sum; a change of 0 has no sign.
    """
    weighted = [weight * change for weight, change in zip(weights, changes, strict=True) if weight]
    if not weighted:
        return base.copy()
    total = ordered_sum(weighted)
    if consensus == "none":
        return base + scale * total
    agreed = [_agrees(change, total) for change in weighted]
    merged = ordered_sum([np.where(mask, change, 0.0) for change, mask in zip(weighted, agreed, strict=True)])
    if consensus == "ties":
        divisor = ordered_sum(
            [np.where(mask, weight, 0.0) for weight, mask in zip(filter(None, weights), agreed, strict=True)]
        )
        np.divide(merged, divisor, out=merged, where=divisor != 0)
    # A NaN has no sign to agree with, and must not be lost.
    merged = np.where(np.isnan(total), total, merged)
    return base + scale * merged


def _agrees(change: Array, total: Array) -> npt.NDArray[np.bool_]:
    return np.where(total >= 0, change > 0, change < 0)
