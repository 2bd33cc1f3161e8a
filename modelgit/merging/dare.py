"""DARE: most changes dropped at random, the others made larger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from modelgit.merging.base import Array, Where, strategy
from modelgit.merging.changes import Consensus, add_changes, changes_of, draws, per_side, side_weights
from modelgit.merging.options import Between

__all__ = ["dare"]


@strategy()
def dare(
    base: Array,
    sides: Sequence[Array],
    where: Where,
    *,
    density: Annotated[tuple[float, ...], Between(0, 1)] = (0.5,),
    weights: tuple[float, ...] = (),
    scale: Annotated[float, Between(-100, 100)] = 1.0,
    consensus: Consensus = "none",
    rescale: bool = True,
    seed: int = 0,
) -> Array:
    """Keep each change with probability `density`, divide it by `density`, and add up the sides.

    Yu et al. 2024, "Language Models are Super Mario": drop and rescale, which leaves the expected change as it was.
    `density` is one number, or one a side.  With consensus "ties" the kept changes go on as in `ties`; without
    `rescale` they stay as they are.
    """
    factors = side_weights(weights, len(sides))
    changes = changes_of(base, sides, factors)
    densities = per_side(density, len(sides), "density")
    if min(densities) < 1:
        numbers = draws(where, len(sides), seed)
        changes = [
            _thinned(change, part, drawn, rescale=rescale)
            for change, part, drawn in zip(changes, densities, numbers, strict=True)
        ]
    return add_changes(base, changes, factors, scale=scale, consensus=consensus)


def _thinned(change: Array, density: float, numbers: Array, *, rescale: bool) -> Array:
    if density >= 1:
        return change
    factor = 1.0 / density if rescale and density else 1.0
    return np.where(numbers.reshape(change.shape) < density, change * factor, 0.0)
