"""A broken copy of a model: the smallest values of each weight matrix are zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import BugError, UsageError
from modelgit.merging.plan import StoredTensor
from modelgit.numerics.floats import has_float_values, to_float32
from modelgit.numerics.ranking import Cut, Window, find_cuts, is_above
from modelgit.objects import Manifest, ModelEntry, TensorId, TensorSpec
from modelgit.patching.base import TensorSource, windows
from modelgit.patching.jobs import StoredObject, StoreJob
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import views_of
from modelgit.repo.merges.files import merged_weights, open_side
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["zeroed_copy"]

# Scales of blocks have no zero; complex numbers are no magnitudes.
_LEFT_ALONE = ("F8_E8M0", "C64")


class _Zeroed:
    """A tensor of which only the largest magnitudes are left, by windows; a TensorSource, safe to read from threads.

    NaN counts as the largest number.  Of equal numbers the first are kept.
    """

    step_bytes = 1 << 20

    def __init__(self, source: StoredObject, share: float) -> None:
        self.spec = source.spec
        self._source = source
        self._width = source.spec.kind.bits // 8
        (self._cut,) = find_cuts(self._magnitudes, [1 - share], at_least=[0])

    def _magnitudes(self) -> Iterator[list[Window]]:
        for start, stop in windows(self.spec.size_bytes, step_bytes=self.step_bytes):
            values = to_float32(self._source.read(start, stop), self.spec.dtype)
            yield [Window("", start // self._width, np.abs(values))]

    def read(self, start: int, stop: int) -> memoryview:
        """Raw bytes `start` to `stop`, on borders of elements."""
        data = self._source.read(start, stop)
        words = np.frombuffer(data, np.dtype(f"<u{self._width}"))
        words[~self._kept(np.abs(to_float32(data, self.spec.dtype)), start // self._width)] = 0
        return memoryview(data)

    def read_into(self, start: int, out: memoryview) -> None:
        """The same from `start` on, into a buffer of the caller's."""
        out[:] = self.read(start, start + out.nbytes)

    def _kept(self, magnitudes: NDArray[np.float32], first: int) -> NDArray[np.bool_]:
        cut: Cut = self._cut
        last = None if cut.name is None else (cut.name, cut.position)
        positions = np.arange(first, first + magnitudes.size)
        return is_above(magnitudes, cut.least, last, name="", positions=positions)


def zeroed_copy(
    repo: Repository, session: PackSession, manifest: Manifest, share: float, *, progress: Progress = SILENT
) -> Manifest:
    """The manifest of a copy in which the smallest `share` of each matrix of floats is zero; its tensors in `session`.

    Magnitude pruning, as a fault that a suite must see.  Matrices are stored tensors of two dimensions or more, and
    those over which a view has as many.  Files keep format, order, header and padding.  Held are a few windows of each
    tensor that is being coded.  Raises UsageError when there is no such matrix.
    """
    side = open_side(repo, manifest)
    reads, writer = repo.reader(), repo.writer(session, progress=progress)
    tensors: dict[str, dict[str, StoredTensor]] = {}
    chosen: dict[TensorId, TensorSpec] = {}
    for model in manifest.models:
        tensors[model.path] = dict(side.side.models[model.path])
        viewed = _viewed_matrices(repo, manifest, model)
        chosen |= {
            item: spec
            for spec, item in tensors[model.path].values()
            if (len(spec.shape) > 1 or item in viewed) and _has_magnitudes(spec)
        }
    if not chosen:
        raise UsageError(
            "the models have no weight matrix of floats that could be pruned",
            hint="`mgit cat-tensor` lists the tensors",
        )

    def jobs() -> Iterator[StoreJob]:
        for item, spec in chosen.items():
            progress.check()
            source: TensorSource = _Zeroed(StoredObject(reads, item, spec), share)
            yield StoreJob(item.hex, source, spec, spec.size_bytes, item)

    made: dict[TensorId, TensorId] = {}
    progress.start("prune", sum(spec.size_bytes for spec in chosen.values()))
    for stored in writer.store(jobs(), task="prune"):
        if not isinstance(stored.id, TensorId):
            raise BugError(f"{stored.name} was stored as a {stored.id.KIND}")
        made[TensorId.parse(f"b3:{stored.name}")] = stored.id
    progress.finish("prune")
    pruned = {
        path: {name: (spec, made.get(item, item)) for name, (spec, item) in found.items()}
        for path, found in tensors.items()
    }
    weights, models = merged_weights(repo, session, side, side, pruned)
    others = [entry for entry in manifest.files if entry.path not in side.weights]
    files = tuple(sorted([*weights, *others], key=lambda entry: entry.path))
    return Manifest(files=files, models=tuple(models))


def _viewed_matrices(repo: Repository, manifest: Manifest, model: ModelEntry) -> set[TensorId]:
    """Storages over which a matrix lies."""
    found = views_of(repo, manifest, model).values()
    return {entry.id for entry, view in found if len((view.spec or entry.spec).shape) > 1}


def _has_magnitudes(spec: TensorSpec) -> bool:
    kind = spec.kind
    return kind.is_float and not kind.bits % 8 and has_float_values(spec.dtype) and spec.dtype not in _LEFT_ALONE
