"""Losses of a language model, as they are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Losses"]


@dataclass(frozen=True, eq=False)
class Losses:
    """-log p of the labelled outputs in nats, summed by example: `sums` float64 `[N]`, `counts` int64 `[N]`."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def outputs(self) -> int:
        """How many outputs (tokens) have a label."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Nats per labelled output; NaN without any."""
        return float(self.sums.sum() / self.outputs) if self.outputs else float("nan")
