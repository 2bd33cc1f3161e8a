"""SCE: select where the sides differ most, weigh each tensor by its changes, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from modelgit.merging.base import Array, ordered_sum, strategy
from modelgit.merging.changes import add_changes
from modelgit.merging.options import Between

__all__ = ["sce"]


@strategy(scope="tensor")
def sce(base: Array, sides: Sequence[Array], *, topk: Annotated[float, Between(0, 1)] = 1.0) -> Array:
    """Keep the part `topk` of the values at which the sides vary most; weigh each side by its mean squared change.

    Wan et al. 2024, "FuseChat": the weights are by tensor, and at each value only changes with the sign of the weighted
    sum take part.  Of values that vary alike the first are kept.
    """
    changes = [side - base for side in sides]
    if topk < 1:
        variance = np.var(np.stack(changes), axis=0).reshape(-1)
        kept = int(np.count_nonzero(variance) * topk)
        mask = np.zeros(variance.size, bool)
        mask[np.argsort(-variance, kind="stable")[:kept]] = True
        changes = [np.where(mask.reshape(base.shape), change, 0.0) for change in changes]
    # By the root of the largest, so that the square of a small change does not vanish.
    largest = max(float(np.max(np.abs(change), initial=0.0)) for change in changes)
    if not 0 < largest < math.inf:
        return base + ordered_sum(changes) / len(changes)
    sizes = [float(np.mean(np.square(change / largest))) for change in changes]
    # Each sign is elected by the plain sum, as by the authors; weights decide about the size alone.
    votes = ordered_sum(changes)
    agreed = [np.where((votes >= 0) == (change >= 0), change, 0.0) for change in changes]
    return add_changes(base, agreed, sizes, consensus="ties")
