"""Few changed words: where they are, and what became of them.

Payload: nothing for no words; else a varint with the words of the unit, one block of positions (`numerics.sparse`),
and unless that is empty a form byte and one stream per byte of the values, the top byte first.  Values are
DIFFERENCES to the base in float order, or the REPLACED words themselves where those are smaller: zeros of pruning,
re-initialised rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.codecs.base import WINDOWS, Effort, Layout, Words
from modelgit.errors import BugError, IntegrityError
from modelgit.numerics.bits import difference, join_planes, restore, split_planes
from modelgit.numerics.scratch import scratch
from modelgit.numerics.sparse import decode_block, encode_block
from modelgit.numerics.streams import Bytes, Reader, decode_streams, encode_streams, varint

__all__ = ["SPARSE", "SparseCodec", "Values", "changed_places", "encode_values", "put_values", "read_values"]

DIFFERENCES, REPLACED = 0, 1
SAMPLE_VALUES = 4096
# Work is done in runs that stay in the cache.
RUN_WORDS = 1 << 16


class SparseCodec:
    """Positions and values of the words that differ from those of a base."""

    name = "sparse"
    needs_base = True
    unit_bytes = 8 << 20
    random_access = True

    def encode(self, words: Words, layout: Layout, *, base: Words | None = None, effort: Effort = "balanced") -> bytes:
        """Code the words of one unit against `base`, of the same length."""
        if base is None or base.size != words.size:
            raise BugError("the sparse codec was not given a base of the same length")
        if words.size == 0:
            return b""
        changed = changed_places(words, base)
        head = varint(words.size) + encode_block(changed, 0, words.size, split=effort != "fast")
        if changed.size == 0:
            return head
        return head + encode_values(words[changed], base[changed], layout, effort)

    def decode(
        self, payload: bytes | memoryview, layout: Layout, out: Words, *, base: Words | None = None, start: int = 0
    ) -> None:
        """Fill `out` with the words from `start` on, those of `base` unless changed.

        `base` holds the words from `start` on.  Raises IntegrityError for a malformed payload.
        """
        if base is None or base.size != out.size:
            raise BugError("the sparse codec was not given a base of the same length")
        reader = Reader(payload)
        if not len(payload) and start + out.size == 0:
            return
        span = reader.varint(most=self.unit_bytes // layout.word_bytes)
        if start + out.size > span:
            raise IntegrityError(f"a sparse unit of {span} words was asked for words {start} to {start + out.size}")
        positions = decode_block(reader, span, max_count=span)
        values = read_values(reader, positions.size, layout)
        reader.finish()
        np.copyto(out, base)
        put_values(values, positions, layout, out, start)


def changed_places(words: Words, base: Words) -> NDArray[np.intp]:
    """Where the words differ from those of `base`, ascending."""
    flags = scratch("sparse.flags", min(words.size, RUN_WORDS), np.bool_)
    found = []
    for start in range(0, words.size, RUN_WORDS):
        stop = min(start + RUN_WORDS, words.size)
        differs = flags[: stop - start]
        np.not_equal(words[start:stop], base[start:stop], out=differs)
        places = np.flatnonzero(differs)
        if places.size:
            places += start
            found.append(places)
    return np.concatenate(found) if found else np.empty(0, np.intp)


class Values(NamedTuple):
    """What became of the words at some positions: the form, and planes of one value each (or one for all)."""

    form: int
    planes: list[Bytes]


def encode_values(new: Words, old: Words, layout: Layout, effort: Effort) -> bytes:
    """The form and the planes of words that replace `old` ones, of which there is at least one."""
    codes = scratch("sparse.codes", new.size, new.dtype)
    difference(new, old, codes, is_float=layout.is_float)
    form, values = DIFFERENCES, codes
    sample = slice(None, None, max(1, new.size // SAMPLE_VALUES))
    if len(_planes_of(new[sample], effort)) < len(_planes_of(codes[sample], effort)):
        form, values = REPLACED, new
    return bytes((form,)) + _planes_of(values, effort)


def read_values(reader: Reader, count: int, layout: Layout) -> Values:
    """Read what `encode_values` made of `count` words; nothing for none.  Raises IntegrityError."""
    if not count:
        return Values(DIFFERENCES, [])
    form = reader.byte(below=2)
    return Values(form, decode_streams(reader, layout.word_bytes, count))


def put_values(values: Values, positions: NDArray[np.unsignedinteger], layout: Layout, out: Words, start: int) -> None:
    """Apply values to the words at `positions` that lie in `out`, the words of the base from `start` on."""
    if not positions.size:
        return
    # In the positions' own dtype, or numpy widens all of them.
    window = np.array((start, start + out.size), positions.dtype)
    first, last = (int(cut) for cut in np.searchsorted(positions, window))
    for run in range(first, last, RUN_WORDS):
        part = slice(run, min(run + RUN_WORDS, last))
        places = positions[part].astype(np.intp)
        places -= start
        words = scratch("sparse.codes", places.size, out.dtype)
        join_planes([plane if plane.size == 1 else plane[part] for plane in values.planes], words)
        if values.form == DIFFERENCES:
            old = out[places]
            restore(words, old, old, is_float=layout.is_float)
            words = old
        out[places] = words


def _planes_of(values: Words, effort: Effort) -> bytes:
    planes = scratch("sparse.values", values.nbytes, np.uint8).reshape(values.dtype.itemsize, values.size)
    split_planes(values, planes)
    return b"".join(encode_streams(list(planes), windows=WINDOWS[effort]))


SPARSE = SparseCodec()
