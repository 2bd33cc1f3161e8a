"""Dense differences against a base: order-preserving integer difference, zigzag, byte planes.

Payload: nothing for no words; else one stream per byte of the difference, the top byte first (`numerics.streams`).
"""

from __future__ import annotations

import numpy as np

from modelgit.codecs.base import WINDOWS, Effort, Layout, Words
from modelgit.errors import BugError
from modelgit.numerics.bits import difference, join_planes, restore, split_planes
from modelgit.numerics.scratch import scratch
from modelgit.numerics.streams import Reader, decode_streams, encode_streams

__all__ = ["DELTA", "DeltaCodec"]


class DeltaCodec:
    """Differences of words to those of a base, every word coded."""

    name = "delta"
    needs_base = True
    unit_bytes = 512 << 10
    random_access = False

    def encode(self, words: Words, layout: Layout, *, base: Words | None = None, effort: Effort = "balanced") -> bytes:
        """Code the words of one unit against `base`, of the same length."""
        if base is None or base.size != words.size:
            raise BugError("the delta codec was not given a base of the same length")
        if words.size == 0:
            return b""
        codes = scratch("delta.codes", words.size, words.dtype)
        planes = scratch("delta.planes", words.nbytes, np.uint8).reshape(layout.word_bytes, words.size)
        difference(words, base, codes, is_float=layout.is_float)
        split_planes(codes, planes)
        return b"".join(encode_streams(list(planes), windows=WINDOWS[effort]))

    def decode(
        self, payload: bytes | memoryview, layout: Layout, out: Words, *, base: Words | None = None, start: int = 0
    ) -> None:
        """Fill `out` with the words of a whole unit.  Raises IntegrityError for a malformed payload."""
        del start
        if base is None or base.size != out.size:
            raise BugError("the delta codec was not given a base of the same length")
        reader = Reader(payload)
        if out.size:
            codes = scratch("delta.codes", out.size, out.dtype)
            join_planes(decode_streams(reader, layout.word_bytes, out.size), codes)
            reader.finish()
            restore(codes, base, out, is_float=layout.is_float)
        reader.finish()


DELTA = DeltaCodec()
