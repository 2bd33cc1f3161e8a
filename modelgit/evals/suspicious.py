"""What an honest training run hardly ever does to weights: a few rows replaced, one layer moved far, classes swapped.

The thresholds are ratios and robust deviations, so that they mean the same for any model, learning rate and unit; they
were set so that fine-tuning, FISH masks, pruning, quantisation and merging pass (docs/policy.md gives the figures).
This is advice: a well-trained backdoor looks like training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelgit.amounts import counted
from modelgit.numerics.row_changes import RowChanges
from modelgit.objects import Finding

__all__ = ["LayerChange", "far_layers", "outliers", "rearranged", "row_findings"]

RATIO = 10.0
"""An outlier moved at least so many times as far as the median of its like."""

DEVIATIONS = 6.0
"""... and lies so many robust standard deviations (1.4826 MAD of the logarithms) above it."""

MIN_MOVE = 0.1
"""Rows that moved by less of their norm are no news: a sparse mask hits some by chance."""

MIN_ROWS = 32
MIN_LAYERS = 8
MAX_SHARE = 0.01
FEW_ROWS = 8
FEW_SHARE = 0.001
MIN_TABLE_ROWS = 256
WHOLE_ROW = 0.5
GROWTH = 10.0
SAME = 0.1
MAX_HEAD_ROWS = 4096
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """How far one tensor moved, relative to its norm."""

    model: str
    name: str
    relative: float
    dimensions: int


def outliers(distances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positive values lie far above the median, both as a ratio and against the spread of the logarithms.

    `distances` float64 `[n]`, none negative; zeros are no part of the population and never outliers.  The deviation is
    (log x - median) / (1.4826 MAD), after Rousseeuw and Croux (1993); where the MAD is 0, the ratio alone decides.
    """
    found = np.zeros(distances.shape, np.bool_)
    moved = distances > 0
    if np.count_nonzero(moved) < 3:
        return found
    logs = np.log(distances[moved])
    centre = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - centre)))
    far = logs - centre >= max(math.log(RATIO), DEVIATIONS * spread)
    found[moved] = far
    return found


def row_findings(model: str, name: str, rows: RowChanges) -> Iterator[Finding]:
    """What stands out in one tensor that changed."""
    yield from _few_rows(model, name, rows)
    yield from _values(model, name, rows)


def _few_rows(model: str, name: str, rows: RowChanges) -> Iterator[Finding]:
    if rows.rows < MIN_ROWS:
        return
    touched = np.flatnonzero(rows.changed)
    whole = touched[rows.changed[touched] >= WHOLE_ROW * rows.columns]
    few = max(FEW_ROWS, int(FEW_SHARE * rows.rows))
    if rows.rows >= MIN_TABLE_ROWS and 0 < touched.size <= few and whole.size:
        yield _finding(
            "suspicious/few-rows",
            f"{counted(touched.size, 'row')} of {rows.rows:,} changed in {name}, and all others stayed as they were",
            model,
            name,
            _rows(rows, touched),
        )
        return
    moved = rows.squared_difference >= MIN_MOVE**2 * rows.squared_old
    far = np.flatnonzero(outliers(np.sqrt(rows.squared_difference)) & moved)
    if 0 < far.size <= max(3, int(MAX_SHARE * rows.rows)):
        yield _finding(
            "suspicious/rows",
            f"{counted(far.size, 'row')} of {rows.rows:,} in {name} moved at least {RATIO:.0f} times as far as the"
            " rest",
            model,
            name,
            _rows(rows, far),
        )


def _values(model: str, name: str, rows: RowChanges) -> Iterator[Finding]:
    if rows.largest_old and not rows.largest_new:
        yield _finding("suspicious/erased", f"all values of {name} became zero", model, name)
    elif rows.largest_old and rows.largest_new > GROWTH * rows.largest_old:
        yield _finding(
            "suspicious/values",
            f"the largest value of {name} is {rows.largest_new:.3g}, and was {rows.largest_old:.3g}",
            model,
            name,
        )


def far_layers(layers: Sequence[LayerChange]) -> Iterator[Finding]:
    """Tensors that moved far more than the others of their model: matrices among matrices, vectors among vectors."""
    groups: dict[tuple[str, bool], list[LayerChange]] = {}
    for layer in layers:
        groups.setdefault((layer.model, layer.dimensions >= 2), []).append(layer)
    for (model, matrices), group in groups.items():
        if len(group) < MIN_LAYERS:
            continue
        distances = np.array([layer.relative for layer in group])
        moved = distances[distances > 0]
        for at in np.flatnonzero(outliers(distances)):
            yield _finding(
                "suspicious/layer",
                f"{group[at].name} moved by {group[at].relative:.2g} of its norm, and the median of the"
                f" {len(group):,} changed {'matrices' if matrices else 'vectors'} is {float(np.median(moved)):.2g}",
                model,
                group[at].name,
            )


def rearranged(
    model: str, name: str, old: NDArray[np.float64], new: NDArray[np.float64], moved: NDArray[np.int64]
) -> Iterator[Finding]:
    """Rows `moved` of a matrix that took each other's place: classes of a head that were swapped.

    `old` and `new` float64 `[rows, columns]`.  A row took the place of another when it is nearer to that row than a
    tenth of its norm, and farther from what it was.
    """
    if not 2 <= moved.size <= MAX_HEAD_ROWS or not old.shape[1]:
        return
    before, after = old[moved], new[moved]
    norms = np.square(before).sum(axis=1)
    squared = norms[None, :] + np.square(after).sum(axis=1)[:, None] - 2 * after @ before.T
    np.fill_diagonal(squared, np.inf)
    nearest = squared.argmin(axis=1)
    at = np.arange(moved.size)
    same = (norms[nearest] > 0) & (squared[at, nearest] <= SAME**2 * norms[nearest])
    same &= squared[at, nearest] < np.square(after - before).sum(axis=1) / 4
    pairs = [(int(moved[i]), int(moved[nearest[i]])) for i in np.flatnonzero(same)]
    if len(pairs) >= 2:
        yield _finding(
            "suspicious/swapped-rows",
            f"{counted(len(pairs), 'row')} of {name} took the places of others, as when classes are swapped",
            model,
            name,
            tuple(f"row {there} is now row {here}" for here, there in pairs[:_SHOWN]),
        )


def _rows(rows: RowChanges, chosen: NDArray[np.int64]) -> tuple[str, ...]:
    order = chosen[np.argsort(-rows.squared_difference[chosen], kind="stable")][:_SHOWN]
    lines = []
    for row in order:
        old = math.sqrt(float(rows.squared_old[row]))
        moved = math.sqrt(float(rows.squared_difference[row]))
        lines.append(f"row {int(row)}: moved by {moved / old:.2g} of its norm" if old else f"row {int(row)}: was zero")
    return tuple(lines)


def _finding(rule: str, message: str, model: str, name: str, details: tuple[str, ...] = ()) -> Finding:
    return Finding(rule=rule, level="warning", message=message, path=model, tensor=name, details=details)
