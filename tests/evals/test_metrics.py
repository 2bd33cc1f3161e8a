from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelgit.errors import UsageError
from modelgit.evals import metrics

OUTCOMES = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n) for _ in range(3)))
)
LABELS = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 4), min_size=n, max_size=n) for _ in range(3)))
)
LOGITS = arrays.arrays(np.float64, (7, 5), elements=st.floats(-30, 30))


@given(OUTCOMES)
def test_change_in_accuracy_is_positive_minus_negative_flips(outcomes: tuple[list[bool], ...]) -> None:
    old, new, _ = outcomes
    flips = metrics.count_flips(old, new)
    assert flips.total == len(old)
    assert math.isclose(flips.new_accuracy, metrics.accuracy(new))
    assert math.isclose(flips.old_accuracy, metrics.accuracy(old))
    assert math.isclose(
        metrics.accuracy(new) - metrics.accuracy(old), flips.positive_rate - flips.negative_rate, abs_tol=1e-12
    )


@given(OUTCOMES)
def test_negative_flips_obey_the_triangle_inequality(outcomes: tuple[list[bool], ...]) -> None:
    a, b, c = outcomes
    direct = metrics.count_flips(a, c).negative
    assert direct <= metrics.count_flips(a, b).negative + metrics.count_flips(b, c).negative


@given(LABELS)
def test_churn_is_a_metric(labels: tuple[list[int], ...]) -> None:
    a, b, c = labels
    assert metrics.churn(a, b) == metrics.churn(b, a)
    assert metrics.churn(a, a) == 0
    assert metrics.churn(a, c) <= metrics.churn(a, b) + metrics.churn(b, c) + 1e-12


def test_compatibility_scores_on_a_known_table() -> None:
    flips = metrics.Flips(both=70, negative=10, positive=12, neither=8)
    assert flips.negative_rate == 0.10
    assert flips.trust_compatibility == 70 / 80
    assert flips.error_compatibility == 8 / 18
    assert flips.error_overlap_old == 8 / 20
    assert math.isclose(flips.negative_impact, 1 - flips.error_compatibility)
    assert math.isclose(flips.relative_negative_rate, 0.10 / (0.80 * 0.18))


def test_independent_errors_have_relative_negative_rate_one() -> None:
    # 80 % right before and 70 % right after, independently.
    flips = metrics.Flips(both=56, negative=24, positive=14, neither=6)
    assert math.isclose(flips.relative_negative_rate, 1.0)


@given(LOGITS, LOGITS)
def test_divergence_matches_its_definition(old: np.ndarray, new: np.ndarray) -> None:
    p, q = metrics.log_softmax(old), metrics.log_softmax(new)
    expected = [sum(math.exp(a) * (a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    measured = metrics.kl_divergences(p, q)
    assert np.allclose(measured, np.maximum(expected, 0), rtol=1e-9, atol=1e-12)
    assert (measured >= 0).all()
    assert (metrics.kl_divergences(p, p) == 0).all()


def test_divergence_of_excluded_classes() -> None:
    sure, even = np.array([[0.0, -np.inf]]), np.log([[0.5, 0.5]])
    assert np.allclose(metrics.kl_divergences(sure, even), math.log(2))
    assert np.isinf(metrics.kl_divergences(even, sure)).all()


def test_a_row_with_nan_is_never_right_and_never_close() -> None:
    logits = np.array([[0.0, np.nan, 1.0], [np.inf, 0.0, 0.0], [1.0, 3.0, 2.0]])
    log_probs = metrics.log_softmax(logits)
    assert metrics.top_labels(log_probs).tolist() == [-1, -1, 1]
    assert np.isnan(metrics.kl_divergences(log_probs, np.zeros((3, 3)))).tolist() == [True, True, False]
    assert np.isnan(metrics.margins(log_probs)).tolist() == [True, True, False]


@given(LOGITS)
def test_margins_are_gaps_between_the_two_best(logits: np.ndarray) -> None:
    probabilities = np.sort(np.exp(metrics.log_softmax(logits)), axis=1)
    assert np.allclose(metrics.margins(metrics.log_softmax(logits)), probabilities[:, -1] - probabilities[:, -2])


@pytest.mark.parametrize("call", [lambda: metrics.accuracy([]), lambda: metrics.churn([], [])])
def test_no_examples_is_an_error_and_not_a_score(call: object) -> None:
    with pytest.raises(UsageError, match="at least one"):
        call()  # type: ignore[operator]


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="3 and 2"):
        metrics.count_flips([True, True, False], [True, True])
