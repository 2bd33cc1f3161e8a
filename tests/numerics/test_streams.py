"""Byte streams: the right kind for each, exact sizes, and nothing believed that a frame says of itself."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import IntegrityError
from modelgit.numerics.streams import Reader, decode_streams, encode_streams, varint

RNG = np.random.default_rng(5)


def coded(*streams: np.ndarray) -> bytes:
    return b"".join(encode_streams([np.ascontiguousarray(s, np.uint8) for s in streams]))


def decoded(data: bytes, count: int, size: int) -> list[np.ndarray]:
    reader = Reader(data)
    streams = decode_streams(reader, count, size)
    reader.finish()
    return [np.broadcast_to(s, (size,)) for s in streams]


@pytest.mark.parametrize("skewed_part", [0, 3, 7])
def test_noise_is_kept_as_it_is_and_a_part_that_is_none_is_found(skewed_part):
    random = np.random.default_rng(skewed_part)
    stream = random.integers(0, 256, 1 << 18, dtype=np.uint8)
    parts = encode_streams([stream])
    assert bytes(parts[-1]) == stream.tobytes()
    size = stream.size // 8
    stream[skewed_part * size : (skewed_part + 1) * size] = random.integers(0, 3, size, dtype=np.uint8)
    parts = encode_streams([stream])
    assert len(parts[-1]) < stream.size - size // 2
    (back,) = decode_streams(Reader(b"".join(parts)), 1, stream.size)
    assert back.tobytes() == stream.tobytes()


@given(st.lists(st.binary(min_size=33, max_size=33), min_size=1, max_size=8))
def test_streams_come_back(bodies):
    streams = [np.frombuffer(body, np.uint8) for body in bodies]
    back = decoded(coded(*streams), len(streams), 33)
    assert all(np.array_equal(a, b) for a, b in zip(streams, back, strict=True))


@pytest.mark.parametrize(
    ("stream", "largest"),
    [
        (np.full(100_000, 9), 2),
        (RNG.integers(0, 256, 100_000), 100_001),
        (np.tile(np.arange(256), 400), 2_000),
        (np.repeat(np.arange(100), 1000), 5_000),
        # The entropy is 2.0 bits a byte.
        (RNG.integers(0, 4, 100_000), 25_600),
        (np.tile(np.arange(100), 10), 200),
    ],
    ids=["constant", "random", "periodic", "runs", "skewed", "small periodic"],
)
def test_each_stream_gets_the_kind_that_suits_it(stream, largest):
    data = coded(stream)
    assert len(data) <= largest
    assert np.array_equal(decoded(data, 1, stream.size)[0], stream)


@given(st.integers(0, 2**64 - 1))
def test_varints_come_back(value):
    assert Reader(varint(value)).varint(most=value) == value
    if value:
        with pytest.raises(IntegrityError):
            Reader(varint(value)).varint(most=value - 1)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 10 + b"\x01", b"\x81\x80\x00"])
def test_malformed_varints_are_refused(data):
    with pytest.raises(IntegrityError):
        Reader(data).varint(most=2**64 - 1)


def framed(frame: bytes) -> bytes:
    return b"\x02" + varint(len(frame)) + frame


GOOD = zstandard.ZstdCompressor(level=1).compress(b"ab" * 2000)


@pytest.mark.parametrize(
    "data",
    [
        framed(zstandard.ZstdCompressor(level=1).compress(b"ab" * 2001)),
        framed(zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28))),
        framed(zstandard.ZstdCompressor(level=1, write_content_size=False).compress(b"ab" * 2000)),
        framed(GOOD + GOOD),
        framed(GOOD + b"x"),
        framed(GOOD[:-1]),
        framed(b""),
        framed(b"\x50\x2a\x4d\x18\x00\x00\x00\x00"),
        framed(GOOD) + b"x",
        b"\x03" + bytes(4000),
        b"\x04" + bytes(4000),
        b"\x00" + bytes(3999),
        b"\x01",
        b"",
    ],
    ids=[
        "another size",
        "bomb",
        "no size",
        "two frames",
        "trailing byte",
        "cut frame",
        "empty frame",
        "skippable frame",
        "trailing bytes",
        "unknown kind",
        "kind of a stream that is not there",
        "short raw",
        "no constant",
        "nothing",
    ],
)
def test_hostile_streams_are_refused(data):
    assert len(decoded(framed(GOOD), 1, 4000)) == 1
    with pytest.raises(IntegrityError):
        decoded(data, 1, 4000)


def test_a_window_larger_than_any_of_ours_is_refused():
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=1 << 24)
    frame = compressor.compress(bytes(1 << 24)) + compressor.flush()
    with pytest.raises(IntegrityError):
        decoded(framed(frame), 1, 1 << 24)
