"""What a Fisher estimate says of a model, in numbers: where its mass lies, and how few weights carry it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelgit.objects import FisherEstimate, Record
from modelgit.patching.statistics import value_runs

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["TOP_SHARES", "FisherSummary", "Mass", "summarise"]

TOP_SHARES = (0.001, 0.005, 0.01, 0.1)
_NUMBERED = re.compile(r"^(.*?\.\d+)\.")  # layers as masks count them
_BINS = 1 << 16


class Mass(Record, frozen=True, kw_only=True):
    """A tensor's or a layer's part of the trace: `trace` is the sum of the diagonal, `share` that of the whole model.

    `zeros` counts weights on which no output depends; `effective` is (sum F)^2 / sum F^2, the number of equal weights
    that would be as concentrated.
    """

    name: str
    elements: int
    trace: float
    share: float
    zeros: int
    effective: float
    head: bool = False


class FisherSummary(Record, frozen=True, kw_only=True):
    """An estimate in numbers.

    `layers` are in the order of names, `tensors` the largest trace first.  `top` maps shares of the body's weights to
    the share of the body's trace that these carry (the highest first; from a histogram, good to three digits).
    """

    elements: int
    trace: float
    zeros: int
    effective: float
    body_trace: float
    head_trace: float
    layers: tuple[Mass, ...]
    tensors: tuple[Mass, ...]
    top: dict[str, float]
    stored_bytes: int


class _Sums:
    """Sums over some tensors, in float64."""

    def __init__(self) -> None:
        self.elements = self.zeros = 0
        self.trace = self.squares = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        self.elements += values.size
        self.zeros += int(values.size - np.count_nonzero(values))
        self.trace += float(values.sum())
        self.squares += float(np.square(values).sum())

    def join(self, other: _Sums) -> None:
        self.elements += other.elements
        self.zeros += other.zeros
        self.trace += other.trace
        self.squares += other.squares

    def mass(self, name: str, whole: float, *, head: bool) -> Mass:
        return Mass(
            name=name,
            elements=self.elements,
            trace=self.trace,
            share=self.trace / whole if whole > 0 else 0.0,
            zeros=self.zeros,
            effective=self.effective,
            head=head,
        )

    @property
    def effective(self) -> float:
        return self.trace**2 / self.squares if self.squares > 0 else 0.0


def summarise(repo: Repository, estimate: FisherEstimate) -> FisherSummary:
    """Read an estimate once, a few megabytes at a time."""
    reads = repo.reader()
    head = set(estimate.head)
    by_tensor: dict[str, _Sums] = {}
    counts, sums = np.zeros(_BINS, np.int64), np.zeros(_BINS)
    for name, tensor in estimate.coded().items():
        found = by_tensor[name] = _Sums()
        for run in value_runs(reads, tensor):
            values = run.astype(np.float64)
            found.add(values)
            if name not in head:
                bins = (run.view(np.uint32) >> 16).astype(np.intp)  # non-negative floats order as their bits do
                counts += np.bincount(bins, minlength=_BINS)
                sums += np.bincount(bins, weights=values, minlength=_BINS)
    layers: dict[str, _Sums] = {}
    total, parts = _Sums(), (_Sums(), _Sums())
    for name, found in by_tensor.items():
        layers.setdefault(_layer(name), _Sums()).join(found)
        total.join(found)
        parts[name in head].join(found)
    heads = {_layer(name) for name in head}
    tensors = [found.mass(name, total.trace, head=name in head) for name, found in by_tensor.items()]
    stored = sum(item.length for entry in estimate.diagonal for item in repo.store.locate(entry.id))
    return FisherSummary(
        elements=total.elements,
        trace=total.trace,
        zeros=total.zeros,
        effective=total.effective,
        body_trace=parts[0].trace,
        head_trace=parts[1].trace,
        layers=tuple(found.mass(name, total.trace, head=name in heads) for name, found in layers.items()),
        tensors=tuple(sorted(tensors, key=lambda mass: (-mass.trace, mass.name))),
        top={f"{share:g}": _carried(counts, sums, share) for share in TOP_SHARES},
        stored_bytes=stored,
    )


def _layer(name: str) -> str:
    found = _NUMBERED.match(name)
    return found.group(1) if found else name.rpartition(".")[0] or name


def _carried(counts: NDArray[np.int64], sums: NDArray[np.float64], share: float) -> float:
    """The share of all mass in the highest `share` of the values; a bin that is cut counts in proportion."""
    wanted = share * float(counts.sum())
    whole = float(sums.sum())
    if not whole > 0:
        return 0.0
    from_top = np.cumsum(counts[::-1])
    at = int(np.searchsorted(from_top, wanted))
    before = float(from_top[at - 1]) if at else 0.0
    last = len(counts) - 1 - at
    inside = float(sums[last]) * (wanted - before) / float(counts[last]) if counts[last] else 0.0
    return (float(sums[::-1][:at].sum()) + inside) / whole
