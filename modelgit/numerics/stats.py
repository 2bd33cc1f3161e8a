"""What changed between two tensors, in numbers that add up over pieces of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from modelgit.errors import UsageError
from modelgit.numerics.bits import BytesLike, Words, words_of
from modelgit.numerics.floats import has_float_values, to_float64
from modelgit.objects import dtype_named

__all__ = ["PairStatistics", "compare", "count_changed"]

# Work is done in runs, which bound the memory; shorter ones pay more for calls than they gain from the cache.
RUN_BYTES = 256 << 10
RUN_VALUES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """Differences of two tensors, or of pieces of them.

    `words` and `changed` count machine words (a C64 element has two, packed types have bytes) and those whose bits
    differ.  The sums, in the square of the weights' unit, and `largest_difference` are over the words that are
    finite on both sides, in float64; all are 0 for packed types.
    """

    words: int = 0
    changed: int = 0
    squared_difference: float = 0.0
    squared_old: float = 0.0
    largest_difference: float = 0.0
    nonfinite_old: int = 0
    nonfinite_new: int = 0

    def merge(self, other: PairStatistics) -> PairStatistics:
        """The statistics of both pieces together."""
        return PairStatistics(
            words=self.words + other.words,
            changed=self.changed + other.changed,
            squared_difference=self.squared_difference + other.squared_difference,
            squared_old=self.squared_old + other.squared_old,
            largest_difference=max(self.largest_difference, other.largest_difference),
            nonfinite_old=self.nonfinite_old + other.nonfinite_old,
            nonfinite_new=self.nonfinite_new + other.nonfinite_new,
        )

    @property
    def difference_norm(self) -> float:
        """The Euclidean norm of the difference."""
        return math.sqrt(self.squared_difference)


def count_changed(old: Words, new: Words) -> int:
    """How many words of two arrays of one length and dtype differ in their bits."""
    if old.size != new.size:
        raise UsageError(f"tensors of {old.size} and {new.size} words cannot be compared word by word")
    run = RUN_BYTES // old.dtype.itemsize
    return sum(
        int(np.count_nonzero(old[start : start + run] != new[start : start + run])) for start in range(0, old.size, run)
    )


def compare(old: BytesLike, new: BytesLike, dtype: str) -> PairStatistics:
    """Compare the raw bytes of two tensors, or of the same piece of both, of one dtype.

    Needs some MiB whatever their size.  Raises UsageError when their lengths differ.
    """
    kind = dtype_named(dtype)
    before, after = words_of(old, kind), words_of(new, kind)
    changed = count_changed(before, after)
    total = PairStatistics(words=before.size, changed=changed)
    if not has_float_values(dtype):
        return total
    for start in range(0, before.size, RUN_VALUES):
        part = slice(start, start + RUN_VALUES)
        total = total.merge(_compare_run(before[part], after[part], dtype))
    return total


def _compare_run(old: Words, new: Words, dtype: str) -> PairStatistics:
    before, after = to_float64(old.data, dtype), to_float64(new.data, dtype)
    finite_before, finite_after = np.isfinite(before), np.isfinite(after)
    nonfinite_old = before.size - int(np.count_nonzero(finite_before))
    nonfinite_new = after.size - int(np.count_nonzero(finite_after))
    if nonfinite_old or nonfinite_new:
        both = finite_before & finite_after
        before, after = before[both], after[both]
    with np.errstate(over="ignore", under="ignore"):
        np.subtract(after, before, out=after)
        return PairStatistics(
            squared_difference=float(np.square(after).sum()),
            squared_old=float(np.square(before).sum()),
            largest_difference=float(np.max(np.abs(after), initial=0.0)),
            nonfinite_old=nonfinite_old,
            nonfinite_new=nonfinite_new,
        )
