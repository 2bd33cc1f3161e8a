"""Grouping by key is one stable sort, whatever the blocks that it is done in."""

from __future__ import annotations

import numpy as np
import pytest

from modelgit.numerics.grouping import gather, scatter


@pytest.mark.parametrize("size", [0, 1, 5, 65_535, 65_536, 65_537, 131_072, 262_144, 262_143])
@pytest.mark.parametrize("spread", [0, 2, 255])
@pytest.mark.parametrize("kind", ["<u1", "<u2", "<u4", "<u8"])
def test_it_is_a_stable_sort_and_back(size: int, spread: int, kind: str) -> None:
    random = np.random.default_rng(size + spread)
    words = random.integers(0, 1 << 8 * np.dtype(kind).itemsize - 1, size, dtype=np.uint64).astype(kind)
    keys = random.integers(0, spread + 1, size).astype(np.uint8)
    grouped = np.empty_like(words)
    gather(words, keys, grouped)
    assert np.array_equal(grouped, words[np.argsort(keys, kind="stable")])
    again = np.empty_like(words)
    scatter(grouped, keys, again)
    assert np.array_equal(again, words)
