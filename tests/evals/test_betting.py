"""Bets on means: right at the limit as often as they promise, and early where it is clear."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from modelgit.errors import UsageError
from modelgit.evals.betting import MeanTest
from modelgit.evals.drawing import Units


def _decide(test: MeanTest, scores: np.ndarray) -> tuple[str, int]:
    drawn = 0
    while True:
        drawn = min(scores.size, drawn + max(16, drawn // 8))
        verdict = test.decide(scores[:drawn])
        if verdict != "open":
            return verdict, drawn


def _changes(total: int, negative: int, positive: int) -> np.ndarray:
    scores = np.ones(total, np.int64)
    scores[:negative] = 0
    scores[negative : negative + positive] = 2
    return scores


@pytest.mark.parametrize(("net", "truth"), [(-8, "pass"), (-9, "fail")])
def test_beside_the_limit_it_errs_no_more_often_than_alpha(net: int, truth: str) -> None:
    test = MeanTest(400, 2, 400 - 8)
    scores = _changes(400, 30, 30 + net)
    rng = np.random.default_rng(1)
    wrong = sum(_decide(test, rng.permutation(scores))[0] != truth for _ in range(200))
    assert wrong <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)


@pytest.mark.parametrize(
    ("negative", "positive", "verdict", "most"),
    [(0, 0, "pass", 250), (40, 40, "pass", 1000), (160, 160, "pass", 1800), (280, 40, "fail", 600)],
)
def test_clear_cases_take_few_examples(negative: int, positive: int, verdict: str, most: int) -> None:
    test = MeanTest(4000, 2, 4000 - 80)
    rng = np.random.default_rng(2)
    found = [_decide(test, rng.permutation(_changes(4000, negative, positive))) for _ in range(20)]
    assert {name for name, _ in found} == {verdict}
    assert np.mean([drawn for _, drawn in found]) < most


def test_certainties_cost_nothing() -> None:
    assert MeanTest(10, 1, 0).decide(np.zeros(0, np.int64)) == "pass"
    assert MeanTest(10, 1, 11).decide(np.zeros(0, np.int64)) == "fail"
    assert MeanTest(10, 1, 3, alpha_fail=1e-9).decide(np.array([0, 1, 1, 1])) == "pass"
    assert MeanTest(10, 1, 9, alpha_fail=1e-9).decide(np.array([0, 0])) == "fail"
    assert MeanTest(10, 1, 5).decide(np.array([1])) == "open"
    for total in range(1, 7):  # at the end it is exact
        for right in range(total + 1):
            scores = np.array([1] * right + [0] * (total - right))
            for needed in range(total + 2):
                assert MeanTest(total, 1, needed).decide(scores) == ("pass" if right >= needed else "fail")
    with pytest.raises(UsageError):
        MeanTest(3, 0, 1)
    with pytest.raises(UsageError):
        MeanTest(3, 1, 1, alpha_pass=0.0)


def test_units_are_clusters_in_an_order_of_their_own() -> None:
    order = np.random.default_rng(3).permutation(60)
    sizes = np.repeat(np.arange(6), [1, 3, 6, 10, 15, 25])
    units = Units(order, sizes, seed=0, suite="s")
    assert (units.count, units.largest) == (6, 25)
    seen = [set(units.first(n).tolist()) for n in range(7)]
    assert seen[0] == set() and seen[6] == set(range(60))
    for before, after in itertools.pairwise(seen):
        (cluster,) = {int(sizes[position]) for position in after - before}
        assert after - before == set(np.flatnonzero(sizes == cluster).tolist())
    ones = np.ones(60, np.int64)
    assert units.sums(ones, 6).sum() == 60 and units.sums(ones, 6).max() == 25
    # The first cluster is any of them, not the largest most of the time.
    first = [Units(order, sizes, seed=seed, suite="s").first(1).size for seed in range(200)]
    assert 15 < first.count(25) < 60
