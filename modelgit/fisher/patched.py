"""The tensors that a sparse patch makes of a dense change, as sources of bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelgit.fisher.changes import STEP, read_window
from modelgit.fisher.sparsify import Plan, draw
from modelgit.numerics.bits import Words
from modelgit.numerics.floats import from_float64, to_float32, to_float64

__all__ = ["PatchedTensor"]


class PatchedTensor:
    """A tensor after a patch, made by windows when they are asked for; a TensorSource, safe to read from threads.

    Values kept for certain are those of the new tensor, bit for bit.  Others are rounded to the dtype at random, up or
    down in proportion to how near they lie, so that the patch stays unbiased whatever the dtype; one that overflows it
    becomes the new value.
    """

    step_bytes = 1 << 20

    def __init__(self, plan: Plan, name: str) -> None:
        delta = next(delta for delta in plan.survey.deltas if delta.name == name)
        self.spec = delta.spec
        self._delta = delta
        self._plan = plan
        self._width = delta.spec.kind.bits // 8

    def read(self, start: int, stop: int) -> memoryview:
        """Raw bytes `start` to `stop`, on borders of elements."""
        step = STEP * self._width
        return memoryview(b"".join(self._window(first, min(first + step, stop)) for first in range(start, stop, step)))

    def read_into(self, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        out[:] = self.read(start, start + out.nbytes)

    def float32(self) -> NDArray[np.float32]:
        """The whole tensor to compute with."""
        return to_float32(self.read(0, self.spec.size_bytes), self.spec.dtype).reshape(self.spec.shape)

    def _window(self, start: int, stop: int) -> bytes:
        delta, plan = self._delta, self._plan
        if delta.whole:
            return bytes(delta.new.read(start, stop))
        window = read_window(delta, plan.survey.scale, plan.survey.fisher, start // self._width, stop // self._width)
        chosen, probability = plan.choose(delta, window)
        word = np.dtype(f"<u{self._width}")
        words = np.frombuffer(delta.old.read(start, stop), word).copy()
        new = np.frombuffer(delta.new.read(start, stop), word)
        certain = chosen & (probability >= 1)
        words[certain] = new[certain]
        drawn = np.flatnonzero(chosen & (probability < 1))
        if drawn.size:
            values = window.old[drawn] + window.delta[drawn] / probability[drawn]
            chance = draw(plan.seed, delta.name, "rounding", window.first, window.delta.size)[drawn]
            words[drawn] = _rounded(values, chance, self.spec.dtype, new[drawn])
        return words.tobytes()


def _rounded(values: NDArray[np.float64], chance: NDArray[np.float64], dtype: str, instead: Words) -> Words:
    """`values` as words of `dtype`, each one of its two neighbours, so that the mean is the value.

    What lies beyond the largest number becomes `instead`.
    """
    nearest = from_float64(values, dtype)
    back = to_float64(nearest.data, dtype)
    error = values - back
    sign = nearest.dtype.type(1 << (8 * nearest.dtype.itemsize - 1))
    magnitude = nearest & ~sign
    away = np.abs(values) > np.abs(back)
    other = np.where(away, magnitude + nearest.dtype.type(1), magnitude - nearest.dtype.type(1))
    other = np.where(back == 0, nearest.dtype.type(1), other).astype(nearest.dtype)
    negative = np.where(back == 0, error < 0, back < 0)
    other = np.where(negative & (other != 0), other | sign, other).astype(nearest.dtype)
    gap = np.abs(to_float64(other.data, dtype) - back)
    with np.errstate(invalid="ignore", divide="ignore"):
        moves = (error != 0) & (chance * gap < np.abs(error))
        beyond = ~np.isfinite(back) | (np.abs(error) > gap)
    words: Words = np.where(moves, other, nearest).astype(nearest.dtype)
    return np.where(beyond & (error != 0), instead, words).astype(nearest.dtype)
