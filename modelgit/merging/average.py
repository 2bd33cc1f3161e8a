"""The weighted average of the sides (a "soup" when there are many)."""

from __future__ import annotations

from collections.abc import Sequence

from modelgit.merging.base import Array, ordered_sum, side_shares, strategy

__all__ = ["average"]


@strategy()
def average(sides: Sequence[Array], *, weights: tuple[float, ...] = ()) -> Array:
    """Average the sides, by `weights` that are scaled to add up to 1 (uniform by default).

    Wortsman et al. 2022, "Model soups".  A side of weight 0 does not count, not even where it is infinite.
    """
    shares = side_shares(weights, len(sides))
    return ordered_sum([share * side for share, side in zip(shares, sides, strict=True) if share])
