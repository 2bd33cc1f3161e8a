"""Differences in the order of what is expected of them, which both sides know.

An optimiser moves weights by amounts that hardly depend on their size, so that the difference counted in units of the
last place is large where the base is small.  Sorting the differences by the exponent of the *base* (stably, by
counting) costs no bits and puts like beside like: small codes are packed, tables follow the distribution.  Where the
amounts differ from row to row (embeddings of which few were trained), a byte for every 128 words says by how much, and
counts in the order.  This comes within 3 % of the entropy of the differences given the exponents; XOR or plain
differences, as in BitX, ZipNN or FM-Delta, stay 15 to 60 % above it.

Payload: nothing for no words; else

    1 byte     shift: a word's exponent is (word with its sign bit cleared) >> shift; at most 8 bits remain
    1 byte     top: the exponent that the order begins with
    1 byte     low: so many of the lowest bytes of each code are coded as planes
    1 byte     flags: 1 classes, 2 the low planes are in sorted order too
    classes    with flag 1: one stream of ceil(words / 128) bytes
    runs       (`numerics.runs`) of the codes without their low bytes, in sorted order
    planes     of the low bytes, the top one first

Sorted order is ascending, and stable, in 2 * (top - exponent) + class modulo 256.  A shift by all bits but the sign
leaves one exponent, and the words in the order in which they are: all that is left is to pack small codes, which is
several times faster than sorting and still smaller than coding a byte for each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelgit.codecs.base import Effort, Layout, Words
from modelgit.errors import BugError, IntegrityError
from modelgit.numerics.bits import BytesLike, difference, restore, split_planes
from modelgit.numerics.grouping import gather, scatter
from modelgit.numerics.runs import decode_runs, encode_runs
from modelgit.numerics.scratch import scratch
from modelgit.numerics.streams import LOCAL, WIDE, Bytes, Reader, decode_streams, encode_streams

__all__ = ["CONTEXT", "ContextCodec", "exponent_shift"]

CHUNK_WORDS = 128
CLASSES, LOW_SORTED = 1, 2
# Classes are half octaves, at most so many up or down.
CLASS_SPAN = 20
# Of each chunk every fourth word is looked at, and the scale of each exponent comes from so many words.
CHUNK_STEP = 4
MEAN_WORDS = 8192
SELDOM = 4
# Keeps chunks without a change in range.
PRIOR = 0.5
# An estimate, per word, of which noise alone makes up a third.
CLASSES_MUST_SAVE_BITS = 0.1
SAMPLE_WORDS = 1024
ORDER_FROM_WORDS = 1024
# Coarse before fine.
FLOAT_SHIFTS = {8: (3,), 16: (10, 7), 32: (23,), 64: (55,)}
# The share of its bits that an order must save: it takes half of the speed.
ORDER_MUST_SAVE: dict[Effort, float] = {"balanced": 0.06, "tight": 0.002}
# Exponentially distributed numbers take so many bits more than the logarithm of their mean; rare ones some still.
BITS_OVER_SPREAD = 1.44
LEAST_BITS = 0.3
# Finer contexts must save this share of a bit to be preferred: a small sample flatters them.
FINER_MUST_SAVE_BITS = 0.1


class ContextCodec:
    """Differences of words to those of a base, sorted by the exponents of the base."""

    name = "context"
    needs_base = True
    unit_bytes = 512 << 10
    random_access = False

    def encode(self, words: Words, layout: Layout, *, base: Words | None = None, effort: Effort = "balanced") -> bytes:
        """Code the words of one unit against `base`, of the same length."""
        if base is None or base.size != words.size:
            raise BugError("the context codec was not given a base of the same length")
        if words.size == 0:
            return b""
        codes = scratch("context.codes", words.size, words.dtype)
        difference(words, base, codes, is_float=layout.is_float)
        tight = effort == "tight"
        low = _low_bytes(codes)
        shift = exponent_shift(codes, base, layout, effort)
        exponents = scratch("context.exponents", words.size, np.uint8)
        top, classes, whole = 0, None, codes
        if shift < 8 * layout.word_bytes - 1:
            _exponents(base, shift, exponents)
            top = int(exponents.max())
            keys = scratch("context.keys", words.size, np.uint8)
            _levels(exponents, top, keys)
            classes = _classes(codes, exponents) if tight else None
            if classes is not None:
                _add_classes(keys, classes)
            whole = scratch("context.sorted", words.size, words.dtype)
            gather(codes, keys, whole)
        flags = (LOW_SORTED if low and tight else 0) | (CLASSES if classes is not None else 0)
        windows = (LOCAL,) if tight else (WIDE,)
        parts: list[BytesLike] = [bytes((shift, top, low, flags))]
        if classes is not None:
            parts += encode_streams([classes])
        runs = whole
        high_bytes = layout.word_bytes - low
        if low:
            np.right_shift(whole, 8 * low, out=(wide := scratch("context.wide", words.size, words.dtype)))
            runs = scratch("context.high", words.size, _word_of(high_bytes))
            np.copyto(runs, wide, casting="unsafe")
        parts += encode_runs(runs, high_bytes, windows=windows)
        if low:
            planes = scratch("context.planes", words.nbytes, np.uint8).reshape(-1, words.size)
            split_planes(whole if flags & LOW_SORTED else codes, planes)
            parts += encode_streams(list(planes[-low:]), windows=windows, skewed=True)
        return b"".join(parts)

    def decode(
        self, payload: bytes | memoryview, layout: Layout, out: Words, *, base: Words | None = None, start: int = 0
    ) -> None:
        """Fill `out` with the words of a whole unit.  Raises IntegrityError for a malformed payload."""
        del start
        if base is None or base.size != out.size:
            raise BugError("the context codec was not given a base of the same length")
        reader = Reader(payload)
        if out.size:
            self._decode(reader, layout, out, base)
        reader.finish()

    def _decode(self, reader: Reader, layout: Layout, out: Words, base: Words) -> None:
        shift = reader.byte(below=8 * layout.word_bytes)
        if 8 * layout.word_bytes - 1 - shift > 8:
            raise IntegrityError(f"a payload sorts words of {layout.word_bytes} bytes by more than 8 bits")
        top = reader.byte()
        low = reader.byte(below=layout.word_bytes)
        flags = reader.byte(below=4)
        sort = shift < 8 * layout.word_bytes - 1 or flags & CLASSES
        keys = scratch("context.keys", out.size, np.uint8)
        if sort:
            _exponents(base, shift, keys)
            _levels(keys, top, keys)
        if flags & CLASSES:
            count = -(-out.size // CHUNK_WORDS)
            (classes,) = decode_streams(reader, 1, count)
            _add_classes(keys, np.broadcast_to(classes, (count,)))
        high_bytes = layout.word_bytes - low
        codes = scratch("context.codes", out.size, out.dtype)
        whole = scratch("context.sorted", out.size, out.dtype)
        runs = whole if not low else scratch("context.high", out.size, _word_of(high_bytes))
        decode_runs(reader, runs, high_bytes)
        planes = decode_streams(reader, low, out.size) if low else []
        if low:
            np.copyto(whole, runs)
        if flags & LOW_SORTED:
            _append_planes(whole, planes)
        if sort:
            scatter(whole, keys, codes)
        else:
            codes = whole
        if not flags & LOW_SORTED:
            _append_planes(codes, planes)
        restore(codes, base, out, is_float=layout.is_float)


def _word_of(size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest word that holds `size` bytes."""
    return np.dtype(f"<u{1 << (size - 1).bit_length()}")


