"""`retrieval-compat`: whether new queries find their like in an index of old embeddings (BCT).

Shen et al., "Towards Backward-Compatible Representation Learning", CVPR 2020: an index is built once by the baseline
and searched with the embeddings of the candidate.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.config.suites import MetricLimit, RetrievalTest
from modelgit.errors import CheckFailed, UsageError
from modelgit.evals.base import Dataset, Side, SuiteRun
from modelgit.evals.checks import Row, accuracy_row, failed, metric_row
from modelgit.evals.kept import kept_as, output_key
from modelgit.evals.metrics import cosines, recall_at_k

__all__ = ["run"]


def run(test: RetrievalTest, run: SuiteRun) -> Iterator[Row]:
    """For each baseline a line for recall (new queries, old index) and one for the mean cosine, as far as limited.

    What two models give together is kept.  Held are one model at a time, float32 embeddings of both sides, and blocks
    of their similarities.  Raises UsageError for a model without embeddings and, where recall is limited, for data
    without labels.
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
    new = None
    where, labels = run.candidate.model_path(data.task), blake3(data.labels.tobytes()).hexdigest()
    k = test.k if test.max_drop is not None or test.level == "info" else None
    for side in run.baselines:
        key = output_key("retrieval", run, side, data, side.weights, where, labels, k)
        found = kept_as(_Found, run.candidate.scores(key))
        if found is None:
            try:
                new = _embeddings(run, run.candidate, data) if new is None else new
            except CheckFailed as error:
                yield failed(names[0], recall_limit, error.message, decision="fail")
                return
            found = _measured(data, _embeddings(run, side, data), new, k)
            run.candidate.keep_scores(key, msgspec.to_builtins(found))
        if found.mean_cosine is None:
            reason = f"embeddings have {found.width} numbers, and {found.width_before} in the baseline {side.name}"
            yield failed(names[0], recall_limit, reason, decision="fail")
            continue
        if k is not None:
            yield _recall(names[0], recall_limit, data, found, side)
        if test.min_cosine is not None or test.level == "info":
            yield metric_row(
                names[1],
                cosine_limit,
                found.mean_cosine,
                None,
                unit="number",
                examples=len(data),
                against=side.name,
            )


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """What two sets of embeddings give: `hits` of `queries` find their like, `same` is the share with one nearest.

    Of embeddings of different widths nothing but these is known; without queries, nothing was searched.
    """

    width: int
    width_before: int
    queries: int = 0
    hits: int = 0
    hits_before: int = 0
    same: float = 0.0
    mean_cosine: float | None = None


def _measured(data: Dataset, old: NDArray[np.float32], new: NDArray[np.float32], k: int | None) -> _Found:
    found = _Found(width=new.shape[1], width_before=old.shape[1])
    if old.shape != new.shape:
        return found
    found = msgspec.structs.replace(found, mean_cosine=float(cosines(old, new).mean()))
    if k is None:
        return found
    before = recall_at_k(old, old, data.labels, k=k)
    after = recall_at_k(new, old, data.labels, k=k)
    same = float(np.mean(before.first == after.first))
    return msgspec.structs.replace(found, queries=after.queries, hits=after.hits, hits_before=before.hits, same=same)


def _embeddings(run: SuiteRun, side: Side, data: Dataset) -> NDArray[np.float32]:
    from modelgit.evals.streams import embeddings

    everything = np.arange(len(data), dtype=np.int64)
    return embeddings(side.model(data), side.encode(data, everything), check=run.check, progress=run.progress)


def _recall(name: str, limit: MetricLimit, data: Dataset, found: _Found, side: Side) -> Row:
    if not found.queries:
        raise UsageError(
            f"no two examples of `{data.name}` have the same label, and recall needs such",
            hint='write `label = "FIELD"` under [data.NAME] of the suite',
        )
    line = accuracy_row(limit, found.queries, found.hits, found.hits_before, against=side.name)
    detail = (
        f"{found.hits:,} of {found.queries:,} queries find their like; {100 * found.same:.1f} % have the same nearest"
    )
    return Row(msgspec.structs.replace(line.result, name=name, detail=detail), line.decision)
