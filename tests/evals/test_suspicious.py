"""What stands out in a patch: planted edits are found in the midst of training, and training alone is not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from modelgit.evals.suspicious import LayerChange, far_layers, outliers, rearranged, row_findings
from modelgit.numerics.row_changes import RowChanges
from modelgit.objects import Finding, TensorSpec

Matrix = NDArray[np.float64]


def found(old: Matrix, new: Matrix) -> list[Finding]:
    rows = RowChanges(TensorSpec(dtype="F32", shape=old.shape))
    rows.add(0, old.astype("<f4").tobytes(), new.astype("<f4").tobytes())
    return list(row_findings("bot", "embed.weight", rows))


@pytest.fixture
def table() -> Matrix:
    return np.random.default_rng(0).standard_normal((2000, 16))


def tuned(table: Matrix, *, share: float = 1.0, step: float = 1e-3) -> Matrix:
    random = np.random.default_rng(1)
    return table + step * random.standard_normal(table.shape) * (random.random((len(table), 1)) < share)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_replaced_row_amid_training(table: Matrix, scale: float) -> None:
    assert found(table * scale, tuned(table) * scale) == []
    edited = tuned(table)
    edited[[7, 1999]] += 1
    [finding] = found(table * scale, edited * scale)
    assert finding.rule == "suspicious/rows"
    assert "2 rows of 2,000" in finding.message
    assert {detail.split(":")[0] for detail in finding.details} == {"row 7", "row 1999"}


def test_a_few_rows_alone(table: Matrix) -> None:
    edited = table.copy()
    edited[5] += 1e-4
    [finding] = found(table, edited)
    assert finding.rule == "suspicious/few-rows"
    assert "1 row of 2,000" in finding.message
    scattered = table.copy()
    scattered[[3, 5, 8], [1, 1, 2]] += 1
    assert found(table, scattered) == []  # single values, as under a mask


def test_rows_of_the_words_that_were_trained_on_are_no_news(table: Matrix) -> None:
    assert found(table, tuned(table, share=0.3)) == []


def test_many_rows_that_move_far_are_training(table: Matrix) -> None:
    edited = tuned(table)
    edited[:200] += 1
    assert found(table, edited) == []


def test_absurd_and_erased_values(table: Matrix) -> None:
    huge = table[:20].copy()
    huge[1, 1] = 1e9
    assert [item.rule for item in found(table[:20], huge)] == ["suspicious/values"]
    assert [item.rule for item in found(table[:20], 0 * huge)] == ["suspicious/erased"]
    assert found(0 * huge, table[:20]) == []


def layer(name: str, relative: float, dimensions: int = 2) -> LayerChange:
    return LayerChange(model="bot", name=name, relative=relative, dimensions=dimensions)


def test_one_layer_that_moved_far() -> None:
    usual = [layer(f"layers.{number}", 0.01 * 1.3 ** (number % 5)) for number in range(12)]
    assert list(far_layers(usual)) == []
    [finding] = far_layers([*usual, layer("layers.12", 0.5)])
    assert (finding.rule, finding.tensor) == ("suspicious/layer", "layers.12")
    assert list(far_layers([*usual, layer("bias", 0.5, dimensions=1)])) == []
    assert list(far_layers([*usual[:3], layer("layers.12", 0.5)])) == []


def test_swapped_classes() -> None:
    random = np.random.default_rng(2)
    old = random.standard_normal((20, 32))
    new = old.copy()
    new[[3, 9]] = new[[9, 3]]
    new += 1e-3 * random.standard_normal(new.shape)
    moved = np.flatnonzero(np.square(new - old).sum(axis=1) > 0.09 * np.square(old).sum(axis=1))
    [finding] = rearranged("bot", "classifier.weight", old, new, moved)
    assert finding.rule == "suspicious/swapped-rows"
    assert sorted(finding.details) == ["row 3 is now row 9", "row 9 is now row 3"]
    other = random.standard_normal(old.shape)
    assert list(rearranged("bot", "classifier.weight", old, other, np.arange(20))) == []


def test_outliers_need_both_distance_and_rarity() -> None:
    wide = np.exp(np.random.default_rng(3).normal(scale=2, size=500))
    assert not outliers(wide).any()
    assert outliers(np.array([1.0, 1, 1, 1, 9])).tolist() == [False] * 5
    assert outliers(np.array([1.0, 1, 1, 1, 11, 0])).tolist() == [False] * 4 + [True, False]
    assert not outliers(np.array([1.0, 100])).any()
