"""Raw bytes of any element type to float arrays and back, without torch and without `ml_dtypes`.

Every conversion to a narrower float rounds once, to nearest even, also from float64: a float64 is first brought to
float32 by rounding to odd, which keeps a second rounding from going wrong (Boldo and Melquiond, 2008).  8-bit floats
come from a table of 2^16 entries over the upper half of a float32 that was itself rounded to odd.  What overflows
becomes what `tensor.to(torch.float8_*)` of a current torch makes of it: infinity in E5M2, the largest number in E4M3
(older ones: NaN), NaN in the FNUZ types.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.numerics.bits import BytesLike, Words

__all__ = ["INTEGERS", "from_float64", "has_float_values", "to_float32", "to_float64"]


@dataclass(frozen=True)
class _Minifloat:
    # `finite` counts the magnitude codes from 0 on that are finite numbers; `overflow` is what larger values become.
    # In the FNUZ types code 0x80, which would be -0, is the only NaN.
    mantissa_bits: int
    bias: int
    finite: int
    overflow: int

    @property
    def unsigned_zero(self) -> bool:
        return self.finite == 0x80


_MINIFLOATS = {
    "F8_E4M3": _Minifloat(3, 7, finite=0x7F, overflow=0x7E),
    "F8_E5M2": _Minifloat(2, 15, finite=0x7C, overflow=0x7C),
    "F8_E4M3FNUZ": _Minifloat(3, 8, finite=0x80, overflow=0x80),
    "F8_E5M2FNUZ": _Minifloat(2, 16, finite=0x80, overflow=0x80),
}
INTEGERS = {
    "I8": "<i1",
    "U8": "<u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
}
"""numpy's names of the integer types."""

_PLAIN = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<f4", **INTEGERS}


def has_float_values(dtype: str) -> bool:
    """Whether `to_float64` can read elements of `dtype`; False for packed sub-byte types."""
    return dtype in _PLAIN or dtype in _MINIFLOATS or dtype in {"BF16", "BOOL", "F8_E8M0"}


def to_float64(data: BytesLike, dtype: str) -> NDArray[np.float64]:
    """The elements of raw little-endian bytes as float64, shape (elements,); a C64 gives real and imaginary part.

    Exact but for 64-bit integers beyond 2^53.  Raises UsageError for a dtype without a value per element.
    """
    # Widening a signalling NaN makes it quiet, which numpy would report.
    with np.errstate(invalid="ignore"):
        if dtype in _PLAIN:
            return np.frombuffer(data, _PLAIN[dtype]).astype(np.float64)
        return to_float32(data, dtype).astype(np.float64)


def to_float32(data: BytesLike, dtype: str) -> NDArray[np.float32]:
    """As `to_float64`, in float32: exact for all floats of at most 32 bits, F64 and wide integers are rounded."""
    if dtype in _PLAIN:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.frombuffer(data, _PLAIN[dtype]).astype(np.float32)
    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype(np.uint32)
        np.left_shift(bits, 16, out=bits)
        return bits.view(np.float32)
    if dtype == "BOOL":
        set_bytes: NDArray[np.bool_] = np.frombuffer(data, np.uint8) != 0
        return set_bytes.astype(np.float32)
    values: NDArray[np.float32] = _values(dtype)[np.frombuffer(data, np.uint8)]
    return values


def from_float64(values: NDArray[np.float64], dtype: str) -> Words:
    """1-D `values` as words of the float type `dtype`, rounded once, to nearest even; the buffer is the raw bytes.

    Signs are kept, NaNs stay NaNs.  Raises UsageError for a dtype that is not a float of 8 to 64 bits.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype in {"F16", "F32", "F64", "C64"}:
            return _words(values.astype(_PLAIN[dtype]))
        near = values.astype(np.float32)
        back = near.astype(np.float64)
        bits = near.view(np.uint32)
        np.subtract(bits, np.abs(back) > np.abs(values), out=bits, casting="unsafe")
        np.bitwise_or(bits, back != values, out=bits, casting="unsafe")
        return _narrow(bits, dtype)


def _narrow(bits: NDArray[np.uint32], dtype: str) -> Words:
    # `bits` are those of float32 values, exact or rounded to odd.
    if dtype == "BF16":
        rounded = ((bits >> 16 & 1) + 0x7FFF + bits) >> 16
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        return np.where(nan, bits >> 16 | 0x40, rounded).astype(np.uint16)
    if dtype not in _MINIFLOATS:
        raise UsageError(f"values cannot be stored as {dtype}: it is not a float type of 8 to 64 bits")
    words: Words = _rounding_table(dtype)[bits >> 16 | ((bits & 0xFFFF) != 0)]
    return words


def _words(values: NDArray[np.floating]) -> Words:
    return values.view(np.dtype(f"<u{values.dtype.itemsize}"))


def _magnitudes(kind: _Minifloat) -> NDArray[np.float64]:
    # Codes 0 to 128 read as if no code were special: the values that finite codes have, and the next one.
    codes = np.arange(0x81)
    exponent, mantissa = codes >> kind.mantissa_bits, codes & (1 << kind.mantissa_bits) - 1
    significand = np.where(exponent > 0, mantissa + (1 << kind.mantissa_bits), mantissa).astype(np.float64)
    magnitudes: NDArray[np.float64] = np.ldexp(significand, np.maximum(exponent, 1) - kind.bias - kind.mantissa_bits)
    return magnitudes


@functools.cache
def _values(dtype: str) -> NDArray[np.float32]:
    if dtype == "F8_E8M0":
        return np.array([*(2.0**power for power in range(-127, 128)), np.nan], np.float32)
    kind = _MINIFLOATS.get(dtype)
    if kind is None:
        raise UsageError(f"tensors of {dtype} have no value per element that could be computed with")
    positive = _magnitudes(kind)[:0x80]
    positive[kind.finite :] = np.nan
    if kind.overflow == kind.finite < 0x80:
        positive[kind.overflow] = np.inf
    table = np.concatenate([positive, -positive]).astype(np.float32)
    if kind.unsigned_zero:
        table[0x80] = np.nan
    return table


@functools.cache
def _rounding_table(dtype: str) -> NDArray[np.uint8]:
    kind = _MINIFLOATS[dtype]
    values = to_float64(np.arange(1 << 16, dtype="<u2").tobytes(), "BF16")
    ladder = _magnitudes(kind)[: kind.finite + 1]
    borders = (ladder[:-1] + ladder[1:]) / 2
    # A value on the border above an odd code goes up, to the even one: move that border just below it.
    borders[1::2] = np.nextafter(borders[1::2], 0)
    codes = np.searchsorted(borders, np.abs(values))
    codes[codes == kind.finite] = kind.overflow
    codes[np.isnan(values)] = 0x80 if kind.unsigned_zero else 0x7F
    negative = np.signbit(values)
    if kind.unsigned_zero:
        negative &= codes > 0
    return np.where(negative, codes | 0x80, codes).astype(np.uint8)
