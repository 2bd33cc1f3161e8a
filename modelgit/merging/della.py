"""DELLA: small changes are dropped more often than large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from modelgit.errors import UsageError
from modelgit.merging.base import Array, Where, strategy
from modelgit.merging.changes import Consensus, add_changes, changes_of, draws, per_side, side_weights
from modelgit.merging.options import Between

__all__ = ["della"]


@strategy(scope="tensor")
def della(
    base: Array,
    sides: Sequence[Array],
    where: Where,
    *,
    density: Annotated[tuple[float, ...], Between(0, 1)] = (0.5,),
    epsilon: Annotated[tuple[float, ...], Between(0, 0.5)] = (0.15,),
    weights: tuple[float, ...] = (),
    scale: Annotated[float, Between(-100, 100)] = 1.0,
    consensus: Consensus = "ties",
    rescale: bool = True,
    seed: int = 0,
) -> Array:
    """Keep changes with a probability that rises with their rank within their row, and rescale each by its own.

    Deep et al. 2024, "DELLA-Merging": the probability goes from `density` - `epsilon` for the smallest change of a row
    to `density` + `epsilon` for the largest; a kept change is divided by it, unless `rescale` says not to.  A row of
    one value has `density`.  Both are one number, or one a side.
    """
    spreads = list(zip(per_side(density, len(sides), "density"), per_side(epsilon, len(sides), "epsilon"), strict=True))
    for middle, reach in spreads:
        if middle < 1 and not (middle - reach > 0 and middle + reach < 1):
            raise UsageError(
                f"`della` keeps changes with probabilities from {middle - reach:g} to {middle + reach:g}, "
                "which must lie between 0 and 1",
                hint="`density=0.5 epsilon=0.15` is the default",
            )
    factors = side_weights(weights, len(sides))
    changes = changes_of(base, sides, factors)
    if min(middle for middle, _ in spreads) < 1:
        numbers = draws(where, len(sides), seed)
        changes = [
            _thinned(change, middle, reach, drawn, rescale=rescale)
            for change, (middle, reach), drawn in zip(changes, spreads, numbers, strict=True)
        ]
    return add_changes(base, changes, factors, scale=scale, consensus=consensus)


def _thinned(change: Array, density: float, epsilon: float, numbers: Array, *, rescale: bool) -> Array:
    if density >= 1:
        return change
    probability = density - epsilon + 2 * epsilon * _row_ranks(change)
    kept = change / probability if rescale else change
    return np.where(numbers.reshape(change.shape) < probability, kept, 0.0)


def _row_ranks(change: Array) -> Array:
    """Ranks of the magnitudes within the last axis, from 0 to 1; ties go by position."""
    width = change.shape[-1] if change.ndim else 1
    rows = np.abs(change).reshape(-1, width)
    if width < 2:
        return np.full(change.shape, 0.5)
    order = np.argsort(rows, axis=1, kind="stable")
    ranks = np.empty_like(rows)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(width) / (width - 1), rows.shape), axis=1)
    return ranks.reshape(change.shape)
