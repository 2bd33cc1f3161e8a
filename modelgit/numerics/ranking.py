"""The largest of very many numbers, found by streaming: no list of them is ever sorted or held.

Non-negative float32 numbers order as their bits do, so two histograms of 65,536 bins find the k-th largest exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Cut", "Window", "bin_of", "find_cuts", "histogram", "is_above", "order_bits"]

BINS = 1 << 16
"""Of a histogram of one half of the bits."""
_PIECE_ELEMENTS = 1 << 20


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


def find_cuts(
    windows: Callable[[], Iterable[Sequence[Window]]], shares: Sequence[float], *, at_least: Sequence[int]
) -> list[Cut]:
    """The cuts of several sets of numbers, whose windows come side by side.

    Above each cut lies the part `shares` (rounded down) of all numbers of its set, `at_least` so many.  `windows` is
    called two times, and a third one where some of several equal numbers are taken.  Numbers are compared as float32;
    NaN counts as the largest.
    """
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
        self._bins = np.zeros(BINS, np.int64)
        self._top = -1
        self._threshold = 0
        self.wanted = 0
        self.least = math.inf
        self.cut: Cut | None = None

    def count(self, window: Window) -> None:
        self._bins += histogram(order_bits(window.values), 16)
        self._size += window.values.size

    def choose_bin(self) -> None:
        self.wanted = min(self._size, max(self._at_least, int(self._share * self._size)))
        if not self.wanted:
            self.cut = Cut(math.inf, "", -1)
            return
        self._top, above = bin_of(self._bins, self.wanted)
        self.wanted -= above
        self._bins = np.zeros(BINS, np.int64)

    def count_in_bin(self, window: Window) -> None:
        if self.wanted:
            bits = order_bits(window.values)
            self._bins += histogram(bits[(bits >> 16) == self._top], 0)

    def choose_number(self) -> None:
        if not self.wanted:
            return
        bottom, higher = bin_of(self._bins, self.wanted)
        self._threshold = self._top << 16 | bottom
        self.wanted -= higher
        self.least = float(np.array(self._threshold, np.uint32).view(np.float32))
        if self.wanted == self._bins[bottom]:
            self.cut = Cut(self.least)

    def find_last(self, window: Window) -> None:
        if self.cut is not None:
            return
        equal = np.flatnonzero(order_bits(window.values) == self._threshold)
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
    bits = order_bits(values)
    threshold = int(np.float32(least).view(np.uint32))
    above = bits > threshold
    if last is None or name < last[0]:
        above = bits >= threshold
    elif name == last[0]:
        above |= (bits == threshold) & (positions <= last[1])
    return above.reshape(values.shape)


def order_bits(values: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Non-negative numbers, rounded to float32, as integers of the same order; 1-D."""
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    bits: NDArray[np.uint32] = (flat + np.float32(0)).view(np.uint32)  # the sum makes 0 of -0
    return bits


def histogram(bits: NDArray[np.uint32], shift: int) -> NDArray[np.int64]:
    """How often each value of 16 bits occurs, from `shift` up; in pieces, because numpy counts 64-bit integers."""
    counts = np.zeros(BINS, np.int64)
    for start in range(0, bits.size, _PIECE_ELEMENTS):
        piece = (bits[start : start + _PIECE_ELEMENTS] >> shift) & 0xFFFF
        counts += np.bincount(piece.astype(np.intp), minlength=BINS)
    return counts


def bin_of(counts: NDArray[np.int64], count: int) -> tuple[int, int]:
    """The bin in which the `count`-th entry from the top lies, and how many lie in the bins above it."""
    from_top = np.cumsum(counts[::-1])
    at = int(np.searchsorted(from_top, count))
    return len(counts) - 1 - at, int(from_top[at - 1]) if at else 0
