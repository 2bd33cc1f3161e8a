"""NaN and infinities in stored tensors: counted in one pass of bounded memory, without decoding values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from modelgit.numerics.nonfinite import ValueCounts, count_nonfinite, float_bits, has_nonfinite
from modelgit.objects import TensorEntry
from modelgit.patching.base import TensorReads
from modelgit.progress import SILENT, Progress

__all__ = ["ValueCounts", "count_values", "is_mask"]

_CHUNK_BYTES = 4 << 20


def count_values(
    reader: TensorReads, entry: TensorEntry, *, progress: Progress = SILENT, task: str = "check values"
) -> ValueCounts:
    """Count in one pass of bounded memory.  Types that are not floating-point have nothing to count.

    Raises IntegrityError when the tensor cannot be read.
    """
    if not has_nonfinite(entry.spec.dtype):
        progress.advance(task, entry.spec.size_bytes)
        return ValueCounts()
    total = ValueCounts()
    for words in _words(reader, entry, entry.spec.kind.word_bytes, progress, task):
        total += count_nonfinite(words, entry.spec.dtype)
    return total


def is_mask(reader: TensorReads, entry: TensorEntry, counts: ValueCounts) -> bool:
    """Whether a tensor reads as an additive attention mask: -Inf and zeros, some of each, and nothing else."""
    layout = float_bits(entry.spec.dtype)
    if layout is None or counts.nan or counts.positive or not counts.negative:
        return False
    total = zeros = 0
    for words in _words(reader, entry, layout.word_bytes, SILENT, ""):
        total += words.size
        magnitude = words.dtype.type(layout.exponent | layout.mantissa)
        zeros += int(words.size - np.count_nonzero(words & magnitude))
    return zeros > 0 and zeros + counts.negative == total


def _words(
    reader: TensorReads, entry: TensorEntry, word_bytes: int, progress: Progress, task: str
) -> Iterator[NDArray[np.unsignedinteger]]:
    """The tensor's machine words, a few megabytes at a time."""
    size = entry.spec.size_bytes
    for start in range(0, size, _CHUNK_BYTES):
        progress.check()
        data = reader.read(entry.id, start, min(size, start + _CHUNK_BYTES))
        yield np.frombuffer(data, dtype=f"<u{word_bytes}")
        progress.advance(task, len(data))
