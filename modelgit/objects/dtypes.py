"""Element types in safetensors' vocabulary, GGUF's block types, and how their bytes group into words for coding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.errors import CheckpointFormatError

__all__ = ["BLOCK_DTYPES", "DTYPES", "DType", "dtype_named", "numpy_code"]

_NUMPY = {
    "BOOL": "?", "U8": "<u1", "I8": "<i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4", "U32": "<u4",
    "F32": "<f4", "C64": "<c8", "I64": "<i8", "U64": "<u8", "F64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class DType:
    """One element type.

    `bits` per element; `word_bytes` is the size of the machine word that codecs see (a C64 element is two 4-byte
    words); `is_float` says whether a word is an IEEE-like float (sign, exponent, mantissa from the top), which is
    what sign rotation and order-preserving differences rely on.

    A block type stores `block_elements` consecutive elements of a row together in `block_bytes` bytes (a scale and
    small integers, as a rule).  Its elements have no bits of their own: `bits` is 8, and what is counted as a changed
    value is a byte.
    """

    name: str
    bits: int
    word_bytes: int
    is_float: bool
    block_elements: int = 1
    block_bytes: int = 0

    @property
    def is_block(self) -> bool:
        """Whether elements lie in blocks."""
        return self.block_bytes > 0

    def size_of(self, shape: Sequence[int]) -> int:
        """Length in bytes of a tensor of `shape`.

        Raises CheckpointFormatError when sub-byte elements do not fill whole bytes, or rows do not fill whole blocks.
        """
        elements = math.prod(shape)
        if not self.is_block:
            bits = elements * self.bits
            if bits % 8:
                raise CheckpointFormatError(f"{self.name} with shape {_shown(shape)} does not fill whole bytes")
            return bits // 8
        if not shape or shape[-1] % self.block_elements:
            raise CheckpointFormatError(
                f"{self.name} with shape {_shown(shape)} does not fill whole blocks of {self.block_elements} elements"
            )
        return elements // self.block_elements * self.block_bytes


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

"""The element types of safetensors."""

# Sizes are those of the `block_*` structures of ggml (https://github.com/ggml-org/ggml, src/ggml-common.h).
BLOCK_DTYPES: dict[str, DType] = {
    name: DType(name, 8, 1, False, elements, size)
    for name, elements, size in (
        ("Q4_0", 32, 18),
        ("Q4_1", 32, 20),
        ("Q5_0", 32, 22),
        ("Q5_1", 32, 24),
        ("Q8_0", 32, 34),
        ("Q2_K", 256, 84),
        ("Q3_K", 256, 110),
        ("Q4_K", 256, 144),
        ("Q5_K", 256, 176),
        ("Q6_K", 256, 210),
        ("Q8_K", 256, 292),
        ("IQ1_S", 256, 50),
        ("IQ1_M", 256, 56),
        ("IQ2_XXS", 256, 66),
        ("IQ2_XS", 256, 74),
        ("IQ2_S", 256, 82),
        ("IQ3_XXS", 256, 98),
        ("IQ3_S", 256, 110),
        ("IQ4_NL", 32, 18),
        ("IQ4_XS", 256, 136),
        ("TQ1_0", 256, 54),
        ("TQ2_0", 256, 66),
        ("MXFP4", 32, 17),
        ("NVFP4", 64, 36),
        ("Q1_0", 128, 18),
        ("Q4_0_4_4", 32, 18),
        ("Q4_0_4_8", 32, 18),
        ("Q4_0_8_8", 32, 18),
    )
}
"""The block types of GGUF files."""


def dtype_named(name: str) -> DType:
    """The dtype called `name`.  Raises CheckpointFormatError for an unknown one."""
    found = DTYPES.get(name) or BLOCK_DTYPES.get(name)
    if found is None:
        raise CheckpointFormatError(f"unknown dtype {name[:40]!r}")
    return found


def _shown(shape: Sequence[int]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"{list(shape[:8])}..."


def numpy_code(dtype: str) -> str | None:
    """The little-endian type string of a dtype that numpy has itself; None for the others."""
    return _NUMPY.get(dtype)
