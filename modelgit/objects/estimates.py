"""Statistics of a model as records: what merging, masks and diffs may rely on without knowing how they were made."""

from __future__ import annotations

import math
from typing import NamedTuple

from modelgit.objects.canonical import Record
from modelgit.objects.ids import FisherId, ManifestId, TensorId
from modelgit.objects.notes import KeptNote
from modelgit.objects.tensors import TensorEntry, TensorSpec

__all__ = ["CodedTensor", "FisherEstimate", "GramEntry", "KeptEstimate", "Statistics", "triangle_side"]


class CodedTensor(NamedTuple):
    """The values of a statistic for one tensor of a model.

    `scale` None: the stored tensor is float32 and holds them.  Otherwise it is U8 and holds codes of
    `numerics.logquant`, of which 255 stands for `scale`.
    """

    id: TensorId
    shape: tuple[int, ...]
    scale: float | None

    @property
    def elements(self) -> int:
        """How many values there are."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def triangle_side(elements: int) -> int:
    """n for a triangle of n (n + 1) / 2 elements; 0 for a number of elements that no triangle has."""
    side = (math.isqrt(8 * elements + 1) - 1) // 2
    return side if side * (side + 1) // 2 == elements else 0


class GramEntry(Record, frozen=True, kw_only=True):
    """The Gram matrix of the inputs of a linear layer, whose weight is called `name`.

    The stored tensor is float32 and holds the upper triangle of `[size, size]`, row by row.  The inputs meet the last
    axis of the weight (all but the first, flattened), or, with `first`, the first one.
    """

    name: str
    id: TensorId
    size: int
    first: bool = False

    @property
    def spec(self) -> TensorSpec:
        """The dtype and shape of what is stored."""
        return TensorSpec(dtype="F32", shape=(self.size * (self.size + 1) // 2,))


class FisherEstimate(Record, frozen=True, kw_only=True):
    """The diagonal of a Fisher information matrix.

    `of` is the manifest whose weights it was taken at, `weights` the name of these (`repo.statistics.weights_key`);
    `model` and `task` say of which function; `data` is the fingerprint of the inputs.  `diagonal` holds one tensor per
    parameter, in squared units 1/weight^2 (nats), averaged over `examples`: float32, or, where `scales` has its name,
    U8 codes on a logarithmic scale.  `head` names the tensors of the task's head.  Of a pass over at most `requested`
    examples that was to end when the ranking had settled, `criterion` is the overlap asked for and `overlap` the last
    one seen (see `fisher.settling`).

    `grams` holds, where they were asked for, the mean of x x^T over the inputs x of linear layers, sorted by name.
    """

    of: ManifestId
    model: str
    task: str
    estimator: str
    data: str
    examples: int
    seed: int
    diagonal: tuple[TensorEntry, ...]
    weights: str = ""
    scales: dict[str, float] = {}
    head: tuple[str, ...] = ()
    requested: int = 0
    criterion: float | None = None
    overlap: float | None = None
    grams: tuple[GramEntry, ...] = ()

    @property
    def stored(self) -> tuple[TensorEntry | GramEntry, ...]:
        """Every tensor that belongs to it."""
        return (*self.diagonal, *self.grams)

    @property
    def settled(self) -> bool | None:
        """Whether the ranking had settled when the pass ended; None when nobody looked."""
        if self.criterion is None:
            return None
        return self.overlap is not None and self.overlap >= self.criterion

    def coded(self) -> dict[str, CodedTensor]:
        """Where the values of each tensor are, by its name."""
        return {
            entry.name: CodedTensor(entry.id, entry.spec.shape, self.scales.get(entry.name)) for entry in self.diagonal
        }

    def coded_grams(self) -> dict[str, GramEntry]:
        """The Gram matrix for each weight of a linear layer, by its name."""
        return {entry.name: entry for entry in self.grams}


class KeptEstimate(Record, frozen=True, kw_only=True):
    """An estimate that a repository keeps: `key` says of what (weights, a dash, how it was made).

    `origin` is the remote that it came from, "" for one that was made here.
    """

    key: str
    id: FisherId
    time_ms: int
    origin: str = ""

    @property
    def weights(self) -> str:
        """The weights that it is of."""
        return self.key.partition("-")[0]


class Statistics(Record, frozen=True, kw_only=True):
    """What a repository keeps besides its commits, the oldest first; one list for each kind."""

    fishers: tuple[KeptEstimate, ...] = ()
    notes: tuple[KeptNote, ...] = ()
