"""Fisher merging: an average in which each value counts by how much its own model depends on it.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging" (2021):

    θ_i = Σ_m λ_m F_m,i θ_m,i / Σ_m λ_m F_m,i

with F_m the diagonal of the Fisher information of model m at its own weights.  Each diagonal is first divided by
its L2 norm over the whole shared body, else the task with the larger gradients wins everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from modelgit.errors import IntegrityError
from modelgit.merging.base import Array, Material, Prepared, ordered_sum, side_shares, strategy
from modelgit.merging.options import Between

__all__ = ["fisher_average", "importances", "norms", "weighted_mean"]


def norms(material: Material, *, weights: tuple[float, ...] = (), floor: float = 1e-8) -> Prepared:  # noqa: ARG001
    """First pass: per side the L2 norm of its Fisher diagonal, and the mean of the normalised diagonal.

    A side without an estimate, or with one that is 0 everywhere, has norm 0 and counts as isotropic: every
    value as important as the mean value of the other sides, which leaves the balance between the sides as the
    weights say.  Raises IntegrityError for a diagonal with negative or non-finite entries.
    """
    count = material.sides
    side_shares(weights, count)
    squares: list[list[float]] = [[] for _ in range(count)]
    sums: list[list[float]] = [[] for _ in range(count)]
    elements = 0
    for window in material.diagonals():
        elements += max((values.size for values in window if values is not None), default=0)
        for side, values in enumerate(window):
            if values is None:
                continue
            if values.size and not (np.isfinite(values).all() and values.min() >= 0):
                raise IntegrityError(f"the Fisher estimate of side {side + 1} holds negative or non-finite values")
            squares[side].append(float(np.square(values).sum()))
            sums[side].append(float(values.sum()))
    norm = [math.sqrt(math.fsum(parts)) for parts in squares]
    known = [math.fsum(total) / (elements * length) for total, length in zip(sums, norm, strict=True) if length > 0]
    isotropic = math.fsum(sorted(known)) / len(known) if known else 1.0
    means = [
        math.fsum(total) / (elements * length) if length > 0 else isotropic
        for total, length in zip(sums, norm, strict=True)
    ]
    notes = []
    if not known:
        notes.append("no side has a Fisher estimate: the values are averaged by the weights alone")
    else:
        notes += [
            f"side {side + 1} has no Fisher estimate: all of its values count alike"
            for side in range(count)
            if not norm[side] > 0
        ]
    statistics = {f"norm.{side}": value for side, value in enumerate(norm)}
    statistics |= {f"mean.{side}": value for side, value in enumerate(means)}
    return Prepared(statistics=statistics, notes=tuple(notes))


@strategy(scope="model", prepare=norms, name="fisher")
def fisher_average(
    sides: Sequence[Array],
    fisher: Sequence[Array | None],
    statistics: Mapping[str, float],
    *,
    weights: tuple[float, ...] = (),
    floor: Annotated[float, Between(0, 1)] = 1e-8,
) -> Array:
    """Average the sides by their Fisher information, normalised per model, and by `weights`.

    Where the summed Fisher is not above `floor` times its mean over the model, no side depends on the value, and
    the plain weighted average is taken.  A tensor that one side's estimate lacks counts with that side's mean.
    """
    shares = side_shares(weights, len(sides))
    return weighted_mean(sides, importances(sides, fisher, shares, statistics), shares, statistics, floor)


def importances(
    sides: Sequence[Array], fisher: Sequence[Array | None], shares: Sequence[float], statistics: Mapping[str, float]
) -> list[Array]:
    """Per side its share of the normalised Fisher information, an array of the values' shape (0 for a share of 0)."""
    found = []
    for side, share in enumerate(shares):
        diagonal, norm, mean = fisher[side], statistics[f"norm.{side}"], statistics[f"mean.{side}"]
        if diagonal is None or not norm > 0:
            found.append(np.full_like(sides[side], share * mean))
        else:
            found.append(diagonal * (share / norm))
    return found


def weighted_mean(
    values: Sequence[Array],
    importances: Sequence[Array],
    shares: Sequence[float],
    statistics: Mapping[str, float],
    floor: float,
) -> Array:
    """The mean of `values` by their importances, and by the shares alone where all importances are next to nothing."""
    level = math.fsum(share * statistics[f"mean.{side}"] for side, share in enumerate(shares))
    counted = [side for side, share in enumerate(shares) if share]
    total = ordered_sum([importances[side] for side in counted])
    idle = total <= floor * level
    # A value that does not count must not: 0 times infinity would be NaN.
    merged = ordered_sum([np.where(importances[side] > 0, importances[side] * values[side], 0.0) for side in counted])
    np.divide(merged, total, out=merged, where=~idle)
    if idle.any():
        merged = np.where(idle, ordered_sum([shares[side] * values[side] for side in counted]), merged)
    return np.asarray(merged)
