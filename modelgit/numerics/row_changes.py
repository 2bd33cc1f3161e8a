"""How far each row of a matrix moved, in one pass over both versions of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from modelgit.numerics.bits import BytesLike, words_of
from modelgit.numerics.floats import has_float_values, to_float64
from modelgit.objects import TensorSpec

__all__ = ["RowChanges"]

MAX_ROWS = 1 << 21
"""With more rows than this a tensor counts as one row: 32 bytes are held for each."""

_RUN_VALUES = 64 << 10


class RowChanges:
    """Sums over the rows (slices of the first dimension) of two tensors of one spec, added up window by window.

    `changed` int64, `squared_difference` and `squared_old` and `squared_new` float64, each `[rows]`: words whose bits
    differ, and sums of squares in float64 over the values that are finite on both sides (all 0 for types without a
    value per element).  `largest_old` and `largest_new` are the largest finite magnitudes.  A tensor of fewer than two
    dimensions is one row.
    """

    def __init__(self, spec: TensorSpec) -> None:
        rows = spec.shape[0] if len(spec.shape) >= 2 else 1
        if not 0 < rows <= MAX_ROWS:
            rows = 1
        self.spec = spec
        self.words = spec.size_bytes // spec.kind.word_bytes
        # Rows of packed types may share a word.
        self.rows = rows if rows and self.words % rows == 0 else 1
        self.columns = max(1, self.words // self.rows)
        self.changed: NDArray[np.int64] = np.zeros(self.rows, np.int64)
        self.squared_difference: NDArray[np.float64] = np.zeros(self.rows)
        self.squared_old: NDArray[np.float64] = np.zeros(self.rows)
        self.squared_new: NDArray[np.float64] = np.zeros(self.rows)
        self.largest_old = 0.0
        self.largest_new = 0.0

    def add(self, start: int, old: BytesLike, new: BytesLike) -> None:
        """Take in the raw bytes of both from byte `start` on (a word border); needs some MiB whatever their length."""
        kind = self.spec.kind
        before, after = words_of(old, kind), words_of(new, kind)
        first = start // kind.word_bytes
        values = has_float_values(self.spec.dtype)
        for low in range(0, before.size, _RUN_VALUES):
            part = slice(low, min(low + _RUN_VALUES, before.size))
            row, edges = self._edges(first + low, first + part.stop)
            rows = slice(row, row + edges.size)
            differ = before[part] != after[part]
            self.changed[rows] += np.add.reduceat(differ.astype(np.int64), edges)
            if values:
                dtype = self.spec.dtype
                self._add_values(rows, edges, to_float64(before[part].data, dtype), to_float64(after[part].data, dtype))

    def _add_values(
        self,
        rows: slice,
        edges: NDArray[np.int64],
        old: NDArray[np.float64],
        new: NDArray[np.float64],
    ) -> None:
        finite = np.isfinite(old) & np.isfinite(new)
        if not finite.all():
            old, new = np.where(finite, old, 0.0), np.where(finite, new, 0.0)
        self.largest_old = max(self.largest_old, float(np.max(np.abs(old))))
        self.largest_new = max(self.largest_new, float(np.max(np.abs(new))))
        with np.errstate(over="ignore", under="ignore"):
            self.squared_difference[rows] += np.add.reduceat(np.square(new - old), edges)
            self.squared_old[rows] += np.add.reduceat(np.square(old), edges)
            self.squared_new[rows] += np.add.reduceat(np.square(new), edges)

    def _edges(self, start: int, stop: int) -> tuple[int, NDArray[np.int64]]:
        """The first row that words `start` to `stop` touch, and where each row that they touch begins among them."""
        first, last = start // self.columns, (stop - 1) // self.columns
        edges = np.arange(first, last + 1, dtype=np.int64) * self.columns - start
        edges[0] = 0
        return first, edges

    @property
    def relative(self) -> float | None:
        """‖new - old‖ / ‖old‖; None where the old values are all zero or there are none."""
        old = float(self.squared_old.sum())
        return math.sqrt(float(self.squared_difference.sum()) / old) if old > 0 else None
