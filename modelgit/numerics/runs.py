"""Small numbers in order of their expected size: packed, with the large ones set apart.

Differences of weights, sorted by what is expected of them, begin with almost only zeros and end with numbers of many
bits.  A Huffman code spends a bit at least on every symbol, so that the beginning must be packed, 8, 4 or 2 numbers
to a symbol, and the end must not.  The list is cut into a few runs, each in the form that a sample says is shortest.

Layout, for n > 0 numbers of w bytes each: runs until there are n of them, each a form byte, a varint count less one,
and a body.

PLANES: one stream (`streams`) per byte of the numbers, the top byte first.
1, 2, 4, 8 (not 8 if w is 1): one stream of ceil(count * form / 8) bytes, the first number in the lowest bits.  The
largest symbol says that the number is at least that large; these numbers follow, as a body of form 8, or, where
that is not to be had or the form is 8 already, as PLANES.
GAPS: the positions of the numbers that are not 0 as a block of `numerics.sparse`, and the numbers as such a body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import IntegrityError
from modelgit.numerics.bits import BytesLike, Words, join_planes, pack_bits, split_planes, unpack_bits
from modelgit.numerics.scratch import scratch
from modelgit.numerics.sparse import decode_block, encode_block
from modelgit.numerics.streams import Bytes, Reader, decode_streams, encode_streams, varint

__all__ = ["decode_runs", "encode_runs"]

PLANES, GAPS = 0, 16
FORMS = (PLANES, 1, 2, 4, 8, GAPS)
MAX_RUNS = 64
# The list is looked at in this many parts of equal length, each by a sample.
PARTS = 16
PART_SAMPLE = 256
SMALLEST_PART = 512
# Packing is as dense as the zeros allow: one symbol must not get near a share of a half, where Huffman codes fail.
BY_WIDTH = (GAPS, 1, 2, 4, 8, PLANES)
ZEROS_FROM_WIDE_TO_NARROW = (0.2, 0.55, 0.86, 0.915)
WIDE_FROM = 0.4


def encode_runs(numbers: Words, number_bytes: int, *, windows: Sequence[int]) -> list[BytesLike]:
    """Code 1-D contiguous `numbers` of at most `number_bytes` bytes, at least one of them, in their order.

    `windows` as in `encode_streams`.
    """
    parts: list[BytesLike] = []
    for form, start, stop in _cut(numbers, number_bytes):
        parts += [bytes((form,)), varint(stop - start - 1)]
        parts.append(_encode_run(numbers[start:stop], number_bytes, form, windows))
    return parts


def decode_runs(reader: Reader, out: Words, number_bytes: int) -> None:
    """Fill `out`, not empty, with the numbers; allocates a small multiple of it.  Raises IntegrityError."""
    start = 0
    for _ in range(MAX_RUNS):
        form = reader.byte(below=GAPS + 1)
        if form not in FORMS or (form == 8 and number_bytes == 1):
            raise IntegrityError(f"a payload holds a run of the unknown form {form}")
        stop = start + reader.varint(most=out.size - start - 1) + 1
        _decode_run(reader, out[start:stop], number_bytes, form)
        if stop == out.size:
            return
        start = stop
    raise IntegrityError(f"a payload holds more than {MAX_RUNS} runs")


class _Piece(NamedTuple):
    form: int
    start: int
    stop: int


def _escape_form(form: int, number_bytes: int) -> int:
    return PLANES if number_bytes == 1 or form == 8 else 8


def _encode_run(numbers: Words, number_bytes: int, form: int, windows: Sequence[int]) -> bytes:
    count = numbers.size
    if form == PLANES:
        planes = scratch("runs.planes", numbers.nbytes, np.uint8).reshape(-1, count)
        split_planes(numbers, planes)
        # Joined, as streams may be views of the buffer that the next run fills.
        return b"".join(encode_streams(list(planes[-number_bytes:]), windows=windows, skewed=True))
    parts: list[BytesLike]
    if form == GAPS:
        places = np.flatnonzero(np.not_equal(numbers, 0))
        parts = [encode_block(places, 0, count)]
    else:
        # Cast, compare and mask: numpy has no fast minimum for small integers.
        most = (1 << form) - 1
        symbols = scratch("runs.symbols", count, np.uint8)
        large = scratch("runs.large", count, np.bool_)
        np.copyto(symbols, numbers, casting="unsafe")
        np.greater_equal(numbers, most, out=large)
        places = np.flatnonzero(large)
        if places.size:
            mask = large.view(np.uint8)
            np.negative(mask, out=mask)
            np.bitwise_or(symbols, mask, out=symbols)
            np.bitwise_and(symbols, most, out=symbols)
        parts = encode_streams([pack_bits(symbols, form)], windows=windows, skewed=True)
    if places.size:
        parts.append(_encode_run(numbers[places], number_bytes, _escape_form(form, number_bytes), windows))
    return b"".join(parts)


def _decode_run(reader: Reader, out: Words, number_bytes: int, form: int) -> None:
    count = out.size
    if form == PLANES:
        join_planes(decode_streams(reader, number_bytes, count), out)
        return
    places: NDArray[np.integer]
    if form == GAPS:
        places = decode_block(reader, count, max_count=count)
        out[...] = 0
    else:
        (packed,) = decode_streams(reader, 1, -(-count * form // 8))
        symbols = _unpacked(packed, form, count)
        np.copyto(out, symbols)
        places = np.flatnonzero(symbols == (1 << form) - 1)
        if symbols.size == 1 and places.size:
            places = np.arange(count)
    if places.size:
        large = np.empty(places.size, out.dtype)
        _decode_run(reader, large, number_bytes, _escape_form(form, number_bytes))
        out[places] = large


def _unpacked(packed: Bytes, form: int, count: int) -> Bytes:
    if form == 8:
        return packed
    if packed.size == 1 < -(-count * form // 8):
        # One byte stands for all of them, but not always one symbol.
        symbols = unpack_bits(packed, form, 8 // form)
        if not np.all(symbols == symbols[0]):
            packed = np.full(-(-count * form // 8), packed[0])
            return unpack_bits(packed, form, count)
        return symbols[:1]
    return unpack_bits(packed, form, count)


# -- which form where


def _cut(numbers: Words, number_bytes: int) -> list[_Piece]:
    """Pieces of `numbers` and a form for each."""
    count = numbers.size
    parts = max(1, min(PARTS, count // SMALLEST_PART))
    size = -(-count // parts)
    ranks = _ranks(_samples(numbers, -(-count // size), size), number_bytes)
    pieces: list[_Piece] = []
    for index, rank in enumerate(ranks.tolist()):
        start, stop = index * size, min((index + 1) * size, count)
        if pieces and pieces[-1].form == BY_WIDTH[rank]:
            start = pieces.pop().start
        pieces.append(_Piece(BY_WIDTH[rank], start, stop))
    return pieces


def _samples(numbers: Words, parts: int, size: int) -> Words:
    within = np.arange(0, size, max(1, size // PART_SAMPLE))
    places = within + size * np.arange(parts)[:, None]
    np.minimum(places, numbers.size - 1, out=places)
    samples: Words = numbers[places]
    return samples


def _ranks(samples: Words, number_bytes: int) -> NDArray[np.intp]:
    """For each row of the samples the place of its form in `BY_WIDTH`."""
    count = samples.shape[1]
    zeros = (count - np.count_nonzero(samples, axis=1)) / count
    steps = np.array(ZEROS_FROM_WIDE_TO_NARROW)
    ranks: NDArray[np.intp] = steps.size - np.searchsorted(steps, zeros, side="right")
    if number_bytes == 1:
        ranks[ranks == BY_WIDTH.index(8)] = BY_WIDTH.index(PLANES)
    else:
        ranks[np.count_nonzero(samples >= 255, axis=1) > WIDE_FROM * count] = BY_WIDTH.index(PLANES)
    return ranks
