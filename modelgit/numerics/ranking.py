"""The largest of very many numbers, found by streaming: no list of them is ever sorted or held.

Non-negative float32 numbers order as their bits do, so two histograms of 65,536 bins find the k-th largest exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cut", "Window", "find_cut", "is_above"]

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
    high = np.zeros(_HALF, np.int64)
    size = 0
    for window in windows():
        high += np.bincount(_bits(window.values) >> 16, minlength=_HALF)
        size += window.values.size
    count = min(size, max(at_least, int(share * size)))
    if not count:
        return Cut(float("inf"), "", -1)
    top, above = _bin_of(high, count)
    low = np.zeros(_HALF, np.int64)
    for window in windows():
        bits = _bits(window.values)
        low += np.bincount(bits[(bits >> 16) == top] & 0xFFFF, minlength=_HALF)
    bottom, higher = _bin_of(low, count - above)
    threshold, wanted = top << 16 | bottom, count - above - higher
    least = float(np.array(threshold, np.uint32).view(np.float32))
    if wanted == low[bottom]:
        return Cut(least)
    for window in windows():
        equal = np.flatnonzero(_bits(window.values) == threshold)
        if equal.size >= wanted:
            return Cut(least, window.name, window.start + int(equal[wanted - 1]))
        wanted -= equal.size
    return Cut(least)


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


def _bits(values: NDArray[np.floating]) -> NDArray[np.int64]:
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    return (flat + np.float32(0)).view(np.uint32).astype(np.int64)


def _bin_of(histogram: NDArray[np.int64], count: int) -> tuple[int, int]:
    """The bin in which the `count`-th entry from the top lies, and how many lie in the bins above it."""
    from_top = np.cumsum(histogram[::-1])
    at = int(np.searchsorted(from_top, count))
    return _HALF - 1 - at, int(from_top[at - 1]) if at else 0
