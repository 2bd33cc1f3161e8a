"""Payloads from strangers: an IntegrityError or some words, never another error and never much memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import zstandard

from modelgit.codecs.base import CODECS, Effort, Layout, word_dtype
from modelgit.errors import IntegrityError
from modelgit.numerics.streams import varint

NAMES = ("raw", "planes", "delta", "sparse", "context", "sparse-context", "masked", "masked-context")
LAYOUTS = [Layout(1, True), Layout(2, True), Layout(4, True), Layout(4, False), Layout(8, True)]
COUNT = 5000


def decode(name: str, payload: bytes, layout: Layout, count: int = COUNT, start: int = 0) -> bool:
    codec = CODECS.get(name)
    out = np.zeros(count, word_dtype(layout))
    try:
        codec.decode(payload, layout, out, base=out if codec.needs_base else None, start=start)
    except IntegrityError:
        return False
    return True


def valid_payload(name: str, layout: Layout, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    codec = CODECS.get(name)
    size = layout.word_bytes
    words = (rng.normal(size=COUNT) * 1000).astype(np.int64).astype(word_dtype(layout))
    if layout.is_float and size in (2, 4, 8):
        words = rng.normal(size=COUNT).astype(f"<f{size}").view(word_dtype(layout))
    base = words.copy()
    base[rng.random(COUNT) < rng.choice([0.002, 0.1, 0.6])] += words.dtype.type(3)
    effort: Effort = rng.choice(["fast", "balanced", "tight"])
    return codec.encode(words, layout, base=base if codec.needs_base else None, effort=effort)


@pytest.mark.parametrize("name", NAMES)
def test_random_bytes(name):
    chance = random.Random(1)
    for _ in range(2000):
        head = bytes(chance.choice((0, 1, 2, 4, 0x55, 0xAA)) for _ in range(chance.randint(0, 5)))
        payload = head + chance.randbytes(chance.choice((0, 1, 5, 40, 400)))
        decode(name, payload, chance.choice(LAYOUTS), count=chance.choice((0, 1, 100, COUNT)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_mutated_payloads(name, layout):
    chance = random.Random(2)
    for seed in range(8):
        valid = valid_payload(name, layout, seed)
        assert decode(name, valid, layout)
        for _ in range(60):
            payload = bytearray(valid)
            for _ in range(chance.randint(1, 3)):
                # Headers are where the interesting bytes are.
                place = chance.randrange(min(len(payload), chance.choice((8, 64, len(payload)))))
                kind = chance.randrange(4)
                if kind == 0:
                    payload[place] = chance.randrange(256)
                elif kind == 1:
                    payload[place] ^= 1 << chance.randrange(8)
                elif kind == 2:
                    del payload[place : place + chance.randint(1, 9)]
                    payload += b"\0"
                else:
                    payload[place:place] = chance.randbytes(chance.randint(1, 9))
            start = chance.randrange(COUNT) if CODECS.get(name).random_access else 0
            decode(name, bytes(payload), layout, count=COUNT - start, start=start)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_payload_is_for_one_length_and_has_no_slack(name, layout):
    payload = valid_payload(name, layout, 3)
    assert decode(name, payload, layout)
    assert not decode(name, payload[:-1], layout)
    assert not decode(name, payload, layout, count=COUNT + 1)
    assert not decode(name, b"", layout)
    if name != "raw":
        assert not decode(name, payload + b"\0", layout)
    if not CODECS.get(name).random_access:
        assert not decode(name, payload, layout, count=COUNT - 1)
        assert not decode(name, payload, layout, count=0)


def test_lanes_are_for_four_byte_floats_only():
    words = np.random.default_rng(0).normal(size=8192).astype("<f4").view("<u4")
    payload = CODECS.get("planes").encode(words, Layout(4, True))
    assert payload[0] == 1
    assert decode("planes", payload, Layout(4, True), count=8192)
    assert not decode("planes", payload, Layout(4, False), count=8192)


@pytest.mark.parametrize(
    "payload",
    [
        bytes((16, 0, 0, 0)),
        bytes((6, 0, 0, 0)),
        bytes((7, 0, 2, 0)),
        bytes((7, 0, 0, 4)),
        bytes((7, 0, 0, 0)) + b"\x03" + varint(99) + b"\x01\x00",
        bytes((7, 0, 0, 0)) + b"\x10" + varint(99) + b"\x07",
        bytes((7, 0, 0, 0)) + b"\x01" + varint(100) + b"\x01\x00",
        bytes((7, 0, 0, 0)) + b"\x01" + varint(49) + b"\x01\x00",
        bytes((7, 0, 0, 0)) + (b"\x00\x00" + b"\x05\x00\x00") * 65 + b"\x00" + varint(34) + b"\x05\x00\x00",
        bytes((7, 0, 0, 1)) + b"\x00\x00",
    ],
    ids=["shift", "9 bits", "low", "flags", "form", "gaps", "too many", "too few", "65 runs", "no classes"],
)
def test_hostile_orders_and_runs_are_refused(payload):
    good = bytes((7, 0, 0, 0)) + b"\x01" + varint(99) + b"\x01\x00"
    assert decode("context", good, Layout(2, True), count=100)
    assert not decode("context", payload, Layout(2, True), count=100)


def test_a_numbers_byte_has_no_wider_form():
    payload = bytes((3, 0, 0, 0)) + b"\x08" + varint(99) + b"\x01\x00"
    assert not decode("context", payload, Layout(1, True), count=100)


@contextmanager
def peak_of(most_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most_bytes


@pytest.mark.parametrize("name", [name for name in NAMES if name != "raw"])
def test_bombs_allocate_nothing_to_speak_of(name):
    layout = Layout(2, True)
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 24))
    frame = varint(len(bomb)) + bomb
    unit_words = CODECS.get(name).unit_bytes // 2
    payloads = [
        b"\x0a" + frame + frame,
        b"\x00\x0a" + frame + frame,
        varint(COUNT) + b"\x01" + varint(COUNT - 1) + b"\x02" + frame,
        varint(COUNT) + b"\x05" + varint(COUNT - 1) + b"\x02" + frame,
        # More words, or more positions, than a unit can have.
        varint(unit_words + 1) + b"\x00",
        varint(COUNT) + b"\x01" + varint(1 << 31) + b"\x01\x00",
        varint(COUNT) + b"\x06" + varint(1 << 31) + b"\x04\x01\x01\x00",
        # A run, and classes, of another size; values of more bytes than there are.
        bytes((7, 0, 0, 0)) + b"\x08" + varint(COUNT - 1) + b"\x02" + frame,
        bytes((7, 0, 0, 0)) + b"\x01" + varint(1 << 40) + b"\x01\xff",
        bytes((7, 0, 0, 1)) + b"\x02" + frame,
        varint(COUNT) + b"\x01" + varint(9) + b"\x01\x00" + varint(1 << 50),
    ]
    decode(name, payloads[0], layout)
    with peak_of(1 << 20):
        for payload in payloads:
            assert not decode(name, payload, layout)


def test_the_densest_sparse_unit_needs_a_small_multiple_of_its_size():
    codec = CODECS.get("sparse")
    layout = Layout(1, False)
    count = codec.unit_bytes
    words = np.full(count, 7, np.uint8)
    payload = codec.encode(words, layout, base=np.zeros(count, np.uint8))
    assert len(payload) < 32
    out = np.zeros(count, np.uint8)
    with peak_of(6 * count):
        codec.decode(payload, layout, out, base=out)
    assert np.array_equal(out, words)


@pytest.mark.parametrize("effort", ["fast", "balanced", "tight"])
@pytest.mark.parametrize("name", ["planes", "delta", "context", "sparse", "sparse-context"])
def test_coding_needs_a_small_multiple_of_a_unit(name, effort):
    codec, layout = CODECS.get(name), Layout(2, True)
    rng = np.random.default_rng(1)
    base = (rng.normal(size=codec.unit_bytes // 2).astype("<f4").view("<u4") >> 16).astype("<u2")
    words = base + rng.integers(0, 7, base.size).astype("<u2")
    out = base.copy()
    # Sorting takes 8 bytes a word, twice; everything else is less.
    with peak_of(24 * codec.unit_bytes):
        payload = codec.encode(words, layout, base=base if codec.needs_base else None, effort=effort)
        codec.decode(payload, layout, out, base=out if codec.needs_base else None)
    assert np.array_equal(out, words)
