"""Positions of a mask, in blocks of which each can be read alone.

A *section* holds the positions in one tensor of `n` elements: for every 2^21 elements one block as `numerics.sparse`
codes it, and before them, as varints, the lengths of all blocks but the last.  The sections of all tensors of a mask
lie back to back in one blob, so that a bias of which two values are chosen costs some five bytes and not an object of
its own.  At a density of 0.5 % that is 9.2 bits a position, 0.1 over what one list of all of them would take.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import IntegrityError
from modelgit.numerics.bits import BytesLike
from modelgit.numerics.sparse import MAX_SPAN, check_positions, decode_block, encode_block
from modelgit.numerics.streams import Reader, varint

__all__ = ["BLOCK_ELEMENTS", "decode_section", "encode_section", "read_block", "section_table", "table_bytes"]

BLOCK_ELEMENTS = 1 << 21
_VARINT_BYTES = 5  # of the length of a block, at most


def encode_section(positions: NDArray[np.integer], n: int) -> bytes:
    """Code 1-D strictly ascending `positions` in [0, n), n <= 2^40.  Raises UsageError when they are not that."""
    check_positions(positions, n)
    ascending = positions.astype(np.int64, copy=False)
    starts = np.arange(0, max(n, 1), BLOCK_ELEMENTS)
    cuts = [*np.searchsorted(ascending, starts), ascending.size]
    blocks = [
        encode_block(ascending[cuts[index] : cuts[index + 1]], int(start), min(n - int(start), BLOCK_ELEMENTS))
        for index, start in enumerate(starts)
    ]
    return b"".join([*(varint(len(block)) for block in blocks[:-1]), *blocks])


def decode_section(data: BytesLike, n: int, *, max_count: int) -> NDArray[np.int64]:
    """All positions of a section of a tensor of `n` elements, at most `max_count`.

    Raises IntegrityError for bytes that are no such section.
    """
    data = memoryview(data).cast("B")
    cuts = section_table(data, n, data.nbytes).tolist()
    found = []
    room = max_count
    for number, (start, stop) in enumerate(pairwise(cuts)):
        block = read_block(data[start:stop], n, number)
        room -= block.size
        if room < 0:
            raise IntegrityError(f"a mask has more positions than the {max_count} that it declares")
        found.append(block.astype(np.int64) + number * BLOCK_ELEMENTS)
    return np.concatenate(found)


def table_bytes(n: int) -> int:
    """How many bytes of a section hold its table at most.  Raises IntegrityError for more than 2^40 elements."""
    if not 0 <= n <= MAX_SPAN:
        raise IntegrityError(f"a mask of a tensor of {n} elements (at most 2^40)")
    return _VARINT_BYTES * (_count(n) - 1)


def section_table(head: BytesLike, n: int, size: int) -> NDArray[np.int64]:
    """Where the blocks of a section of `size` bytes begin, and where the last one ends; `head` holds the table.

    Raises IntegrityError when they cannot fill the section.
    """
    table_bytes(n)
    reader = Reader(head)
    cuts = np.empty(_count(n) + 1, np.int64)
    cuts[0] = 0
    for number in range(1, _count(n)):
        cuts[number] = cuts[number - 1] + reader.varint(most=size)
    cuts[:-1] += reader.offset
    cuts[-1] = size
    if cuts[-2] >= size:
        raise IntegrityError(f"a mask's list of {size} bytes has blocks that do not fit it")
    return cuts


def read_block(data: BytesLike, n: int, number: int) -> NDArray[np.uint32]:
    """The positions in block `number`, counted from its first element.  Raises IntegrityError."""
    reader = Reader(data)
    span = min(n - number * BLOCK_ELEMENTS, BLOCK_ELEMENTS)
    found = decode_block(reader, span, max_count=span)
    reader.finish()
    return found


def _count(n: int) -> int:
    return max(1, -(-n // BLOCK_ELEMENTS))
