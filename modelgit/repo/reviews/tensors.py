"""One pass over the tensors that an update changes: how many values, how far, whether finite, and what stands out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from modelgit.evals.suspicious import MAX_HEAD_ROWS, LayerChange, far_layers, rearranged, row_findings
from modelgit.numerics.bits import words_of
from modelgit.numerics.floats import has_float_values, to_float64
from modelgit.numerics.nonfinite import ValueCounts, count_nonfinite
from modelgit.numerics.row_changes import RowChanges
from modelgit.objects import Finding, TensorEntry, TensorId
from modelgit.parallel import Workers
from modelgit.patching.base import TensorReads, windows
from modelgit.progress import SILENT, Progress
from modelgit.repo.reviews.patch_facts import Tree

__all__ = ["TensorsCompared", "compare_changed"]

_DENSE = 0.1
_MAX_HEAD_BYTES = 32 << 20
_MOVED_SQUARED = 0.09  # a row that moved by 0.3 of its norm


class TensorsCompared(NamedTuple):
    """What the pass found: `counted` are the non-finite values of the new tensors by id."""

    values_changed: int = 0
    dense: bool = False
    counted: dict[TensorId, ValueCounts] = {}
    findings: tuple[Finding, ...] = ()


class _Pair(NamedTuple):
    model: str
    name: str
    old: TensorEntry
    new: TensorEntry


class _Compared(NamedTuple):
    pair: _Pair
    changed: int
    relative: float | None
    counts: ValueCounts
    findings: tuple[Finding, ...]


def compare_changed(old: Tree, new: Tree, *, threads: int = 1, progress: Progress = SILENT) -> TensorsCompared:
    """Compare all tensors that differ; those that are new or have another form count whole.

    `threads` tensors are read at a time, a window of both sides of each.  Raises IntegrityError when one cannot be
    read.
    """
    before, after = old.tensors(), new.tensors()
    pairs, whole = [], 0
    for (model, name), entry in after.items():
        previous = before.get((model, name))
        if previous is None or previous.spec != entry.spec:
            whole += entry.spec.elements
        elif previous.id != entry.id:
            pairs.append(_Pair(model, name, previous, entry))
    readers = old.repo.reader(old.store), new.repo.reader(new.store)
    progress.start("compare", sum(pair.new.spec.size_bytes for pair in pairs))
    changed, dense = whole, whole > 0
    counted: dict[TensorId, ValueCounts] = {}
    findings: list[Finding] = []
    layers: list[LayerChange] = []
    with Workers(threads, name="mgit-check") as workers:
        work = workers.ordered(lambda pair: _compare(pair, *readers, progress), pairs, ahead=2 * threads)
        for item in work:
            changed += item.changed
            dense = dense or item.changed > _DENSE * item.pair.new.spec.elements
            counted[item.pair.new.id] = item.counts
            findings += item.findings
            if item.relative is not None:
                layers.append(
                    LayerChange(
                        model=item.pair.model,
                        name=item.pair.name,
                        relative=item.relative,
                        dimensions=len(item.pair.new.spec.shape),
                    )
                )
    progress.finish("compare")
    findings += far_layers(layers)
    return TensorsCompared(changed, dense, counted, tuple(findings))


def _compare(pair: _Pair, old: TensorReads, new: TensorReads, progress: Progress) -> _Compared:
    spec = pair.new.spec
    rows = RowChanges(spec)
    counts = ValueCounts()
    for start, stop in windows(spec.size_bytes):
        progress.check()
        before, after = old.read(pair.old.id, start, stop), new.read(pair.new.id, start, stop)
        rows.add(start, before, after)
        counts += count_nonfinite(words_of(after, spec.kind), spec.dtype)
        progress.advance("compare", stop - start)
    # A word of a complex number is half of one, a word of a packed type several.
    changed = min(int(rows.changed.sum()), spec.elements)
    findings = [*row_findings(pair.model, pair.name, rows), *_swapped(pair, old, new, rows)]
    return _Compared(pair, changed, rows.relative, counts, tuple(findings))


def _swapped(pair: _Pair, old: TensorReads, new: TensorReads, rows: RowChanges) -> Iterator[Finding]:
    spec = pair.new.spec
    if len(spec.shape) != 2 or rows.rows > MAX_HEAD_ROWS or spec.size_bytes > _MAX_HEAD_BYTES:
        return
    moved = np.flatnonzero((rows.squared_old > 0) & (rows.squared_difference >= _MOVED_SQUARED * rows.squared_old))
    if moved.size < 2 or not has_float_values(spec.dtype):
        return
    before, after = (
        np.nan_to_num(to_float64(reads.read(entry.id, 0, spec.size_bytes), spec.dtype)).reshape(rows.rows, -1)
        for reads, entry in ((old, pair.old), (new, pair.new))
    )
    yield from rearranged(pair.model, pair.name, before, after, moved)
