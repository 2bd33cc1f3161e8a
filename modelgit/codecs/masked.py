"""Changes under a mask: values only, at positions that both sides know and nobody stores again.

A codec that was told the positions of a mask in a unit (`under`) codes the words there against those of the base: all
of them, or, where few of them changed, those few with their places among the mask's.  A unit in which something else
changed as well is coded as `sparse` would, so that whoever chose the mask cannot be wrong, only less small.

Payload: nothing for no words; else a form byte and

    PLAIN    a payload of `sparse` (of `sparse-context`) for the unit: the mask counts for nothing
    ALL      a varint count of the positions, and unless that is 0 a form byte and planes, as `sparse` has them
    SOME     a varint count of the positions, and a payload of `sparse` for the words at these positions
    CONTEXT  (of `masked-context` alone) a varint count of the positions, and for every 512 KiB of words there a varint
             and so many bytes: a payload of `context` for them

The count is there to be compared: another mask is refused, not believed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelgit.codecs.base import Codec, Effort, Layout, Words
from modelgit.codecs.context import CONTEXT
from modelgit.codecs.sparse import RUN_WORDS, SPARSE, encode_values, put_values, read_values
from modelgit.codecs.sparse_context import SPARSE_CONTEXT
from modelgit.errors import BugError, IntegrityError
from modelgit.numerics.streams import Reader, varint

__all__ = ["MASKED", "MASKED_CONTEXT", "MaskedCodec"]

PLAIN, ALL, SOME, IN_CONTEXT = range(4)
_NOWHERE = np.empty(0, np.uint32)


class MaskedCodec:
    """Words at the positions of a mask, against those of a base.

    `places` are the positions in the unit, ascending, counted from its first word; a codec that was not told any has
    none, and codes what `sparse` would.
    """

    needs_base = True
    unit_bytes = 8 << 20

    def __init__(self, *, in_context: bool, places: NDArray[np.uint32] = _NOWHERE) -> None:
        self.name = "masked-context" if in_context else "masked"
        self.random_access = not in_context
        self.places = places
        self._plain: Codec = SPARSE_CONTEXT if in_context else SPARSE

    def under(self, places: NDArray[np.uint32]) -> MaskedCodec:
        """The same codec for a unit in which a mask has these positions."""
        return MaskedCodec(in_context=not self.random_access, places=places)

    def encode(self, words: Words, layout: Layout, *, base: Words | None = None, effort: Effort = "balanced") -> bytes:
        """Code the words of one unit against `base`, of the same length."""
        if base is None or base.size != words.size:
            raise BugError(f"the {self.name} codec was not given a base of the same length")
        if words.size == 0:
            return b""
        places = self.places
        new, old = words[places], base[places]
        inside = int(np.count_nonzero(new != old))
        if inside != _count_changed(words, base):
            return bytes((PLAIN,)) + self._plain.encode(words, layout, base=base, effort=effort)
        count = varint(places.size)
        if not places.size:
            return bytes((ALL,)) + count
        found = [bytes((ALL,)) + count + encode_values(new, old, layout, effort)]
        if inside < places.size:
            found.append(bytes((SOME,)) + count + SPARSE.encode(new, layout, base=old, effort=effort))
        if not self.random_access and inside:
            found.append(bytes((IN_CONTEXT,)) + count + _in_context(new, old, layout, effort))
        return min(found, key=len)

    def decode(
        self, payload: bytes | memoryview, layout: Layout, out: Words, *, base: Words | None = None, start: int = 0
    ) -> None:
        """Fill `out` with the words from `start` on, those of `base` unless changed.

        Raises IntegrityError for a malformed payload, and for one that was made under another number of positions.
        """
        if base is None or base.size != out.size:
            raise BugError(f"the {self.name} codec was not given a base of the same length")
        if not len(payload) and start + out.size == 0:
            return
        reader = Reader(payload)
        form = reader.byte(below=IN_CONTEXT if self.random_access else IN_CONTEXT + 1)
        if form == PLAIN:
            self._plain.decode(reader.rest(), layout, out, base=base, start=start)
            return
        places = self.places
        count = reader.varint(most=self.unit_bytes)
        if count != places.size:
            raise IntegrityError(f"a unit has values for {count} positions of a mask that has {places.size} there")
        if form == ALL:
            values = read_values(reader, count, layout)
            reader.finish()
            np.copyto(out, base)
            put_values(values, places, layout, out, start)
            return
        window = np.array((start, start + out.size), places.dtype)
        first, last = (int(cut) for cut in np.searchsorted(places, window))
        at = places[first:last].astype(np.intp)
        at -= start
        np.copyto(out, base)
        words = out[at]
        if form == SOME:
            SPARSE.decode(reader.rest(), layout, words, base=words, start=first)
        else:
            _from_context(reader, len(payload), layout, words)
        out[at] = words


def _count_changed(words: Words, base: Words) -> int:
    return sum(
        int(np.count_nonzero(words[start : start + RUN_WORDS] != base[start : start + RUN_WORDS]))
        for start in range(0, words.size, RUN_WORDS)
    )


def _in_context(new: Words, old: Words, layout: Layout, effort: Effort) -> bytes:
    step = CONTEXT.unit_bytes // layout.word_bytes
    parts = []
    for start in range(0, new.size, step):
        part = slice(start, start + step)
        payload = CONTEXT.encode(new[part], layout, base=old[part], effort=effort)
        parts += [varint(len(payload)), payload]
    return b"".join(parts)


def _from_context(reader: Reader, size: int, layout: Layout, words: Words) -> None:
    """Replace the words at all positions of a unit."""
    step = CONTEXT.unit_bytes // layout.word_bytes
    for start in range(0, words.size, step):
        part = words[start : start + step]
        CONTEXT.decode(reader.take(reader.varint(most=size)), layout, part, base=part)
    reader.finish()


MASKED = MaskedCodec(in_context=False)
MASKED_CONTEXT = MaskedCodec(in_context=True)
