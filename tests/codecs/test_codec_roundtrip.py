"""Every codec gives back every bit, for every layout, size and pattern, and from several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.codecs.base import CODECS, Codec, Effort, Layout, layout_of, word_dtype
from modelgit.errors import BugError
from modelgit.objects import DTYPES, TensorSpec

NAMES = ("raw", "planes", "delta", "sparse", "context", "sparse-context", "masked", "masked-context")
EFFORTS = ("fast", "balanced", "tight")
LAYOUTS = sorted({layout_of(TensorSpec(dtype=name)) for name in DTYPES})


def coded_and_back(
    codec: Codec, words: np.ndarray, layout: Layout, base: np.ndarray, effort: Effort = "balanced"
) -> bytes:
    kept_words, kept_base = words.tobytes(), base.tobytes()
    payload = codec.encode(words, layout, base=base if codec.needs_base else None, effort=effort)
    assert (words.tobytes(), base.tobytes()) == (kept_words, kept_base)
    apart = np.empty_like(words)
    codec.decode(memoryview(payload), layout, apart, base=base if codec.needs_base else None)
    assert apart.tobytes() == kept_words
    # The base may be the output itself.
    in_place = base.copy()
    codec.decode(payload, layout, in_place, base=in_place if codec.needs_base else None)
    assert in_place.tobytes() == kept_words
    return payload


def special_words(layout: Layout) -> list[int]:
    top = 8 * layout.word_bytes - 1
    exponent = {1: 0x7C, 2: 0x7F80, 4: 0x7F800000, 8: 0x7FF0 << 48}[layout.word_bytes]
    positive = [0, 1, 2, exponent - 1, exponent, exponent + 1, (1 << top) - 1, exponent | 1 << top - 5]
    return positive + [value | 1 << top for value in positive]


@given(st.data(), st.sampled_from(NAMES), st.sampled_from(LAYOUTS), st.sampled_from(EFFORTS))
def test_every_bit_comes_back(data, name, layout, effort):
    number = st.one_of(st.sampled_from(special_words(layout)), st.integers(0, (1 << 8 * layout.word_bytes) - 1))
    pairs = data.draw(st.lists(st.tuples(number, st.one_of(st.none(), number)), max_size=150))
    words = np.array([word for word, _ in pairs], word_dtype(layout))
    base = np.array([word if old is None else old for word, old in pairs], word_dtype(layout))
    coded_and_back(CODECS.get(name), words, layout, base, effort)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("name", ["planes", "context", "sparse-context"])
def test_every_kind_of_change_at_every_effort(name, effort, layout):
    """Long enough for runs of all forms, classes and escapes; of every bit pattern, NaNs and both zeros included."""
    codec = CODECS.get(name)
    kind = word_dtype(layout)
    rng = np.random.default_rng(6)
    count = 30_011
    anything = np.frombuffer(rng.bytes(count * layout.word_bytes), kind)
    special = rng.choice(np.array(special_words(layout), kind), count)
    weights = anything
    if layout.is_float and layout.word_bytes > 1:
        weights = (rng.normal(size=count) * 0.02).astype(f"<f{layout.word_bytes}").view(kind)
    steps = np.minimum(rng.exponential(np.repeat([0.02, 0.2, 1, 6, 60, 900, 9], count // 7 + 1)[:count]), 2**30)
    with np.errstate(over="ignore"):
        near = (weights + steps.astype(np.uint64).astype(kind)).astype(kind)
        rare = (weights + (rng.random(count) < 0.004)).astype(kind)
    zeros = np.zeros(count, kind)
    pairs = [(near, weights), (rare, weights), (anything, special), (special, anything), (weights, zeros)]
    for words, base in [*pairs, (zeros, weights), (special, special[::-1].copy())]:
        coded_and_back(codec, words, layout, base, effort)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_sizes_up_to_a_whole_unit(name, layout):
    codec = CODECS.get(name)
    rng = np.random.default_rng(2)
    full = codec.unit_bytes // layout.word_bytes
    for count in (0, 1, 2, 7, 47, 48, 4095, 4096, 32_769, full - 1, full):
        words = np.frombuffer(rng.bytes(count * layout.word_bytes), word_dtype(layout))
        base = words.copy()
        if count:
            base[rng.integers(0, count, max(1, count // 50))] ^= base.dtype.type(3)
        coded_and_back(codec, words, layout, base)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_structured_words(name, layout):
    kind = word_dtype(layout)
    codec = CODECS.get(name)
    ramp = np.arange(20_000).astype(kind)
    zeros = np.zeros(20_000, kind)
    for words, base in ((ramp, zeros), (zeros, ramp), (ramp, ramp), (np.tile(ramp[:512], 39), ramp[: 512 * 39])):
        payload = coded_and_back(codec, words, layout, base)
        if codec.needs_base and words is base:
            assert len(payload) <= 16


@pytest.mark.parametrize("name", [name for name in NAMES if CODECS.get(name).random_access])
def test_reading_starts_anywhere(name):
    codec = CODECS.get(name)
    rng = np.random.default_rng(4)
    for layout in LAYOUTS:
        words = np.frombuffer(rng.bytes(3000 * layout.word_bytes), word_dtype(layout))
        for density in (0, 0.02, 1):
            base = np.where(rng.random(3000) < density, ~words, words)
            payload = codec.encode(words, layout, base=base if codec.needs_base else None)
            for start, stop in ((0, 3000), (0, 1), (17, 18), (17, 17), (1000, 2500), (2999, 3000), (3000, 3000)):
                out = base[start:stop].copy()
                codec.decode(payload, layout, out, base=out if codec.needs_base else None, start=start)
                assert out.tobytes() == words[start:stop].tobytes()


@pytest.mark.parametrize("name", ["delta", "sparse", "context", "sparse-context", "masked"])
def test_a_missing_or_misaligned_base_is_a_bug(name):
    codec = CODECS.get(name)
    words = np.zeros(4, "<u2")
    payload = codec.encode(words, Layout(2, True), base=words)
    for base in (None, words[:3]):
        with pytest.raises(BugError):
            codec.encode(words, Layout(2, True), base=base)
        with pytest.raises(BugError):
            codec.decode(payload, Layout(2, True), words.copy(), base=base)


def test_threads_do_not_share_buffers():
    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for name in NAMES:
            for layout in LAYOUTS:
                words = np.frombuffer(rng.bytes(20_000 * layout.word_bytes), word_dtype(layout))
                base = np.where(rng.random(20_000) < 0.1, ~words, words)
                coded_and_back(CODECS.get(name), words, layout, base)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, seed) for seed in range(12)]:
            future.result()
