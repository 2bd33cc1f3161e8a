"""Element-wise three-way merging of windows of raw values.

Two rules hold for every strategy, because they are applied here: elements that are equal on all sides are taken
as they are, bit for bit (so a model merged with itself is itself); and with `split`, an element that one side
alone changed is that side's, bit for bit, so that the strategy decides about real overlap only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelgit.errors import UsageError
from modelgit.merging.base import Array, BoundStrategy, Gram, Part, Where
from modelgit.numerics.floats import from_float64, to_float64
from modelgit.objects import dtype_named

__all__ = [
    "RUN_ELEMENTS",
    "SPARSE_FRACTION",
    "Comparison",
    "combine_window",
    "compare_window",
    "element_bytes",
]

SPARSE_FRACTION = 0.25
"""A side that changed at most this part of a tensor changed it sparsely: the rest is unchanged by intent.

A dense fine-tune in a 16-bit type leaves many values equal by rounding alone, which is not intent.
"""

RUN_ELEMENTS = 1 << 15
"""Elements that are computed at once: their float64 temporaries stay in the cache."""

Buffer = bytes | bytearray | memoryview
Words = npt.NDArray[Any]
Diagonal = npt.NDArray[np.floating[Any]]
_WORDS: dict[int, np.dtype[Any]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the sides differ from their base, in elements.

    `changed` counts per side; `overlap` counts elements that two or more sides changed; `agree` counts those of
    them that all these sides moved in the same direction.  Without a base, only `elements` says anything.
    """

    elements: int = 0
    changed: tuple[int, ...] = ()
    overlap: int = 0
    agree: int = 0

    def __add__(self, other: Comparison) -> Comparison:
        longest = max(self.changed, other.changed, key=len)
        padded = [(c.changed + (0,) * len(longest))[: len(longest)] for c in (self, other)]
        return Comparison(
            elements=self.elements + other.elements,
            changed=tuple(a + b for a, b in zip(*padded, strict=True)),
            overlap=self.overlap + other.overlap,
            agree=self.agree + other.agree,
        )

    @property
    def sparse(self) -> bool:
        """True when at least one side changed so little that the rest counts as unchanged by intent."""
        return any(count <= SPARSE_FRACTION * self.elements for count in self.changed)


