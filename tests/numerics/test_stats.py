"""Statistics of a pair: right against direct formulas, and the same whole or in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import UsageError
from modelgit.numerics.stats import PairStatistics, compare, count_changed
from modelgit.objects import DTYPES

RNG = np.random.default_rng(11)


def test_statistics_of_float32_agree_with_the_formulas():
    old = RNG.normal(size=300_001).astype(np.float32)
    new = old.copy()
    new[::7] += 0.25
    found = compare(old.tobytes(), new.tobytes(), "F32")
    difference = new.astype(np.float64) - old.astype(np.float64)
    assert found.words == old.size
    assert found.changed == np.count_nonzero(old != new)
    assert math.isclose(found.squared_difference, float(np.sum(difference**2)), rel_tol=1e-12)
    assert math.isclose(found.squared_old, float(np.sum(old.astype(np.float64) ** 2)), rel_tol=1e-12)
    assert found.largest_difference == np.max(np.abs(difference))
    assert math.isclose(found.difference_norm, np.linalg.norm(difference))


def test_bits_decide_what_changed_and_values_what_it_means():
    old = np.array([0.0, 1.0, np.nan, np.inf, 2.0], np.float32)
    new = np.array([-0.0, np.nan, np.nan, np.inf, 5.0], np.float32)
    found = compare(old.tobytes(), new.tobytes(), "F32")
    assert found == PairStatistics(
        words=5,
        changed=3,
        squared_difference=9.0,
        squared_old=4.0,
        largest_difference=3.0,
        nonfinite_old=2,
        nonfinite_new=3,
    )


@given(st.sampled_from(sorted(DTYPES)), st.binary(min_size=480, max_size=480), st.binary(min_size=480, max_size=480))
def test_pieces_add_up_for_every_dtype(dtype, old, new):
    whole = compare(old, new, dtype)
    parts = compare(old[:160], new[:160], dtype).merge(compare(old[160:], new[160:], dtype))
    assert (whole.words, whole.changed) == (parts.words, parts.changed)
    assert (whole.nonfinite_old, whole.nonfinite_new) == (parts.nonfinite_old, parts.nonfinite_new)
    assert whole.largest_difference == parts.largest_difference
    assert whole.squared_difference == pytest.approx(parts.squared_difference, rel=1e-9)
    assert whole.words == 480 // DTYPES[dtype].word_bytes


def test_nothing_changes_nothing():
    assert compare(b"", b"", "BF16") == PairStatistics()


def test_different_lengths_are_refused():
    with pytest.raises(UsageError):
        compare(bytes(4), bytes(8), "F32")
    with pytest.raises(UsageError):
        count_changed(np.zeros(1, np.uint8), np.zeros(2, np.uint8))
