"""Sizes that the codecs promise, on weights drawn like those of an encoder."""

from __future__ import annotations

import numpy as np
import pytest

from modelgit.codecs.base import CODECS, Effort, Layout
from modelgit.numerics.floats import from_float64
from modelgit.numerics.sparse import encode_positions

COUNT = 1 << 20
RNG = np.random.default_rng(7)
# Rows of different scale, as in trained matrices.
WEIGHTS = (RNG.normal(size=COUNT) * np.repeat(0.05 * np.exp(0.3 * RNG.normal(size=1024)), 1024)).astype(np.float32)
TUNED = (WEIGHTS + RNG.normal(size=COUNT) * 2e-4).astype(np.float32)


def words_as(values: np.ndarray, dtype: str) -> tuple[np.ndarray, Layout]:
    words = from_float64(values, dtype)
    return words, Layout(words.dtype.itemsize, True)


def ratio(
    name: str, dtype: str, values: np.ndarray, base: np.ndarray | None = None, *, effort: Effort = "balanced"
) -> float:
    codec = CODECS.get(name)
    words, layout = words_as(values, dtype)
    old = None if base is None else words_as(base, dtype)[0]
    unit = codec.unit_bytes // layout.word_bytes
    coded = sum(
        len(
            codec.encode(
                words[start : start + unit],
                layout,
                base=None if old is None else old[start : start + unit],
                effort=effort,
            )
        )
        for start in range(0, words.size, unit)
    )
    return words.nbytes / coded


@pytest.mark.parametrize(("dtype", "least"), [("F32", 1.19), ("BF16", 1.47), ("F16", 1.16)])
def test_weights_alone(dtype, least):
    assert ratio("planes", dtype, WEIGHTS) >= least


def test_exponents_are_coded_near_their_entropy():
    words, layout = words_as(WEIGHTS[: 1 << 18], "BF16")
    counts = np.bincount((words >> 7 & 0xFF).astype(np.intp))
    shares = counts[counts > 0] / words.size
    bound_bytes = words.size * (1 - float(np.sum(shares * np.log2(shares))) / 8)
    assert len(CODECS.get("planes").encode(words, layout)) <= 1.005 * bound_bytes


@pytest.mark.parametrize(("dtype", "least"), [("F32", 1.5), ("BF16", 3.4)])
def test_dense_differences_beat_the_weights_alone(dtype, least):
    found = ratio("delta", dtype, TUNED, WEIGHTS)
    assert found >= least
    assert found > 1.2 * ratio("planes", dtype, TUNED)


@pytest.mark.parametrize(("dtype", "least"), [("F32", 180), ("BF16", 190)])
def test_half_a_percent_changed(dtype, least):
    changed = RNG.random(COUNT) < 0.005
    new = np.where(changed, WEIGHTS + RNG.normal(size=COUNT).astype(np.float32) * 1e-3, WEIGHTS)
    found = ratio("sparse", dtype, new, WEIGHTS)
    assert found >= least
    assert found > 1.2 * ratio("delta", dtype, new, WEIGHTS)


def test_pruned_weights_cost_their_positions_only():
    changed = RNG.random(COUNT) < 0.1
    payload = CODECS.get("sparse").encode(
        np.where(changed, 0, WEIGHTS.view("<u4")), Layout(4, True), base=WEIGHTS.view("<u4")
    )
    assert len(payload) <= len(encode_positions(np.flatnonzero(changed), COUNT)) + 16


def test_float32_that_holds_bfloat16():
    held = (from_float64(WEIGHTS, "BF16").astype("<u4") << 16).view(np.float32)
    assert ratio("planes", "F32", held) >= 2.7


def test_incompressible_words_cost_a_few_bytes_more():
    for size in (1, 2, 4, 8):
        words = np.frombuffer(RNG.bytes(1 << 18), f"<u{size}")
        for name in ("planes", "delta"):
            payload = CODECS.get(name).encode(words, Layout(size, True), base=np.zeros_like(words))
            assert len(payload) <= words.nbytes + 4


