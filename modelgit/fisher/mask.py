"""Choose the positions that may train: one exact global ranking, streamed tensor by tensor.

FISH masks (Sung, Nair and Raffel 2021) rank every weight of the body by its diagonal Fisher information, in one
ranking for the whole model, and count the head, which trains whole, in the budget.  The ranking works on the bits of
float32 scores: non-negative floats order as their bits do, so two histograms of 65,536 bins find the threshold exactly
and no list of all scores is ever sorted or held.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError

__all__ = ["BUDGETS", "Positions", "bias_mask", "mask_size", "top_mask"]

BUDGETS = ("global", "layer")

Positions = dict[str, NDArray[np.int64] | None]
"""Ascending element indices (C order) by tensor name; None means every element; absent names have none."""

_NUMBERED = re.compile(r"^(.*?\.\d+)\.")


def top_mask(
    scores: Mapping[str, NDArray[np.floating]],
    *,
    density: float,
    head: Collection[str] = (),
    budget: str = "global",
) -> Positions:
    """The highest scores among all tensors but `head`, which is taken whole and counted.

    `scores` holds one non-negative array per tensor, the head's included (only their sizes matter); each is read four
    times and never kept, so a mapping may compute its arrays when asked.  Of N values in all, round(`density` N) are
    chosen.  Equal scores go to the first tensor by name, then the first index; zeros come after everything else.
    `budget` "layer" gives each layer its share by size in place of one ranking.  Raises UsageError for a density
    outside (0, 1], a head larger than the budget, and scores that are negative or not numbers.
    """
    if not 0 < density <= 1:
        raise UsageError(f"a density of {density} is not above 0 and at most 1", hint="`--density 0.5%`")
    if budget not in BUDGETS:
        raise UsageError(f"no mask budget `{budget}`", hint=f"known: {', '.join(BUDGETS)}")
    missing = sorted(set(head) - set(scores))
    if missing:
        raise UsageError(f"the head's tensor `{missing[0]}` has no score")
    sizes = {name: int(np.size(scores[name])) for name in sorted(scores)}
    total, whole = sum(sizes.values()), sum(sizes[name] for name in head)
    chosen = round(density * total)
    if chosen < whole:
        raise UsageError(
            f"the head alone has {whole} values and a density of {density:g} allows {chosen} of {total}",
            hint=f"`--density {min(1.0, whole / total) * 100 + 0.01:.2f}%` is the least that trains more than the head",
        )
    body = [name for name in sizes if name not in head]
    mask: Positions = dict.fromkeys(head)
    for names, count in _shares(body, sizes, chosen - whole, budget):
        mask |= _highest(scores, names, count)
    return {name: mask[name] for name in sorted(mask)}


def bias_mask(shapes: Mapping[str, tuple[int, ...]], *, head: Collection[str] = ()) -> Positions:
    """Every tensor whose name ends in `bias`, and the head, whole: the BitFit baseline (Ben Zaken et al. 2022)."""
    return {name: None for name in sorted(shapes) if name in head or name.rsplit(".", 1)[-1] == "bias"}


def mask_size(mask: Mapping[str, NDArray[np.int64] | None], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of positions in `mask`, for tensors of `shapes`."""
    return sum(int(np.prod(shapes[name], dtype=np.int64)) if at is None else len(at) for name, at in mask.items())


def _shares(names: list[str], sizes: Mapping[str, int], count: int, budget: str) -> list[tuple[list[str], int]]:
    """Groups of tensors with their part of `count`: all in one, or layers by size with the largest remainders."""
    if budget == "global":
        return [(names, count)]
    layers: dict[str, list[str]] = {}
    for name in names:
        found = _NUMBERED.match(name)
        layers.setdefault(found.group(1) if found else name, []).append(name)
    weights = [sum(sizes[name] for name in group) for group in layers.values()]
    exact = [Fraction(count * weight, max(1, sum(weights))) for weight in weights]
    shares = [int(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda at: (shares[at] - exact[at], at))
    for at in by_remainder[: count - sum(shares)]:
        shares[at] += 1
    return list(zip(layers.values(), shares, strict=True))


def _bits(scores: Mapping[str, NDArray[np.floating]], name: str) -> NDArray[np.uint32]:
    """The scores of one tensor as integers of the same order.  Raises UsageError for negative scores and NaN."""
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(scores[name], dtype=np.float32).reshape(-1)
    if not bool((flat >= 0).all()):
        raise UsageError(f"the scores of tensor `{name}` are negative or not numbers")
    bits: NDArray[np.uint32] = (flat + np.float32(0)).view(np.uint32)  # the sum makes 0 of -0
    return bits


def _highest(scores: Mapping[str, NDArray[np.floating]], names: list[str], count: int) -> Positions:
    """The `count` highest scores of `names` (sorted), first come first on ties."""
    high = np.zeros(1 << 16, np.int64)
    for name in names:
        high += np.bincount((_bits(scores, name) >> 16).astype(np.intp), minlength=1 << 16)
    if count <= 0:
        return {}
    top, above = _bin_of(high, count)
    low = np.zeros(1 << 16, np.int64)
    for name in names:
        bits = _bits(scores, name)
        inside = bits[(bits >> 16) == top]
        low += np.bincount((inside & 0xFFFF).astype(np.intp), minlength=1 << 16)
    bottom, higher = _bin_of(low, count - above)
    threshold, ties = np.uint32((top << 16) | bottom), count - above - higher
    chosen: Positions = {}
    for name in names:
        bits = _bits(scores, name)
        equal = np.flatnonzero(bits == threshold)[:ties]
        ties -= len(equal)
        positions = np.union1d(np.flatnonzero(bits > threshold), equal).astype(np.int64)
        if len(positions):
            chosen[name] = positions
    return chosen


def _bin_of(histogram: NDArray[np.int64], count: int) -> tuple[int, int]:
    """The bin in which the `count`-th entry from the top lies, and how many lie in the bins above it."""
    from_top = np.cumsum(histogram[::-1])
    at = int(np.searchsorted(from_top, count))
    return len(histogram) - 1 - at, int(from_top[at - 1]) if at else 0
