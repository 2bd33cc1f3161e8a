"""Preludes: factors to bytes and back, and what strangers may put there."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from modelgit.codecs.base import Layout
from modelgit.codecs.lowrank import MAX_NUMBERS, decode_factors, encode_factors
from modelgit.errors import BugError, IntegrityError
from modelgit.numerics.lowrank import Factors, predict
from modelgit.numerics.streams import varint

HALF, SINGLE = Layout(2, True), Layout(4, True)


def some(rows: int, columns: int, rank: int, *, bits: int = 20, dtype: str = "BF16", first: int = 0) -> Factors:
    rng = np.random.default_rng(rows + rank)
    limit = (1 << (bits - 1)) - 1
    left = rng.integers(-limit, limit + 1, (rows, rank)).astype(np.float64)
    right = rng.integers(-limit, limit + 1, (columns, rank)).astype(np.float64)
    return Factors(dtype, -37, True, first, left, right)


@pytest.mark.parametrize("bits", [1, 2, 8, 9, 16, 17, 24, 26])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(1, 1, 1), (30, 50, 3), (1, 700, 2), (700, 1, 2)])
def test_round_trip(bits: int, rows: int, columns: int, rank: int) -> None:
    for dtype, layout in (("BF16", HALF), ("F16", HALF), ("F32", SINGLE)):
        factors = some(rows, columns, rank, bits=bits, dtype=dtype, first=2)
        found = decode_factors(encode_factors(factors), layout, 2 * columns, rows * columns)
        assert found[:4] == factors[:4]
        assert np.array_equal(found.left, factors.left)
        assert np.array_equal(found.right, factors.right)


def test_rows_follow_from_the_words() -> None:
    factors = some(3, 10, 2)
    prelude = encode_factors(factors)
    assert decode_factors(prelude, HALF, 19, 12).first_row == 1  # the last word of row 1, row 2, the first of row 3
    for first, words in ((19, 13 + 9), (20, 8), (0, 31), (0, 20)):
        with pytest.raises(IntegrityError):
            decode_factors(prelude, HALF, first, words)


@pytest.mark.parametrize(
    "prelude",
    [
        b"",
        b"\x03\x00\x01\x01\x00\x01\x05\x01\x05",
        b"\x00\x02\x01\x01\x00\x01\x05\x01\x05",
        b"\x00\x00\x00\x01\x00",
        b"\x00\x00\x01\x00\x00",
        b"\x00\x00\x80\x00\x01\x00",
        b"\x00\x00" + varint(1 << 50) + b"\x01\x00",
        b"\x00\x00\x64" + varint(4097) + b"\x00",
        b"\x00\x00\x64\x01" + varint(1025),
        b"\x00\x00\x64\x01\x00\x00",
        b"\x00\x00\x64\x01\x00\x05" + b"\x55" * 20,
        b"\x00\x00" + varint(1 << 40) + b"\x01\x00\x01\x01\x05\x01\x01\x05",
        b"\x00\x00\x01" + varint(4096) + b"\x00\x01\x01\x05\x01\x01\x05",
        # constant planes of all ones: the sum of products would not be exact
        b"\x00\x00\x64\x08\x00\x04\x55\xff\xff\xff\xff\x04\x55\xff\xff\xff\xff",
    ],
)
def test_lies_are_refused_before_anything_is_allocated(prelude: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            decode_factors(prelude, HALF, 0, 100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_other_words_than_those_of_the_dtype_are_refused() -> None:
    prelude = encode_factors(some(10, 10, 1))
    for layout in (SINGLE, Layout(2, False), Layout(8, True), Layout(1, True)):
        with pytest.raises(IntegrityError):
            decode_factors(prelude, layout, 0, 100)
    with pytest.raises(IntegrityError):
        decode_factors(prelude + b"\0", HALF, 0, 100)
    with pytest.raises(IntegrityError):
        decode_factors(prelude, HALF, 0, 0)


def test_mutated_preludes() -> None:
    chance = random.Random(3)
    valid = encode_factors(some(40, 30, 3))
    base = np.zeros(1200, np.uint16)
    good = 0
    for _ in range(4000):
        prelude = bytearray(valid)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(min(len(prelude), chance.choice((8, len(prelude)))))
            if chance.random() < 0.7:
                prelude[place] = chance.randrange(256)
            else:
                prelude[place:place] = chance.randbytes(chance.randint(1, 9))
        try:
            factors = decode_factors(bytes(prelude), HALF, 0, 1200)
        except IntegrityError:
            continue
        good += 1
        predict(factors, base, 0, base.copy())
    assert 0 < good < 4000


def test_a_writer_cannot_go_beyond_what_a_reader_takes() -> None:
    good = some(4, 4, 2)
    for bad in (
        good._replace(exponent=513),
        good._replace(left=good.left + 0.5),
        good._replace(left=np.full((4, 2), 2.0**40)),
        good._replace(left=np.zeros((4, 0)), right=np.zeros((4, 0))),
        good._replace(left=np.full((4, 2), 2.0**27), right=np.full((4, 2), 2.0**27)),
        good._replace(left=np.zeros((MAX_NUMBERS, 1)), right=np.zeros((1, 1))),
    ):
        with pytest.raises(BugError):
            encode_factors(bad)
