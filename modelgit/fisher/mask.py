"""Choose the positions that may train: one exact global ranking, streamed tensor by tensor.

FISH masks (Sung, Nair and Raffel 2021) rank every weight of the body by its diagonal Fisher information, in one
ranking for the whole model, and count the head, which trains whole, in the budget.  The ranking works on the bits of
float32 scores: non-negative floats order as their bits do, so two histograms of 65,536 bins find the threshold exactly
and no list of all scores is ever sorted or held.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.fisher.scores import Scores
from modelgit.numerics.ranking import BINS, bin_of, histogram, order_bits

__all__ = ["BUDGETS", "Positions", "bias_mask", "top_mask"]

BUDGETS = ("global", "layer", "tensor")

Positions = dict[str, NDArray[np.int64] | None]
"""Ascending element indices (C order) by tensor name; None means every element; absent names have none."""

_NUMBERED = re.compile(r"^(.*?\.\d+)\.")


def top_mask(
    scores: Mapping[str, NDArray[np.floating]],
    *,
    density: float,
    head: Collection[str] = (),
    budget: str = "global",
    frozen: int = 0,
    positive: bool = False,
) -> Positions:
    """The highest scores among all tensors but `head`, which is taken whole and counted.

    `scores` holds one non-negative array per tensor, the head's included (only their sizes matter); each is read three
    times and never kept, so a mapping may compute its arrays when asked.  `frozen` is how many more values the model
    has, none of which may train.  Of N values in all, round(`density` N) are chosen.  Equal scores go to the first
    tensor by name, then the first index; zeros come after everything else, and with `positive` they are not chosen at
    all: the mask may then be smaller.  `budget` "layer" or "tensor" gives each its share by size in place of one
    ranking.  What is held is one tensor's scores, two histograms of 512 KiB and the positions that were chosen.

    Raises UsageError for a density outside (0, 1], one that allows no value, less than the head or more than may train,
    and for scores that are negative or not numbers.
    """
    if not 0 < density <= 1:
        raise UsageError(f"a density of {density} is not above 0 and at most 1", hint="`--density 0.5%`")
    if budget not in BUDGETS:
        raise UsageError(f"no mask budget `{budget}`", hint=f"known: {', '.join(BUDGETS)}")
    missing = sorted(set(head) - set(scores))
    if missing:
        raise UsageError(f"the head's tensor `{missing[0]}` has no score")
    sizes = {name: _size(scores, name) for name in sorted(scores)}
    body = {name: size for name, size in sizes.items() if name not in head}
    available = sum(sizes.values())
    total, whole = available + frozen, available - sum(body.values())
    chosen = _budget(density, total, whole, available, fewer=positive)
    mask: Positions = dict.fromkeys(head)
    for names, count in _shares(list(body), sizes, chosen - whole, budget):
        mask |= _highest(scores, names, count, positive=positive)
    return {name: mask[name] for name in sorted(mask)}


def _budget(density: float, total: int, whole: int, available: int, *, fewer: bool) -> int:
    """How many of `total` values train, `whole` of which are the head's; refused if they cannot (nor `fewer` do)."""
    chosen = round(density * total)
    if chosen < whole:
        raise UsageError(
            f"the head alone has {whole:,} values and a density of {density:g} allows {chosen:,} of {total:,}",
            hint=f"`--density {_at_least(whole + (whole < available), total)}` is the least that trains more than "
            "the head; `--no-head` ranks it like the rest",
        )
    if chosen < 1:
        raise UsageError(
            f"a density of {density:g} allows none of {total:,} values", hint=f"`--density {_at_least(1, total)}`"
        )
    if chosen > available and not fewer:
        raise UsageError(
            f"a density of {density:g} asks for {chosen:,} values, and only {available:,} of {total:,} may train",
            hint=f"`--density {math.floor(available / total * 1e6) / 1e4:g}%` is the most",
        )
    return min(chosen, available)


def _at_least(count: int, total: int) -> str:
    """The least density with three digits that allows `count` of `total` values, in per cent."""
    per_cent = 100 * count / total
    unit = 10.0 ** (math.floor(math.log10(per_cent)) - 2)
    return f"{min(100.0, math.ceil(per_cent / unit) * unit):.3g}%"


def _size(scores: Mapping[str, NDArray[np.floating]], name: str) -> int:
    return math.prod(scores.shapes[name]) if isinstance(scores, Scores) else int(np.size(scores[name]))


def bias_mask(shapes: Mapping[str, tuple[int, ...]], *, head: Collection[str] = ()) -> Positions:
    """Every tensor whose name ends in `bias`, and the head, whole: the BitFit baseline (Ben Zaken et al. 2022)."""
    return {name: None for name in sorted(shapes) if name in head or name.rsplit(".", 1)[-1] == "bias"}


def _shares(names: list[str], sizes: Mapping[str, int], count: int, budget: str) -> list[tuple[list[str], int]]:
    """Groups of tensors with their part of `count`: all in one, or by size with the largest remainders."""
    if budget == "global":
        return [(names, count)]
    layers: dict[str, list[str]] = {}
    for name in names:
        found = _NUMBERED.match(name) if budget == "layer" else None
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
    values = np.asarray(scores[name])
    if not bool((values >= 0).all()):
        raise UsageError(f"the scores of tensor `{name}` are negative or not numbers")
    return order_bits(values)


def _highest(scores: Mapping[str, NDArray[np.floating]], names: list[str], count: int, *, positive: bool) -> Positions:
    """The `count` highest scores of `names` (sorted), first come first on ties; no zeros if `positive`."""
    high = np.zeros(BINS, np.int64)
    zeros = 0
    for name in names:
        bits = _bits(scores, name)
        high += histogram(bits, 16)
        zeros += bits.size - int(np.count_nonzero(bits))
    if positive:
        count = min(count, int(high.sum()) - zeros)
    if count <= 0:
        return {}
    top, above = bin_of(high, count)
    low = np.zeros(BINS, np.int64)
    for name in names:
        bits = _bits(scores, name)
        low += histogram(bits[(bits >> 16) == top], 0)
    bottom, higher = bin_of(low, count - above)
    threshold, ties = np.uint32((top << 16) | bottom), count - above - higher
    chosen: Positions = {}
    for name in names:
        bits = _bits(scores, name)
        taken = bits > threshold
        equal = np.flatnonzero(bits == threshold)[:ties]
        ties -= len(equal)
        taken[equal] = True
        positions = np.flatnonzero(taken).astype(np.int64, copy=False)
        if len(positions):
            chosen[name] = positions
    return chosen
