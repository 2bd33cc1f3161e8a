"""Products and solutions that are right, and the same in whatever order BLAS adds."""

import numpy as np
import pytest

from modelgit.numerics.products import product, sliced, solve


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (4, 0, 2), (0, 3, 2), (3, 300, 5), (130, 129, 131)])
def test_products_are_those_of_more_digits(shape):
    rows, inner, columns = shape
    rng = np.random.default_rng(sum(shape))
    left = rng.normal(size=(rows, inner)) * np.exp(9 * rng.normal(size=(rows, 1)))
    right = rng.normal(size=(inner, columns)) * np.exp(9 * rng.normal(size=(1, columns)))
    exact = left.astype(np.longdouble) @ right.astype(np.longdouble)
    size = np.abs(left).max(1, initial=0)[:, None] * np.abs(right).max(0, initial=0)
    found = product(left, right)
    assert found.shape == (rows, columns)
    assert (np.abs(found - exact) <= 2.0**-52 * np.abs(exact) + inner * 2.0**-57 * size).all()
    assert np.array_equal(product(left, sliced(right)), found)
    # Another order of what is added: BLAS gives other bits for this, and these do not move.
    order = rng.permutation(inner)
    assert np.array_equal(product(left[:, order], right[order]), found)
    # As many slices as there are, and no scale.
    assert np.array_equal(product(left * 2.0**-70, right * 2.0**40), found * 2.0**-30)
    rough = product(left, sliced(right, slices=2))
    assert (np.abs(rough - exact) <= 2.0**-52 * np.abs(exact) + inner * 2.0**-36 * size).all()


@pytest.mark.parametrize("size", [1, 3, 64, 65, 150])
def test_solutions_are_those_of_a_dense_solver(size):
    rng = np.random.default_rng(size)
    data = rng.normal(size=(2 * size + 3, size)) * np.exp(2 * rng.normal(size=size))
    matrix, right = data.T @ data, rng.normal(size=(size, 4))
    assert np.allclose(solve(matrix, right), np.linalg.solve(matrix, right), rtol=1e-9, atol=1e-12)
    assert np.array_equal(solve(np.tril(matrix) + 7 * np.triu(matrix, 1), right), solve(matrix, right))


def test_what_others_determine_is_left_alone():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(40, 3))
    data = np.column_stack([data, data @ [1, 2, -1], np.zeros(40), rng.normal(size=40)])
    matrix = data.T @ data
    right = matrix @ rng.normal(size=(6, 2))
    found = solve(matrix, right)
    assert np.array_equal(found[[3, 4]], np.zeros((2, 2)))
    assert np.allclose(matrix @ found, right)