def test_tiny_units_have_tiny_overhead():
    base = RNG.normal(size=384).astype(np.float32).view("<u4")
    new = base.copy()
    new[[5, 300]] ^= 0x12345
    assert len(CODECS.get("sparse").encode(new, Layout(4, True), base=base)) < 25
    for name in ("sparse", "delta"):
        assert len(CODECS.get(name).encode(base, Layout(4, True), base=base)) <= 6
    for name in CODECS:
        if name in {"raw", "planes", "delta", "sparse"}:
            assert CODECS.get(name).encode(base[:0], Layout(4, True), base=base[:0]) == b""


def test_position_tables_and_masks_are_found_to_repeat():
    planes = CODECS.get("planes")
    table = np.tile(np.arange(512, dtype="<u8"), 64)
    assert len(planes.encode(table, Layout(8, False))) <= table.nbytes // 100
    triangle = np.tril(np.ones((512, 512), np.uint8)).ravel()
    assert len(planes.encode(triangle, Layout(1, False))) <= triangle.nbytes // 20


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_more_effort_makes_differences_smaller(dtype):
    plain = ratio("delta", dtype, TUNED, WEIGHTS)
    fast, balanced, tight = (
        ratio("context", dtype, TUNED, WEIGHTS, effort=effort) for effort in ("fast", "balanced", "tight")
    )
    assert plain < 1.001 * fast
    assert fast < balanced or dtype == "F32"
    assert balanced <= tight * 1.002
    assert tight > 1.05 * fast or dtype == "F32"
    assert tight > 1.02 * fast


def test_rows_that_moved_by_different_amounts_are_told_apart():
    """Embeddings: most rows are hardly touched, some are trained."""
    rng = np.random.default_rng(10)
    moved = np.repeat(np.where(rng.random(1024) < 0.1, 1e-3, 1e-6), 1024) * rng.normal(size=COUNT)
    tuned = (WEIGHTS + moved).astype(np.float32)
    assert ratio("context", "BF16", tuned, WEIGHTS, effort="tight") > 1.03 * ratio("context", "BF16", tuned, WEIGHTS)
    assert ratio("context", "F32", tuned, WEIGHTS, effort="tight") > 1.02 * ratio("context", "F32", tuned, WEIGHTS)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_differences_to_zeros_cost_no_more_than_the_weights(dtype):
    """A grown vocabulary: the base goes on with zeros."""
    zeros = np.zeros_like(WEIGHTS)
    for effort in ("fast", "balanced", "tight"):
        assert ratio("context", dtype, WEIGHTS, zeros, effort=effort) > 0.99 * ratio("planes", dtype, WEIGHTS)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_residuals_of_a_prediction_go_below_a_bit_a_word(dtype):
    words, layout = words_as(WEIGHTS, dtype)
    residual = words + np.random.default_rng(11).choice([0, 1], size=words.size, p=[0.95, 0.05]).astype(words.dtype)
    coded = len(CODECS.get("context").encode(residual[: 1 << 17], layout, base=words[: 1 << 17], effort="fast"))
    assert 8 * coded / (1 << 17) < 0.39  # the entropy is 0.336, signs of the weights included


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_sparse_values_in_context_are_smaller(dtype):
    changed = RNG.random(COUNT) < 0.02
    new = np.where(changed, WEIGHTS + RNG.normal(size=COUNT).astype(np.float32) * 1e-3, WEIGHTS)
    assert ratio("sparse-context", dtype, new, WEIGHTS, effort="tight") > ratio("sparse", dtype, new, WEIGHTS)
    assert ratio("sparse", dtype, new, WEIGHTS) > ratio("sparse", dtype, new, WEIGHTS, effort="fast")


def test_quantised_words_are_kept_raw_or_shrunk_a_little():
    int8 = np.clip(RNG.normal(0, 30, 1 << 19), -127, 127).astype(np.int8).view(np.uint8)
    planes = CODECS.get("planes")
    assert int8.size / len(planes.encode(int8, Layout(1, False))) > 1.12
    int4 = RNG.integers(0, 256, 1 << 19, dtype=np.uint8)
    assert len(planes.encode(int4, Layout(1, False))) <= int4.size + 4
