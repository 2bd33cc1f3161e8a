"""Units under a mask: every bit comes back, from anywhere, and what was made under another mask is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.codecs.base import CODECS, Layout, layout_of, word_dtype
from modelgit.codecs.masked import MASKED, MASKED_CONTEXT, MaskedCodec
from modelgit.errors import IntegrityError
from modelgit.numerics.streams import varint
from modelgit.objects import DTYPES, TensorSpec
from modelgit.testing.fuzzing import fuzz

LAYOUTS = sorted({layout_of(TensorSpec(dtype=name)) for name in DTYPES})
BOTH = [MASKED, MASKED_CONTEXT]
PLAIN, ALL, SOME, IN_CONTEXT = range(4)


def made(
    layout: Layout, *, count: int = 20_000, share: float = 0.05, inside: float = 1.0, stray: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(words, base, places): a share of the words are the mask's, of which a share changed."""
    rng = np.random.default_rng(seed)
    kind = word_dtype(layout)
    base = np.frombuffer(rng.bytes(count * layout.word_bytes), kind)
    if layout.is_float and layout.word_bytes > 1:
        base = (rng.normal(size=count) * 0.05).astype(f"<f{layout.word_bytes}").view(kind)
    places = np.flatnonzero(rng.random(count) < share).astype(np.uint32)
    words = base.copy()
    moved = places[rng.random(places.size) < inside]
    words[moved] += rng.integers(1, 60, moved.size).astype(kind)
    if stray:
        other = np.setdiff1d(np.arange(count), places)[7]
        words[other] ^= kind.type(1)
    return words, base, places


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("codec", BOTH, ids=lambda codec: codec.name)
@pytest.mark.parametrize("effort", ["fast", "balanced", "tight"])
def test_every_bit_comes_back(codec: MaskedCodec, layout: Layout, effort) -> None:
    for case in (
        {},
        {"inside": 0.02},
        {"inside": 0.0},
        {"share": 0.0},
        {"share": 1.0},
        {"stray": True},
        {"count": 1, "share": 1.0},
        {"share": 0.8, "count": 400_000},
    ):
        words, base, places = made(layout, **case)
        payload = codec.under(places).encode(words, layout, base=base, effort=effort)
        out = base.copy()
        codec.under(places).decode(memoryview(payload), layout, out, base=out)
        assert out.tobytes() == words.tobytes()
        if case.get("stray"):
            assert payload[0] == PLAIN
        elif places.size and (words != base).any():
            assert payload[0] != PLAIN
        if case == {"inside": 0.02}:
            assert payload[0] in {SOME, IN_CONTEXT}


@given(st.data(), st.sampled_from(LAYOUTS), st.sampled_from(BOTH))
def test_any_words_under_any_mask(data, layout, codec):
    number = st.integers(0, (1 << 8 * layout.word_bytes) - 1)
    rows = data.draw(st.lists(st.tuples(number, st.one_of(st.none(), number), st.booleans()), min_size=1, max_size=80))
    words = np.array([word for word, _, _ in rows], word_dtype(layout))
    base = np.array([word if old is None else old for word, old, _ in rows], word_dtype(layout))
    places = np.array([at for at, row in enumerate(rows) if row[2]], np.uint32)
    payload = codec.under(places).encode(words, layout, base=base)
    out = base.copy()
    codec.under(places).decode(payload, layout, out, base=out)
    assert out.tobytes() == words.tobytes()


def test_reading_starts_anywhere() -> None:
    layout = Layout(4, True)
    for case in ({}, {"inside": 0.03}, {"stray": True}):
        words, base, places = made(layout, **case)
        codec = MASKED.under(places)
        payload = codec.encode(words, layout, base=base)
        for start, stop in ((0, 1), (17, 18), (17, 17), (1000, 2500), (words.size - 1, words.size)):
            out = base[start:stop].copy()
            codec.decode(payload, layout, out, base=out, start=start)
            assert out.tobytes() == words[start:stop].tobytes()


def test_values_alone_are_smaller_than_with_positions() -> None:
    layout = Layout(4, True)
    words, base, places = made(layout, count=1 << 20, share=0.005)
    plain = CODECS.get("sparse").encode(words, layout, base=base)
    masked = MASKED.under(places).encode(words, layout, base=base)
    assert len(plain) - len(masked) > 1.1 * places.size  # 9.1 bits a position


@pytest.mark.parametrize("codec", BOTH, ids=lambda codec: codec.name)
def test_another_mask_is_refused(codec: MaskedCodec) -> None:
    layout = Layout(2, True)
    words, base, places = made(layout, count=5000)
    payload = codec.under(places).encode(words, layout, base=base, effort="tight")
    for other in (places[:-1], np.append(places, np.uint32(4999)) if places[-1] != 4999 else places[1:], places[:0]):
        with pytest.raises(IntegrityError, match="positions of a mask"):
            codec.under(other).decode(payload, layout, base.copy(), base=base)
    for bad in (payload[:-1], payload + b"\0", b"\4" + payload[1:], bytes((ALL,)) + varint(1 << 40), b""):
        with pytest.raises(IntegrityError):
            codec.under(places).decode(bad, layout, base.copy(), base=base)
    with pytest.raises(IntegrityError):  # what only `masked-context` may hold
        MASKED.under(places).decode(bytes((IN_CONTEXT,)) + varint(places.size), layout, base.copy(), base=base)


@pytest.mark.parametrize("codec", BOTH, ids=lambda codec: codec.name)
def test_mutants_are_refused_or_decode(codec: MaskedCodec) -> None:
    layout = Layout(2, True)
    seeds = []
    for case in ({}, {"inside": 0.03}, {"stray": True}):
        words, base, places = made(layout, count=600, **case)
        seeds.append(codec.under(places).encode(words, layout, base=base, effort="tight"))
    chance = random.Random(1)

    def parse(data: bytes) -> None:
        start = chance.randrange(600) if codec.random_access else 0
        codec.under(places).decode(data, layout, np.zeros(600 - start, "<u2"), base=base[start:], start=start)

    assert fuzz(parse, seeds, count=100_000).accepted
