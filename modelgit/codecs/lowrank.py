"""The coded form of a low-rank correction: the prelude of a record whose base is predicted (`numerics.lowrank`).

Layout: a byte for the dtype (BF16, F16, F32), a byte that says whether the product is rounded before it is added,
varints with the columns and the rank, the exponent as a zigzag varint, and then two matrices of integers, left and
right.  Each is a byte with the number of planes, 1 to 4, and that many streams with the bytes of the zigzag codes, top
byte first, component by component.  How many rows the left one has follows from the words that the record covers.

This is no codec of units: the units behind a prelude are those of any codec that needs a base.
"""

from __future__ import annotations

import numpy as np

from modelgit.codecs.base import Layout
from modelgit.errors import BugError, IntegrityError
from modelgit.numerics.bits import join_planes, split_planes
from modelgit.numerics.lowrank import MAX_EXPONENT, MAX_SUM, PREDICTED, Factors, Matrix, rows_of, sum_bound
from modelgit.numerics.streams import Reader, decode_streams, encode_streams, varint

__all__ = ["MAX_NUMBERS", "MAX_RANK", "decode_factors", "encode_factors"]

MAX_RANK = 4096
# Of both factors of one record: 32 MiB as float64, and less work per word than any decoder of units needs at most.
MAX_NUMBERS = 1 << 22
_MAX_COLUMNS = 1 << 40
_LARGEST = (1 << 31) - 1


def encode_factors(factors: Factors) -> bytes:
    """The prelude for `factors`, which must be integers within the bounds that a reader checks."""
    rows, rank = factors.left.shape
    columns = factors.right.shape[0]
    if (
        not 1 <= rank <= MAX_RANK
        or (rows + columns) * rank > MAX_NUMBERS
        or abs(factors.exponent) > MAX_EXPONENT
        or sum_bound(factors.left, factors.right) > MAX_SUM
    ):
        raise BugError(f"factors of rank {rank} for {rows} rows and {columns} columns are out of bounds")
    exponent = factors.exponent
    head = bytes((PREDICTED.index(factors.dtype), factors.rounded)) + varint(columns) + varint(rank)
    return b"".join(
        (head, varint(2 * exponent if exponent >= 0 else -2 * exponent - 1), _pack(factors.left), _pack(factors.right))
    )


def decode_factors(prelude: bytes | memoryview, layout: Layout, first_word: int, words: int) -> Factors:
    """The factors of a record that covers `words` words of a tensor from `first_word` on.

    Allocates in proportion to MAX_NUMBERS at most.  Raises IntegrityError for anything that `encode_factors` cannot
    have written for words of this layout.
    """
    reader = Reader(prelude)
    dtype = PREDICTED[reader.byte(below=len(PREDICTED))]
    if not layout.is_float or layout.word_bytes != (4 if dtype == "F32" else 2):
        raise IntegrityError(f"a correction of {dtype} lies before words of {layout.word_bytes} bytes")
    rounded = bool(reader.byte(below=2))
    columns = reader.varint(most=_MAX_COLUMNS)
    rank = reader.varint(most=MAX_RANK)
    code = reader.varint(most=2 * MAX_EXPONENT)
    if not columns or not rank or not words:
        raise IntegrityError("a correction of no columns, no rank or no words")
    first_row, rows = rows_of(first_word, words, columns)
    if (rows + columns) * rank > MAX_NUMBERS:
        raise IntegrityError(f"a correction of {rows} rows, {columns} columns and rank {rank} is too large to be one")
    left = _unpack(reader, rows, rank)
    right = _unpack(reader, columns, rank)
    reader.finish()
    if sum_bound(left, right) > MAX_SUM:
        raise IntegrityError("the factors of a correction are too large to be multiplied exactly")
    return Factors(dtype, code >> 1 ^ -(code & 1), rounded, first_row, left, right)


def _pack(matrix: Matrix) -> bytes:
    numbers = np.ascontiguousarray(matrix.T).ravel().astype(np.int64)
    if np.any(numbers != matrix.T.ravel()) or np.abs(numbers).max(initial=0) > _LARGEST:
        raise BugError("a factor holds what is not an integer of 32 bits")
    codes = ((numbers << 1) ^ (numbers >> 63)).astype(np.uint32)
    planes = np.empty((4, codes.size), np.uint8)
    split_planes(codes, planes)
    count = max(1, -(-int(codes.max()).bit_length() // 8))
    return b"".join((bytes((count,)), *encode_streams(list(planes[4 - count :]))))


def _unpack(reader: Reader, length: int, rank: int) -> Matrix:
    count = reader.byte(below=5)
    if not count:
        raise IntegrityError("a correction holds a factor without planes")
    codes = np.empty(rank * length, np.uint32)
    join_planes(decode_streams(reader, count, codes.size), codes)
    numbers = (codes >> 1).view(np.int32) ^ -(codes & 1).view(np.int32)
    return np.ascontiguousarray(numbers.reshape(rank, length).T, np.float64)
