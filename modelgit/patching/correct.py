"""Whether a tensor is its base plus a product of thin matrices, and the preludes that say so.

A cheap test looks at the spectrum of some dozens of rows of the difference; fine-tunes and sparse changes end here.  If
it shows a gap, the factors are fitted (`numerics.lowrank`), and the precision that they are stored in is found by trial
on a few rows: factors of more bits cost more, and leave less to be coded.  An adapter that was declared brings its
factors along.  Either way the correction is used only when it makes the estimated size at least 5 % smaller.

The tensor is read a few hundred thousand words at a time, so that its size does not matter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from modelgit.codecs.base import Effort, Words, layout_of, word_dtype
from modelgit.codecs.lowrank import MAX_NUMBERS, MAX_RANK, encode_factors
from modelgit.numerics.lowrank import (
    MAX_EXPONENT,
    PREDICTED,
    Blocks,
    Factors,
    Matrix,
    apparent_rank,
    balance,
    fill_holes,
    fit_left,
    most_bits,
    predict,
    quantise,
    refine_right,
    right_factor,
    rows_of,
    values_of,
)
from modelgit.objects import TensorSpec
from modelgit.patching.choose import estimate_choices

__all__ = ["Correction", "Product", "ReadBytes", "find_correction", "is_correctable"]

ReadBytes = Callable[[int, int], bytes | bytearray | memoryview]

_MUST_SAVE = 0.05
_SMALLEST_WORDS = 1 << 14
_SMALLEST_SIDE = 32
_RUNS = 8
_TEST_COLUMNS = 1024
_TEST_ROWS = {"balanced": 96, "tight": 288}
# Right factors are fitted to so many words, spread over the matrix: what they gain beyond is below the rounding.
_FIT_WORDS = {"balanced": 1 << 22, "tight": 1 << 24}
_ROUNDS = {"balanced": 1, "tight": 2}
_FILLINGS = 3
_BLOCK_WORDS = 1 << 19
_TRIAL_WORDS = 1 << 14
_MOST_COLUMNS = 1 << 17
_FEWEST_BITS = 8


class Product(NamedTuple):
    """A declared change of a matrix: left @ right.T, float64 of shapes (rows, rank) and (columns, rank)."""

    left: Matrix
    right: Matrix


class Correction(NamedTuple):
    """Preludes for the records of a tensor, one per extent, and the codec that is best behind them.

    `bits` is the estimated size per word, preludes included.
    """

    codec: str
    bits: float
    preludes: tuple[bytes, ...]


class _Pair:
    """A matrix and its base, read by rows."""

    def __init__(self, read: ReadBytes, read_base: ReadBytes, spec: TensorSpec) -> None:
        self.dtype = spec.dtype
        self.layout = layout_of(spec)
        self.rows = spec.shape[0]
        self.columns = spec.elements // spec.shape[0]
        self._reads = (read, read_base)
        self._floor = 0.0
        self.has_holes = False

    def words(self, start: int, stop: int) -> tuple[Words, Words]:
        """The words of rows `start` to `stop`, and those of the base."""
        width = self.columns * self.layout.word_bytes
        kind = word_dtype(self.layout)
        ours, theirs = (np.frombuffer(read(start * width, stop * width), kind) for read in self._reads)
        return ours, theirs

    def difference(self, start: int, stop: int) -> tuple[Matrix, Matrix]:
        """Difference and weights (inverse variances, up to a scale) of rows `start` to `stop`.

        A word is known up to its rounding, which goes with its size.  Where one is not finite, and where both are zero
        as in pruned weights, nothing is known.
        """
        ours, theirs = self.words(start, stop)
        with np.errstate(all="ignore"):
            new = values_of(ours, self.dtype).astype(np.float64)
            old = values_of(theirs, self.dtype).astype(np.float64)
            found = new - old
            np.square(new, out=new)
            np.square(old, out=old)
            new += old
            if not self._floor:
                # What is far below the others is not known that much better.
                self._floor = 1e-6 * float(np.mean(new, where=np.isfinite(new))) or 1.0
            known = np.isfinite(found) & (new > 0.0)
            self.has_holes = self.has_holes or not known.all()
            new += self._floor
            weights = np.where(known, 1.0 / new, 0.0)
            found[~known] = 0.0
        shape = (stop - start, self.columns)
        return found.reshape(shape), weights.reshape(shape)

    def change(self, start: int, stop: int, *, stride: int) -> Matrix:
        """The difference alone, 0 where it is not finite, in every column that is a multiple of `stride`."""
        ours, theirs = (
            np.ascontiguousarray(words.reshape(stop - start, self.columns)[:, ::stride]).reshape(-1)
            for words in self.words(start, stop)
        )
        with np.errstate(all="ignore"):
            new = values_of(ours, self.dtype).astype(np.float64)
            new -= values_of(theirs, self.dtype)
        new[~np.isfinite(new)] = 0.0
        return new.reshape(stop - start, -1)

    def spread(self, rows: int, *, runs: int = _RUNS) -> list[tuple[int, int]]:
        """(start, stop) of up to `runs` runs of rows, `rows` together, spread over the matrix."""
        if rows >= self.rows:
            return [(0, self.rows)]
        length = max(1, rows // runs)
        count = max(1, rows // length)
        starts = np.linspace(0, self.rows - length, count).astype(np.int64)
        return [(int(start), int(start) + length) for start in starts]


def is_correctable(spec: TensorSpec) -> bool:
    """Whether a tensor is of a type and shape that a correction can be of."""
    return spec.dtype in PREDICTED and len(spec.shape) >= 2 and spec.elements > 0


def find_correction(
    read: ReadBytes,
    read_base: ReadBytes,
    spec: TensorSpec,
    *,
    plain_bits: float,
    effort: Effort,
    extent_bytes: int,
    product: Product | None = None,
) -> Correction | None:
    """A correction of the base that makes a tensor smaller, if its difference to the base is of low rank.

    `read` and `read_base` give raw bytes from `start` to `stop`; `plain_bits` is the best estimate without a
    correction, in bits per word.  `spec` must be one that `is_correctable` takes.  A `product` that is
    declared is tried before there is a search; there is none with the effort "fast", nor in small or very wide
    matrices.
    """
    pair = _Pair(read, read_base, spec)
    if product is not None and (len(product.left), len(product.right)) == (pair.rows, pair.columns):
        ours, theirs = balance(product.left, product.right)
        declared = _settle(pair, lambda start, stop, _: ours[start:stop], theirs, plain_bits, extent_bytes)
        if declared is not None:
            return declared
    sides = min(pair.rows, pair.columns)
    if effort == "fast" or spec.elements < _SMALLEST_WORDS or sides < _SMALLEST_SIDE or pair.columns > _MOST_COLUMNS:
        return None
    rank = _apparent_rank(pair, _TEST_ROWS[effort])
    if not rank or rank * (pair.rows + pair.columns) * _FEWEST_BITS >= plain_bits * spec.elements:
        return None
    blocks = _blocks(pair, _FIT_WORDS[effort])
    right = right_factor(blocks, pair.columns, rank)
    if not right.shape[1]:
        # The sample may have missed components of some rows or columns.
        right = right_factor(blocks, pair.columns, 2 * rank + 8)
    if not right.shape[1]:
        return None
    for _ in range(_FILLINGS if pair.has_holes else 0):
        filled = functools.partial(fill_holes, blocks, right)
        right = right_factor(filled, pair.columns, right.shape[1])
        if not right.shape[1]:
            return None
    for _ in range(_ROUNDS[effort]):
        right = refine_right(blocks, right)

    def left(start: int, stop: int, against: Matrix) -> Matrix:
        step = max(1, _BLOCK_WORDS // pair.columns)
        parts = [fit_left(*pair.difference(at, min(at + step, stop)), against) for at in range(start, stop, step)]
        return np.concatenate(parts)

    return _settle(pair, left, right, plain_bits, extent_bytes)


def _apparent_rank(pair: _Pair, rows: int) -> int:
    stride = max(1, pair.columns // _TEST_COLUMNS)
    parts = [pair.change(start, stop, stride=stride) for start, stop in pair.spread(rows)]
    return apparent_rank(np.concatenate(parts))


def _blocks(pair: _Pair, words: int) -> Blocks:
    step = max(1, _BLOCK_WORDS // pair.columns)
    rows = max(words // pair.columns, 4 * _SMALLEST_SIDE)
    spans = [
        (at, min(at + step, stop))
        for start, stop in pair.spread(rows, runs=max(_RUNS, rows // step))
        for at in range(start, stop, step)
    ]
    if sum(stop - start for start, stop in spans) * pair.columns <= 2 * _BLOCK_WORDS:
        kept = [pair.difference(start, stop) for start, stop in spans]
        return lambda: kept
    return lambda: (pair.difference(start, stop) for start, stop in spans)


def _settle(
    pair: _Pair,
    left: Callable[[int, int, Matrix], Matrix],
    right: Matrix,
    plain_bits: float,
    extent_bytes: int,
) -> Correction | None:
    """Find the precision by trial, and make the preludes if the result is worth it."""
    rank = right.shape[1]
    width = pair.layout.word_bytes
    total = pair.rows * pair.columns
    extents = [
        (start // width, min(start + extent_bytes, total * width) // width)
        for start in range(0, total * width, extent_bytes)
    ]
    sizes = [rows_of(start, stop - start, pair.columns)[1] + pair.columns for start, stop in extents]
    if not 1 <= rank <= MAX_RANK or max(sizes) * rank > MAX_NUMBERS or not np.all(np.isfinite(right)):
        return None
    trial = _Trial(pair, left, right, sum(sizes) * rank / total)
    best = trial.best()
    if best is None or best.total > (1 - _MUST_SAVE) * plain_bits:
        return None
    theirs, their_power = quantise(right, best.bits)
    against = np.ldexp(theirs, their_power)
    preludes = []
    for start, stop in extents:
        first, rows = rows_of(start, stop - start, pair.columns)
        ours, our_power = quantise(left(first, first + rows, against), best.bits)
        if abs(our_power + their_power) > MAX_EXPONENT:
            return None
        preludes.append(encode_factors(Factors(pair.dtype, our_power + their_power, best.rounded, first, ours, theirs)))
    return Correction(best.codec, best.total, tuple(preludes))


class _Outcome(NamedTuple):
    total: float
    bits: int
    rounded: bool
    codec: str


class _Trial:
    """What a record would take with factors of some precision, tried on a few rows."""

    def __init__(
        self, pair: _Pair, left: Callable[[int, int, Matrix], Matrix], right: Matrix, numbers_per_word: float
    ) -> None:
        self._pair = pair
        self._right = right
        self._numbers = numbers_per_word
        spans = pair.spread(-(-_TRIAL_WORDS // pair.columns))
        read = [[words.copy() for words in pair.words(start, stop)] for start, stop in spans]  # buffers are used again
        self._words: Words = np.concatenate([words for words, _ in read])
        self._base: Words = np.concatenate([base for _, base in read])
        self._left = np.concatenate([left(start, stop, right) for start, stop in spans])

    def best(self) -> _Outcome | None:
        """The precision of the smallest total, found from coarse to fine; the total has one minimum."""
        most = most_bits(self._right.shape[1])
        if not np.all(np.isfinite(self._left)):
            return None
        found = min(self._try(bits, rounded=False) for bits in {*range(10, most, 4), most})
        found = min(found, self._try(found.bits, rounded=True))
        for step in (2, 1):
            near = {min(max(found.bits + way, _FEWEST_BITS), most) for way in (-step, step)} - {found.bits}
            found = min(found, *(self._try(bits, rounded=found.rounded) for bits in near))
        return found

    def _try(self, bits: int, *, rounded: bool) -> _Outcome:
        theirs, their_power = quantise(self._right, bits)
        ours, our_power = quantise(self._left, bits)
        if abs(our_power + their_power) > MAX_EXPONENT:
            return _Outcome(float("inf"), bits, rounded, "raw")
        factors = Factors(self._pair.dtype, our_power + their_power, rounded, 0, ours, theirs)
        predicted = np.empty_like(self._base)
        predict(factors, self._base, 0, predicted)
        choices = estimate_choices(self._words, [lambda: predicted], self._pair.layout)
        best = next((choice for choice in choices if choice.base is not None), choices[0])
        if best.base is None:
            return _Outcome(float("inf"), bits, rounded, best.codec)
        each = 8 * len(encode_factors(factors)) / (ours.size + theirs.size)
        return _Outcome(best.bits + each * self._numbers, bits, rounded, best.codec)