def element_bytes(dtype: str) -> int:
    """The bytes that are compared and chosen as one: an element, or one byte of packed sub-byte elements."""
    return max(1, dtype_named(dtype).bits // 8)


def _value_words(raw: Buffer, dtype: str) -> Words:
    """`raw` as unsigned little-endian integers, one an element."""
    return np.frombuffer(raw, dtype=_WORDS[element_bytes(dtype)])


def compare_window(base: Buffer, sides: Sequence[Buffer], dtype: str) -> Comparison:
    """Count how `sides` differ from `base`, all being raw bytes of one length and of type `dtype`."""
    before = _value_words(base, dtype)
    after = [_value_words(side, dtype) for side in sides]
    total = Comparison(changed=(0,) * len(after))
    for start in range(0, before.size, RUN_ELEMENTS):
        run = slice(start, start + RUN_ELEMENTS)
        total += _compare_run(before[run], [words[run] for words in after], dtype)
    return total


def _compare_run(before: Words, after: Sequence[Words], dtype: str) -> Comparison:
    changed = [words != before for words in after]
    votes = np.sum(changed, axis=0, dtype=np.uint16)
    positions = np.flatnonzero(votes > 1)
    return Comparison(
        elements=before.size,
        changed=tuple(int(np.count_nonzero(mask)) for mask in changed),
        overlap=positions.size,
        agree=_agreement(before, after, changed, positions, dtype) if positions.size else 0,
    )


def _agreement(
    before: Words, after: Sequence[Words], changed: Sequence[Words], positions: npt.NDArray[np.intp], dtype: str
) -> int:
    """How many of `positions` all sides that changed them moved the same way (complex numbers: in both parts)."""
    if not dtype_named(dtype).is_float:
        alike = np.ones(positions.size, dtype=bool)
        first = before[positions]
        for words, mask in zip(after, changed, strict=True):
            here, moved = words[positions], mask[positions]
            alike &= ~moved | (first == before[positions]) | (here == first)
            first = np.where(moved, here, first)
        return int(np.count_nonzero(alike))
    start = _values(before[positions], dtype)
    parts = start.size // positions.size
    up, down = np.ones(start.size, dtype=bool), np.ones(start.size, dtype=bool)
    with np.errstate(invalid="ignore"):
        for words, mask in zip(after, changed, strict=True):
            still = np.repeat(~mask[positions], parts)
            value = _values(words[positions], dtype)
            up &= (value > start) | still
            down &= (value < start) | still
    return int(np.count_nonzero((up | down).reshape(-1, parts).all(axis=1)))


def combine_window(
    base: Buffer | None,
    sides: Sequence[Buffer],
    dtype: str,
    strategy: BoundStrategy,
    *,
    where: Where,
    shape: tuple[int, ...] | None = None,
    fisher: Sequence[Diagonal | None] = (),
    grams: Sequence[Gram | None] = (),
    statistics: Mapping[str, float] | None = None,
    split: bool = False,
    keep_equal: bool = True,
) -> bytes:
    """Merge one window: raw bytes of `base` and of `sides`, of one length, in type `dtype`.

    With `split` (and a base), elements that no side or one side changed are taken bit for bit, and the strategy
    makes the others; without it the strategy sees all elements that are not equal on all sides, and without
    `keep_equal` every element.  `fisher` holds one float value an element or None per side.  `shape` and `grams` are
    given for a strategy of scope "tensor", whose window is the whole tensor.

    Raises UsageError when values that are not floats would have to be computed.
    """
    words = [_value_words(side, dtype) for side in sides]
    before = _value_words(base, dtype) if base is not None else None
    if strategy.strategy.scope == "tensor":
        return _combine_run(
            before, words, dtype, strategy, where, shape, fisher, grams, statistics or {}, split, keep_equal
        ).tobytes()
    size = words[0].size
    merged = np.empty(size, dtype=words[0].dtype)
    for start in range(0, size, RUN_ELEMENTS):
        run = slice(start, min(start + RUN_ELEMENTS, size))
        merged[run] = _combine_run(
            None if before is None else before[run],
            [side[run] for side in words],
            dtype,
            strategy,
            Where(name=where.name, start=where.start + start, count=run.stop - start, keys=where.keys),
            None,
            [None if diagonal is None else diagonal[run] for diagonal in fisher],
            (),
            statistics or {},
            split,
            keep_equal,
        )
    return merged.tobytes()


def _combine_run(
    before: Words | None,
    words: Sequence[Words],
    dtype: str,
    strategy: BoundStrategy,
    where: Where,
    shape: tuple[int, ...] | None,
    fisher: Sequence[Diagonal | None],
    grams: Sequence[Gram | None],
    statistics: Mapping[str, float],
    split: bool,
    keep_equal: bool,
) -> Words:
    """The merged words of a run of elements that fits the cache, or of a whole tensor."""
    if not keep_equal:
        return _made(before, words, dtype, where, None, shape, fisher, grams, strategy, statistics)
    out = words[0].copy()
    undecided = np.zeros(out.size, dtype=bool)
    for other in words[1:]:
        undecided |= other != out
    if split and before is not None and dtype_named(dtype).bits >= 8:
        votes = np.zeros(out.size, dtype=np.uint16)
        out = before.copy()
        for side in words:
            moved = side != before
            np.copyto(out, side, where=moved)
            votes += moved
        undecided &= votes > 1
    count = int(np.count_nonzero(undecided))
    if not count:
        return out
    # Values are made only where they are needed, unless picking them out would cost more than making them all.
    sparse = strategy.strategy.scope != "tensor" and count <= out.size // 4
    picked = np.flatnonzero(undecided).astype(np.int64) if sparse else None
    made = _made(before, words, dtype, where, picked, shape, fisher, grams, strategy, statistics)
    if picked is not None:
        out[picked] = made
    else:
        np.copyto(out, made, where=undecided)
    return out


def _made(
    before: Words | None,
    words: Sequence[Words],
    dtype: str,
    where: Where,
    picked: npt.NDArray[np.int64] | None,
    shape: tuple[int, ...] | None,
    fisher: Sequence[Diagonal | None],
    grams: Sequence[Gram | None],
    strategy: BoundStrategy,
    statistics: Mapping[str, float],
) -> Words:
    """What the strategy makes of the words, or of those at `picked`."""
    if not strategy.strategy.exact and not dtype_named(dtype).is_float:
        raise UsageError(
            f"{where.name} holds {dtype} values, which `{strategy.name}` cannot combine",
            hint=f"`mgit resolve {where.name} --take ours` (or theirs) decides",
        )
    merged = strategy.compute(_part(before, words, dtype, where, picked, shape, fisher, grams, strategy), statistics)
    return merged.reshape(-1) if strategy.strategy.exact else _rounded(np.asarray(merged, dtype=np.float64), dtype)


def _part(
    before: Words | None,
    words: Sequence[Words],
    dtype: str,
    where: Where,
    picked: npt.NDArray[np.int64] | None,
    shape: tuple[int, ...] | None,
    fisher: Sequence[Diagonal | None],
    grams: Sequence[Gram | None],
    strategy: BoundStrategy,
) -> Part:
    def arranged(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array if picked is None else array[picked]

    def values(array: Words) -> npt.NDArray[Any]:
        chosen = arranged(array) if strategy.strategy.exact else _values(arranged(array), dtype)
        return chosen.reshape(shape) if shape is not None and chosen.size == array.size else chosen

    def importance(array: Diagonal | None) -> Array | None:
        if array is None:
            return None
        chosen = arranged(array).astype(np.float64)
        if dtype == "C64":
            chosen = np.repeat(chosen, 2)
        return chosen.reshape(shape) if shape is not None and chosen.size == array.size else chosen

    return Part(
        where=Where(name=where.name, start=where.start, count=words[0].size, picked=picked, keys=where.keys),
        base=values(before) if before is not None and "base" in strategy.strategy.needs else None,
        sides=tuple(values(side) for side in words),
        fisher=tuple(importance(diagonal) for diagonal in fisher),
        grams=tuple(grams),
    )


def _values(words: Words, dtype: str) -> Array:
    """Words as float64; a complex number is two of them, real part first."""
    return to_float64(np.ascontiguousarray(words).data, dtype)


def _rounded(values: Array, dtype: str) -> Words:
    """Float64 values as words of `dtype`, rounded once, to nearest even."""
    return from_float64(values.reshape(-1), dtype).view(_WORDS[element_bytes(dtype)])
