"""Few changed words, their differences in the order of what is expected of them.

As `sparse`, but the values are coded by `context` and so are some per cent smaller.  The order of a value depends on
all others, so that a unit is read only as a whole: smallest on disk, for those who rarely read a part of a tensor.

Payload: nothing for no words; else a varint with the words of the unit, one block of positions (`numerics.sparse`),
and for every 512 KiB of changed words a varint and so many bytes: the payload of `context` for these words, against
those that they replace.
"""

from __future__ import annotations

import numpy as np

from modelgit.codecs.base import Effort, Layout, Words
from modelgit.codecs.context import CONTEXT
from modelgit.codecs.sparse import changed_places
from modelgit.errors import BugError, IntegrityError
from modelgit.numerics.bits import BytesLike
from modelgit.numerics.sparse import decode_block, encode_block
from modelgit.numerics.streams import Reader, varint

__all__ = ["SPARSE_CONTEXT", "SparseContextCodec"]


class SparseContextCodec:
    """Positions of the words that differ from those of a base, and their differences sorted by its exponents."""

    name = "sparse-context"
    needs_base = True
    unit_bytes = 8 << 20
    random_access = False

    def encode(self, words: Words, layout: Layout, *, base: Words | None = None, effort: Effort = "balanced") -> bytes:
        """Code the words of one unit against `base`, of the same length."""
        if base is None or base.size != words.size:
            raise BugError("the sparse-context codec was not given a base of the same length")
        if words.size == 0:
            return b""
        changed = changed_places(words, base)
        parts: list[BytesLike] = [varint(words.size), encode_block(changed, 0, words.size)]
        step = CONTEXT.unit_bytes // layout.word_bytes
        for start in range(0, changed.size, step):
            places = changed[start : start + step]
            payload = CONTEXT.encode(words[places], layout, base=base[places], effort=effort)
            parts += [varint(len(payload)), payload]
        return b"".join(parts)

    def decode(
        self, payload: bytes | memoryview, layout: Layout, out: Words, *, base: Words | None = None, start: int = 0
    ) -> None:
        """Fill `out` with the words of a whole unit.  Raises IntegrityError for a malformed payload."""
        del start
        if base is None or base.size != out.size:
            raise BugError("the sparse-context codec was not given a base of the same length")
        reader = Reader(payload)
        if out.size:
            span = reader.varint(most=self.unit_bytes // layout.word_bytes)
            if span != out.size:
                raise IntegrityError(f"a sparse unit of {span} words was given for {out.size}")
            positions = decode_block(reader, span, max_count=span)
            np.copyto(out, base)
            step = CONTEXT.unit_bytes // layout.word_bytes
            for first in range(0, positions.size, step):
                places = positions[first : first + step].astype(np.intp)
                values = out[places]
                # The reader refuses what is longer than the payload.
                part = reader.take(reader.varint(most=len(payload)))
                CONTEXT.decode(part, layout, values, base=values)
                out[places] = values
        reader.finish()


SPARSE_CONTEXT = SparseContextCodec()
