"""Predicting a matrix from another one and a product of two thin integer matrices, to the last bit.

A low-rank adapter that was merged into a weight leaves the difference of two full matrices of rank r, blurred by
rounding.  The difference is found again by a randomised range finder with one power iteration (Halko, Martinsson and
Tropp 2011), its rank by the gap in the spectrum, and its factors by least squares in which a word counts with the
inverse of its rounding error: small weights say most about the product, as they are rounded least.

What is stored are integers, of 24 bits for ranks around 100.  Their products add up to at most 2^53, so that float64
holds every partial sum exactly, in whatever order a BLAS adds: the prediction is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import BugError
from modelgit.numerics.bits import Words
from modelgit.numerics.scratch import scratch

__all__ = [
    "MAX_EXPONENT",
    "MAX_SUM",
    "PREDICTED",
    "Blocks",
    "Factors",
    "Matrix",
    "apparent_rank",
    "balance",
    "fill_holes",
    "fit_left",
    "most_bits",
    "predict",
    "quantise",
    "refine_right",
    "right_factor",
    "rows_of",
    "sum_bound",
    "values_of",
]

Matrix = NDArray[np.float64]
Blocks = Callable[[], Iterable[tuple[Matrix, Matrix]]]
"""Gives the rows of a difference a few at a time, with the inverse variances of its elements; may be asked again."""

PREDICTED = ("BF16", "F16", "F32")
MAX_SUM = 1 << 53
# Wide enough for any product of floats that a matrix could need, and far from where float64 loses bits.
MAX_EXPONENT = 512
# Pieces whose sums and values stay in a core's cache.
PIECE_WORDS = 1 << 16
# Weighted least squares need rank² / 2 numbers per column, and as many products per word.
WEIGHTED_NUMBERS = 1 << 22
WEIGHTED_RANK = 24
_OVERSAMPLING = 8
_GAP = 0.5
_REST_OF_ENERGY = 0.3
_NOISE = 8.0


class Factors(NamedTuple):
    """Integers whose product, times 2^exponent, is added to a base.

    `left` of shape (rows, rank) holds the rows of the matrix from `first_row` on, `right` of shape (columns, rank) all
    columns.  `dtype` is one of PREDICTED.  With `rounded` the product is rounded to the dtype before it is added, as
    libraries do that merge in the precision of the weights.
    """

    dtype: str
    exponent: int
    rounded: bool
    first_row: int
    left: Matrix
    right: Matrix


def predict(factors: Factors, base: Words, start: int, out: Words) -> None:
    """Fill `out` with the prediction from the words `base`, which begin at word `start` of the flattened matrix.

    Both are 1-D and of one length; `out` may be `base`.  Where base plus product is not finite, the prediction is the
    word of the base.
    """
    columns = factors.right.shape[0]
    top = start // columns
    last = -(-(start + base.size) // columns)
    # A power of two changes no digit, so that the sums are exact with it as they are without.
    left = np.ldexp(factors.left[top - factors.first_row : last - factors.first_row], factors.exponent)
    done = 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        while done < base.size:
            row, column = divmod(start + done, columns)
            row -= top
            rest = base.size - done
            if column == 0 and rest >= columns and columns <= PIECE_WORDS:
                rows = min(rest, PIECE_WORDS) // columns
                size = rows * columns
                sums = scratch("lowrank.sums", size, np.float64)
                np.matmul(left[row : row + rows], factors.right.T, out=sums.reshape(rows, columns))
            else:
                size = min(columns - column, rest, PIECE_WORDS)
                sums = scratch("lowrank.sums", size, np.float64)
                np.matmul(factors.right[column : column + size], left[row], out=sums)
            _add(factors.dtype, base[done : done + size], sums, out[done : done + size], rounded=factors.rounded)
            done += size


def values_of(words: Words, dtype: str) -> NDArray[np.floating]:
    """The values of the floats in `words`, in a type that holds them; valid until the next call in this thread."""
    if dtype != "BF16":
        return words.view("<f2" if dtype == "F16" else "<f4")
    wide = scratch("lowrank.wide", words.size, np.uint32)
    np.left_shift(words, 16, out=wide, dtype=np.uint32)
    return wide.view(np.float32)


def sum_bound(left: Matrix, right: Matrix) -> int:
    """The largest value that a partial sum of the integer product can have."""
    if not left.size or not right.size:
        return 0
    return sum(int(a) * int(b) for a, b in zip(np.abs(left).max(axis=0), np.abs(right).max(axis=0), strict=True))


def apparent_rank(difference: Matrix) -> int:
    """The rank of some rows of a difference as its spectrum shows it; 0 when they have no small rank.

    `difference` of shape (rows, columns) should have half again as many rows as the largest rank of interest.
    """
    gram = difference @ difference.T
    if not np.all(np.isfinite(gram)):
        return 0
    squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    return _rank(squares, 2 * len(squares) // 3)


def right_factor(blocks: Blocks, columns: int, rank: int) -> Matrix:
    """The right factor, of shape (columns, r), of a difference that looks like `rank`.

    It has the square roots of the singular values, so that a left factor that fits it has the other half of the scale.
    r is the rank as the finer spectrum shows it, at most `rank` plus a few; 0 when there is none.  Reads twice.
    """
    width = min(rank + _OVERSAMPLING, columns)
    test = np.random.default_rng(0).standard_normal((columns, width))
    image = np.zeros((columns, width))
    energy, rows = 0.0, 0
    for difference, _ in blocks():
        rows += difference.shape[0]
        image += difference.T @ (difference @ test)
        energy += float(np.vdot(difference, difference))
    basis, _ = np.linalg.qr(image)
    gram = np.zeros((width, width))
    for difference, _ in blocks():
        part = difference @ basis
        gram += part.T @ part
    squares, turn = np.linalg.eigh(gram)
    squares = np.maximum(squares[::-1], 0.0)
    # Directions that stand out no more than those of noise do are none: they would only cost space.
    rest = max(0.0, energy - float(squares.sum()))
    noise = _NOISE * rest / max(1, min(rows, columns) - width)
    found = _rank(squares, int(np.count_nonzero(squares > noise)), rest=rest)
    factor: Matrix = (basis @ turn[:, ::-1][:, :found]) * squares[:found] ** 0.25
    return factor


def fill_holes(blocks: Blocks, right: Matrix) -> Iterator[tuple[Matrix, Matrix]]:
    """`blocks` with what `right` makes of the others where the weight is zero, instead of whatever stands there."""
    inverse = np.linalg.pinv(right).T
    for difference, weights in blocks():
        holes = weights == 0.0
        if holes.any():
            difference = difference.copy()
            for _ in range(3):  # each time what is wrong shrinks by the share of the row that is missing
                difference[holes] = (difference @ inverse @ right.T)[holes]
        yield difference, weights


def refine_right(blocks: Blocks, right: Matrix) -> Matrix:
    """One round of alternating weighted least squares: a better right factor of the same shape.  Reads once."""
    columns, rank = right.shape
    if not _weighted(right):
        return right
    packed = np.zeros((columns, rank * (rank + 1) // 2))
    moments = np.zeros((columns, rank))
    for difference, weights in blocks():
        left = fit_left(difference, weights, right)
        packed += weights.T @ _pairs(left)
        moments += (weights * difference).T @ left
    return _solve(packed, moments, rank)


def fit_left(difference: Matrix, weights: Matrix, right: Matrix) -> Matrix:
    """The left factor, of shape (rows, rank), that explains `difference` best given `right`.

    `weights` of the shape of `difference` are inverse variances; they are not looked at when the rank is large.
    """
    if not _weighted(right):
        # The pseudo-inverse, not the normal equations: an adapter may name one direction twice.
        fitted: Matrix = difference @ np.linalg.pinv(right).T
        return fitted
    moments = (weights * difference) @ right
    return _solve(weights @ _pairs(right), moments, right.shape[1])


def balance(left: Matrix, right: Matrix) -> tuple[Matrix, Matrix]:
    """The same product, with both columns of a component of one root mean square, up to a power of two."""
    with np.errstate(all="ignore"):
        ours: Matrix = np.sqrt((left**2).mean(axis=0))
        theirs: Matrix = np.sqrt((right**2).mean(axis=0))
        shift = np.rint(np.log2(theirs / ours) / 2)
    scale = np.exp2(np.where(np.abs(shift) < MAX_EXPONENT, shift, 0.0))
    return left * scale, right / scale


def most_bits(rank: int) -> int:
    """How many bits, sign included, integers of `rank` components may have so that no sum exceeds MAX_SUM."""
    return (math.isqrt(MAX_SUM // max(1, rank)) + 1).bit_length()


def quantise(values: Matrix, bits: int) -> tuple[Matrix, int]:
    """`values` as integers of at most `bits` bits with sign, and the power of two that they are to be multiplied by."""
    largest = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(largest):
        raise BugError("factors that are not finite cannot be quantised")
    if largest == 0.0:
        return np.zeros(values.shape), 0
    exponent = max(-MAX_EXPONENT // 2, math.frexp(largest)[1] - (bits - 1))
    limit = float((1 << (bits - 1)) - 1)
    return np.clip(np.rint(np.ldexp(values, -exponent)), -limit, limit), exponent


def rows_of(first_word: int, words: int, columns: int) -> tuple[int, int]:
    """(first row, rows) of the matrix that the words from `first_word` on lie in."""
    first = first_word // columns
    return first, -(-(first_word + words) // columns) - first


def _add(dtype: str, base: Words, sums: Matrix, out: Words, *, rounded: bool) -> None:
    # A sum of integers has no negative zero, but a BLAS may make one.
    np.add(sums, 0.0, out=sums)
    if rounded:
        words = scratch("lowrank.words", base.size, base.dtype)
        _round(sums, dtype, words)
        np.copyto(sums, values_of(words, dtype))
    np.add(values_of(base, dtype), sums, out=sums)
    result = scratch("lowrank.result", base.size, base.dtype)
    if not _round(sums, dtype, result):
        np.copyto(result, base, where=~np.isfinite(sums))
    np.copyto(out, result)


def _round(values: Matrix, dtype: str, out: Words) -> bool:
    """Fill `out`; returns False when something may not have been finite."""
    if dtype != "BF16":
        floats = out.view("<f2" if dtype == "F16" else "<f4")
        np.copyto(floats, values, casting="same_kind")
        return bool(np.isfinite(floats).all())
    single = scratch("lowrank.single", values.size, np.float32)
    np.copyto(single, values, casting="same_kind")
    finite = bool(np.isfinite(single).all())
    bits = single.view(np.uint32)
    low = scratch("lowrank.wide", values.size, np.uint32)
    np.right_shift(bits, 16, out=low)
    np.bitwise_and(low, 1, out=low)
    np.add(low, 0x7FFF, out=low)
    np.add(bits, low, out=bits)
    np.right_shift(bits, 16, out=bits)
    np.copyto(out, bits, casting="unsafe")
    return finite


def _rank(squares: Matrix, most: int, *, rest: float = 0.0) -> int:
    """The last index below a gap in the spectrum, given as descending squares, that leaves little energy behind."""
    total = float(squares.sum()) + max(rest, 0.0)
    if total <= 0.0:
        return 0
    behind = total - np.cumsum(squares)
    for rank in range(min(most, len(squares) - 1), 0, -1):
        if squares[rank] < _GAP**2 * squares[rank - 1] and behind[rank - 1] < _REST_OF_ENERGY * total:
            # Below the noise of the arithmetic every gap is an accident.
            if squares[rank - 1] < 1e-14 * squares[0]:
                continue
            return rank
    return 0


def _weighted(right: Matrix) -> bool:
    rank = right.shape[1]
    return bool(rank <= WEIGHTED_RANK and right.shape[0] * rank * (rank + 1) // 2 <= WEIGHTED_NUMBERS)


def _pairs(right: Matrix) -> Matrix:
    first, second = np.triu_indices(right.shape[1])
    pairs: Matrix = right[:, first] * right[:, second]
    return pairs


def _solve(packed: Matrix, moments: Matrix, rank: int) -> Matrix:
    """Solve one system of normal equations per row; `packed` holds upper triangles."""
    first, second = np.triu_indices(rank)
    systems = np.empty((packed.shape[0], rank, rank), np.float64)
    systems[:, first, second] = packed
    systems[:, second, first] = packed
    # A ridge below every precision that is stored, so that an empty row has a solution: zero.
    every = np.arange(rank)
    systems[:, every, every] *= 1 + 1e-13
    systems[:, every, every] += np.finfo(np.float64).tiny
    return np.asarray(np.linalg.solve(systems, moments[:, :, None])[:, :, 0], np.float64)
