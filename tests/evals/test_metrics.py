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
    assert math.isclose(flips.new_accuracy, np.mean(new))
    assert math.isclose(flips.old_accuracy, np.mean(old))
    assert math.isclose(np.mean(new) - np.mean(old), flips.positive_rate - flips.negative_rate, abs_tol=1e-12)


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


def test_no_examples_is_an_error_and_not_a_score() -> None:
    with pytest.raises(UsageError, match="at least one"):
        metrics.churn([], [])


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="3 and 2"):
        metrics.count_flips([True, True, False], [True, True])


# scipy.stats.binomtest(b, b + c, 0.5).pvalue and .proportion_ci(confidence, "exact") of SciPy 1.17.1.
MCNEMAR = [
    (0, 0, 1.0),
    (1, 0, 1.0),
    (5, 5, 1.0),
    (49, 125, 7.58735464360591e-09),
    (86, 78, 0.5847834991169736),
    (75, 98, 0.0941147230155386),
    (197, 95, 2.3659347604673145e-09),
    (3, 40, 3.0213413992896676e-09),
]
CLOPPER_PEARSON = [
    (0, 10, 0.95, 0.0, 0.30849710781876294),
    (10, 10, 0.95, 0.6915028921812371, 1.0),
    (1, 4000, 0.95, 6.329431957351027e-06, 0.0013921151219735432),
    (86, 4000, 0.95, 0.017232315539000214, 0.026485011157233812),
    (49, 4000, 0.99, 0.008227319308423742, 0.017474951175160104),
    (3, 7, 0.9, 0.1287563928042363, 0.7746784159675543),
    (0, 4000, 0.95, 0.0, 0.0009217947496064361),
    (500, 1000, 0.95, 0.46854917297179194, 0.531450827028208),
]


@pytest.mark.parametrize(("negative", "positive", "expected"), MCNEMAR)
def test_mcnemar_equals_scipy(negative: int, positive: int, expected: float) -> None:
    assert math.isclose(metrics.mcnemar_exact(negative, positive), expected, rel_tol=1e-9)
    assert metrics.mcnemar_exact(negative, positive) == metrics.mcnemar_exact(positive, negative)


@pytest.mark.parametrize(("count", "total", "confidence", "low", "high"), CLOPPER_PEARSON)
def test_clopper_pearson_equals_scipy(count: int, total: int, confidence: float, low: float, high: float) -> None:
    measured = metrics.clopper_pearson(count, total, confidence=confidence)
    assert measured == pytest.approx((low, high), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("call", [lambda: metrics.clopper_pearson(3, 2), lambda: metrics.mcnemar_exact(-1, 2)])
def test_impossible_counts_are_refused(call: object) -> None:
    with pytest.raises(UsageError):
        call()  # type: ignore[operator]


def test_macro_f1_of_a_known_table() -> None:
    gold = [0, 0, 0, 1, 1, 2]
    predicted = [0, 0, 1, 1, 3, -1]
    # Class 0: tp 2, fn 1; class 1: tp 1, fp 1, fn 1; class 2: fn 1; class 3: fp 1; -1 is no class.
    assert math.isclose(metrics.macro_f1(predicted, gold), (4 / 5 + 2 / 4 + 0 + 0) / 4)
    assert metrics.macro_f1(gold, gold) == 1.0


def test_calibration_error_of_known_bins() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.62, 0.62])
    log_probs = np.log(np.stack([confidence, 1 - confidence], axis=1))
    gold = [0, 0, 1, 0, 1]
    # Bin of 0.95: accuracy 2/3; bin of 0.62: accuracy 1/2.
    expected = 3 / 5 * abs(2 / 3 - 0.95) + 2 / 5 * abs(1 / 2 - 0.62)
    assert math.isclose(metrics.expected_calibration_error(log_probs, gold), expected)
    # Opposite faults in one bin cancel, in two bins they do not: 0.6 and 2/3 share a bin of 15 with its upper edge.
    edges = np.log([[0.61, 0.39], [10 / 15, 5 / 15]])
    assert math.isclose(metrics.expected_calibration_error(edges, [0, 1]), abs(1 / 2 - (0.61 + 10 / 15) / 2))
    assert math.isnan(metrics.expected_calibration_error([[np.nan, np.nan]], [0]))


def test_negative_log_likelihood_of_known_probabilities() -> None:
    log_probs = np.log([[0.5, 0.5], [0.25, 0.75]])
    assert math.isclose(metrics.mean_negative_log_likelihood(log_probs, [0, 1]), -(math.log(0.5) + math.log(0.75)) / 2)
    assert metrics.mean_negative_log_likelihood(log_probs, [0, 2]) == math.inf
    with pytest.raises(UsageError, match="1 of 2 examples have no label"):
        metrics.mean_negative_log_likelihood(log_probs, [0, -1])


def test_changes_of_scores_with_and_without_a_dead_band() -> None:
    old, new = [0.5, 0.5, 0.5, 0.5, np.inf], [0.25, 0.49, 0.5, 0.75, np.inf]
    assert metrics.score_changes(old, new).tolist() == [-1, -1, 0, 1, 0]
    assert metrics.score_changes(old, new, dead_band=0.05).tolist() == [-1, 0, 0, 1, 0]
    # 0.45 is 0.05 less than 0.5, whatever binary fractions make of it.
    assert metrics.score_changes([0.5, 0.5, 0.5], [0.45, 0.449, 0.6], dead_band=0.05).tolist() == [0, -1, 1]
    with pytest.raises(UsageError, match="1 of 2 scores are NaN"):
        metrics.score_changes([0.0, np.nan], [0.0, 0.0])


def test_recall_and_cosines_of_a_known_plane() -> None:
    angles = np.radians([0, 10, 90, 100, 45])
    index = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = [0, 0, 1, 1, 2]
    assert metrics.recall_at_k(index, index, labels).hits == 4
    # Label 2 has one example, which can find nothing and is not counted; scale plays no part.
    turned = 3 * np.stack([np.cos(angles + np.pi / 2), np.sin(angles + np.pi / 2)], axis=1)
    found = metrics.recall_at_k(turned, index, labels)
    assert (found.queries, found.hits, found.found.tolist()) == (4, 2, [False, False, True, True, False])
    assert metrics.recall_at_k(turned, index, labels, k=4).rate == 1.0
    assert np.allclose(metrics.cosines(index, turned), 0, atol=1e-12)
    assert np.allclose(metrics.cosines(index, 2 * index), 1)
    with pytest.raises(UsageError, match="1 of 5 embeddings are not finite"):
        metrics.cosines(index, np.where(np.arange(5)[:, None] == 2, np.nan, index))


def test_recall_by_blocks_equals_recall_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.evals.metrics import retrieval

    draw = np.random.default_rng(5)
    old, new, labels = draw.normal(size=(53, 4)), draw.normal(size=(53, 4)), draw.integers(0, 9, 53)
    old[7] = old[30]  # a tie
    similar = (new / np.linalg.norm(new, axis=1)[:, None]) @ (old / np.linalg.norm(old, axis=1)[:, None]).T
    np.fill_diagonal(similar, -np.inf)
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, :3]
    monkeypatch.setattr(retrieval, "_BLOCK", 7)
    recall = metrics.recall_at_k(new, old, labels, k=3)
    assert recall.first.tolist() == nearest[:, 0].tolist()
    counted = np.bincount(labels)[labels] > 1
    assert recall.hits == np.count_nonzero((labels[nearest] == labels[:, None]).any(axis=1) & counted)
