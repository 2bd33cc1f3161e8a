"""Fisher-weighted task vectors: whose change counts is decided value by value, and nobody's is halved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from modelgit.merging.base import Array, Material, Prepared, side_shares, strategy
from modelgit.merging.changes import changes_of
from modelgit.merging.fisher import importances, norms, weighted_mean
from modelgit.merging.options import Between

__all__ = ["fisher_task"]


def _norms(material: Material, *, weights: tuple[float, ...], floor: float, scale: float) -> Prepared:
    del scale
    return norms(material, weights=weights, floor=floor)


@strategy(scope="model", prepare=_norms, name="fisher-task")
def fisher_task(
    base: Array,
    sides: Sequence[Array],
    fisher: Sequence[Array | None],
    statistics: Mapping[str, float],
    *,
    weights: tuple[float, ...] = (),
    scale: Annotated[float, Between(-100, 100)] = 1.8,
    floor: Annotated[float, Between(0, 1)] = 1e-8,
) -> Array:
    """Add the mean of the sides' changes by Fisher information and by `weights`, times `scale`, to the base.

    θ0 + s Σ λ_m F_m (θ_m - θ0) / Σ λ_m F_m, with F_m normalised as for `fisher`.  An average of two models halves what
    only one of them learned; `scale` gives it back (1.6 to 2 was best for two tasks).
    """
    shares = side_shares(weights, len(sides))
    changes = changes_of(base, sides, shares)
    found = importances(sides, fisher, shares, statistics)
    return base + scale * weighted_mean(changes, found, shares, statistics, floor)
