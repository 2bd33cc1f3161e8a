"""DARE: most changes dropped at random, the others made larger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from modelgit.merging.base import Array, Where, strategy
from modelgit.merging.changes import Consensus, add_changes, changes_of, draws, side_weights
from modelgit.merging.options import Between

__all__ = ["dare"]


@strategy()
def dare(
    base: Array,
    sides: Sequence[Array],
    where: Where,
    *,
    density: Annotated[float, Between(0, 1)] = 0.5,
    weights: tuple[float, ...] = (),
    scale: Annotated[float, Between(-100, 100)] = 1.0,
    consensus: Consensus = "none",
    seed: int = 0,
) -> Array:
    """Keep each change with probability `density`, divide it by `density`, and add up the sides.

    Yu et al. 2024, "Language Models are Super Mario": drop and rescale, which leaves the expected change as it was.
    With consensus "ties" the kept changes go on as in `ties`.
    """
    factors = side_weights(weights, len(sides))
    changes = changes_of(base, sides, factors)
    if density < 1:
        kept = [numbers.reshape(base.shape) < density for numbers in draws(where, len(sides), seed)]
        rescale = 1.0 / density if density else 0.0
        changes = [np.where(mask, change * rescale, 0.0) for mask, change in zip(kept, changes, strict=True)]
    return add_changes(base, changes, factors, scale=scale, consensus=consensus)
