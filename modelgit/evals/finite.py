"""Counting NaN, infinities and zeros in the raw bytes of a tensor, for every floating-point type, without decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.objects import TensorEntry
from modelgit.patching.base import TensorReads
from modelgit.progress import SILENT, Progress

__all__ = ["ValueCounts", "count_values", "is_mask"]

_CHUNK_BYTES = 4 << 20


class _Layout(NamedTuple):
    """Bits of a float: `exponent` and `mantissa` masks of its word.  An all-ones exponent with mantissa 0 is Inf."""

    word_bytes: int
    exponent: int
    mantissa: int


_IEEE = {
    "F8_E5M2": _Layout(1, 0x7C, 0x03),
    "F16": _Layout(2, 0x7C00, 0x03FF),
    "BF16": _Layout(2, 0x7F80, 0x007F),
    "F32": _Layout(4, 0x7F80_0000, 0x007F_FFFF),
    "C64": _Layout(4, 0x7F80_0000, 0x007F_FFFF),
    "F64": _Layout(8, 0x7FF0_0000_0000_0000, 0x000F_FFFF_FFFF_FFFF),
}
# Types without infinities, whose NaN are single codes (OCP 8-bit floating point; the FNUZ and E8M0 variants).
_NAN_CODES = {
    "F8_E4M3": (0x7F, 0xFF),
    "F8_E4M3FNUZ": (0x80,),
    "F8_E5M2FNUZ": (0x80,),
    "F8_E8M0": (0xFF,),
}


@dataclass(frozen=True)
class ValueCounts:
    """How many values of a tensor are NaN, +Inf and -Inf (parts of complex numbers count one by one)."""

    nan: int = 0
    positive: int = 0
    negative: int = 0

    @property
    def broken(self) -> bool:
        """Whether any value is not finite."""
        return bool(self.nan or self.positive or self.negative)

    def __str__(self) -> str:
        named = (("NaN", self.nan), ("Inf", self.positive), ("-Inf", self.negative))
        return ", ".join(f"{count:,} {name}" for name, count in named if count) or "all finite"


def count_values(
    reader: TensorReads, entry: TensorEntry, *, progress: Progress = SILENT, task: str = "check values"
) -> ValueCounts:
    """Count in one pass of bounded memory.  Types that are not floating-point have nothing to count.

    Raises IntegrityError when the tensor cannot be read.
    """
    layout, codes = _IEEE.get(entry.spec.dtype), _NAN_CODES.get(entry.spec.dtype)
    if codes is not None:
        return ValueCounts(sum(int(np.isin(words, codes).sum()) for words in _words(reader, entry, 1, progress, task)))
    if layout is None:
        progress.advance(task, entry.spec.size_bytes)
        return ValueCounts()
    nan = positive = negative = 0
    for words in _words(reader, entry, layout.word_bytes, progress, task):
        exponent, mantissa = words.dtype.type(layout.exponent), words.dtype.type(layout.mantissa)
        special = words[(words & exponent) == exponent]
        if special.size:
            infinite = special[(special & mantissa) == 0]
            below = int(np.count_nonzero(infinite & ~(exponent | mantissa)))
            nan += int(special.size - infinite.size)
            negative += below
            positive += int(infinite.size - below)
    return ValueCounts(nan, positive, negative)


def is_mask(reader: TensorReads, entry: TensorEntry, counts: ValueCounts) -> bool:
    """Whether a tensor reads as an additive attention mask: -Inf and zeros, some of each, and nothing else."""
    layout = _IEEE.get(entry.spec.dtype)
    if layout is None or counts.nan or counts.positive or not counts.negative:
        return False
    total = zeros = 0
    for words in _words(reader, entry, layout.word_bytes, SILENT, ""):
        total += words.size
        magnitude = words.dtype.type(layout.exponent | layout.mantissa)
        zeros += int(words.size - np.count_nonzero(words & magnitude))
    return zeros > 0 and zeros + counts.negative == total


def _words(
    reader: TensorReads, entry: TensorEntry, word_bytes: int, progress: Progress, task: str
) -> Iterator[NDArray[np.unsignedinteger]]:
    """The tensor's machine words, a few megabytes at a time."""
    size = entry.spec.size_bytes
    for start in range(0, size, _CHUNK_BYTES):
        progress.check()
        data = reader.read(entry.id, start, min(size, start + _CHUNK_BYTES))
        yield np.frombuffer(data, dtype=f"<u{word_bytes}")
        progress.advance(task, len(data))
