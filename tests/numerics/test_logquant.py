"""One byte a value on a logarithmic scale: how far values move, that sums do not, what lies outside of the range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as shapes

from modelgit.numerics.logquant import FINE_OCTAVES, decode, encode, fit

# 34 decades, zeros among them, as float32 has them.
VALUES = shapes.arrays(
    np.float32,
    st.integers(1, 400),
    elements=st.one_of(
        st.just(0.0),
        st.floats(-30, 4).map(lambda power: float(np.float32(10.0**power))),
        st.floats(-3, 0).map(lambda power: float(np.float32(10.0**power))),
    ),
)


def coded(values: np.ndarray) -> np.ndarray | None:
    scale = fit(lambda: [values])
    return None if scale is None else decode(encode(values, scale.top), scale.scale)


@given(VALUES)
def test_values_stay_within_five_per_cent_and_add_up(values: np.ndarray) -> None:
    found = coded(values)
    if found is None:
        return  # stored as float32: see the next test for when that must not be
    assert np.array_equal(found == 0, values == 0)
    exact, total = values.astype(np.float64), float(values.sum(dtype=np.float64))
    assert abs(float(found.sum(dtype=np.float64)) - total) <= 1e-3 * total
    near = (values > 0) & (exact >= float(values.max()) * 2.0 ** -(FINE_OCTAVES - 1))
    assert np.all(np.abs(found[near] / exact[near] - 1) <= 0.05)
    # Further down the order of magnitude stays: steps are 3 octaves, halves of them are lost.
    positive = values > 0
    assert np.all(np.abs(np.log2(found[positive] / exact[positive])) <= 1.6)


@given(VALUES)
def test_order_is_kept(values: np.ndarray) -> None:
    found = coded(values)
    if found is not None:
        order = np.argsort(values, kind="stable")
        assert np.all(np.diff(found[order]) >= 0)


@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0, 12.0])
def test_what_statistics_look_like_always_fits_and_is_nearly_exact_in_sum(spread: float) -> None:
    random = np.random.default_rng(1)
    values = (1e-9 * random.chisquare(1, 20_000) * np.exp(spread * random.standard_normal(20_000))).astype(np.float32)
    values[::7] = 0
    found = coded(values)
    assert found is not None
    assert float(found.sum(dtype=np.float64)) == pytest.approx(float(values.sum(dtype=np.float64)), rel=1e-6)
    # Not only the whole sum: of a tenth of the values as well, as far as rounding errors average out.
    part = random.random(values.size) < 0.1
    if spread <= 2:
        assert float(found[part].sum()) == pytest.approx(float(values[part].sum(dtype=np.float64)), rel=0.01)


def test_below_the_range_is_the_smallest_code_and_never_zero() -> None:
    values = np.array([1e-45, 1e-38, 1e-30, 0.0, 1e4], np.float32)
    scale = fit(lambda: [values])
    assert scale is not None
    codes = encode(values, scale.top)
    assert codes.tolist()[0] == codes.tolist()[1] == 1 and codes[3] == 0 and codes[2] > 1
    assert np.all(decode(codes, scale.scale)[[0, 1, 2, 4]] > 0)
    # Where the smallest value is below what float32 can hold, it becomes the smallest float32.
    tiny = decode(np.array([1], np.uint8), 1e-30)
    assert tiny[0] == np.finfo(np.float32).smallest_subnormal


def test_one_value_zeros_and_nothing() -> None:
    assert coded(np.full(9, 3.3e-7, np.float32)) == pytest.approx(np.full(9, 3.3e-7), rel=1e-6)
    assert not np.any(coded(np.zeros(5, np.float32)))
    empty = coded(np.zeros(0, np.float32))
    assert empty is not None and empty.size == 0


def test_few_values_that_cannot_add_up_are_refused() -> None:
    random = np.random.default_rng(0)
    found = [coded(random.chisquare(1, 2).astype(np.float32)) for _ in range(300)]
    refused = sum(item is None for item in found)
    assert 0 < refused < 100


@pytest.mark.parametrize("wrong", [-1e-9, np.nan, np.inf])
def test_what_is_no_statistic_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="negative or not finite"):
        fit(lambda: [np.array([1.0, wrong], np.float32)])


def test_pieces_give_what_the_whole_gives() -> None:
    values = np.random.default_rng(0).chisquare(1, 5000).astype(np.float32)
    assert fit(lambda: [values]) == pytest.approx(fit(lambda: np.array_split(values, 7)))
