"""DELLA: small changes are dropped more often than large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from modelgit.errors import UsageError
from modelgit.merging.base import Array, Where, strategy
from modelgit.merging.changes import Consensus, add_changes, changes_of, draws, side_weights
from modelgit.merging.options import Between

__all__ = ["della"]


@strategy(scope="tensor")
def della(
    base: Array,
    sides: Sequence[Array],
    where: Where,
    *,
    density: Annotated[float, Between(0, 1)] = 0.5,
    epsilon: Annotated[float, Between(0, 0.5)] = 0.15,
    weights: tuple[float, ...] = (),
    scale: Annotated[float, Between(-100, 100)] = 1.0,
    consensus: Consensus = "ties",
    seed: int = 0,
) -> Array:
    """Keep changes with a probability that rises with their rank within their row, and rescale each by its own.

    Deep et al. 2024, "DELLA-Merging": the probability goes from `density` - `epsilon` for the smallest change of a row
    to `density` + `epsilon` for the largest; a kept change is divided by it.  A row of one value has `density`.
    """
    if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise UsageError(
            f"`della` keeps changes with probabilities from {density - epsilon:g} to {density + epsilon:g}, "
            "which must lie between 0 and 1",
            hint="`density=0.5 epsilon=0.15` is the default",
        )
    factors = side_weights(weights, len(sides))
    changes = changes_of(base, sides, factors)
    if density < 1:
        thinned = []
        for change, numbers in zip(changes, draws(where, len(sides), seed), strict=True):
            probability = density - epsilon + 2 * epsilon * _row_ranks(change)
            thinned.append(np.where(numbers.reshape(base.shape) < probability, change / probability, 0.0))
        changes = thinned
    return add_changes(base, changes, factors, scale=scale, consensus=consensus)


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