def _append_planes(words: Words, planes: list[Bytes]) -> None:
    for plane in planes:
        np.left_shift(words, 8, out=words)
        np.bitwise_or(words, plane, out=words)


def _exponents(base: Words, shift: int, out: NDArray[np.uint8]) -> None:
    shifted = scratch("bits.temporary", base.size, base.dtype)
    np.right_shift(base, shift, out=shifted)
    np.copyto(out, shifted, casting="unsafe")
    mask = (1 << (8 * base.dtype.itemsize - 1 - shift)) - 1
    if mask < 255:
        np.bitwise_and(out, mask, out=out)


def _levels(exponents: NDArray[np.uint8], top: int, out: NDArray[np.uint8]) -> None:
    """Twice the octaves below `top`, modulo 256; `out` may be `exponents`."""
    np.subtract(top, exponents, out=out)
    np.add(out, out, out=out)


def _add_classes(keys: NDArray[np.uint8], classes: Bytes) -> None:
    whole = keys.size // CHUNK_WORDS
    chunks = keys[: whole * CHUNK_WORDS].reshape(whole, CHUNK_WORDS)
    np.add(chunks, classes[:whole, None], out=chunks)
    if whole < classes.size:
        keys[whole * CHUNK_WORDS :] += classes[whole]


# -- what the writer decides


