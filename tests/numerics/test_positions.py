"""Lists of positions: exact, near the information bound, and safe to read from strangers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import IntegrityError, UsageError
from modelgit.numerics.sparse import decode_positions, encode_positions
from modelgit.numerics.streams import varint

TERA = 1 << 40


@st.composite
def position_lists(draw):
    n = draw(st.one_of(st.integers(0, 300), st.integers(0, TERA)))
    if n == 0:
        return np.empty(0, np.int64), 0
    picked = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=80))
    return np.array(sorted(picked), np.int64), n


@given(position_lists(), st.sampled_from([np.int64, np.uint64]))
def test_positions_come_back(case, kind):
    positions, n = case
    data = encode_positions(positions.astype(kind), n)
    back = decode_positions(data, n, max_count=positions.size)
    assert back.dtype == np.int64
    assert np.array_equal(back, positions)


@pytest.mark.parametrize("density", [0.0001, 0.005, 0.03, 0.08, 0.2, 0.5, 0.9])
def test_random_positions_cost_little_more_than_the_bound(density):
    n = 2_000_003
    positions = np.flatnonzero(np.random.default_rng(1).random(n) < density)
    data = encode_positions(positions, n)
    p = positions.size / n
    bound_bits = n * -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    # Huffman on whole bytes; 0.5 % is the density of a FISH mask.
    assert 8 * len(data) <= 1.12 * bound_bits + 800
    if density == 0.005:
        assert 8 * len(data) / positions.size <= 9.2
    assert np.array_equal(decode_positions(data, n), positions)


def test_everything_and_nothing_cost_a_few_bytes():
    for n in (1, 8, 13, 100_000, (1 << 18) + 5):
        everything = np.arange(n)
        assert len(encode_positions(everything, n)) <= 8
        assert np.array_equal(decode_positions(encode_positions(everything, n), n), everything)
    assert encode_positions(np.empty(0, np.int64), 1 << 32) == b"\0"


def test_the_ends_of_blocks_are_positions_too():
    block = 1 << 32
    positions = np.array([block - 1, block, 2 * block - 1, 2 * block, TERA - 1])
    assert np.array_equal(decode_positions(encode_positions(positions, TERA), TERA), positions)


@pytest.mark.parametrize("bad", [[3, 3], [4, 2], [-1, 2], [0, 10]])
def test_only_ascending_positions_inside_are_coded(bad):
    with pytest.raises(UsageError):
        encode_positions(np.array(bad), 10)
    with pytest.raises(UsageError):
        encode_positions(np.array([1]), TERA + 1)


@pytest.mark.parametrize(
    "data",
    [
        # 2^32 positions, all gaps the constant 0: refused by the count before anything is allocated.
        b"\x01" + varint((1 << 32) - 1) + b"\x01\x00",
        b"\x05" + varint((1 << 32) - 1) + b"\x01\xff",
        b"\x01" + varint(1) + b"\x00\x05\xff",
        b"\x04" + varint(1) + b"\x55\xff\xff\xff\xff",
        b"\x05" + varint(2) + b"\x00" + bytes(12) + b"\x10",
        b"\x05" + varint(0) + b"\x00" + b"\x03" + bytes(12),
        b"\x05" + varint(1) + b"\x00" + b"\x01" + bytes(12),
        b"\x07",
        b"\x06" + varint(0) + b"\x00\x01\x01\x00",
        b"\x06" + varint(0) + b"\x11\x01\x01\x00" + bytes(3),
        b"\x06" + varint(0) + b"\x04\x00\x00",
        b"\x06" + varint(1) + b"\x10\x03\x55\xff\xff\xff" + bytes(4),
        b"\x06" + varint(1) + b"\x04\x01\x01\x05" + bytes(1),
        b"\x06" + varint(1) + b"\x04\x01\x01\x05",
        b"\x00\x00",
        b"",
    ],
    ids=[
        "gap bomb",
        "bitmap bomb",
        "beyond",
        "wrap",
        "past the end",
        "more",
        "fewer",
        "form",
        "no low bits",
        "many low bits",
        "no planes",
        "too wide",
        "split beyond",
        "no bits",
        "trailing",
        "empty",
    ],
)
def test_hostile_lists_are_refused(data):
    with pytest.raises(IntegrityError):
        decode_positions(data, 100)


def test_a_count_bound_is_kept():
    data = encode_positions(np.arange(0, 1000, 7), 1000)
    assert decode_positions(data, 1000, max_count=143).size == 143
    with pytest.raises(IntegrityError):
        decode_positions(data, 1000, max_count=142)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([0.004, 0.06, 0.4]))
def test_mutated_lists_give_a_list_or_an_integrity_error(seed, density):
    chance = random.Random(seed)
    n = chance.choice((64, 1000, 20_000))
    positions = np.flatnonzero(np.random.default_rng(seed).random(n) < density)
    data = bytearray(encode_positions(positions, n))
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        back = decode_positions(data, n)
    except IntegrityError:
        return
    assert back.size == 0 or (back[0] >= 0 and back[-1] < n and np.all(np.diff(back) > 0))
