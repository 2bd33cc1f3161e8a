"""Predictions are one and the same however they are computed; factors are found where there are some."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.numerics import lowrank
from modelgit.numerics.floats import from_float64, to_float64
from modelgit.numerics.lowrank import Factors

WORDS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}


def word_of(value: float, dtype: str) -> int:
    with np.errstate(over="ignore"):
        if dtype == "F16":
            return int(np.float64(value).astype(np.float16).view(np.uint16))
        return int(from_float64(np.array([np.float32(value)]), dtype)[0])


def expected(factors: Factors, base: np.ndarray, start: int) -> list[int]:
    """The rule of the format, a word at a time, with exact integers."""
    found = []
    columns = factors.right.shape[0]
    for at, word in enumerate(base.tolist()):
        row, column = divmod(start + at, columns)
        left, right = factors.left[row - factors.first_row], factors.right[column]
        total = sum(int(a) * int(b) for a, b in zip(left, right, strict=True))
        added = math.ldexp(total, factors.exponent)
        assert Fraction(added) == Fraction(total) * Fraction(2) ** factors.exponent
        if factors.rounded:
            added = float(to_float64(WORDS[factors.dtype](word_of(added, factors.dtype)).tobytes(), factors.dtype)[0])
        value = float(to_float64(WORDS[factors.dtype](word).tobytes(), factors.dtype)[0]) + added
        found.append(word_of(value, factors.dtype) if math.isfinite(value) else word)
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[Factors, np.ndarray, int]:
    dtype = draw(st.sampled_from(lowrank.PREDICTED))
    columns, rank = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    start, count = draw(st.integers(0, 40)), draw(st.integers(1, 50))
    bits = draw(st.integers(2, lowrank.most_bits(rank)))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    first, rows = lowrank.rows_of(start, count, columns)
    limit = (1 << (bits - 1)) - 1
    left = rng.integers(-limit, limit + 1, (rows, rank)).astype(np.float64)
    right = rng.integers(-limit, limit + 1, (columns, rank)).astype(np.float64)
    base = rng.integers(0, np.iinfo(WORDS[dtype]).max, count, WORDS[dtype], endpoint=True)
    tame = from_float64(rng.standard_normal(count).astype(np.float32), dtype)
    base = np.where(rng.random(count) < 0.5, base, tame).astype(WORDS[dtype])
    exponent = draw(st.integers(-2 * bits - 30, 100))
    return Factors(dtype, exponent, draw(st.booleans()), first, left, right), base, start


@settings(max_examples=300, deadline=None)
@given(cases())
def test_predictions_follow_the_rule_to_the_bit(case: tuple[Factors, np.ndarray, int]) -> None:
    factors, base, start = case
    assert lowrank.sum_bound(factors.left, factors.right) <= lowrank.MAX_SUM
    out = np.empty_like(base)
    lowrank.predict(factors, base, start, out)
    assert out.tolist() == expected(factors, base, start)
    cut = base.size // 2
    parts = base.copy()
    lowrank.predict(factors, parts[cut:], start + cut, parts[cut:])
    lowrank.predict(factors, parts[:cut], start, parts[:cut])
    assert np.array_equal(parts, out)


@pytest.mark.parametrize("columns", [3, 384, 5000, lowrank.PIECE_WORDS + 5])
def test_ranges_of_a_matrix_are_predicted_alone(columns: int) -> None:
    rng = np.random.default_rng(columns)
    rows = 3 * lowrank.PIECE_WORDS // columns + 3
    limit = (1 << (lowrank.most_bits(5) - 1)) - 1
    left = rng.integers(-limit, limit + 1, (rows, 5)).astype(np.float64)
    right = rng.integers(-limit, limit + 1, (columns, 5)).astype(np.float64)
    factors = Factors("F32", -60, False, 0, left, right)
    base = rng.standard_normal(rows * columns).astype(np.float32).view(np.uint32)
    whole = np.empty_like(base)
    lowrank.predict(factors, base, 0, whole)
    assert np.count_nonzero(whole != base) > base.size // 2
    for _ in range(20):
        start = int(rng.integers(0, base.size - 1))
        stop = int(rng.integers(start, min(base.size, start + 3 * columns)))
        out = np.empty(stop - start, np.uint32)
        lowrank.predict(factors, base[start:stop], start, out)
        assert np.array_equal(out, whole[start:stop])
    backwards = Factors("F32", -60, False, 0, left[:, ::-1].copy(), right[:, ::-1].copy())
    again = np.empty_like(base)
    lowrank.predict(backwards, base, 0, again)  # another order of the sum
    assert np.array_equal(again, whole)


def test_the_bound_on_sums_is_sharp() -> None:
    for rank in (1, 2, 7, 8, 128, 129, 4096):
        bits = lowrank.most_bits(rank)
        assert rank * ((1 << (bits - 1)) - 1) ** 2 <= lowrank.MAX_SUM < rank * ((1 << bits) - 1) ** 2
    assert lowrank.most_bits(128) == 24


@pytest.mark.parametrize("rank", [1, 4, 16, 40])
def test_a_product_is_found_again(rank: int) -> None:
    rng = np.random.default_rng(rank)
    noise = 1e-4 * rng.standard_normal((300, 200))
    product = rng.standard_normal((300, rank)) @ rng.standard_normal((rank, 200))
    difference = product + noise
    assert lowrank.apparent_rank(difference[:96]) == rank
    weights = np.ones_like(difference)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, 300, 70):
            yield difference[at : at + 70], weights[at : at + 70]

    right = lowrank.right_factor(blocks, 200, rank)
    assert right.shape == (200, rank)
    for _ in range(2):
        fitted = lowrank.fit_left(difference, weights, right)
        assert np.abs(fitted @ right.T - product).max() < 2e-3
        right = lowrank.refine_right(blocks, right)


def test_weights_say_which_words_to_believe() -> None:
    rng = np.random.default_rng(0)
    product = np.outer(rng.standard_normal(50), rng.standard_normal(60))
    spread = 10.0 ** rng.uniform(-3, 0, product.shape)
    difference = product + spread * rng.standard_normal(product.shape)
    first = np.linalg.svd(difference)[2][:1].T

    def fitted(weights: np.ndarray) -> float:
        right = first
        for _ in range(5):
            right = lowrank.refine_right(lambda: [(difference, weights)], right)
        left = lowrank.fit_left(difference, weights, right)
        return float(np.sqrt(((left @ right.T - product) ** 2).mean()))

    assert fitted(spread**-2.0) < 0.1 * fitted(np.ones_like(spread))


def test_nothing_is_found_where_there_is_nothing() -> None:
    rng = np.random.default_rng(1)
    assert lowrank.apparent_rank(np.zeros((96, 200))) == 0
    assert lowrank.apparent_rank(rng.standard_normal((96, 200))) == 0
    sparse = rng.standard_normal((96, 2000)) * (rng.random((96, 2000)) < 0.01)
    assert lowrank.apparent_rank(sparse) == 0
    decaying = rng.standard_normal((96, 96)) @ np.diag(0.9 ** np.arange(96.0)) @ rng.standard_normal((96, 400))
    assert lowrank.apparent_rank(decaying) == 0
    assert lowrank.apparent_rank(np.full((96, 200), np.nan)) == 0
    assert lowrank.apparent_rank(np.full((96, 200), np.inf)) == 0
    noise = rng.standard_normal((96, 200))
    assert lowrank.right_factor(lambda: [(noise, noise)], 200, 8).shape == (200, 0)


def test_balancing_and_quantising_keep_the_product() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.standard_normal((40, 3)) * [1e6, 1e-7, 0.0], rng.standard_normal((50, 3))
    one, other = lowrank.balance(left, right)
    assert np.array_equal(one @ other.T, left @ right.T)
    ratio = np.sqrt((one[:, :2] ** 2).mean(0) / (other[:, :2] ** 2).mean(0))
    assert np.all((ratio > 0.49) & (ratio < 2.1))
    for bits in (2, 9, 24, 27):
        numbers, exponent = lowrank.quantise(right, bits)
        assert np.array_equal(numbers, np.rint(numbers))
        assert np.abs(numbers).max() <= (1 << (bits - 1)) - 1
        assert np.abs(np.ldexp(numbers, exponent) - right).max() <= np.ldexp(1.01, exponent)
    numbers, exponent = lowrank.quantise(np.zeros((3, 2)), 9)
    assert not numbers.any()
