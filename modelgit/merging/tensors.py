"""Merged tensors as sources of bytes: any window is made when it is asked for, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.merging.base import BoundStrategy, Gram, Where
from modelgit.merging.combine import Comparison, combine_window, compare_window, element_bytes
from modelgit.objects import CodedTensor, GramEntry, TensorId, TensorSpec
from modelgit.patching.base import WINDOW_BYTES, TensorReads, windows
from modelgit.patching.statistics import read_triangle, read_values

__all__ = ["STEP_BYTES", "MergedTensor", "TensorParts", "compare"]

STEP_BYTES = 4 << 20  # half a window: every side is also held as float64


@dataclass(frozen=True, kw_only=True)
class TensorParts:
    """One tensor of a merge: its spec and where its values come from.

    `sides` are in order, two or more in a merge of commits; `fisher` names per side the diagonal, with one value an
    element, or None, and `grams` the Gram matrix of what goes into it, or None.  The stored tensors may be longer than
    `spec` (more rows): then their beginning is merged.
    """

    name: str
    spec: TensorSpec
    base: TensorId | None
    sides: tuple[TensorId, ...]
    fisher: tuple[CodedTensor | None, ...] = ()
    grams: tuple[GramEntry | None, ...] = ()


def compare(reads: TensorReads, parts: TensorParts) -> Comparison:
    """One streaming pass over a tensor: how much each side changed, and how much of it overlaps."""
    total = Comparison(changed=(0,) * len(parts.sides))
    if parts.base is None:
        return Comparison(elements=parts.spec.elements)
    for start, stop in windows(parts.spec.size_bytes, step_bytes=STEP_BYTES):
        base = reads.read(parts.base, start, stop)
        total += compare_window(base, [reads.read(side, start, stop) for side in parts.sides], parts.spec.dtype)
    return total


class MergedTensor:
    """A tensor that a strategy makes from its sides; a TensorSource.

    Windows of any size give the same bytes.  For scope "tensor" the whole result is made at the first read, with the
    Gram matrices of this tensor in memory, and kept until the object goes.  Safe to read from several threads, as
    far as `reads` is.
    """

    step_bytes = WINDOW_BYTES

    def __init__(
        self,
        reads: TensorReads,
        parts: TensorParts,
        strategy: BoundStrategy,
        *,
        statistics: Mapping[str, float] | None = None,
        split: bool = False,
        keep_equal: bool = True,
    ) -> None:
        self.spec = parts.spec
        self._reads = reads
        self._parts = parts
        self._strategy = strategy
        self._statistics = dict(statistics or {})
        self._split = split
        self._keep_equal = keep_equal
        self._lock = threading.Lock()
        self._whole: bytes | None = None

    def read(self, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Raw merged bytes `start` to `stop`."""
        if self._strategy.strategy.scope == "tensor":
            with self._lock:
                if self._whole is None:
                    self._whole = self._window(0, self.spec.size_bytes)
            return memoryview(self._whole)[start:stop]
        # A word border may lie inside an element (complex numbers): whole elements are merged, then cut.
        unit = element_bytes(self.spec.dtype)
        low, high = start // unit * unit, -(-stop // unit) * unit
        merged = bytearray()
        for first, last in windows(high - low, step_bytes=STEP_BYTES):
            merged += self._window(low + first, low + last)
        return memoryview(merged)[start - low : stop - low]

    def read_into(self, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        out[:] = self.read(start, start + out.nbytes)

    def _window(self, start: int, stop: int) -> bytes:
        parts, unit = self._parts, element_bytes(self.spec.dtype)
        return combine_window(
            None if parts.base is None else self._reads.read(parts.base, start, stop),
            [self._reads.read(side, start, stop) for side in parts.sides],
            self.spec.dtype,
            self._strategy,
            where=Where(
                name=parts.name,
                start=start // unit,
                count=(stop - start) // unit,
                keys=tuple(side.hex for side in parts.sides),
            ),
            shape=self.spec.shape,
            fisher=self._diagonals(start // unit, stop // unit),
            grams=self._grams(),
            statistics=self._statistics,
            split=self._split,
            keep_equal=self._keep_equal,
        )

    def _diagonals(self, first: int, last: int) -> Sequence[npt.NDArray[np.float32] | None]:
        if "fisher" not in self._strategy.strategy.needs:
            return ()
        return [
            None if tensor is None else read_values(self._reads, tensor, first, last) for tensor in self._parts.fisher
        ]

    def _grams(self) -> Sequence[Gram | None]:
        if "grams" not in self._strategy.strategy.needs:
            return ()
        return [
            None if coded is None else Gram(read_triangle(self._reads, coded), coded.first)
            for coded in self._parts.grams
        ]
