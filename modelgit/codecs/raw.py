"""The words as they are, for what does not compress."""

from __future__ import annotations

from modelgit.codecs.base import Effort, Layout, Words
from modelgit.errors import IntegrityError
from modelgit.numerics.bits import words_of

__all__ = ["RAW", "RawCodec"]


class RawCodec:
    """Raw little-endian words."""

    name = "raw"
    needs_base = False
    unit_bytes = 512 << 10
    random_access = True

    def encode(self, words: Words, layout: Layout, *, base: Words | None = None, effort: Effort = "balanced") -> bytes:
        """The bytes of `words`."""
        del layout, base, effort
        return words.tobytes()

    def decode(
        self, payload: bytes | memoryview, layout: Layout, out: Words, *, base: Words | None = None, start: int = 0
    ) -> None:
        """Copy the words from `start` on.  Raises IntegrityError when there are not enough of them."""
        del base
        words = words_of(payload, layout)
        if start + out.size > words.size:
            raise IntegrityError(f"a raw unit of {words.size} words was asked for words {start} to {start + out.size}")
        out[...] = words[start : start + out.size]


RAW = RawCodec()
