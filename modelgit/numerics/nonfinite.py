"""Counting NaN and infinities in machine words, for every floating-point type, without decoding them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.numerics.scratch import scratch

__all__ = ["FloatBits", "ValueCounts", "count_nonfinite", "float_bits", "has_nonfinite"]


class FloatBits(NamedTuple):
    """Bits of a float: `exponent` and `mantissa` masks of its word.  An all-ones exponent with mantissa 0 is Inf."""

    word_bytes: int
    exponent: int
    mantissa: int


_IEEE = {
    "F8_E5M2": FloatBits(1, 0x7C, 0x03),
    "F16": FloatBits(2, 0x7C00, 0x03FF),
    "BF16": FloatBits(2, 0x7F80, 0x007F),
    "F32": FloatBits(4, 0x7F80_0000, 0x007F_FFFF),
    "C64": FloatBits(4, 0x7F80_0000, 0x007F_FFFF),
    "F64": FloatBits(8, 0x7FF0_0000_0000_0000, 0x000F_FFFF_FFFF_FFFF),
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

    def __add__(self, other: ValueCounts) -> ValueCounts:
        return ValueCounts(self.nan + other.nan, self.positive + other.positive, self.negative + other.negative)

    def __str__(self) -> str:
        named = (("NaN", self.nan), ("Inf", self.positive), ("-Inf", self.negative))
        return ", ".join(f"{count:,} {name}" for name, count in named if count) or "all finite"


def float_bits(dtype: str) -> FloatBits | None:
    """The bits of an IEEE-like dtype (safetensors' name); None for every other."""
    return _IEEE.get(dtype)


def has_nonfinite(dtype: str) -> bool:
    """Whether a value of this dtype can be NaN or infinite."""
    return dtype in _IEEE or dtype in _NAN_CODES


def count_nonfinite(words: NDArray[np.unsignedinteger], dtype: str) -> ValueCounts:
    """Count in `words`, 1-D and contiguous, of the word size of `dtype`; nothing for dtypes that are not floats.

    Two passes over `words` where all are finite, which is the rule.
    """
    codes = _NAN_CODES.get(dtype)
    if codes is not None:
        return ValueCounts(sum(int(np.count_nonzero(words == code)) for code in codes))
    bits = _IEEE.get(dtype)
    if bits is None or not words.size:
        return ValueCounts()
    kind = words.dtype.type
    exponents = scratch("nonfinite.exponents", words.size, words.dtype)
    np.bitwise_and(words, kind(bits.exponent), out=exponents)
    if int(exponents.max()) != bits.exponent:
        return ValueCounts()
    special = words[exponents == kind(bits.exponent)]
    infinite = special[(special & kind(bits.mantissa)) == 0]
    below = int(np.count_nonzero(infinite & ~kind(bits.exponent | bits.mantissa)))
    return ValueCounts(int(special.size - infinite.size), int(infinite.size - below), below)
