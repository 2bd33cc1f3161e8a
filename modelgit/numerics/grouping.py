"""Words in the stable order of a one-byte key, and back: a counting sort whose keys both sides know.

`numpy.argsort(kind="stable")` is a radix sort for such keys, but its indices are eight bytes each: beyond some 2^16
words they fall out of a processor's own cache and sorting takes three times as long.  So it sorts blocks, and the
groups of the blocks, which are runs, are put behind one another: the result is that of one stable sort of everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.numerics.bits import Words
from modelgit.numerics.scratch import scratch

__all__ = ["gather", "scatter"]

_BLOCK_WORDS = 1 << 15
_KEYS = 256

Keys = NDArray[np.uint8]


class _Block(NamedTuple):
    """Words `start` to `stop`, their stable order, and where in it each key's group begins and the last one ends."""

    start: int
    stop: int
    order: NDArray[np.intp]
    borders: NDArray[np.intp]


def gather(words: Words, keys: Keys, out: Words) -> None:
    """Fill `out` with `words` in ascending stable order of `keys`; all 1-D, contiguous and of one length."""
    if words.size <= _BLOCK_WORDS:
        np.take(words, np.argsort(keys, kind="stable"), out=out, mode="clip")
        return
    blocks = list(_blocks(keys))
    sorted_words = scratch("grouping.words", words.size, words.dtype)
    for block in blocks:
        part = slice(block.start, block.stop)
        np.take(words[part], block.order, out=sorted_words[part], mode="clip")
    for first, last, place in _runs(blocks):
        out[place : place + last - first] = sorted_words[first:last]


def scatter(grouped: Words, keys: Keys, out: Words) -> None:
    """Undo `gather`: fill `out` with the words that `gather(out, keys, grouped)` would group so."""
    if out.size <= _BLOCK_WORDS:
        out[np.argsort(keys, kind="stable")] = grouped
        return
    blocks = list(_blocks(keys))
    sorted_words = scratch("grouping.words", out.size, out.dtype)
    for first, last, place in _runs(blocks):
        sorted_words[first:last] = grouped[place : place + last - first]
    for block in blocks:
        part = slice(block.start, block.stop)
        out[part][block.order] = sorted_words[part]


def _blocks(keys: Keys) -> Iterator[_Block]:
    every = np.arange(_KEYS, dtype=np.uint8)  # the dtype of the keys, or numpy widens all of them
    for start in range(0, keys.size, _BLOCK_WORDS):
        part = keys[start : start + _BLOCK_WORDS]
        order = np.argsort(part, kind="stable")
        borders = np.searchsorted(part, every, sorter=order)
        yield _Block(start, start + part.size, order, np.append(borders, part.size))


def _runs(blocks: list[_Block]) -> Iterator[tuple[int, int, int]]:
    """(first, last, place): the words `first` to `last` of the sorted blocks belong at `place` of the whole order."""
    borders = np.stack([block.borders + block.start for block in blocks], axis=1)  # by key, then by block
    first, last = borders[:-1].ravel(), borders[1:].ravel()
    place = np.cumsum(last - first) - (last - first)
    kept = np.flatnonzero(last > first)
    return zip(first[kept].tolist(), last[kept].tolist(), place[kept].tolist(), strict=True)
