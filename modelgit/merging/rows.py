"""Rows of stored tensors in another order: tables of a vocabulary seen as if all sides had the rows of the result.

A strategy merges what lies at the same place.  Where tables grew or were put in another order, every side is read
through a list of runs of rows, so that one row stands for the same thing on all sides.  A row that a side does not have
is read from a side that has it, for all sides alike: such rows are equal and stay as they are, bit for bit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modelgit.errors import BugError
from modelgit.objects import BlobId, TensorId, TensorSpec
from modelgit.objects.merges import SideName
from modelgit.patching.base import WINDOW_BYTES, TensorReads, windows

__all__ = ["RowPlan", "RowViews", "Run", "ViewSource", "joined", "sliced"]

_BLOCK_BYTES = 1 << 20


class Run(NamedTuple):
    """`length` rows of `side` from row `start` on."""

    side: SideName
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """For each side where the rows of the result are read: runs that have the same number of rows in all.

    `base` is None where there is no common ancestor.  `unfounded` are (start, stop) of rows, in order, that have no
    base though the table has one, and that differ between the sides.
    """

    base: tuple[Run, ...] | None
    ours: tuple[Run, ...]
    theirs: tuple[Run, ...]
    unfounded: tuple[tuple[int, int], ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows of the result."""
        return sum(run.length for run in self.ours)

    def runs(self, side: SideName) -> tuple[Run, ...] | None:
        """The runs of one side."""
        return {"base": self.base, "ours": self.ours, "theirs": self.theirs}[side]


def joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The same rows in as few runs as possible."""
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else None
        if last is not None and last.side == run.side and last.start + last.length == run.start:
            found[-1] = Run(last.side, last.start, last.length + run.length)
        elif run.length:
            found.append(run)
    return tuple(found)


def sliced(runs: Sequence[Run], start: int, stop: int) -> tuple[Run, ...]:
    """The runs that make up rows `start` to `stop` of what `runs` make."""
    found = []
    at = 0
    for run in runs:
        low, high = max(start, at), min(stop, at + run.length)
        if low < high:
            found.append(Run(run.side, run.start + low - at, high - low))
        at += run.length
    return tuple(found)


class _Piece(NamedTuple):
    source: TensorId
    start: int
    stop: int
    to: int


class _View(NamedTuple):
    firsts: tuple[int, ...]
    sources: tuple[tuple[TensorId | None, int], ...]
    size_bytes: int


class RowViews:
    """TensorReads that knows tensors made of rows of others, besides all that `reads` knows.

    Scattered rows are read in blocks, in the order in which they lie: rows in random order cost one pass over the table
    for each window that is asked for.  Held at a time: a window, and one block.
    """

    def __init__(self, reads: TensorReads) -> None:
        self._reads = reads
        self._views: dict[TensorId | BlobId, _View] = {}

    def add(self, runs: Sequence[Run], stored: Mapping[SideName, TensorId | None], row_bytes: int) -> TensorId:
        """The name of a tensor whose rows are `runs` of tensors with rows of `row_bytes`; zeros where a side is None.

        The name depends on what is in it alone, so that a merge can be made again.  A tensor of one run that begins at
        row 0 is no view: it is the beginning of the stored one.
        """
        sources = [(stored[run.side], run.start * row_bytes) for run in runs]
        if len(runs) == 1 and runs[0].start == 0 and sources[0][0] is not None:
            return sources[0][0]
        text = ";".join(
            f"{'' if source is None else source.hex} {run.start} {run.length}"
            for run, (source, _) in zip(runs, sources, strict=True)
        )
        name = TensorId.of(f"rows of {row_bytes} bytes: {text}".encode())
        firsts, at = [], 0
        for run in runs:
            firsts.append(at)
            at += run.length * row_bytes
        self._views[name] = _View(tuple(firsts), tuple(sources), at)
        return name

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        """Raw bytes `start` to `stop`."""
        view = self._views.get(tensor)
        if view is None:
            return self._reads.read(tensor, start, stop)
        if not 0 <= start <= stop <= view.size_bytes:
            raise BugError(f"bytes {start} to {stop} of a view of {view.size_bytes} bytes")
        out = bytearray(stop - start)
        block: tuple[TensorId, int, bytearray] | None = None
        pieces = _pieces(view, start, stop)
        for number, (source, low, high, to) in enumerate(pieces):
            at = low // _BLOCK_BYTES * _BLOCK_BYTES
            known = block is not None and block[:2] == (source, at)
            if not known and high <= at + _BLOCK_BYTES and number + 1 < len(pieces):
                following = pieces[number + 1]
                if following.source == source and following.start < at + _BLOCK_BYTES:
                    end = min(at + _BLOCK_BYTES, self._reads.size(source) or high)
                    block, known = (source, at, self._reads.read(source, at, end)), True
            if block is not None and known and high <= at + _BLOCK_BYTES:
                out[to : to + high - low] = block[2][low - at : high - at]
            else:
                out[to : to + high - low] = self._reads.read(source, low, high)
        return out

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        if tensor in self._views:
            out[:] = self.read(tensor, start, start + out.nbytes)
        else:
            self._reads.read_into(tensor, start, out)

    def grain(self, tensor: TensorId | BlobId) -> int:
        """The largest piece that has to be decoded as a whole."""
        return WINDOW_BYTES if tensor in self._views else self._reads.grain(tensor)

    def size(self, tensor: TensorId | BlobId) -> int | None:
        """Raw length in bytes, or None when the tensor is not stored here."""
        view = self._views.get(tensor)
        return self._reads.size(tensor) if view is None else view.size_bytes


def _pieces(view: _View, start: int, stop: int) -> list[_Piece]:
    """The stretches of stored tensors that make up bytes `start` to `stop`, as they lie there.

    A stretch that is shorter than a block and goes over the border of one is cut there.
    """
    found = []
    at = bisect_right(view.firsts, start) - 1 if view.firsts else 0
    while at < len(view.firsts) and view.firsts[at] < stop:
        first = view.firsts[at]
        last = view.firsts[at + 1] if at + 1 < len(view.firsts) else view.size_bytes
        low, high = max(start, first), min(stop, last)
        source, offset = view.sources[at]
        at += 1
        if low >= high or source is None:
            continue
        begin, end, place = offset + low - first, offset + high - first, low - start
        border = (end - 1) // _BLOCK_BYTES * _BLOCK_BYTES
        if end - begin < _BLOCK_BYTES and begin < border:
            found.append(_Piece(source, begin, border, place))
            place, begin = place + border - begin, border
        found.append(_Piece(source, begin, end, place))
    return sorted(found, key=lambda piece: (piece.source.digest, piece.start))


class ViewSource:
    """A view as a TensorSource: rows that nobody has to compute."""

    step_bytes = WINDOW_BYTES

    def __init__(self, views: TensorReads, spec: TensorSpec, tensor: TensorId) -> None:
        self.spec = spec
        self._views = views
        self._tensor = tensor

    def read(self, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Raw bytes `start` to `stop`."""
        return self._views.read(self._tensor, start, stop)

    def read_into(self, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        for low, high in windows(out.nbytes):
            out[low:high] = self._views.read(self._tensor, start + low, start + high)
