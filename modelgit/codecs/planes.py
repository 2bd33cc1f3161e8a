"""Whole weights: the exponents of floats are skewed and compress, signs and mantissas are kept as they are.

Rotating the sign away gathers the exponent in the top byte of a word, as in ZipNN (Hershcovitch et al., 2024); each
byte plane is then coded on its own.  Payload: nothing for no words; else a form byte, and

PLANES: one stream per byte of the (rotated) word, the top byte first.
LANES (4-byte floats whose low halves do not compress): streams for the exponent and for sign and upper mantissa,
then the low 16 bits of every word.  It reads and writes a third less memory than four planes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelgit.codecs.base import Effort, Layout, Words
from modelgit.errors import IntegrityError
from modelgit.numerics.bits import (
    BytesLike,
    join_planes,
    split_planes,
    split_rotated,
    unrotate_sign,
)
from modelgit.numerics.scratch import scratch
from modelgit.numerics.streams import Reader, compressible, decode_streams, encode_streams

__all__ = ["PLANES", "PlanesCodec"]

FORM_PLANES, FORM_LANES = 0, 1
LANES_FROM_WORDS = 4096
SAMPLE_RUNS, SAMPLE_RUN_WORDS = 4, 1024


class PlanesCodec:
    """Byte planes of words, sign-rotated for floats."""

    name = "planes"
    needs_base = False
    unit_bytes = 512 << 10
    random_access = False

    def encode(self, words: Words, layout: Layout, *, base: Words | None = None, effort: Effort = "balanced") -> bytes:
        """Code the words of one unit."""
        del base, effort  # smaller Huffman tables save 0.03 % at most, and take a third of the time to try
        if words.size == 0:
            return b""
        if _suits_lanes(words, layout):
            return b"".join([bytes((FORM_LANES,)), *_encode_lanes(words)])
        planes = scratch("planes.planes", words.nbytes, np.uint8).reshape(layout.word_bytes, words.size)
        if _rotates(layout):
            split_rotated(words, planes)
        else:
            split_planes(words, planes)
        return b"".join([bytes((FORM_PLANES,)), *encode_streams(list(planes))])

    def decode(
        self, payload: bytes | memoryview, layout: Layout, out: Words, *, base: Words | None = None, start: int = 0
    ) -> None:
        """Fill `out` with the words of a whole unit.  Raises IntegrityError for a malformed payload."""
        del base, start
        reader = Reader(payload)
        if out.size:
            form = reader.byte(below=2)
            if form == FORM_LANES:
                if layout.word_bytes != 4 or not layout.is_float:
                    raise IntegrityError("a payload of float lanes was given for words that are not 4-byte floats")
                _decode_lanes(reader, out)
            else:
                join_planes(decode_streams(reader, layout.word_bytes, out.size), out)
                if _rotates(layout):
                    unrotate_sign(out, out)
        reader.finish()


def _rotates(layout: Layout) -> bool:
    # In a single byte plane rotation only renames the symbols.
    return layout.is_float and layout.word_bytes > 1


def _suits_lanes(words: Words, layout: Layout) -> bool:
    if layout.word_bytes != 4 or not layout.is_float or words.size < LANES_FROM_WORDS:
        return False
    step = (words.size - SAMPLE_RUN_WORDS) // (SAMPLE_RUNS - 1)
    sample = np.concatenate([words[run * step : run * step + SAMPLE_RUN_WORDS] for run in range(SAMPLE_RUNS)])
    return not compressible(sample.astype(np.uint8)) and not compressible((sample >> 8).astype(np.uint8))


def _encode_lanes(words: Words) -> list[BytesLike]:
    count = words.size
    shifted = scratch("planes.words", count, np.uint32)
    upper = scratch("planes.upper", count, np.uint16)
    lower = scratch("planes.lower", count, np.uint16)
    planes = scratch("planes.planes", 2 * count, np.uint8).reshape(2, count)
    np.right_shift(words, 16, out=shifted)
    np.copyto(upper, shifted, casting="unsafe")
    np.copyto(lower, words, casting="unsafe")
    split_rotated(upper, planes)
    return [*encode_streams(list(planes)), lower.view(np.uint8).data]


def _decode_lanes(reader: Reader, out: Words) -> None:
    upper: NDArray[np.uint16] = scratch("planes.upper", out.size, np.uint16)
    join_planes(decode_streams(reader, 2, out.size), upper)
    unrotate_sign(upper, upper)
    np.copyto(out, upper)
    np.left_shift(out, 16, out=out)
    np.bitwise_or(out, np.frombuffer(reader.take(2 * out.size), "<u2"), out=out)


PLANES = PlanesCodec()
