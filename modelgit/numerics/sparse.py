"""Ascending positions to bytes and back, near the information bound.

Random positions are coded as gaps, 32-bit differences less one.  The low bits of a gap are as good as random and are
packed as they are; what is left fits a byte and is Huffman-coded: 9.1 bits a position at a density of 0.5 %, where the
bound is 9.08, as with Golomb codes (1966) but for any distribution.  Clustered positions do better with Huffman codes
for all bytes of the gaps, dense sets as a bitmap.  Where two are close, both are made and the smaller is kept.

Layout: the positions below n are cut into blocks of 2^32 of them, and for each block follow a form byte and, unless
it is EMPTY, a varint count less one.  Forms 1 to 4 are gaps with that many byte planes (`streams`, top plane
first); BITMAP is one stream of ceil(block / 8) bytes, lowest bit first; SPLIT is a byte k from 1 to 16, a byte p from
1 to 4, p byte planes of the gaps without their k lowest bits, and these bits of all gaps, back to back, filled up to
a whole byte.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import IntegrityError, UsageError
from modelgit.numerics.bits import BytesLike, join_planes, split_planes
from modelgit.numerics.scratch import scratch
from modelgit.numerics.streams import Reader, decode_streams, encode_streams, varint

__all__ = ["MAX_SPAN", "check_positions", "decode_block", "decode_positions", "encode_block", "encode_positions"]

EMPTY, BITMAP, SPLIT = 0, 5, 6
BLOCK_SPAN = 1 << 32
MAX_SPAN = 1 << 40
# Bitmaps are packed and unpacked in pieces that stay in the cache.
PIECE_SPAN = 1 << 18
# Low bits too; a multiple of 8, so that every piece begins with a byte.
PIECE_COUNT = 1 << 14
GAPS_ONLY_BELOW = 1 / 24
BITMAP_ONLY_ABOVE = 1 / 4
# Gaps are split for lists that are worth the time, so that the coded part of the mean is about this.
SPLIT_FROM_COUNT = 64
MOST_LOW_BITS = 16
HIGH_MEAN_BITS = 5


def encode_positions(positions: NDArray[np.integer], n: int) -> bytes:
    """Code 1-D strictly ascending `positions`, all in [0, n), n <= 2^40: all blocks, one after the other.

    Masks were stored so before their tensors shared a blob; fixtures and test vectors of that form are made with it.
    Raises UsageError when they are not that.
    """
    check_positions(positions, n)
    ascending = positions.astype(np.int64, copy=False)
    starts = range(0, max(n, 1), BLOCK_SPAN)
    cuts = [*np.searchsorted(ascending, np.array(starts)), ascending.size]
    parts = []
    for index, start in enumerate(starts):
        parts.append(encode_block(ascending[cuts[index] : cuts[index + 1]], start, min(n - start, BLOCK_SPAN)))
    return b"".join(parts)


def decode_positions(data: BytesLike, n: int, *, max_count: int | None = None) -> NDArray[np.int64]:
    """The positions of `encode_positions(positions, n)`: strictly ascending, all below n.

    `max_count` bounds how many there may be and thereby the memory (8 bytes each, and 6 more while a block is
    read); by default only n does.  Raises IntegrityError for bytes that are not such a list.
    """
    _check_span(n)
    reader = Reader(data)
    room = n if max_count is None else min(n, max_count)
    blocks = []
    for start in range(0, max(n, 1), BLOCK_SPAN):
        block = decode_block(reader, min(n - start, BLOCK_SPAN), max_count=room)
        room -= block.size
        blocks.append(block.astype(np.int64) + start)
    reader.finish()
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def decode_block(reader: Reader, span: int, *, max_count: int) -> NDArray[np.uint32]:
    """Read one block of positions below `span` <= 2^32 into a new array.  Raises IntegrityError."""
    form = reader.byte(below=SPLIT + 1)
    if form == EMPTY:
        return np.empty(0, np.uint32)
    count = reader.varint(most=min(span, max_count) - 1) + 1
    if form == BITMAP:
        return _read_bitmap(reader, span, count)
    positions = np.empty(count, np.uint32)
    if form == SPLIT:
        _read_split(reader, positions)
    else:
        join_planes(decode_streams(reader, form, count), positions)
    if int(positions.sum(dtype=np.uint64)) + count > span:
        raise IntegrityError(f"a list of positions runs beyond {span}")
    # Sums wrap at most once, for a gap of 2^32 - 1, and back again.
    np.add(positions, 1, out=positions)
    np.cumsum(positions, dtype=np.uint32, out=positions)
    np.subtract(positions, 1, out=positions)
    return positions


def check_positions(positions: NDArray[np.integer], n: int) -> None:
    """Raise UsageError unless `positions` are 1-D, strictly ascending and in [0, n), n <= 2^40."""
    _check_span(n)
    if positions.ndim != 1 or (positions.size and (positions[0] < 0 or int(positions[-1]) >= n)):
        raise UsageError(f"positions must be a list of numbers from 0 to {n - 1}")
    if positions.size > 1 and not np.all(positions[1:] > positions[:-1]):
        raise UsageError("positions must be strictly ascending")


def _check_span(n: int) -> None:
    if not 0 <= n <= MAX_SPAN:
        raise UsageError(f"positions in a tensor of {n} elements (at most 2^40)")


def encode_block(positions: NDArray[np.int64], start: int, span: int, *, split: bool = True) -> bytes:
    """Code strictly ascending `positions` from `start` on, less than `start` + `span`; `span` <= 2^32.

    Without `split` the fastest forms alone are tried.
    """
    count = positions.size
    if count == 0:
        return bytes((EMPTY,))
    head = varint(count - 1)
    candidates = []
    if count < span * BITMAP_ONLY_ABOVE or count == span:
        gaps = _gaps(positions, start)
        most = int(gaps.max()).bit_length()
        width = max(1, -(-most // 8))
        candidates.append(b"".join([bytes((width,)), head, *_planes(gaps, width)]))
        low = _low_bits(positions, start, most)
        if split and low and count >= SPLIT_FROM_COUNT:
            width = max(1, -(-(most - low) // 8))
            parts = [
                bytes((SPLIT,)),
                head,
                bytes((low, width)),
                *_planes(np.right_shift(gaps, np.uint32(low)), width),
                _pack_low(gaps, low),
            ]
            candidates.append(b"".join(parts))
    if count > span * GAPS_ONLY_BELOW:
        bitmap = _bitmap(positions, start, span)
        candidates.append(b"".join([bytes((BITMAP,)), head, *encode_streams([bitmap])]))
    return min(candidates, key=len)


def _gaps(positions: NDArray[np.int64], start: int) -> NDArray[np.uint32]:
    gaps: NDArray[np.uint32] = scratch("sparse.gaps", positions.size, np.uint32)
    gaps[0] = int(positions[0]) - start
    np.subtract(positions[1:], positions[:-1], out=gaps[1:], casting="unsafe")
    np.subtract(gaps[1:], 1, out=gaps[1:])
    return gaps


def _planes(gaps: NDArray[np.uint32], width: int) -> list[BytesLike]:
    planes = scratch("sparse.planes", 4 * gaps.size, np.uint8).reshape(4, gaps.size)
    split_planes(gaps, planes)
    return encode_streams(list(planes[4 - width :]))


def _low_bits(positions: NDArray[np.int64], start: int, most: int) -> int:
    """How many bits of each gap need not be coded: so many that the rest of nearly all gaps fits a byte."""
    mean = (int(positions[-1]) - start) // positions.size
    low = max(0, mean.bit_length() - HIGH_MEAN_BITS)
    return min(max(low, min(most - 8, low + 2)), MOST_LOW_BITS)


def _pack_low(gaps: NDArray[np.uint32], low: int) -> bytes:
    pieces = []
    for piece in range(0, gaps.size, PIECE_COUNT):
        two = gaps[piece : piece + PIECE_COUNT].astype("<u2").view(np.uint8).reshape(-1, 2)
        flags = np.unpackbits(two, axis=1, count=low, bitorder="little")
        pieces.append(np.packbits(flags, bitorder="little").tobytes())
    return b"".join(pieces)


def _read_split(reader: Reader, out: NDArray[np.uint32]) -> None:
    low = reader.byte(below=MOST_LOW_BITS + 1)
    width = reader.byte(below=5)
    if low == 0 or width == 0 or low + 8 * width > 32 + 7:
        raise IntegrityError("a list of positions has gaps of an impossible width")
    high = decode_streams(reader, width, out.size)
    join_planes(high, out)
    if int(out.max()) >> (32 - low):
        raise IntegrityError("a list of positions has gaps of more than 32 bits")
    np.left_shift(out, low, out=out)
    packed = np.frombuffer(reader.take(-(-out.size * low // 8)), np.uint8)
    for piece in range(0, out.size, PIECE_COUNT):
        gaps = out[piece : piece + PIECE_COUNT]
        flags = np.unpackbits(packed[piece * low // 8 :], count=gaps.size * low, bitorder="little")
        two = np.packbits(flags.reshape(-1, low), axis=1, bitorder="little")
        np.bitwise_or(gaps, two[:, 0], out=gaps)
        if low > 8:
            np.bitwise_or(gaps, np.left_shift(two[:, 1].astype(np.uint32), 8), out=gaps)


def _bitmap(positions: NDArray[np.int64], start: int, span: int) -> NDArray[np.uint8]:
    bitmap = np.empty(-(-span // 8), np.uint8)
    flags = np.empty(min(span, PIECE_SPAN), np.bool_)
    cuts = np.searchsorted(positions, np.arange(start, start + span + PIECE_SPAN, PIECE_SPAN))
    for piece, offset in enumerate(range(0, span, PIECE_SPAN)):
        size = min(PIECE_SPAN, span - offset)
        flags[:size] = False
        flags[positions[cuts[piece] : cuts[piece + 1]] - (start + offset)] = True
        bitmap[offset // 8 : (offset + size + 7) // 8] = np.packbits(flags[:size], bitorder="little")
    return bitmap


def _read_bitmap(reader: Reader, span: int, count: int) -> NDArray[np.uint32]:
    (bitmap,) = decode_streams(reader, 1, -(-span // 8))
    if bitmap.size == 1 < -(-span // 8):
        bitmap = np.broadcast_to(bitmap, (-(-span // 8),))
    if span % 8 and bitmap[-1] >> span % 8:
        raise IntegrityError(f"a bitmap of {span} positions marks one beyond them")
    positions = np.empty(count, np.uint32)
    found = 0
    for offset in range(0, span, PIECE_SPAN):
        piece = bitmap[offset // 8 : (offset + PIECE_SPAN) // 8]
        marked = np.flatnonzero(np.unpackbits(piece, bitorder="little"))
        if found + marked.size > count:
            raise IntegrityError(f"a bitmap marks more than the {count} positions that it declares")
        np.add(marked, offset, out=positions[found : found + marked.size], casting="unsafe")
        found += marked.size
    if found != count:
        raise IntegrityError(f"a bitmap marks {found} positions where it declares {count}")
    return positions
