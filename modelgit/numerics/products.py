"""Matrix products and solutions that are the same to the bit on every machine, whatever library multiplies.

A product by BLAS depends in its last bits on the processor and on the number of threads, because sums are taken in
another order.  Here both factors are cut into slices of so few bits that every sum of a product of slices is a whole
number below 2^53: it is exact, so its order means nothing (Ozaki, Ogita, Oishi and Rump 2012, "Error-free
transformations of matrix multiplication by using fast routines of matrix multiplication").  Three slices of each hold
60 bits for inner dimensions up to 8,192; what is left out is less than the rounding of one float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Sliced", "product", "sliced", "solve"]

Array = npt.NDArray[np.float64]

_MANTISSA = 53
_BLOCK = 64
_DEPENDENT = 2.0**-20
"""A pivot below this part of its diagonal is rounding of float32 statistics: the row is a sum of those before it."""


class Sliced(NamedTuple):
    """A right factor in slices, whole numbers as float64 `[K, N]`, the largest first, and the powers of its columns."""

    parts: tuple[Array, ...]
    powers: npt.NDArray[np.int32]


def _bits(inner: int) -> int:
    """Bits of a slice so that a sum of `inner` products of two of them, and three such sums, are exact."""
    return (_MANTISSA - 2 - max(0, inner - 1).bit_length()) // 2


def _cut(matrix: Array, axis: int, count: int) -> Sliced:
    bits = _bits(matrix.shape[axis])
    largest = np.max(np.abs(matrix), axis=axis, initial=0.0)
    powers = np.frexp(largest)[1]
    rest = np.ldexp(matrix, bits - np.expand_dims(powers, axis))
    parts = []
    for _ in range(count):
        whole = np.rint(rest)
        parts.append(whole)
        rest = np.ldexp(rest - whole, bits)
    return Sliced(tuple(parts), powers)


def sliced(right: Array, *, slices: int = 3) -> Sliced:
    """Cut a right factor `[K, N]` of finite values, for several products with it."""
    return _cut(right, 0, slices)


def product(left: Array, right: Array | Sliced) -> Array:
    """left @ right of finite float64 matrices `[M, K]` and `[K, N]`, the same to the bit everywhere.

    Each value is off by at most about K 2^-60 times the largest value of its row of `left` and of its column of
    `right` (with slices as `right` has them).  Costs six products by BLAS, and holds three copies of each factor.
    """
    if left.shape[1] == 0:
        return np.zeros((left.shape[0], right.powers.size if isinstance(right, Sliced) else right.shape[1]))
    other = right if isinstance(right, Sliced) else sliced(right)
    count = len(other.parts)
    mine = _cut(left, 1, count)
    bits = _bits(left.shape[1])
    total = np.zeros((left.shape[0], other.powers.size))
    for level in reversed(range(count)):
        # Whole numbers below 2^53: exact in any order.
        here = mine.parts[0] @ other.parts[level]
        for at in range(1, level + 1):
            here += mine.parts[at] @ other.parts[level - at]
        total = here + np.ldexp(total, -bits)
    return np.asarray(np.ldexp(total, mine.powers[:, None] + (other.powers[None, :] - 2 * bits)))


def solve(matrix: Array, right: Array) -> Array:
    """X with matrix @ X = right, for a symmetric positive semidefinite `[N, N]` and `[N, K]`, the same everywhere.

    By Cholesky's factors of the matrix with its diagonal scaled to 1, in blocks.  A row that is 0, or the sum of
    others but for a millionth of its diagonal, has nothing to say: X is 0 there.  Only the lower triangle is read.
    """
    size = len(matrix)
    diagonal = np.diagonal(matrix)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    lower = matrix / scale[:, None] / scale[None, :]
    found = right / scale[:, None]
    dead = np.zeros(size, dtype=bool)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        # By columns, contiguous: each is used as a vector.
        panel = np.ascontiguousarray(lower[start:, start:stop].T)
        for at in range(stop - start):
            pivot = float(panel[at, at])
            if not pivot > _DEPENDENT:
                dead[start + at] = True
                panel[at] = 0.0
                panel[at, at] = 1.0
                continue
            panel[at, at:] /= math.sqrt(pivot)
            panel[at + 1 :, at + 1 :] -= panel[at, at + 1 : stop - start, None] * panel[at, None, at + 1 :]
        lower[start:, start:stop] = panel.T
        if stop < size:
            below = lower[stop:, start:stop]
            lower[stop:, stop:] -= product(below, np.ascontiguousarray(below.T))
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        found[start:stop] -= product(lower[start:stop, :start], found[:start])
        for at in range(start, stop):
            if dead[at]:
                found[at] = 0.0
            found[at] /= lower[at, at]
            found[at + 1 : stop] -= lower[at + 1 : stop, at, None] * found[None, at]
    for start in reversed(range(0, size, _BLOCK)):
        stop = min(start + _BLOCK, size)
        found[start:stop] -= product(np.ascontiguousarray(lower[stop:, start:stop].T), found[stop:])
        for at in reversed(range(start, stop)):
            if dead[at]:
                found[at] = 0.0
            found[at] /= lower[at, at]
            found[start:at] -= lower[at, start:at, None] * found[None, at]
    return np.asarray(found / scale[:, None])
