"""Runs of small numbers: exact in every form, near the entropy, and bounded when read from strangers."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import IntegrityError
from modelgit.numerics.runs import decode_runs, encode_runs
from modelgit.numerics.streams import Reader

WORDS = {1: np.uint8, 2: np.uint16, 3: np.uint32, 4: np.uint32, 7: np.uint64}
RNG = np.random.default_rng(8)


def coded(numbers: np.ndarray, number_bytes: int) -> bytes:
    return b"".join(encode_runs(numbers, number_bytes, windows=(16,)))


def decoded(data: bytes, count: int, number_bytes: int) -> np.ndarray:
    out = np.full(count, 1, WORDS[number_bytes])
    reader = Reader(data)
    decode_runs(reader, out, number_bytes)
    reader.finish()
    return out


def ascending(count: int, number_bytes: int, most: float) -> np.ndarray:
    """Exponential numbers of a growing mean, from next to nothing to `most`."""
    means = np.geomspace(1e-4, most, count)
    return np.minimum(RNG.exponential(means), 256.0**number_bytes - 2**12).astype(WORDS[number_bytes])


@given(st.data(), st.sampled_from(sorted(WORDS)))
def test_numbers_come_back(data, number_bytes):
    number = st.one_of(st.integers(0, 3), st.integers(0, 300), st.integers(0, 256**number_bytes - 1))
    numbers = data.draw(st.lists(number, min_size=1, max_size=80))
    limit = 256**number_bytes
    array = np.array([value % limit for value in numbers], WORDS[number_bytes])
    assert np.array_equal(decoded(coded(array, number_bytes), array.size, number_bytes), array)


@pytest.mark.parametrize("number_bytes", sorted(WORDS))
def test_every_form_is_used_and_comes_back(number_bytes):
    numbers = ascending(200_001, number_bytes, 256.0**number_bytes / 4)
    kept = numbers.copy()
    data = coded(numbers, number_bytes)
    assert np.array_equal(numbers, kept)
    assert np.array_equal(decoded(data, numbers.size, number_bytes), numbers)
    descending = numbers[::-1].copy()
    assert np.array_equal(decoded(coded(descending, number_bytes), numbers.size, number_bytes), descending)


def test_one_wide_run_does_not_disturb_another():
    """Two runs in planes with a narrow one between them: streams that are views must not be overwritten."""
    wide = RNG.integers(0, 1 << 16, 40_000).astype(np.uint16)
    numbers = np.concatenate([wide, np.zeros(40_000, np.uint16), wide[::-1]])
    assert np.array_equal(decoded(coded(numbers, 2), numbers.size, 2), numbers)


@pytest.mark.parametrize("zeros", [0.999, 0.98, 0.9, 0.7, 0.5, 0.3])
def test_the_size_is_near_the_entropy_whatever_the_share_of_zeros(zeros):
    count = 1 << 18
    rng = np.random.default_rng(9)
    numbers = np.where(rng.random(count) < zeros, 0, rng.geometric(0.6, count)).astype(np.uint16)
    shares = np.bincount(numbers) / count
    shares = shares[shares > 0]
    entropy_bytes = -count * float((shares * np.log2(shares)).sum()) / 8
    assert len(coded(numbers, 2)) < 1.16 * entropy_bytes + 200


def test_constants_cost_next_to_nothing():
    for value in (0, 1, 3, 15, 255, 256, 65535):
        numbers = np.full(10_001, value, np.uint16)
        data = coded(numbers, 2)
        assert len(data) < 40
        assert np.array_equal(decoded(data, numbers.size, 2), numbers)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.sampled_from(sorted(WORDS)))
def test_mutated_runs_give_numbers_or_an_integrity_error(seed, number_bytes):
    chance = random.Random(seed)
    numbers = np.sort(np.random.default_rng(seed).exponential(20, 3000)).astype(WORDS[number_bytes])
    data = bytearray(coded(numbers, number_bytes))
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(min(len(data), chance.choice((6, 60, 6000))))] = chance.randrange(256)
    try:
        decoded(bytes(data), numbers.size, number_bytes)
    except IntegrityError:
        return
