"""What strategies over Gram matrices share: weights as rows over inputs, and matrices that are sure of less."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelgit.merging.base import Array, Gram

__all__ = ["all_grams", "from_rows", "shrunk", "to_rows"]


def all_grams(grams: Sequence[Gram | None], counted: Sequence[int], values: Array) -> dict[int, Gram] | None:
    """The matrices of the sides that count; None where one is missing or does not fit: then nothing is known."""
    found = {}
    for side in counted:
        gram = grams[side]
        if gram is None or values.ndim < 2 or len(gram.matrix) != _inputs(values, first=gram.first):
            return None
        found[side] = gram
    return found if len({gram.first for gram in found.values()}) == 1 else None


def to_rows(values: Array, *, first: bool) -> Array:
    """A weight as `[O, I]`: one row an output, inputs along it."""
    return np.ascontiguousarray(values.reshape(len(values), -1).T) if first else values.reshape(len(values), -1)


def from_rows(rows: Array, shape: tuple[int, ...], *, first: bool) -> Array:
    """The weight again."""
    return np.ascontiguousarray(rows.T if first else rows).reshape(shape)


def shrunk(matrix: Array, alpha: float) -> Array:
    """alpha times what lies off the diagonal (Jin et al. 2023): inputs count as related by so much of what was seen."""
    made = alpha * matrix
    np.fill_diagonal(made, np.diagonal(matrix))
    return made


def _inputs(values: Array, *, first: bool) -> int:
    outputs = max(1, len(values))
    return len(values) if first else values.size // outputs
