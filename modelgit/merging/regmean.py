"""RegMean: the linear layer whose outputs are nearest to those that each side's layer gives on its own inputs.

Jin, Ren, Preotiuc-Pietro and Cheng, "Dataless Knowledge Fusion by Merging Weights of Language Models" (2023):

    W = (Σ_m λ_m W_m G_m) (Σ_m λ_m G_m)^-1

for weights `[O, I]`, with G_m the mean of x x^T over the inputs of side m's layer, of which the part off the diagonal
is taken times alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from modelgit.merging.base import Array, Gram, ordered_sum, side_shares, strategy
from modelgit.merging.grams import all_grams, from_rows, shrunk, to_rows
from modelgit.merging.options import Between
from modelgit.numerics.products import product, solve

__all__ = ["regmean"]


@strategy(scope="tensor")
def regmean(
    sides: Sequence[Array],
    grams: Sequence[Gram | None],
    *,
    weights: tuple[float, ...] = (),
    alpha: Annotated[float, Between(0, 1)] = 0.9,
) -> Array:
    """Fit linear layers to the outputs of all sides by least squares, and average the rest, by `weights`.

    Inputs that no side uses keep the average, and so does a row with a value that is not finite.  `alpha` 0 takes
    inputs for unrelated.
    """
    shares = side_shares(weights, len(sides))
    counted = [side for side, share in enumerate(shares) if share]
    mean = ordered_sum([shares[side] * sides[side] for side in counted])
    found = all_grams(grams, counted, mean)
    if found is None or len(counted) < 2 or not mean.size:
        return mean
    first = found[counted[0]].first
    middle = to_rows(mean, first=first)
    # The correction of the average is solved for, not the weights: it is what rounding may touch, and is 0 for sides
    # that agree.
    known = np.isfinite(middle).all(axis=1)
    pulls, matrices = [], []
    for side in counted:
        matrix = shrunk(found[side].matrix, alpha)
        apart = to_rows(sides[side], first=first)[known] - middle[known]
        pulls.append(shares[side] * product(apart, matrix))
        matrices.append(shares[side] * matrix)
    made = middle.copy()
    made[known] += solve(ordered_sum(matrices), np.ascontiguousarray(ordered_sum(pulls).T)).T
    return from_rows(made, mean.shape, first=first)
