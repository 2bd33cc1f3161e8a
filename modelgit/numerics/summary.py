"""What is in one tensor, in numbers that add up over pieces of it.

Mean and spread of two pieces are put together as in Chan, Golub and LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances" (1979), so that nothing cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from modelgit.numerics.bits import BytesLike
from modelgit.numerics.floats import INTEGERS, to_float64
from modelgit.objects import dtype_named

__all__ = ["TensorSummary", "summarise"]

_RUN_BYTES = 512 << 10


@dataclass(frozen=True, kw_only=True)
class TensorSummary:
    """The values of a tensor, or of a piece of one.

    `values` counts them (a C64 element has two, its real and its imaginary part); `minimum`, `maximum`, `mean` and the
    sums are over the `finite` ones, in float64; those of integers are exact.  None where there is nothing finite.
    """

    values: int = 0
    zeros: int = 0
    nans: int = 0
    infinities: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    squared_deviation: float = 0.0
    squared_sum: float = 0.0

    @property
    def finite(self) -> int:
        """How many values are neither NaN nor infinite."""
        return self.values - self.nans - self.infinities

    @property
    def std(self) -> float | None:
        """The standard deviation of the finite values (of all of them, not of a sample)."""
        return math.sqrt(self.squared_deviation / self.finite) if self.finite else None

    @property
    def norm(self) -> float:
        """The Euclidean norm of the finite values."""
        return math.sqrt(self.squared_sum)

    def merge(self, other: TensorSummary) -> TensorSummary:
        """The summary of both pieces together."""
        mean, spread = self.mean, self.squared_deviation + other.squared_deviation
        if mean is None or other.mean is None:
            mean = other.mean if mean is None else mean
        else:
            count = self.finite + other.finite
            difference = other.mean - mean
            mean += difference * (other.finite / count)
            spread += difference * difference * (self.finite * (other.finite / count))
        return TensorSummary(
            values=self.values + other.values,
            zeros=self.zeros + other.zeros,
            nans=self.nans + other.nans,
            infinities=self.infinities + other.infinities,
            minimum=min((item.minimum for item in (self, other) if item.minimum is not None), default=None),
            maximum=max((item.maximum for item in (self, other) if item.maximum is not None), default=None),
            mean=mean,
            squared_deviation=spread,
            squared_sum=self.squared_sum + other.squared_sum,
        )


def summarise(data: BytesLike, dtype: str) -> TensorSummary:
    """The summary of raw little-endian bytes (whole elements); needs some MiB whatever their number.

    Raises UsageError for a dtype without a value per element (see `floats.has_float_values`).
    """
    view = memoryview(data).cast("B")
    step = _RUN_BYTES // dtype_named(dtype).word_bytes * dtype_named(dtype).word_bytes
    total = TensorSummary()
    for start in range(0, view.nbytes, step):
        total = total.merge(_run(view[start : start + step], dtype))
    return total


def _run(data: memoryview, dtype: str) -> TensorSummary:
    values = to_float64(data, dtype)
    nans = int(np.count_nonzero(np.isnan(values)))
    infinities = int(np.count_nonzero(np.isinf(values)))
    finite = values[np.isfinite(values)] if nans or infinities else values
    counts = TensorSummary(values=values.size, nans=nans, infinities=infinities)
    if not finite.size:
        return counts
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        mean = float(finite.mean())
        low: float
        high: float
        if dtype in INTEGERS:
            exact = np.frombuffer(data, INTEGERS[dtype])
            low, high = int(exact.min()), int(exact.max())
        else:
            low, high = float(finite.min()), float(finite.max())
        return TensorSummary(
            values=values.size,
            zeros=int(np.count_nonzero(values == 0)),
            nans=nans,
            infinities=infinities,
            minimum=low,
            maximum=high,
            mean=mean,
            squared_deviation=float(np.square(finite - mean).sum()),
            squared_sum=float(np.square(finite).sum()),
        )
