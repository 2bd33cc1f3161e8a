"""The largest of very many numbers, found by streaming: no list of them is ever sorted or held.

Non-negative float32 numbers order as their bits do, so two histograms of 65,536 bins find the k-th largest exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cut", "Window", "find_cut", "find_cuts", "is_above"]

_HALF = 1 << 16


class Window(NamedTuple):
    """Non-negative numbers of the tensor `name`, from its element `start` on."""

    name: str
    start: int
    values: NDArray[np.floating]


class Cut(NamedTuple):
    """What divides the largest numbers from the others: `least`, the smallest of them.

    Where not all that equal it are among them, these are, in the order of the windows, up to `position` of the tensor
    `name`; else `name` is None.
    """

    least: float
    name: str | None = None
    position: int = 0


def find_cut(windows: Callable[[], Iterable[Window]], share: float, *, at_least: int = 0) -> Cut:
    """The cut above which the part `share` (rounded down) of all numbers lies, at least `at_least` of them.

    `windows` is called two times, and a third one where some of several equal numbers are taken.  Numbers are compared
    as float32; NaN counts as the largest.
    """
    return find_cuts(lambda: ([window] for window in windows()), [share], at_least=[at_least])[0]


def find_cuts(
    windows: Callable[[], Iterable[Sequence[Window]]], shares: Sequence[float], *, at_least: Sequence[int]
) -> list[Cut]:
    """The cuts of several sets of numbers, whose windows come side by side, in the same two or three passes."""
    sets = [_Histograms(share, least) for share, least in zip(shares, at_least, strict=True)]
    for row in windows():
        for each, window in zip(sets, row, strict=True):
            each.count(window)
    for each in sets:
        each.choose_bin()
    if any(each.wanted for each in sets):
        for row in windows():
            for each, window in zip(sets, row, strict=True):
                each.count_in_bin(window)
    for each in sets:
        each.choose_number()
    if any(each.cut is None for each in sets):
        for row in windows():
            for each, window in zip(sets, row, strict=True):
                each.find_last(window)
    return [each.cut or Cut(each.least) for each in sets]


class _Histograms:
    """The search for one cut: first among the upper halves of the bits, then in the bin that was found."""

    def __init__(self, share: float, at_least: int) -> None:
        self._share = share
        self._at_least = at_least
        self._size = 0
        self._bins = np.zeros(_HALF, np.int64)
        self._top = -1
        self._threshold = 0
        self.wanted = 0
        self.least = math.inf
        self.cut: Cut | None = None

    def count(self, window: Window) -> None:
        self._bins += np.bincount(_bits(window.values) >> 16, minlength=_HALF)
        self._size += window.values.size

    def choose_bin(self) -> None:
        self.wanted = min(self._size, max(self._at_least, int(self._share * self._size)))
        if not self.wanted:
            self.cut = Cut(math.inf, "", -1)
            return
        self._top, above = _bin_of(self._bins, self.wanted)
        self.wanted -= above
        self._bins = np.zeros(_HALF, np.int64)

    def count_in_bin(self, window: Window) -> None:
        if self.wanted:
            bits = _bits(window.values)
            self._bins += np.bincount(bits[(bits >> 16) == self._top] & 0xFFFF, minlength=_HALF)

    def choose_number(self) -> None:
        if not self.wanted:
            return
        bottom, higher = _bin_of(self._bins, self.wanted)
        self._threshold = self._top << 16 | bottom
        self.wanted -= higher
        self.least = float(np.array(self._threshold, np.uint32).view(np.float32))
        if self.wanted == self._bins[bottom]:
            self.cut = Cut(self.least)

    def find_last(self, window: Window) -> None:
        if self.cut is not None:
            return
        equal = np.flatnonzero(_bits(window.values) == self._threshold)
        if equal.size >= self.wanted:
            self.cut = Cut(self.least, window.name, window.start + int(equal[self.wanted - 1]))
        else:
            self.wanted -= equal.size


def is_above(
    values: NDArray[np.floating],
    least: float,
    last: tuple[str, int] | None,
    *,
    name: str,
    positions: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which numbers are on the upper side of a cut, for windows in the order of tensor names and positions.

    `last` is the cut's name and position, if it has them; `positions` are those of `values` in the tensor `name`.
    """
    bits = _bits(values)
    threshold = int(np.float32(least).view(np.uint32))
    above = bits > threshold
    if last is None or name < last[0]:
        above = bits >= threshold
    elif name == last[0]:
        above |= (bits == threshold) & (positions <= last[1])
    return above.reshape(values.shape)


def _bits(values: NDArray[np.floating]) -> NDArray[np.uint32]:
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    return (flat + np.float32(0)).view(np.uint32)


def _bin_of(histogram: NDArray[np.int64], count: int) -> tuple[int, int]:
    """The bin in which the `count`-th entry from the top lies, and how many lie in the bins above it."""
    from_top = np.cumsum(histogram[::-1])
    at = int(np.searchsorted(from_top, count))
    return _HALF - 1 - at, int(from_top[at - 1]) if at else 0
