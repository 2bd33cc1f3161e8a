"""Matching models in their task subspaces: sides meet where their blocks of Fisher information balance.

Tam, Bansal and Raffel, "Merging by Matching Models in Task Parameter Subspaces" (2023): with C_m a block-diagonal
estimate of the Fisher information of side m, the merged weights solve

    (Σ_m λ_m C_m) θ = Σ_m λ_m C_m θ_m

which is done by conjugate gradients, since the sum of products of factors is no such product.  Here a block belongs to
one output o of a linear layer: C_m,o = s_m,o G_m, with G_m the mean of x x^T over the layer's inputs and s_m,o such
that the trace is that of the diagonal Fisher information of the row (normalised as for `fisher`): the Kronecker factors
of K-FAC (Martens and Grosse 2015) with the factor of the outputs as a diagonal.  All other tensors, and those without
matrices, have the diagonal itself, whose solution has a closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from modelgit.merging.base import Array, Gram, Material, Prepared, ordered_sum, side_shares, strategy
from modelgit.merging.changes import changes_of
from modelgit.merging.fisher import importances, norms
from modelgit.merging.grams import all_grams, from_rows, shrunk, to_rows
from modelgit.merging.options import Between
from modelgit.numerics.products import Sliced, product, sliced

__all__ = ["mats"]

_SLICES = 2  # a product of directions: what it loses (2^-40 of a row's largest), the next one corrects
_FLOOR = 1e-8


def _norms(
    material: Material, *, weights: tuple[float, ...], alpha: float, iterations: int, tolerance: float, start: str
) -> Prepared:
    del alpha, iterations, tolerance, start
    return norms(material, weights=weights)


@strategy(scope="tensor", prepare=_norms)
def mats(
    base: Array,
    sides: Sequence[Array],
    fisher: Sequence[Array | None],
    grams: Sequence[Gram | None],
    statistics: Mapping[str, float],
    *,
    weights: tuple[float, ...] = (),
    alpha: Annotated[float, Between(0, 1)] = 0.9,
    iterations: Annotated[int, Between(0, 10_000)] = 10,
    tolerance: Annotated[float, Between(0, 1)] = 1e-6,
    start: Literal["average", "sum"] = "sum",
) -> Array:
    """Solve for the weights at which the sides' blocks of Fisher information balance, by conjugate gradients.

    They begin at the average of the sides or at the base plus the sum of all changes (`start`), which also decides what
    no side depends on, take at most `iterations` steps, preconditioned by the diagonal, and end for an output when its
    residual is below `tolerance` times its first.  `alpha` is that of `regmean`.
    """
    shares = side_shares(weights, len(sides))
    counted = [side for side, share in enumerate(shares) if share]
    if len(counted) == 1:
        return sides[counted[0]].copy()
    if start == "average":
        begin = ordered_sum([shares[side] * sides[side] for side in counted])
    else:
        changes = changes_of(base, sides, shares)
        begin = base + ordered_sum([changes[side] for side in counted])
    found = importances(sides, fisher, shares, statistics)
    level = sum(sorted(shares[side] * statistics[f"mean.{side}"] for side in counted))
    blocks = all_grams(grams, counted, begin)
    if blocks is None or not begin.size:
        pulls = [found[side] * (sides[side] - begin) for side in counted]
        total = ordered_sum([found[side] for side in counted])
        return begin + np.divide(ordered_sum(pulls), total, out=np.zeros_like(begin), where=total > _FLOOR * level)
    first = blocks[counted[0]].first
    origin = to_rows(begin, first=first)
    known = np.isfinite(origin).all(axis=1)
    system = _System([shrunk(blocks[side].matrix, alpha) for side in counted])
    system.weigh([to_rows(found[side], first=first)[known] for side in counted])
    apart = [to_rows(sides[side], first=first)[known] - origin[known] for side in counted]
    made = origin.copy()
    made[known] += _conjugate_gradients(system, system.pull(apart), iterations, tolerance)
    return from_rows(made, begin.shape, first=first)


class _System:
    """Σ_m s_m,o G_m for every output o, as an operation on rows `[O, I]`."""

    def __init__(self, matrices: Sequence[Array]) -> None:
        self._diagonals = [np.diagonal(matrix).copy() for matrix in matrices]
        self._matrices: list[Sliced] = [sliced(matrix, slices=_SLICES) for matrix in matrices]
        self._scales: list[Array] = []

    def weigh(self, importances: Sequence[Array]) -> None:
        """Give each block the trace of the diagonal information in its row."""
        self._scales = []
        for diagonal, row in zip(self._diagonals, importances, strict=True):
            trace = float(np.sum(diagonal))
            self._scales.append(np.sum(row, axis=1) / trace if trace > 0 else np.zeros(len(row)))

    def diagonal(self) -> Array:
        """Its diagonal, `[O, I]`."""
        return ordered_sum(
            [scale[:, None] * entries for scale, entries in zip(self._scales, self._diagonals, strict=True)]
        )

    def pull(self, rows: Sequence[Array], at: npt.NDArray[np.intp] | None = None) -> Array:
        """The sum over sides of each one's block times its own rows; of the outputs `at` only, if given."""
        scales = self._scales if at is None else [scale[at] for scale in self._scales]
        return ordered_sum(
            [
                scale[:, None] * product(own, matrix)
                for own, matrix, scale in zip(rows, self._matrices, scales, strict=True)
            ]
        )

    def times(self, rows: Array, at: npt.NDArray[np.intp]) -> Array:
        """The system times `rows`, which are those of the outputs `at`."""
        return self.pull([rows] * len(self._matrices), at)


def _conjugate_gradients(system: _System, residual: Array, iterations: int, tolerance: float) -> Array:
    """The correction whose image is `residual`, row by row: each output is a system of its own."""
    made = np.zeros_like(residual)
    diagonal = system.diagonal()
    inverse = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    ready = inverse * residual
    energy = np.sum(residual * ready, axis=1)
    enough = tolerance**2 * energy
    direction = ready
    rows = np.flatnonzero(energy > 0)
    for _ in range(iterations):
        if not rows.size:
            break
        image = system.times(direction[rows], rows)
        curvature = np.sum(direction[rows] * image, axis=1)
        step = np.divide(energy[rows], curvature, out=np.zeros(rows.size), where=curvature > 0)
        made[rows] += step[:, None] * direction[rows]
        residual[rows] -= step[:, None] * image
        ready = inverse[rows] * residual[rows]
        left = np.sum(residual[rows] * ready, axis=1)
        direction[rows] = ready + (left / energy[rows])[:, None] * direction[rows]
        energy[rows] = left
        rows = rows[(left > enough[rows]) & (step > 0)]
    return made
