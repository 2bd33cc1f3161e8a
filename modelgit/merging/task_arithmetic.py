"""Task arithmetic: the changes of all sides, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from modelgit.merging.base import Array, strategy
from modelgit.merging.changes import add_changes, changes_of, side_weights
from modelgit.merging.options import Between

__all__ = ["task_arithmetic"]


@strategy(name="task-arithmetic")
def task_arithmetic(
    base: Array,
    sides: Sequence[Array],
    *,
    weights: tuple[float, ...] = (),
    scale: Annotated[float, Between(-100, 100)] = 1.0,
) -> Array:
    """Add the changes of all sides to the base, each times its weight (1 by default) and all times `scale`.

    Ilharco et al. 2023, "Editing Models with Task Arithmetic": θ0 + s Σ w_m (θ_m - θ0).  A negative weight takes a
    change back.
    """
    factors = side_weights(weights, len(sides))
    return add_changes(base, changes_of(base, sides, factors), factors, scale=scale)
