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
from modelgit.merging.base import Array, BoundStrategy, Part, Where
from modelgit.numerics.floats import from_float64, to_float64
from modelgit.objects import dtype_named

__all__ = ["SPARSE_FRACTION", "Comparison", "combine_window", "compare_window", "element_bytes", "value_words"]

SPARSE_FRACTION = 0.25
"""A side that changed at most this part of a tensor changed it sparsely: the rest is unchanged by intent.

A dense fine-tune in a 16-bit type leaves many values equal by rounding alone, which is not intent.
"""

Buffer = bytes | bytearray | memoryview
Words = npt.NDArray[Any]
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


def value_words(raw: Buffer, dtype: str) -> Words:
    """`raw` as unsigned little-endian integers, one an element."""
    return np.frombuffer(raw, dtype=_WORDS[element_bytes(dtype)])


def compare_window(base: Buffer, sides: Sequence[Buffer], dtype: str) -> Comparison:
    """Count how `sides` differ from `base`, all being raw bytes of one length and of type `dtype`."""
    before = value_words(base, dtype)
    after = [value_words(side, dtype) for side in sides]
    changed = [words != before for words in after]
    votes = np.sum(changed, axis=0, dtype=np.uint8)
    positions = np.flatnonzero(votes > 1)
    return Comparison(
        elements=before.size,
        changed=tuple(int(np.count_nonzero(mask)) for mask in changed),
        overlap=positions.size,
        agree=_agreement(before, after, changed, positions, dtype),
    )


def _agreement(
    before: Words, after: Sequence[Words], changed: Sequence[Words], positions: npt.NDArray[np.intp], dtype: str
) -> int:
    """How many of `positions` all sides that changed them moved the same way (complex: in both parts)."""
    if not positions.size:
        return 0
    if not dtype_named(dtype).is_float:
        first = np.zeros(positions.size, dtype=before.dtype)
        for words, mask in zip(after, changed, strict=True):
            first = np.where(mask[positions], words[positions], first)
        same = [(words[positions] == first) | ~mask[positions] for words, mask in zip(after, changed, strict=True)]
        return int(np.count_nonzero(np.all(same, axis=0)))
    start = _values(before[positions], dtype)
    parts = start.size // positions.size
    low, high = np.full(start.size, np.inf), np.full(start.size, -np.inf)
    with np.errstate(all="ignore"):
        for words, mask in zip(after, changed, strict=True):
            moved = np.repeat(mask[positions], parts)
            sign = np.sign(_values(words[positions], dtype) - start)
            low = np.where(moved, np.minimum(low, sign), low)
            high = np.where(moved, np.maximum(high, sign), high)
        return int(np.count_nonzero((low == high).reshape(-1, parts).all(axis=1)))


def combine_window(
    base: Buffer | None,
    sides: Sequence[Buffer],
    dtype: str,
    strategy: BoundStrategy,
    *,
    where: Where,
    shape: tuple[int, ...] | None = None,
    fisher: Sequence[Array | None] = (),
    statistics: Mapping[str, float] | None = None,
    split: bool = False,
) -> bytes:
    """Merge one window: raw bytes of `base` and of two or more `sides`, of one length, in type `dtype`.

    With `split` (and a base), elements that no side or one side changed are taken bit for bit, and the strategy
    makes the others; without it the strategy sees all elements that are not equal on all sides.  `fisher` holds
    one float64 value an element or None per side.  `shape` is given for a strategy of scope "tensor", whose
    window is the whole tensor.

    Raises UsageError when values that are not floats would have to be computed.
    """
    words = [value_words(side, dtype) for side in sides]
    before = value_words(base, dtype) if base is not None else None
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
        return out.tobytes()
    if not strategy.strategy.exact and not dtype_named(dtype).is_float:
        raise UsageError(
            f"{where.name} holds {dtype} values, which `{strategy.name}` cannot combine",
            hint=f"`mgit resolve {where.name} --take ours` (or theirs) decides",
        )
    whole = strategy.strategy.scope == "tensor"
    # Values are made only where they are needed, unless picking them out would cost more than making them all.
    picked = None if whole or count > out.size // 2 else np.flatnonzero(undecided).astype(np.int64)
    part = _part(before, words, dtype, where, picked, shape if whole else None, fisher, exact=strategy.strategy.exact)
    merged = strategy.compute(part, statistics or {})
    made = merged.reshape(-1) if strategy.strategy.exact else _rounded(np.asarray(merged, dtype=np.float64), dtype)
    if picked is not None:
        out[picked] = made
    else:
        np.copyto(out, made, where=undecided)
    return out.tobytes()


def _part(
    before: Words | None,
    words: Sequence[Words],
    dtype: str,
    where: Where,
    picked: npt.NDArray[np.int64] | None,
    shape: tuple[int, ...] | None,
    fisher: Sequence[Array | None],
    *,
    exact: bool,
) -> Part:
    def arranged(array: Words | Array) -> npt.NDArray[Any]:
        return array if picked is None else array[picked]

    def values(array: Words) -> npt.NDArray[Any]:
        chosen = arranged(array) if exact else _values(arranged(array), dtype)
        return chosen.reshape(shape) if shape is not None and chosen.size == array.size else chosen

    def importance(array: Array | None) -> Array | None:
        if array is None:
            return None
        chosen = arranged(array)
        if dtype == "C64":
            chosen = np.repeat(chosen, 2)
        return chosen.reshape(shape) if shape is not None and chosen.size == array.size else chosen

    return Part(
        where=Where(name=where.name, start=where.start, count=words[0].size, picked=picked),
        base=None if before is None else values(before),
        sides=tuple(values(side) for side in words),
        fisher=tuple(importance(diagonal) for diagonal in fisher),
    )


def _values(words: Words, dtype: str) -> Array:
    """Words as float64; a complex number is two of them, real part first."""
    return to_float64(np.ascontiguousarray(words).data, dtype)


def _rounded(values: Array, dtype: str) -> Words:
    """Float64 values as words of `dtype`, rounded once, to nearest even."""
    return from_float64(values.reshape(-1), dtype).view(_WORDS[element_bytes(dtype)])
