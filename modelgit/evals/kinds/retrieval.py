"""`retrieval-compat`: whether new queries find their like in an index of old embeddings (BCT).

Shen et al., "Towards Backward-Compatible Representation Learning", CVPR 2020: an index is built once by the baseline
and searched with the embeddings of the candidate.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelgit.config.suites import MetricLimit, RetrievalTest
from modelgit.errors import CheckFailed, UsageError
from modelgit.evals.base import Dataset, Side, SuiteRun
from modelgit.evals.checks import Row, accuracy_row, failed, metric_row
from modelgit.evals.metrics import cosines, recall_at_k
from modelgit.evals.streams import embeddings

__all__ = ["run"]


def run(test: RetrievalTest, run: SuiteRun) -> Iterator[Row]:
    """For each baseline a line for recall (new queries, old index) and one for the mean cosine, as far as limited.

    Held are one model at a time, float32 embeddings of both sides, and blocks of their similarities.  Raises UsageError
    for a model without embeddings and, where recall is limited, for data without labels.
    """
    data = run.data_of(test)
    recall_limit = MetricLimit(max_drop=test.max_drop)
    cosine_limit = MetricLimit(min=test.min_cosine)
    names = (f"recall at {test.k}", "cosine")
    if not run.baselines:
        for name, limit, wanted in zip(
            names, (recall_limit, cosine_limit), (test.max_drop, test.min_cosine), strict=True
        ):
            if wanted is not None:
                yield failed(name, limit, "", decision="baseline")
        return
    try:
        new = _embeddings(run, run.candidate, data)
    except CheckFailed as error:
        yield failed(names[0], recall_limit, error.message, decision="fail")
        return
    for side in run.baselines:
        old = _embeddings(run, side, data)
        if old.shape != new.shape:
            reason = f"embeddings have {new.shape[1]} numbers, and {old.shape[1]} in the baseline {side.name}"
            yield failed(names[0], recall_limit, reason, decision="fail")
            continue
        if test.max_drop is not None or test.level == "info":
            yield _recall(names[0], recall_limit, data, old, new, test.k, side)
        if test.min_cosine is not None or test.level == "info":
            mean = float(cosines(old, new).mean())
            yield metric_row(names[1], cosine_limit, mean, None, unit="number", examples=len(data), against=side.name)


def _embeddings(run: SuiteRun, side: Side, data: Dataset) -> NDArray[np.float32]:
    everything = np.arange(len(data), dtype=np.int64)
    return embeddings(side.model(data), side.encode(data, everything), check=run.check, progress=run.progress)


def _recall(
    name: str,
    limit: MetricLimit,
    data: Dataset,
    old: NDArray[np.float32],
    new: NDArray[np.float32],
    k: int,
    side: Side,
) -> Row:
    before = recall_at_k(old, old, data.labels, k=k)
    after = recall_at_k(new, old, data.labels, k=k)
    if not after.queries:
        raise UsageError(
            f"no two examples of `{data.name}` have the same label, and recall needs such",
            hint='write `label = "FIELD"` under [data.NAME] of the suite',
        )
    same = float(np.mean(before.first == after.first))
    line = accuracy_row(limit, after.queries, after.hits, before.hits, against=side.name)
    detail = f"{after.hits:,} of {after.queries:,} queries find their like; {100 * same:.1f} % have the same nearest"
    return Row(msgspec.structs.replace(line.result, name=name, detail=detail), line.decision)
