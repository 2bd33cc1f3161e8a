"""Model Breadcrumbs: neither the largest changes nor the smallest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from modelgit.merging.base import Array, strategy
from modelgit.merging.changes import Consensus, add_changes, changes_of, per_side, side_weights
from modelgit.merging.options import Between

__all__ = ["breadcrumbs"]


@strategy(scope="tensor")
def breadcrumbs(
    base: Array,
    sides: Sequence[Array],
    *,
    density: Annotated[tuple[float, ...], Between(0, 1)] = (0.9,),
    gamma: Annotated[tuple[float, ...], Between(0, 1)] = (0.01,),
    weights: tuple[float, ...] = (),
    scale: Annotated[float, Between(-100, 100)] = 1.0,
    consensus: Consensus = "none",
) -> Array:
    """Of each tensor's changes drop the part `gamma` that is largest, keep the part `density` below, add up the sides.

    Davari and Belilovsky 2023, "Model Breadcrumbs".  Where both cannot be had, fewer of the largest are dropped; of
    equal changes the first are smaller.  Both are one number, or one a side.
    """
    factors = side_weights(weights, len(sides))
    limits = zip(per_side(density, len(sides), "density"), per_side(gamma, len(sides), "gamma"), strict=True)
    changes = [
        _middle(change, kept, dropped)
        for change, (kept, dropped) in zip(changes_of(base, sides, factors), limits, strict=True)
    ]
    return add_changes(base, changes, factors, scale=scale, consensus=consensus)


def _middle(change: Array, density: float, gamma: float) -> Array:
    if density >= 1:
        return change
    kept = int(density * change.size)
    below = max(0, change.size - kept - int(gamma * change.size))
    order = np.argsort(np.abs(change).reshape(-1), kind="stable")
    thinned = np.zeros(change.size)
    chosen = order[below : below + kept]
    thinned[chosen] = change.reshape(-1)[chosen]
    return thinned.reshape(change.shape)
