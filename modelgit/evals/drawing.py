"""Drawing examples until the limits on negative flips are decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.evals.sequential import FlipTest, SequentialVerdict, allocate
from modelgit.objects import domain
from modelgit.progress import SILENT, Progress

if TYPE_CHECKING:
    from modelgit.evals.base import Deadline

__all__ = ["Draw", "Units", "draw_order", "draw_until_decided", "fragile_first", "next_batch"]

_FRAGILE_SHARE = 0.15
_MIN_BATCH, _MAX_BATCH = 16, 512


@dataclass(frozen=True, eq=False)
class Draw:
    """How far drawing went: `flipped` of `drawn` examples, out of `population` that could flip.

    `expected` is the stratified estimate of flips in the whole population; `verdicts` has one entry per limit, "open"
    where the time was over before it was decided.  `flips` are the positions that flipped, ascending.
    """

    drawn: int
    flipped: int
    population: int
    expected: float
    verdicts: tuple[SequentialVerdict, ...]
    flips: NDArray[np.int64]


class Units:
    """Examples in drawing order, those of a cluster together: what is drawn is a unit.

    `positions` are those of the examples, unit after unit, `count` is the number of units, `largest` the size of the
    largest.
    """

    def __init__(self, order: NDArray[np.int64], clusters: NDArray[np.int64] | None, *, seed: int, suite: str) -> None:
        if clusters is None:
            self.positions = order
            self.count, self.largest = order.size, 1
            self._unit = np.arange(order.size)
            return
        # The order of clusters is one of its own: the first example of a large one comes early in that of examples.
        names, unit, sizes = np.unique(clusters[order], return_inverse=True, return_counts=True)
        rank = np.argsort(draw_order(names.size, seed=seed, suite=f"clusters of {suite}"))
        by_unit = np.argsort(rank[unit], kind="stable")
        self.positions = order[by_unit]
        self._unit = rank[unit][by_unit]
        self.count, self.largest = names.size, int(sizes.max(initial=1))

    def first(self, units: int) -> NDArray[np.int64]:
        """The positions of the examples of the first `units` units, in drawing order."""
        return self.positions[: int(np.searchsorted(self._unit, units))]

    def sums(self, values: NDArray[np.int64], units: int) -> NDArray[np.int64]:
        """What the `values` of the examples `first(units)` add up to in each unit, int64 `[units]`."""
        found = np.zeros(units, np.int64)
        np.add.at(found, self._unit[: values.size], values)
        return found


def draw_order(count: int, *, seed: int, suite: str) -> NDArray[np.int64]:
    """A permutation of `range(count)` fixed by the seed and the suite: the same on every machine and for ever."""
    content = domain("draw") + seed.to_bytes(16, "little", signed=True) + suite.encode()
    words = np.frombuffer(blake3(content).digest(length=8 * count), dtype="<u8")
    return np.argsort(words, kind="stable").astype(np.int64)


def next_batch(drawn: int) -> int:
    """How many to draw before the next look.  Looking costs nothing in error: batches only follow its price."""
    return min(_MAX_BATCH, max(_MIN_BATCH, drawn // 8))


def fragile_first(
    margins: NDArray[np.float64], *, share: float = _FRAGILE_SHARE
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the `share` of examples with the lowest margin, and of the rest; each ascending."""
    order = np.argsort(margins, kind="stable").astype(np.int64)
    cut = round(share * order.size)
    return np.sort(order[:cut]), np.sort(order[cut:])


def draw_until_decided(
    strata: Sequence[NDArray[np.int64]],
    allowed: Sequence[int],
    flips_at: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    *,
    alpha: float,
    alpha_fail: float | None = None,
    in_turn: bool = False,
    deadline: Deadline | None = None,
    progress: Progress = SILENT,
) -> Draw:
    """Draw from `strata` (positions in drawing order) until every limit in `allowed` (counts of flips) is decided.

    `flips_at` evaluates ascending positions and says which of them flipped.  `alpha` bounds the error of a "pass",
    `alpha_fail` (the same by default) that of a "fail".  With `in_turn` a stratum is drawn whole before the next one,
    which finds a failure soonest where the first is the fragile one, and a pass late.
    """
    sizes = [len(stratum) for stratum in strata]
    failing = alpha if alpha_fail is None else alpha_fail
    tests = [FlipTest(sizes, count, alpha_pass=alpha, alpha_fail=failing) for count in allowed]
    verdicts: list[SequentialVerdict] = ["open"] * len(tests)
    drawn, flipped = [0] * len(sizes), [0] * len(sizes)
    found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    while True:
        for index, test in enumerate(tests):
            # A verdict stands once it is given: the guarantee holds at the first moment of deciding.
            if verdicts[index] == "open":
                verdicts[index] = test.decide(drawn, flipped)
        if "open" not in verdicts or (deadline is not None and deadline.passed()):
            break
        progress.check()
        sought = allowed[verdicts.index("open")]
        batch = next_batch(sum(drawn))
        shares = _in_turn(sizes, drawn, batch) if in_turn else allocate(sizes, drawn, flipped, batch, allowed=sought)
        for index, share in enumerate(shares):
            if share:
                chosen = np.sort(strata[index][drawn[index] : drawn[index] + share])
                flips = chosen[flips_at(chosen)]
                flipped[index] += flips.size
                found.append(flips)
                drawn[index] += share
    expected = sum(size * s / n for size, n, s in zip(sizes, drawn, flipped, strict=True) if n)
    return Draw(sum(drawn), sum(flipped), sum(sizes), expected, tuple(verdicts), np.sort(np.concatenate(found)))


def _in_turn(sizes: Sequence[int], drawn: Sequence[int], batch: int) -> Iterator[int]:
    for size, done in zip(sizes, drawn, strict=True):
        share = min(size - done, batch)
        batch -= share
        yield share