def _low_bytes(codes: Words) -> int:
    """How many of the lowest bytes of the codes look like noise: all but the two above the median's last bits."""
    if codes.dtype.itemsize <= 2:
        return 0
    median = int(np.median(codes[:: max(1, codes.size // SAMPLE_WORDS)]))
    return min(codes.dtype.itemsize - 2, max(0, (median.bit_length() - 2) // 8))


def exponent_shift(codes: Words, base: Words, layout: Layout, effort: Effort) -> int:
    """Where the exponent begins, or the position of the sign if an order by exponents would not pay.

    The words do not say which float of their size they are, so that a sample must.
    """
    bits = 8 * layout.word_bytes
    step = max(1, codes.size // SAMPLE_WORDS)
    seen, of_base = codes[::step], base[::step]
    best, least = bits - 1, _spread(seen, of_base, bits - 1)
    if not layout.is_float or effort == "fast" or codes.size < ORDER_FROM_WORDS:
        return best
    must_save = ORDER_MUST_SAVE[effort] * max(least + BITS_OVER_SPREAD, LEAST_BITS)
    for shift in FLOAT_SHIFTS[bits]:
        spread = _spread(seen, of_base, shift)
        if spread < least - must_save:
            best, least, must_save = shift, spread, FINER_MUST_SAVE_BITS
    return best


def _spread(codes: Words, base: Words, shift: int) -> float:
    """The mean of the logarithm of the mean code at each exponent: bits, but for a constant."""
    mask = (1 << (8 * base.dtype.itemsize - 1 - shift)) - 1
    exponents = np.right_shift(base, shift).astype(np.intp) & mask
    counts = np.bincount(exponents)
    sums = np.bincount(exponents, weights=codes)
    return float((counts * np.log2(sums / np.maximum(counts, 1) + 0.25)).sum() / codes.size)


def _classes(codes: Words, exponents: NDArray[np.uint8]) -> Bytes | None:
    """For each chunk how much further its words moved than others of their exponents did, in half octaves.

    None when all moved alike, and chunks of their own scale would not save more than they cost.
    """
    whole = codes.size // CHUNK_WORDS
    if whole < 2:
        return None
    each = max(1, codes.size // MEAN_WORDS)
    seen = exponents[::each].astype(np.intp)
    counts = np.bincount(seen, minlength=256)
    means = np.bincount(seen, weights=codes[::each], minlength=256) / np.maximum(counts, 1)
    rows = slice(0, whole * CHUNK_WORDS)
    of_chunk = exponents[rows].reshape(whole, CHUNK_WORDS)[:, ::CHUNK_STEP].astype(np.intp)
    seldom = counts < SELDOM
    # Exponents at which words move by less than one count for less.
    expected = np.where(seldom, 0, np.minimum(means, 1)).astype(np.float32)[of_chunk].sum(axis=1)
    scaled = np.where(seldom, 0, 1 / np.maximum(means, 1)).astype(np.float32)[of_chunk]
    scaled *= codes[rows].reshape(whole, CHUNK_WORDS)[:, ::CHUNK_STEP]
    ratio = (scaled.sum(axis=1) + PRIOR) / (expected + PRIOR)
    halves = np.clip(np.rint(2 * np.log2(ratio)), -CLASS_SPAN, CLASS_SPAN)
    # A scale that is known explains this many bits.
    saved = float((expected * (ratio - 1 - np.log(ratio))).mean() / np.log(2)) * CHUNK_STEP / CHUNK_WORDS
    if saved < CLASSES_MUST_SAVE_BITS:
        return None
    halves -= halves.min()
    classes = np.zeros(-(-codes.size // CHUNK_WORDS), np.uint8)
    np.copyto(classes[:whole], halves, casting="unsafe")
    return classes


CONTEXT = ContextCodec()
