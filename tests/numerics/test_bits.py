"""Order, difference, rotation and planes: exact on every bit pattern, and meaning what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.codecs.base import Layout
from modelgit.errors import IntegrityError
from modelgit.numerics import bits
from modelgit.numerics.scratch import scratch
from modelgit.objects import DTYPES

WORD_BYTES = (1, 2, 4, 8)
FLOATS = {2: np.float16, 4: np.float32, 8: np.float64}


def words(data: bytes, size: int) -> np.ndarray:
    return np.frombuffer(data[: len(data) // size * size], f"<u{size}")


@given(st.binary(max_size=200), st.sampled_from(WORD_BYTES))
def test_rotation_is_undone(data, size):
    x = words(data, size)
    out = np.empty_like(x)
    bits.rotate_sign(x, out)
    assert all(
        int(o) == (int(v) << 1 | int(v) >> 8 * size - 1) & (1 << 8 * size) - 1 for v, o in zip(x, out, strict=True)
    )
    bits.unrotate_sign(out, out)
    assert np.array_equal(out, x)


@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from(WORD_BYTES), st.booleans())
def test_difference_is_undone_in_place_of_its_base(left, right, size, is_float):
    x, base = words(left, size), words(right, size)
    count = min(x.size, base.size)
    x, base = x[:count], base[:count].copy()
    codes = np.empty_like(x)
    bits.difference(x, base, codes, is_float=is_float)
    assert np.array_equal(codes == 0, x == base)
    bits.restore(codes, base, base, is_float=is_float)
    assert np.array_equal(base, x)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_neighbouring_floats_differ_by_one_code_across_zero(kind):
    size = np.dtype(kind).itemsize
    old = np.array([1.0, -1.0, 0.0, -0.0, np.finfo(kind).max], kind)
    with np.errstate(over="ignore"):
        new = np.array([np.nextafter(v, kind(np.inf)) for v in old], kind)
    new[3] = 0.0
    codes = np.empty(5, f"<u{size}")
    bits.difference(new.view(codes.dtype), old.view(codes.dtype), codes, is_float=True)
    assert codes.tolist() == [2] * 5


def test_integer_difference_wraps():
    codes = np.empty(3, np.uint8)
    bits.difference(np.array([0, 255, 5], np.uint8), np.array([255, 0, 7], np.uint8), codes, is_float=False)
    assert codes.tolist() == [2, 1, 3]


@given(st.binary(min_size=8, max_size=200), st.sampled_from(WORD_BYTES))
def test_planes_are_the_bytes_from_the_top(data, size):
    x = words(data, size)
    planes = np.empty((size, x.size), np.uint8)
    bits.split_planes(x, planes)
    assert np.array_equal(planes, x.view(np.uint8).reshape(-1, size)[:, ::-1].T)
    out = np.empty_like(x)
    bits.join_planes(list(planes), out)
    assert np.array_equal(out, x)


@given(st.binary(min_size=2, max_size=200), st.sampled_from((2, 4, 8)))
def test_rotated_planes_are_those_of_rotated_words(data, size):
    x = words(data, size)
    rotated, planes, expected = np.empty_like(x), np.empty((size, x.size), np.uint8), np.empty((size, x.size), np.uint8)
    bits.rotate_sign(x, rotated)
    bits.split_planes(rotated, expected)
    bits.split_rotated(x, planes)
    assert np.array_equal(planes, expected)


@given(st.binary(max_size=100), st.sampled_from((1, 2, 4, 8)))
def test_packed_symbols_come_back_from_the_lowest_bits_up(data, width):
    symbols = np.frombuffer(data, np.uint8) & (1 << width) - 1
    packed = bits.pack_bits(symbols, width)
    whole = sum(int(symbol) << width * at for at, symbol in enumerate(symbols))
    assert packed.tobytes() == whole.to_bytes(-(-symbols.size * width // 8), "little")
    assert np.array_equal(bits.unpack_bits(packed, width, symbols.size), symbols)


def test_a_plane_of_one_byte_is_constant():
    out = np.empty(4, "<u4")
    bits.join_planes([np.array([p], np.uint8) for p in (1, 0, 3)] + [np.arange(4, dtype=np.uint8)], out)
    assert out.tolist() == [0x01000300 + i for i in range(4)]


def test_words_of_shares_memory_and_refuses_odd_lengths():
    data = bytearray(8)
    view = bits.words_of(data, DTYPES["BF16"])
    view[3] = 0x0102
    assert data[6:] == b"\x02\x01"
    assert bits.words_of(memoryview(data).toreadonly(), Layout(8, False)).size == 1
    with pytest.raises(IntegrityError):
        bits.words_of(data[:7], Layout(4, True))


def test_scratch_is_reused_by_name_and_separate_between_names():
    first = scratch("test.a", 100, np.uint32)
    first[:] = 7
    other = scratch("test.b", 100, np.uint32)
    other[:] = 9
    again = scratch("test.a", 50, np.uint64)
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, other)
    assert again.dtype == np.uint64
    assert again.size == 50
