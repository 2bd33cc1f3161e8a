"""Drawing examples until the limits on negative flips are decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.evals.sequential import FlipTest, SequentialVerdict, allocate
from modelgit.objects import domain
from modelgit.progress import SILENT, Progress

__all__ = ["Draw", "draw_order", "draw_until_decided", "fragile_first"]

_FRAGILE_SHARE = 0.15
_MIN_BATCH, _MAX_BATCH = 16, 512


@dataclass(frozen=True)
class Draw:
    """How far drawing went: `flipped` of `drawn` examples, out of `population` that could flip.

    `expected` is the stratified estimate of flips in the whole population; `verdicts` has one entry per limit.
    """

    drawn: int
    flipped: int
    population: int
    expected: float
    verdicts: tuple[SequentialVerdict, ...]


def draw_order(count: int, *, seed: int, suite: str) -> NDArray[np.int64]:
    """A permutation of `range(count)` fixed by the seed and the suite: the same on every machine and for ever."""
    content = domain("draw") + seed.to_bytes(16, "little", signed=True) + suite.encode()
    words = np.frombuffer(blake3(content).digest(length=8 * count), dtype="<u8")
    return np.argsort(words, kind="stable").astype(np.int64)


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
    stop_at_failure: bool = True,
    progress: Progress = SILENT,
) -> Draw:
    """Draw from `strata` (positions in drawing order) until every limit in `allowed` (counts of flips) is decided.

    `flips_at` evaluates ascending positions and says which of them flipped.  With `stop_at_failure`, a failure of
    the first limit ends it; the other limits may then still be open.
    """
    sizes = [len(stratum) for stratum in strata]
    tests = [FlipTest(sizes, count, alpha_pass=alpha, alpha_fail=alpha) for count in allowed]
    verdicts: list[SequentialVerdict] = ["open"] * len(tests)
    drawn, flipped = [0] * len(sizes), [0] * len(sizes)
    while True:
        for index, test in enumerate(tests):
            # A verdict stands once it is given: the guarantee holds at the first moment of deciding.
            if verdicts[index] == "open":
                verdicts[index] = test.decide(drawn, flipped)
        if "open" not in verdicts or (stop_at_failure and verdicts[0] == "fail"):
            break
        progress.check()
        # Looking costs nothing in error, so batches only follow the price of a look.
        batch = min(_MAX_BATCH, max(_MIN_BATCH, sum(drawn) // 8))
        for index, share in enumerate(allocate(sizes, drawn, flipped, batch)):
            if share:
                chosen = np.sort(strata[index][drawn[index] : drawn[index] + share])
                flipped[index] += int(np.count_nonzero(flips_at(chosen)))
                drawn[index] += share
    expected = sum(size * s / n for size, n, s in zip(sizes, drawn, flipped, strict=True) if n)
    return Draw(sum(drawn), sum(flipped), sum(sizes), expected, tuple(verdicts))
