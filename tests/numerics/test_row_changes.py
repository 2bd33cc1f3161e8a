"""Sums by row, added up window by window, equal those of the whole arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.numerics.row_changes import RowChanges
from modelgit.objects import TensorSpec


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 300),
    cuts=st.lists(st.integers(0, 2700), max_size=4),
    seed=st.integers(0, 9),
)
def test_windows_add_up(rows: int, columns: int, cuts: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    old = random.standard_normal((rows, columns)).astype("<f4")
    new = np.where(random.random((rows, columns)) < 0.5, old, old + 1).astype("<f4")
    found = RowChanges(TensorSpec(dtype="F32", shape=(rows, columns)))
    words = rows * columns
    edges = sorted({0, words, *(cut for cut in cuts if cut < words)})
    for start, stop in itertools.pairwise(edges):
        found.add(4 * start, old.ravel()[start:stop].tobytes(), new.ravel()[start:stop].tobytes())
    wide, narrow = new.astype(np.float64), old.astype(np.float64)
    assert found.changed.tolist() == (old != new).sum(axis=1).tolist()
    np.testing.assert_allclose(found.squared_difference, np.square(wide - narrow).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.squared_old, np.square(narrow).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.squared_new, np.square(wide).sum(axis=1), rtol=1e-12)
    assert found.largest_old == np.abs(old).max()
    assert found.largest_new == np.abs(new).max()
    expected = np.linalg.norm(wide - narrow) / np.linalg.norm(narrow)
    assert found.relative == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("dtype", "shape", "rows", "columns"),
    [
        ("F32", (), 1, 1),
        ("F32", (7,), 1, 7),
        ("BF16", (3, 4, 5), 3, 20),
        ("C64", (3, 4), 3, 8),
        ("I64", (2, 6), 2, 6),
        ("F32", (0, 5), 1, 1),
        ("F32", (5, 0), 5, 1),
    ],
)
def test_what_a_row_is(dtype: str, shape: tuple[int, ...], rows: int, columns: int) -> None:
    found = RowChanges(TensorSpec(dtype=dtype, shape=shape))
    assert (found.rows, found.columns) == (rows, columns)
    assert found.relative is None


def test_values_that_are_not_finite_count_in_no_norm() -> None:
    old = np.array([[1, np.inf, 3], [2, 2, 2]], "<f4")
    new = np.array([[1, 7, np.nan], [2, 5, 2]], "<f4")
    found = RowChanges(TensorSpec(dtype="F32", shape=(2, 3)))
    found.add(0, old.tobytes(), new.tobytes())
    assert found.changed.tolist() == [2, 1]
    assert found.squared_difference.tolist() == [0, 9]
    assert (found.largest_old, found.largest_new) == (2.0, 5.0)


def test_packed_types_are_compared_word_by_word() -> None:
    spec = TensorSpec(dtype="F4", shape=(4, 8))
    found = RowChanges(spec)
    old = bytes(spec.size_bytes)
    found.add(0, old, b"\1" + old[1:])
    assert found.changed.tolist() == [1, 0, 0, 0]
    assert found.relative is None
