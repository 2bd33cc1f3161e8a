"""Sizes of element types: bits for plain ones, whole blocks of the last dimension for block types."""

from __future__ import annotations

import pytest

from modelgit.errors import CheckpointFormatError
from modelgit.objects import BLOCK_DTYPES, DTYPES, TensorSpec, dtype_named


def test_names_are_unique_and_found() -> None:
    assert not set(DTYPES) & set(BLOCK_DTYPES)
    assert all(dtype_named(name).name == name for name in (*DTYPES, *BLOCK_DTYPES))
    with pytest.raises(CheckpointFormatError, match="unknown dtype"):
        dtype_named("Q9_9")


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", (), 4),
        ("F4", (3, 2), 3),
        ("Q4_0", (5, 64), 180),
        ("Q6_K", (256,), 210),
        ("Q4_0", (0, 32), 0),
        ("Q8_0", (3, 0), 0),
    ],
)
def test_sizes(dtype: str, shape: tuple[int, ...], size: int) -> None:
    spec = TensorSpec(dtype=dtype, shape=shape)
    spec.check()
    assert spec.size_bytes == size


@pytest.mark.parametrize(
    ("dtype", "shape"), [("F4", (3,)), ("Q4_0", ()), ("Q4_0", (32, 31)), ("Q6_K", (32,)), ("Q4_0", (16, 2))]
)
def test_what_fills_no_bytes_or_blocks(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointFormatError, match="does not fill whole"):
        TensorSpec(dtype=dtype, shape=shape).check()
