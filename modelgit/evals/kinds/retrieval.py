"""`retrieval-compat`: whether new queries find their like in an index of old embeddings.

Shen et al., "Towards Backward-Compatible Representation Learning", CVPR 2020: an index is built once by the baseline
and searched with the embeddings of the candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.config.suites import MetricLimit, RetrievalTest
from modelgit.errors import CheckFailed, UsageError
from modelgit.evals.base import Dataset, Side, SuiteRun
from modelgit.evals.checks import Row, accuracy_row, failed, metric_row
from modelgit.evals.metrics import cosines, recall_at_k
from modelgit.evals.streams import embeddings

__all__ = ["run"]


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """Of `queries`, `before` found their like in the index by old embeddings, and `after` by new ones.

    `same` is the share of examples with the same nearest one, `cosine` the mean of old against new.
    """

    queries: int
    before: int
    after: int
    same: float
    cosine: float


def run(test: RetrievalTest, run: SuiteRun) -> Iterator[Row]:
    """For each baseline a line for recall (new queries, old index) and one for the mean cosine, as far as limited.

    What was found is kept for the two weights.  Held are one model at a time, float32 embeddings of both sides, and
    blocks of their similarities.  Raises UsageError for a model without embeddings and, where recall is limited, for
    data without labels.
    """
    data = run.data_of(test)
    recall, cosine = MetricLimit(max_drop=test.max_drop), MetricLimit(min=test.min_cosine)
    name = f"recall at {test.k}"
    wants_recall = test.max_drop is not None or test.level == "info"
    wants_cosine = test.min_cosine is not None or test.level == "info"
    if not run.baselines:
        yield from (failed(name, recall, "", decision="baseline") for _ in range(wants_recall))
        yield from (failed("cosine", cosine, "", decision="baseline") for _ in range(wants_cosine))
        return
    made = cache(lambda: _embeddings(run, run.candidate, data))
    for side in run.baselines:
        try:
            found = _found(test, run, side, data, made)
        except CheckFailed as error:
            # Embeddings that are no numbers are a bad model, and no fault of the test.
            yield failed(name, recall, error.message, decision="fail")
            continue
        if wants_recall:
            yield _recall(name, recall, data, found, side)
        if wants_cosine:
            yield metric_row("cosine", cosine, found.cosine, None, unit="number", examples=len(data), against=side.name)


def _found(
    test: RetrievalTest, run: SuiteRun, side: Side, data: Dataset, made: Callable[[], NDArray[np.float32]]
) -> _Found:
    """From what is kept for the two weights, or searched now and kept."""
    key = _key(test, run, side, data)
    try:
        return msgspec.convert(run.candidate.scores(key), _Found)
    except msgspec.ValidationError:
        pass  # nothing is kept
    new, old = made(), _embeddings(run, side, data)
    if old.shape != new.shape:
        raise CheckFailed(f"embeddings have {new.shape[1]} numbers, and {old.shape[1]} in the baseline {side.name}")
    before, after = (recall_at_k(queries, old, data.labels, k=test.k) for queries in (old, new))
    found = _Found(
        queries=after.queries,
        before=before.hits,
        after=after.hits,
        same=float(np.mean(before.first == after.first)),
        cosine=float(cosines(old, new).mean()),
    )
    run.candidate.keep_scores(key, msgspec.to_builtins(found))
    return found


def _embeddings(run: SuiteRun, side: Side, data: Dataset) -> NDArray[np.float32]:
    everything = np.arange(len(data), dtype=np.int64)
    return embeddings(side.model(data), side.encode(data, everything), check=run.check, progress=run.progress)


def _recall(name: str, limit: MetricLimit, data: Dataset, found: _Found, side: Side) -> Row:
    if not found.queries:
        raise UsageError(
            f"no two examples of `{data.name}` have the same label, and recall needs such",
            hint='write `label = "FIELD"` under [data.NAME] of the suite',
        )
    line = accuracy_row(limit, found.queries, found.after, found.before, against=side.name)
    detail = (
        f"{found.after:,} of {found.queries:,} queries find their like; {100 * found.same:.1f} % have the same nearest"
    )
    return Row(msgspec.structs.replace(line.result, name=name, detail=detail), line.decision)


def _key(test: RetrievalTest, run: SuiteRun, side: Side, data: Dataset) -> str:
    """All that is found depends on, beside the candidate's weights."""
    task = msgspec.structs.replace(data.task, train=None, test=None)
    asked = (
        (side.weights, side.model_path(task), run.candidate.model_path(task), task, test.k, data.fingerprint),
        (run.settings.device, run.settings.dtype, sorted(side.versions.items())),
        # Numbers of labels are made of a field that the fingerprint does not name.
        blake3(data.labels.tobytes()).hexdigest(),
        sorted(run.code.items()) if task.entry is not None else [],
    )
    return f"retrieval:{blake3(msgspec.json.encode(asked, order='deterministic')).hexdigest()}"
