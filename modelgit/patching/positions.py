"""Where the positions of a mask lie, and reading those of a range of a tensor.

Sparse records under a mask hold values only; their positions are a section (`numerics.sections`) of a blob that every
record and the mask itself refer to, so that they are stored once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.codecs.base import Codec, layout_of
from modelgit.codecs.masked import MaskedCodec
from modelgit.errors import IntegrityError
from modelgit.numerics.sections import BLOCK_ELEMENTS, read_block, section_table, table_bytes
from modelgit.objects import BlobId, TensorSpec
from modelgit.patching.base import TensorReads

__all__ = ["PositionReads", "Section", "bind", "is_maskable"]

_KEPT_BYTES = 16 << 20


class Section(NamedTuple):
    """The positions in one tensor: bytes `offset` to `offset + length` of a blob."""

    blob: BlobId
    offset: int
    length: int


def is_maskable(spec: TensorSpec) -> bool:
    """Whether an element is one word, so that the positions of elements are those of words."""
    return spec.kind.bits == 8 * layout_of(spec).word_bytes


def bind(codec: Codec, reads: PositionReads, section: Section | None, words: int, start: int, stop: int) -> Codec:
    """`codec` for the unit of words `start` to `stop` of a tensor of `words`: one under a mask gets its positions."""
    if not isinstance(codec, MaskedCodec) or section is None:
        return codec
    return codec.under(reads.places(section, words, start, stop))


class _Kept:
    """Arrays that were used last, up to so many bytes of them, but always one."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        with self._lock:
            found = self._arrays.get(key)
            if found is not None:
                self._arrays.move_to_end(key)
                return found
        made = make()
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = made
                self._held_bytes += made.nbytes
            while self._held_bytes > self._limit_bytes and len(self._arrays) > 1:
                self._held_bytes -= self._arrays.popitem(last=False)[1].nbytes
        return made


class PositionReads:
    """Reads positions through `reads`.  Thread-safe; keeps the blocks and tables that were read last (32 MiB)."""

    def __init__(self, reads: TensorReads) -> None:
        self._reads = reads
        self._tables = _Kept(_KEPT_BYTES)
        self._blocks = _Kept(_KEPT_BYTES)

    def places(self, section: Section, words: int, start: int, stop: int) -> NDArray[np.uint32]:
        """The positions from `start` to `stop` in a tensor of `words`, counted from `start`.

        Raises IntegrityError when the blob is missing, damaged or shorter than the section, or holds something else.
        """
        found = []
        for number in range(start // BLOCK_ELEMENTS, -(-stop // BLOCK_ELEMENTS)):
            block = self._block(section, words, number)
            first = number * BLOCK_ELEMENTS
            window = np.array((max(start - first, 0), min(stop - first, BLOCK_ELEMENTS)), np.uint32)
            low, high = np.searchsorted(block, window)
            part = block[low:high]
            found.append(part + np.uint32(first - start) if first >= start else part - np.uint32(start - first))
        return np.concatenate(found) if found else np.empty(0, np.uint32)

    def _block(self, section: Section, words: int, number: int) -> NDArray[np.uint32]:
        def read() -> NDArray[np.uint32]:
            cuts = self._tables.get((section, words), lambda: self._table(section, words))
            return read_block(self._read(section, int(cuts[number]), int(cuts[number + 1])), words, number)

        return self._blocks.get((section, words, number), read)

    def _table(self, section: Section, words: int) -> NDArray[np.int64]:
        head = self._read(section, 0, min(table_bytes(words), section.length))
        return section_table(head, words, section.length)

    def _read(self, section: Section, start: int, stop: int) -> bytearray:
        size = self._reads.size(section.blob)
        if size is not None and section.offset + section.length > size:
            raise IntegrityError(f"blob {section.blob} of {size} bytes is too short for the mask that is read from it")
        # A block is never longer than a bitmap by much: more than this is no list that anybody made.
        if stop - start > 2 * BLOCK_ELEMENTS:
            raise IntegrityError(f"blob {section.blob} holds a list of positions of impossible length")
        return self._reads.read(section.blob, section.offset + start, section.offset + stop)
