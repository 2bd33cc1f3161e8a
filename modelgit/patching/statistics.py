"""Statistics of weights in the store: written from arrays tensor by tensor, read back by range as float32.

A diagonal has one non-negative number a weight and is stored as one-byte logarithmic codes, or, on request and where
these do not fit, as the float32 values themselves.  Neither way holds more than the arrays that are given and a few
windows.  A Gram matrix is stored as its upper triangle in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import BugError, CheckFailed, IntegrityError
from modelgit.numerics import logquant
from modelgit.objects import CodedTensor, GramEntry, TensorEntry, TensorId, TensorSpec
from modelgit.patching.base import WINDOW_BYTES, TensorReads
from modelgit.patching.encode import TensorWriter
from modelgit.patching.jobs import BlobSource, StoreJob
from modelgit.progress import SILENT, Progress

__all__ = [
    "StoredStatistic",
    "check_values",
    "read_triangle",
    "read_values",
    "store_triangles",
    "store_values",
    "value_runs",
]

_RUN = 1 << 20  # values at a time


class StoredStatistic(NamedTuple):
    """The tensors of a statistic, sorted by name, and the scales of those that are coded; `bytes_written` in packs."""

    tensors: tuple[TensorEntry, ...]
    scales: dict[str, float]
    bytes_written: int


class _Codes:
    """The codes of an array as a source of bytes, made when they are asked for."""

    step_bytes = WINDOW_BYTES

    def __init__(self, values: NDArray[np.float32], shape: tuple[int, ...], top: float) -> None:
        self.spec = TensorSpec(dtype="U8", shape=shape)
        self._values = values
        self._top = top

    def read(self, start: int, stop: int) -> memoryview:
        return logquant.encode(self._values[start:stop], self._top).data

    def read_into(self, start: int, out: memoryview) -> None:
        out[:] = self.read(start, start + out.nbytes)


def store_values(
    writer: TensorWriter, values: Mapping[str, NDArray[np.float32]], *, exact: bool = False, progress: Progress = SILENT
) -> StoredStatistic:
    """Store one array of non-negative float32 numbers per tensor name; `exact` keeps every bit of them.

    `values` is read once per tensor and may make its arrays when asked.  Raises CheckFailed, naming the tensor, for
    values that are negative or not finite.
    """
    specs: dict[str, TensorSpec] = {}
    scales: dict[str, float] = {}

    def jobs() -> Iterator[StoreJob]:
        for name in sorted(values):
            progress.check()
            array = np.ascontiguousarray(values[name], "<f4")
            flat = array.reshape(-1)
            try:
                fitted = logquant.fit(lambda: _runs(flat))  # noqa: B023  (called before the next turn)
            except ValueError:
                raise CheckFailed(
                    f"the statistic of tensor `{name}` has values that are negative or not finite"
                ) from None
            if exact or fitted is None:
                specs[name] = TensorSpec(dtype="F32", shape=array.shape)
                yield StoreJob(name, BlobSource(flat.view(np.uint8).data), specs[name], array.nbytes)
            else:
                source = _Codes(flat, array.shape, fitted.top)
                specs[name], scales[name] = source.spec, fitted.scale
                yield StoreJob(name, source, source.spec, array.size)

    found = list(_stored(writer, jobs()))
    entries = tuple(TensorEntry(name=name, spec=specs[name], id=object_id) for name, object_id, _ in found)
    return StoredStatistic(entries, scales, sum(size for *_, size in found))


def _stored(writer: TensorWriter, jobs: Iterator[StoreJob]) -> Iterator[tuple[str, TensorId, int]]:
    """Names, ids, and bytes written."""
    for stored in writer.store(jobs, task="keep"):
        if not isinstance(stored.id, TensorId):
            raise BugError(f"{stored.name} was stored as a {stored.id.KIND}")
        yield stored.name, stored.id, stored.bytes_written


def _runs(flat: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, flat.size, _RUN):
        yield flat[start : start + _RUN]


def read_values(reads: TensorReads, tensor: CodedTensor, first: int, last: int) -> NDArray[np.float32]:
    """Elements `first` to `last` of a statistic's tensor, in row-major order."""
    if tensor.scale is None:
        found = np.frombuffer(reads.read(tensor.id, 4 * first, 4 * last), "<f4")
        return found if sys.byteorder == "little" else found.astype(np.float32)
    return logquant.decode(np.frombuffer(reads.read(tensor.id, first, last), np.uint8), tensor.scale)


def store_triangles(
    writer: TensorWriter,
    matrices: Mapping[str, NDArray[np.float32]],
    first: Collection[str] = (),
    *,
    progress: Progress = SILENT,
) -> tuple[tuple[GramEntry, ...], int]:
    """Store the upper triangle, row by row, of one symmetric float32 matrix per name; equal ones are stored once.

    `first` names those whose inputs meet the first axis of the weight.  Gives the entries, sorted by name, and the
    bytes that were written.  Raises CheckFailed, naming the tensor, for values that are not finite.
    """

    def jobs() -> Iterator[StoreJob]:
        for name in sorted(matrices):
            progress.check()
            matrix = matrices[name]
            if not np.isfinite(matrix).all():
                raise CheckFailed(f"the inputs of tensor `{name}` have a Gram matrix with values that are not finite")
            triangle = np.concatenate([row[at:] for at, row in enumerate(matrix)], dtype="<f4")
            spec = TensorSpec(dtype="F32", shape=triangle.shape)
            yield StoreJob(name, BlobSource(triangle.view(np.uint8).data), spec, triangle.nbytes)

    found = list(_stored(writer, jobs()))
    entries = (
        GramEntry(name=name, id=object_id, size=len(matrices[name]), first=name in first)
        for name, object_id, _ in found
    )
    return tuple(entries), sum(size for *_, size in found)


def read_triangle(reads: TensorReads, gram: GramEntry) -> NDArray[np.float64]:
    """A Gram matrix in full, float64 `[size, size]`.

    Raises IntegrityError for values that are not finite.
    """
    elements = gram.size * (gram.size + 1) // 2
    values = np.frombuffer(reads.read(gram.id, 0, 4 * elements), "<f4")
    if not np.isfinite(values).all():
        raise IntegrityError("a Gram matrix holds values that are not finite", hint="`mgit fisher remove` forgets it")
    matrix, start = np.empty((gram.size, gram.size)), 0
    for at in range(gram.size):
        row = values[start : start + gram.size - at]
        matrix[at, at:], matrix[at:, at] = row, row
        start += row.size
    return matrix


def value_runs(reads: TensorReads, tensor: CodedTensor) -> Iterator[NDArray[np.float32]]:
    """All values of a statistic's tensor, a few megabytes at a time."""
    for first in range(0, tensor.elements, _RUN):
        yield read_values(reads, tensor, first, min(first + _RUN, tensor.elements))


def check_values(reads: TensorReads, name: str, tensor: CodedTensor) -> None:
    """Raise IntegrityError where what a stranger sent cannot be a statistic: a negative or non-finite value."""
    if tensor.scale is not None:
        if not 0 <= tensor.scale < float("inf"):
            raise IntegrityError(f"tensor {name[:120]!a} of an estimate has the scale {tensor.scale}")
        return  # whatever the codes are
    for values in value_runs(reads, tensor):
        if not bool((values >= 0).all() and np.isfinite(values).all()):
            raise IntegrityError(f"tensor {name[:120]!a} of an estimate has values that are negative or not finite")
