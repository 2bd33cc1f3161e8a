"""Measures of models on examples: pure functions over arrays, one module per topic."""

from modelgit.evals.metrics.classes import (
    expected_calibration_error,
    kl_divergences,
    log_softmax,
    macro_f1,
    margins,
    mean_negative_log_likelihood,
    top_labels,
)
from modelgit.evals.metrics.flips import (
    Flips,
    churn,
    count_flips,
    score_changes,
)
from modelgit.evals.metrics.intervals import clopper_pearson, mcnemar_exact
from modelgit.evals.metrics.retrieval import cosines, recall_at_k

__all__ = [
    "Flips",
    "churn",
    "clopper_pearson",
    "cosines",
    "count_flips",
    "expected_calibration_error",
    "kl_divergences",
    "log_softmax",
    "macro_f1",
    "margins",
    "mcnemar_exact",
    "mean_negative_log_likelihood",
    "recall_at_k",
    "score_changes",
    "top_labels",
]
