"""Non-negative numbers in one byte each, on a logarithmic scale: what statistics such as Fisher estimates need.

Squared gradients span thirty decades, and what matters of each is its ratio to others: neither 16-bit floats (which
lose what lies below 6e-8) nor linear steps can hold them.  A code c stands for `scale * 2 ** -octaves(c)`:

    0           exactly 0
    255 … 31    (255 - c) / 8 octaves below the scale: 28 octaves (8 decades) in steps of an eighth
    30 … 1      28 + 3 (31 - c) octaves below it: 90 more octaves (27 decades) in steps of three

so that within the first 28 octaves of a tensor's largest value a value is off by 2^(1/16), 4.4 %, at most (5 % with the
correction of the sum), and what lies further down keeps its order of magnitude.  What lies below all codes gets code 1,
never 0.  The scale is set after the codes, so that the decoded values add up to the sum of the original ones; where
that would move values by more than half a per cent (few values, unevenly spread) `fit` says that this coding does not
fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FINE_OCTAVES", "STEPS_PER_OCTAVE", "LogScale", "decode", "encode", "fit"]

STEPS_PER_OCTAVE = 8
FINE_OCTAVES = 28

_COARSE_STEP = 3
_TOP = 255
_LAST_FINE = _TOP - FINE_OCTAVES * STEPS_PER_OCTAVE  # 31
_PHASES = 8
_MAX_CORRECTION = 0.005
_RUN = 1 << 18  # values at a time: the logarithms of a run stay in a processor's cache

Floats = NDArray[np.floating]


class LogScale(NamedTuple):
    """How a tensor is coded: values are measured from `top` when they are coded, from `scale` when they are read."""

    top: float
    scale: float


# The doubles nearest to 2 ** (-k / 8): with powers of two they give every code the same value on every machine.
_EIGHTHS = (
    1.0,
    0.9170040432046712,
    0.8408964152537145,
    0.7711054127039704,
    0.7071067811865476,
    0.6484197773255048,
    0.5946035575013605,
    0.5452538663326288,
)


def _factor(code: int) -> float:
    if code >= _LAST_FINE:
        octaves, eighths = divmod(_TOP - code, STEPS_PER_OCTAVE)
        return math.ldexp(_EIGHTHS[eighths], -octaves)
    return math.ldexp(1.0, -(FINE_OCTAVES + _COARSE_STEP * (_LAST_FINE - code)))


_FACTORS = np.array([0.0, *map(_factor, range(1, 256))])


def _decode_table(scale: float) -> NDArray[np.float32]:
    """The value of each of the 256 codes.  Values that float32 cannot hold become its smallest or largest one."""
    limits = np.finfo(np.float32)
    with np.errstate(under="ignore"):
        values = np.clip(scale * _FACTORS, float(limits.smallest_subnormal), float(limits.max))
    values[0] = 0.0
    return values.astype(np.float32) if scale > 0 else np.zeros(256, np.float32)


def decode(codes: NDArray[np.uint8], scale: float) -> NDArray[np.float32]:
    """The values of `codes`, float32 of the same shape."""
    values: NDArray[np.float32] = _decode_table(scale)[codes]
    return values


def encode(values: Floats, top: float) -> NDArray[np.uint8]:
    """The nearest code of each value (non-negative, finite, at most `top`), by ratio."""
    flat = values.reshape(-1)
    codes = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, _RUN):
        codes[start : start + _RUN] = _encode(flat[start : start + _RUN], top)
    coded: NDArray[np.uint8] = codes.reshape(values.shape)
    return coded


def _encode(values: Floats, top: float) -> NDArray[np.uint8]:
    with np.errstate(divide="ignore"):
        below = np.log2(top) - np.log2(values, dtype=np.float64)  # infinite for zeros
    fine = np.rint(below * STEPS_PER_OCTAVE)
    coarse = np.clip(np.rint((below - FINE_OCTAVES) / _COARSE_STEP), 0, _LAST_FINE - 1)
    codes = np.where(fine <= _TOP - _LAST_FINE, _TOP - np.maximum(fine, 0), _LAST_FINE - coarse)
    codes[values == 0] = 0
    coded: NDArray[np.uint8] = codes.astype(np.uint8)
    return coded


def fit(runs: Callable[[], Iterable[Floats]]) -> LogScale | None:
    """The scale for all values that `runs()` yields, piece by piece; None where one byte a value will not do.

    `runs` is called two times or more.  The values must be non-negative and finite (ValueError for others).
    """
    largest, total = 0.0, 0.0
    for values in runs():
        if values.size:
            highest = float(values.max())
            # A comparison that NaN fails, too.
            if not (float(values.min()) >= 0 and highest < np.inf):
                raise ValueError("values are negative or not finite")
            largest = max(largest, highest)
            total += float(values.sum(dtype=np.float64))
    if largest == 0:
        return LogScale(1.0, 0.0)
    # With another phase the steps lie elsewhere, and rounding errors are drawn again.
    for phase in range(_PHASES):
        top = largest * 2.0 ** (phase / (_PHASES * STEPS_PER_OCTAVE))
        counts = np.zeros(256, np.int64)
        for values in runs():
            counts += np.bincount(encode(values, top).reshape(-1), minlength=256)
        scale = total / float(counts @ _FACTORS)
        if abs(scale / top - 1) <= _MAX_CORRECTION:
            return LogScale(top, scale)
    return None
