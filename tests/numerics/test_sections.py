from __future__ import annotations

import numpy as np
import pytest

from modelgit.errors import IntegrityError, UsageError
from modelgit.numerics.sections import BLOCK_ELEMENTS, decode_section, encode_section, section_table, table_bytes
from modelgit.numerics.streams import varint
from modelgit.testing.fuzzing import fuzz


@pytest.mark.parametrize("n", [0, 1, 384, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 5 * BLOCK_ELEMENTS + 77])
@pytest.mark.parametrize("density", [0.0, 0.005, 0.5, 1.0])
def test_positions_come_back(n: int, density: float) -> None:
    random = np.random.default_rng(1)
    positions = np.flatnonzero(random.random(n) < density)
    data = encode_section(positions, n)
    assert np.array_equal(decode_section(data, n, max_count=positions.size), positions)
    cuts = section_table(data[: table_bytes(n)], n, len(data))
    assert cuts[-1] == len(data)
    assert cuts.size == max(1, -(-n // BLOCK_ELEMENTS)) + 1


def test_half_a_per_cent_takes_9_2_bits() -> None:
    n = 6 * BLOCK_ELEMENTS
    positions = np.flatnonzero(np.random.default_rng(0).random(n) < 0.005)
    assert 8 * len(encode_section(positions, n)) / positions.size < 9.2


def test_two_values_of_a_bias_take_a_few_bytes() -> None:
    assert len(encode_section(np.array([17, 200]), 384)) <= 6


def test_what_is_no_section_is_refused() -> None:
    n = 2 * BLOCK_ELEMENTS
    good = encode_section(np.array([1, BLOCK_ELEMENTS + 1]), n)
    for bad in (b"", good[:-1], good + b"\0", varint(1 << 30) + good[1:], varint(len(good)) + good[1:]):
        with pytest.raises(IntegrityError):
            decode_section(bad, n, max_count=2)
    with pytest.raises(IntegrityError, match="more positions"):
        decode_section(good, n, max_count=1)
    with pytest.raises(IntegrityError, match="2\\^40"):
        section_table(good, 1 << 41, len(good))
    for positions in ([3, 3], [3, 2], [-1], [n]):
        with pytest.raises(UsageError):
            encode_section(np.array(positions), n)


def test_mutants() -> None:
    n = BLOCK_ELEMENTS + 3000
    positions = np.array([5, 900, BLOCK_ELEMENTS + 7, BLOCK_ELEMENTS + 2999])
    seed = encode_section(positions, n)
    fuzz(lambda data: decode_section(data, n, max_count=100), [seed], count=20_000)
