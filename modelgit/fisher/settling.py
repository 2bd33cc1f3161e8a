"""Whether more examples would still change which weights matter: the overlap of two independent halves.

A Fisher estimate is mostly used for its ranking, so that is what is watched: the share of the top 0.5 % of the weights
by one half of the examples that is also in the top 0.5 % by the other half.  No threshold has a unit, so neither the
size of the model nor the scale of its gradients matters.  The estimate from all examples is closer to the truth than
either half is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["TOP_SHARE", "Settling", "SettlingState"]

TOP_SHARE = 0.005

_TWICE = 2
# Of a larger model every n-th weight is watched: 20,000 in the top give the overlap to less than half a percent.
_WATCHED = 1 << 22


class Settling:
    """The two halves, at weights evenly spaced over the model.

    Blocks of examples go to the halves in turn.  Holds two float64 numbers for each of at most 4 million weights.
    """

    def __init__(self, sizes: Mapping[str, int], criterion: float) -> None:
        self.criterion = criterion
        self.overlaps: list[float] = []
        self._step = max(1, -(-sum(sizes.values()) // _WATCHED))
        self._names = sorted(sizes)
        watched = sum(-(-sizes[name] // self._step) for name in self._names)
        self._halves = (np.zeros(watched), np.zeros(watched))

    def add(self, block: int, squares: Mapping[str, torch.Tensor]) -> None:
        """Add the sums of one block, and compare when both halves have as many blocks."""
        at = 0
        half = self._halves[block % 2]
        for name in self._names:
            watched = squares[name].reshape(-1)[:: self._step].cpu().numpy()
            half[at : at + len(watched)] += watched
            at += len(watched)
        if block % 2 == 1:
            self.overlaps.append(_overlap(*self._halves))

    @property
    def done(self) -> bool:
        """Whether the last two comparisons both reached the criterion."""
        last = self.overlaps[-_TWICE:]
        return len(last) == _TWICE and min(last) >= self.criterion

    def state(self) -> SettlingState:
        """What `restore` needs; the arrays are not copies."""
        return SettlingState(self._halves, tuple(self.overlaps))

    def restore(self, state: SettlingState) -> None:
        """Go on from `state`, of a model with the same tensors."""
        for half, kept in zip(self._halves, state.halves, strict=True):
            half[:] = kept
        self.overlaps = list(state.overlaps)


class SettlingState(NamedTuple):
    """Sums of the two halves, float64, and the overlaps so far."""

    halves: tuple[NDArray[np.float64], NDArray[np.float64]]
    overlaps: tuple[float, ...]


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The share of the top 0.5 % of `one` that is among the top 0.5 % of `other`."""
    count = max(1, round(TOP_SHARE * len(one)))
    among = np.zeros(len(one), np.bool_)
    among[np.argpartition(one, len(one) - count)[len(one) - count :]] = True
    return int(among[np.argpartition(other, len(other) - count)[len(other) - count :]].sum()) / count
