"""Interpolation between the base and what the sides made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from modelgit.merging.base import Array, side_shares, strategy
from modelgit.merging.changes import add_changes, changes_of
from modelgit.merging.options import Between

__all__ = ["wise"]


@strategy()
def wise(
    base: Array,
    sides: Sequence[Array],
    *,
    weights: tuple[float, ...] = (),
    alpha: Annotated[float, Between(0, 1)] = 0.5,
) -> Array:
    """Go the part `alpha` of the way from the base to the average of the sides.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT), for one side: (1 - α) θ0 + α θ1.
    """
    shares = side_shares(weights, len(sides))
    return add_changes(base, changes_of(base, sides, shares), shares, scale=alpha)
