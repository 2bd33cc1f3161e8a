"""Element types in safetensors' vocabulary, and how their bytes group into words for coding."""

from __future__ import annotations

from dataclasses import dataclass

from modelgit.errors import CheckpointFormatError

__all__ = ["DTYPES", "DType", "dtype_named"]


@dataclass(frozen=True)
class DType:
    """One element type.

    `bits` per element; `word_bytes` is the size of the machine word that codecs see (a C64 element is two 4-byte
    words); `is_float` says whether a word is an IEEE-like float (sign, exponent, mantissa from the top), which is
    what sign rotation and order-preserving differences rely on.
    """

    name: str
    bits: int
    word_bytes: int
    is_float: bool


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("BOOL", 8, 1, False),
        DType("U8", 8, 1, False),
        DType("I8", 8, 1, False),
        DType("F4", 4, 1, False),
        DType("F6_E2M3", 6, 1, False),
        DType("F6_E3M2", 6, 1, False),
        DType("F8_E4M3", 8, 1, True),
        DType("F8_E5M2", 8, 1, True),
        DType("F8_E8M0", 8, 1, False),
        DType("F8_E4M3FNUZ", 8, 1, True),
        DType("F8_E5M2FNUZ", 8, 1, True),
        DType("I16", 16, 2, False),
        DType("U16", 16, 2, False),
        DType("F16", 16, 2, True),
        DType("BF16", 16, 2, True),
        DType("I32", 32, 4, False),
        DType("U32", 32, 4, False),
        DType("F32", 32, 4, True),
        DType("C64", 64, 4, True),
        DType("I64", 64, 8, False),
        DType("U64", 64, 8, False),
        DType("F64", 64, 8, True),
    )
}


def dtype_named(name: str) -> DType:
    """The dtype called `name`.  Raises CheckpointFormatError for an unknown one."""
    try:
        return DTYPES[name]
    except KeyError:
        raise CheckpointFormatError(f"unknown dtype {name[:40]!r}") from None
