"""Which encoding a tensor gets: decided by sampling the tensor, never by belief.

Eight runs of 8192 words are looked at (about a millisecond).  The cost of byte planes is estimated by the entropy of
each plane, that of a sparse record by the share of changed words: log2 of the number of position sets plus the
entropy of the changed values.  Estimates are within a few per cent of the coded size; small tensors are not estimated
at all but coded in every way that is open to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.codecs.base import Layout, Words
from modelgit.numerics.bits import difference, rotate_sign, split_planes

__all__ = ["Choice", "SampleRuns", "estimate_choices", "sample_runs"]

_RUNS = 8
_RUN_WORDS = 8192
_RAW_ABOVE = 0.975  # coding that saves less than this is not worth its time
_DELTA_BELOW = 0.95  # a delta must beat the full record by this much: it makes every later read longer
_FLOOR_BITS = 0.02  # a constant plane still costs a frame


class Choice(NamedTuple):
    """One admissible encoding: codec name, index of the base among the candidates (None: no base), bits per word."""

    codec: str
    base: int | None
    bits: float


SampleRuns = Sequence[tuple[int, int]]


def sample_runs(words: int) -> SampleRuns:
    """(start, stop) word ranges of the sample of a tensor of `words` words."""
    if words <= _RUNS * _RUN_WORDS:
        return [(0, words)]
    starts = np.linspace(0, words - _RUN_WORDS, _RUNS).astype(np.int64)
    return [(int(start), int(start) + _RUN_WORDS) for start in starts]


def estimate_choices(sample: Words, bases: Sequence[Callable[[], Words | None]], layout: Layout) -> list[Choice]:
    """All admissible encodings of the sampled tensor, cheapest first.

    `bases` give the samples of the candidate base tensors at the same positions, or None when one cannot be read.
    """
    width = 8 * layout.word_bytes
    if not sample.size:
        return [Choice("raw", None, 0.0)]
    full = _plane_bits(_rotated(sample, layout))
    choices = [Choice("raw", None, float(width))]
    if full < _RAW_ABOVE * width:
        choices.append(Choice("planes", None, full))
    whole = min(choice.bits for choice in choices)
    for index, read in enumerate(bases):
        base = read()
        if base is None or base.size != sample.size:
            continue
        codes = np.empty_like(sample)
        difference(sample, base, codes, is_float=layout.is_float)
        changed = codes[codes != 0]
        share = changed.size / sample.size
        choices.append(Choice("sparse", index, _sparse_bits(changed, share)))
        delta = _plane_bits(codes)
        if delta < _DELTA_BELOW * whole:
            choices.append(Choice("delta", index, delta))
    return sorted(choices, key=lambda choice: choice.bits)


def _rotated(words: Words, layout: Layout) -> Words:
    if not layout.is_float:
        return words
    out = np.empty_like(words)
    rotate_sign(words, out)
    return out


def _plane_bits(words: Words) -> float:
    planes = np.empty((words.dtype.itemsize, words.size), np.uint8)
    split_planes(np.ascontiguousarray(words), planes)
    return sum(min(8.0, max(_entropy(plane), _FLOOR_BITS)) for plane in planes)


def _sparse_bits(changed: Words, share: float) -> float:
    if share == 0.0:
        return 0.0
    if share >= 1.0:
        return float(8 * changed.dtype.itemsize) + 1.0
    positions = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return float(positions) * 1.05 + share * _plane_bits(changed)


def _entropy(plane: NDArray[np.uint8]) -> float:
    counts = np.bincount(plane, minlength=256).astype(np.float64)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / plane.size)).sum() / plane.size)
