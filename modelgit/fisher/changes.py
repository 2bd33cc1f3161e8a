"""The values of a dense change by windows, each with the score that decides how likely a patch keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from modelgit.numerics.floats import INTEGERS, has_float_values, to_float64
from modelgit.objects import TensorSpec
from modelgit.progress import Progress

__all__ = [
    "IMPORTANCES",
    "NEEDS_FISHER",
    "STEP",
    "Diagonal",
    "Margins",
    "RawReads",
    "Scale",
    "TensorDelta",
    "Window",
    "can_be_drawn",
    "read_window",
    "windows",
]

IMPORTANCES = ("fisher", "magnitude", "uniform", "top-k", "top-k-fisher")
NEEDS_FISHER = frozenset({"fisher", "top-k-fisher"})

STEP = 1 << 18
"""Elements at a time."""

Diagonal = Mapping[str, NDArray[np.float32]]


class RawReads(Protocol):
    """The raw little-endian bytes of a tensor by range."""

    def read(self, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Bytes `start` to `stop`."""


class TensorDelta(NamedTuple):
    """One tensor of a dense change: the same spec before and after.

    `whole` says that it is taken as it is, and counted (a head).
    """

    name: str
    spec: TensorSpec
    old: RawReads
    new: RawReads
    whole: bool = False


def can_be_drawn(spec: TensorSpec) -> bool:
    """Whether a patch may choose among the values of a tensor: real floats; everything else is taken exactly."""
    kind = spec.dtype
    return has_float_values(kind) and kind not in INTEGERS and kind not in {"BOOL", "C64", "F8_E8M0"}


class Window(NamedTuple):
    """Elements from `first` on: the change, the diagonal (None: unknown) and the score, all 1-D.

    `forced` marks changes that are no numbers.
    """

    first: int
    old: NDArray[np.float64]
    delta: NDArray[np.float64]
    fisher: NDArray[np.float64] | None
    score: NDArray[np.float32]
    forced: NDArray[np.bool_]


class Margins(NamedTuple):
    """The mean diagonal of each row and of each column of a matrix, the latter over the mean of all."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]

    @classmethod
    def of(cls, fisher: NDArray[np.float32]) -> Margins | None:
        """Of a tensor `[rows, ...]`; None where it has no columns, or nothing but zeros."""
        if fisher.ndim < 2 or not fisher.size:
            return None
        matrix = fisher.reshape(len(fisher), -1)
        rows, columns = matrix.mean(1, dtype=np.float64), matrix.mean(0, dtype=np.float64)
        mean = float(rows.mean())
        return cls(rows, columns / mean) if mean > 0 else None

    def products(self, first: int, last: int) -> NDArray[np.float64]:
        """Row times column of the elements `first` to `last`, float64 `[last - first]`."""
        width = self.columns.size
        # A row may be far longer than a window: of one that begins or ends outside, only the part asked for is made.
        head = min(last, -(-first // width) * width)
        tail = max(head, last // width * width)
        return np.concatenate([self._of_row(first, head), self._of_rows(head, tail), self._of_row(tail, last)])

    def _of_row(self, first: int, last: int) -> NDArray[np.float64]:
        row, column = divmod(first, self.columns.size)
        return self.rows[row : row + 1] * self.columns[column : column + last - first]

    def _of_rows(self, first: int, last: int) -> NDArray[np.float64]:
        width = self.columns.size
        return np.multiply.outer(self.rows[first // width : last // width], self.columns).reshape(-1)

    @property
    def largest(self) -> float:
        """The largest product."""
        return float(self.rows.max() * self.columns.max())


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the score of a value depends on besides the value: all of it follows from the change as a whole.

    `shrinkage` is how far the diagonal of a matrix is drawn towards the product of its `margins`.
    """

    importance: str
    mean_fisher: float
    floor: float
    factor: float
    shrinkage: float = 0.0
    margins: Mapping[str, Margins] = field(default_factory=dict)


def windows(delta: TensorDelta, scale: Scale, fisher: Diagonal | None, progress: Progress) -> Iterator[Window]:
    """All values of a tensor in order, at most STEP at a time; `progress` may cancel."""
    size = delta.spec.elements
    held = {delta.name: fisher[delta.name]} if fisher is not None and delta.name in fisher else None
    for first in range(0, size, STEP):
        progress.check()
        yield read_window(delta, scale, held, first, min(first + STEP, size))


def read_window(delta: TensorDelta, scale: Scale, fisher: Diagonal | None, first: int, last: int) -> Window:
    """Elements `first` to `last` of a tensor: 8 MiB of float64 and less for STEP of them."""
    width = delta.spec.kind.bits // 8
    old = to_float64(delta.old.read(first * width, last * width), delta.spec.dtype)
    with np.errstate(invalid="ignore"):
        change = to_float64(delta.new.read(first * width, last * width), delta.spec.dtype) - old
    forced = ~np.isfinite(change)
    found = None
    if fisher is not None and delta.name in fisher:
        found = fisher[delta.name].reshape(-1)[first:last].astype(np.float64)
    ranked = found
    if found is not None and delta.name in scale.margins:
        products = scale.margins[delta.name].products(first, last)
        ranked = (1 - scale.shrinkage) * found + scale.shrinkage * products
    return Window(first, old, change, found, _score(change, ranked, forced, scale), forced)


def _score(
    change: NDArray[np.float64], fisher: NDArray[np.float64] | None, forced: NDArray[np.bool_], scale: Scale
) -> NDArray[np.float32]:
    """What probabilities are proportional to, in float32: zero where nothing changed."""
    size = np.abs(change)
    size[forced] = 0.0
    if scale.importance == "uniform":
        return (size > 0).astype(np.float32)
    if scale.importance in NEEDS_FISHER:
        if fisher is None:
            size *= np.sqrt(scale.mean_fisher + scale.floor)
        else:
            size *= np.sqrt(fisher + (scale.floor if scale.importance == "fisher" else 0.0))
    return (size * scale.factor).astype(np.float32)
