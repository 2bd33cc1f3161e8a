"""Fisher estimates in the store: what one byte a weight takes and costs (full model, TREC, base weights, seed 0).

One pass over 128 training questions (one-pass Rademacher signs), stored twice in a repository: as float32 and as codes.
Sizes are those of the packs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from parts import Plan
from science_data import new_model, science_task
from table import Row

import modelgit
from modelgit.environment import Environment
from modelgit.fisher.estimate import estimate
from modelgit.fisher.mask import top_mask
from modelgit.objects import CodedTensor, TensorEntry
from modelgit.patching.statistics import StoredStatistic, read_values, store_values

_EXAMPLES = 128
_GROUP = f"Fisher estimates in the store (full model, TREC, {_EXAMPLES} examples)"

Values = Mapping[str, NDArray[np.float32]]


def rows(plan: Plan) -> Iterator[Row]:
    """Size, time, and how far values, sums and rankings move."""
    task = science_task("trec", quick=plan.quick)
    values = estimate(new_model(task), task.train, estimator="rademacher", limit=_EXAMPLES).values
    count = sum(array.size for array in values.values())
    folder = plan.work / "stored"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = replace(Environment.capture(), cwd=folder, author="A <a@example.org>")
    sizes = {}
    with modelgit.init(folder, environment=environment) as repo:
        for way in ("float32", "codes"):
            start = time.process_time()
            with repo.session() as session:
                stored = store_values(repo.writer(session), values, exact=way == "float32")
                session.seal()
            sizes[way] = stored.bytes_written
            bits = 8 * stored.bytes_written / count
            seconds = f"{time.process_time() - start:.1f} CPU s"
            yield Row(
                _GROUP, f"stored as {way}, a weight", bits, "bits", note=f"{stored.bytes_written:,} bytes, {seconds}"
            )
        yield Row(_GROUP, "float32 values against codes", sizes["float32"] / sizes["codes"], "times")
        exact = sum(entry.spec.elements for entry in stored.tensors if entry.name not in stored.scales)
        yield Row(_GROUP, "weights that do not fit in codes", 100 * exact / count, "%")
        start = time.process_time()
        decoded = {
            entry.name: read_values(repo.reader(), _coded(stored, entry), 0, entry.spec.elements)
            for entry in stored.tensors
        }
        yield Row(_GROUP, "reading all codes", time.process_time() - start, "CPU s")
    shutil.rmtree(folder)
    yield from _distances(values, decoded)


def _coded(stored: StoredStatistic, entry: TensorEntry) -> CodedTensor:
    return CodedTensor(entry.id, entry.spec.shape, stored.scales.get(entry.name))


def _distances(values: Values, decoded: Values) -> Iterator[Row]:
    worst_sum = worst_value = 0.0
    below = total = 0
    for name, array in values.items():
        before, after = array.reshape(-1).astype(np.float64), decoded[name].astype(np.float64)
        if before.sum() > 0:
            worst_sum = max(worst_sum, abs(after.sum() / before.sum() - 1))
        near = before >= max(before.max() * 2.0**-27, np.finfo(np.float32).smallest_subnormal)
        worst_value = max(worst_value, float(np.abs(after[near] / before[near] - 1).max(initial=0)))
        below += int(((before > 0) & ~near).sum())
        total += int((before > 0).sum())
    yield Row(_GROUP, "largest relative error of a tensor's sum", worst_sum, "", 1e-3, "at most")
    yield Row(
        _GROUP,
        "largest relative error of a value",
        worst_value,
        "",
        0.05,
        "at most",
        "within 27 octaves of the largest",
    )
    yield Row(_GROUP, "values below these octaves", 100 * below / total, "%", note="of those that are not 0")
    for density in (0.005, 0.001):
        chosen = [
            {(name, at) for name, where in top_mask(side, density=density).items() for at in where.tolist()}
            for side in (values, decoded)
        ]
        shared = len(chosen[0] & chosen[1]) / len(chosen[0])
        yield Row(_GROUP, f"top {density:.1%} of the weights by codes that is there by float32", 100 * shared, "%")
