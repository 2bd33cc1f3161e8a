"""Samples of tensors: the words of a few runs, from memory or read with as little decoding as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from modelgit.codecs.base import Layout, Words, word_dtype

__all__ = ["read_sample", "take_sample"]


def take_sample(words: Words, runs: Sequence[tuple[int, int]]) -> Words:
    """The words of `runs` from a tensor in memory."""
    return np.concatenate([words[start:stop] for start, stop in runs])


def read_sample(
    read: Callable[[int, int], bytes | bytearray | memoryview],
    runs: Sequence[tuple[int, int]],
    layout: Layout,
    grain: int,
) -> Words:
    """The words of `runs`; runs that lie in one piece of `grain` bytes are read together."""
    width = layout.word_bytes
    groups: list[list[tuple[int, int]]] = []
    for run in runs:
        if groups and run[1] * width <= (groups[-1][0][0] * width // grain + 1) * grain:
            groups[-1].append(run)
        else:
            groups.append([run])
    sample = np.empty(sum(stop - start for start, stop in runs), word_dtype(layout))
    filled = 0
    for group in groups:
        low = group[0][0]
        piece = np.frombuffer(read(low * width, group[-1][1] * width), word_dtype(layout))
        for start, stop in group:
            sample[filled : filled + stop - start] = piece[start - low : stop - low]
            filled += stop - start
    return sample
