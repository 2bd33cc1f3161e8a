"""Strided views: every range is what numpy makes of them; repeating a few bytes takes no memory of that size."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from modelgit.objects import TensorSpec, TensorView
from modelgit.patching.views import ViewBytes

STORED = np.arange(240, dtype="<u2")
BASE = TensorSpec(dtype="U16", shape=(240,))


@pytest.mark.parametrize(
    ("shape", "strides", "first"),
    [
        ((12, 20), (1, 12), 0),
        ((4, 5, 6), (1, 4, 20), 3),
        ((3, 7), (0, 2), 5),
        ((5,), (40,), 1),
        ((2, 3, 2, 2), (100, 0, 7, 1), 0),
        ((6, 1), (3, 9), 2),
        ((0, 4), (4, 1), 0),
    ],
)
def test_every_range_is_what_numpy_makes_of_it(shape: tuple, strides: tuple, first: int) -> None:
    view = TensorView(name="v", tensor=0, spec=TensorSpec(dtype="U16", shape=shape), offset=2 * first, strides=strides)
    steps = tuple(2 * stride for stride in strides)
    expected = np.lib.stride_tricks.as_strided(STORED[first:], shape, steps).tobytes()
    data = STORED.tobytes()
    reader = ViewBytes(lambda start, stop: data[start:stop], view, BASE)
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            assert reader.read(start, stop) == expected[start:stop]


def test_a_few_bytes_that_are_repeated_into_gigabytes_take_no_gigabytes() -> None:
    view = TensorView(name="v", tensor=0, spec=TensorSpec(dtype="U16", shape=(1 << 16, 1 << 16)), strides=(0, 0))
    data = STORED.tobytes()
    reader = ViewBytes(lambda start, stop: data[start:stop], view, BASE)
    tracemalloc.start()
    try:
        assert reader.read((1 << 32) + 1, (1 << 32) + 8) == bytes(7)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
