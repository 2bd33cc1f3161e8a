"""TIES: trim small changes, elect a sign, and take the mean of those who agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from modelgit.merging.base import Array, Material, Prepared, Where, strategy
from modelgit.merging.changes import Consensus, add_changes, changes_of, per_side, side_weights
from modelgit.merging.options import Between
from modelgit.numerics.ranking import Window, find_cuts, is_above

__all__ = ["ties"]

Trim = Literal["model", "tensor"]
_NOWHERE = np.zeros(0, np.int64)


def _thresholds(
    material: Material,
    *,
    density: tuple[float, ...],
    weights: tuple[float, ...],
    scale: float,
    trim: Trim,
    consensus: Consensus,
) -> Prepared:
    """First pass: per side (and per tensor, if so asked) the change that is just large enough to be kept."""
    del weights, scale, consensus
    densities = per_side(density, material.sides, "density")
    trimmed = [side for side, part in enumerate(densities) if part < 1]
    statistics: dict[str, float] = {}
    if not trimmed:
        return Prepared()
    for name in material.names if trim == "tensor" else [""]:

        def windows(name: str = name) -> Iterator[list[Window]]:
            for part in material.parts(name or None):
                if part.base is not None:
                    at, base = part.where, part.base
                    yield [Window(at.name, at.start, np.abs(part.sides[side] - base)) for side in trimmed]

        cuts = find_cuts(
            windows,
            [densities[side] for side in trimmed],
            at_least=[int(densities[side] > 0) for side in trimmed],
        )
        for side, cut in zip(trimmed, cuts, strict=True):
            statistics[f"least.{side}.{name}"] = cut.least
            if cut.name is not None:
                statistics[f"last.{side}.{name}.{cut.name}"] = float(cut.position)
    return Prepared(statistics=statistics)


@strategy(scope="model", prepare=_thresholds)
def ties(
    base: Array,
    sides: Sequence[Array],
    statistics: Mapping[str, float],
    where: Where,
    *,
    density: Annotated[tuple[float, ...], Between(0, 1)] = (0.2,),
    weights: tuple[float, ...] = (),
    scale: Annotated[float, Between(-100, 100)] = 1.0,
    trim: Trim = "model",
    consensus: Consensus = "ties",
) -> Array:
    """Keep the largest part `density` of each side's changes, and where sides disagree the sign that weighs more.

    Yadav et al. 2023, "TIES-Merging": changes are ranked over the whole model, or in each tensor with `trim` "tensor";
    equal ones by tensor name and position.  Then the mean of the changes of the elected sign is added, times `scale`.
    `density` is one number, or one a side.
    """
    factors = side_weights(weights, len(sides))
    changes = changes_of(base, sides, factors)
    densities = per_side(density, len(sides), "density")
    if min(densities) < 1:
        name = where.name if trim == "tensor" else ""
        changes = [
            np.where(_kept(change, side, name, statistics, where), change, 0.0) for side, change in enumerate(changes)
        ]
    return add_changes(base, changes, factors, scale=scale, consensus=consensus)


def _kept(change: Array, side: int, name: str, statistics: Mapping[str, float], where: Where) -> npt.NDArray[np.bool_]:
    least = statistics.get(f"least.{side}.{name}")
    if least is None:
        return np.ones(change.shape, bool)
    if name:
        position = statistics.get(f"last.{side}.{name}.{name}")
        found = None if position is None else (name, int(position))
    else:
        prefix = f"last.{side}.."
        at_end = [(key[len(prefix) :], int(value)) for key, value in statistics.items() if key.startswith(prefix)]
        found = at_end[0] if at_end else None
    # Positions matter in the one tensor that the cut goes through.
    at_cut = found is not None and found[0] == where.name
    positions = where.positions if at_cut else _NOWHERE
    return is_above(np.abs(change), least, found, name=where.name, positions=positions)
