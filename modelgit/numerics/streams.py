"""Byte streams, each coded by whatever makes it smallest: raw, one constant byte, or a zstd frame.

Planes of weights have skewed bytes but no repeats, so that the search for matches only costs time and, by its own
headers, space.  `HUFFMAN` tunes zstd until nothing but the entropy coder is left: within 0.1 % of the entropy of an
exponent plane at three times the speed of level 1.  The frames are ordinary ones.  Planes with structure (position
tables, masks, tokens) are found by a sample and go through a level that looks for matches.

Layout of a group of streams, whose raw sizes the reader knows: two bits per stream, four to a byte from the low bits
up, then the bodies in order: RAW the bytes themselves, CONSTANT one byte, FRAME a varint length and the frame.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from modelgit.errors import IntegrityError
from modelgit.numerics.bits import BytesLike

__all__ = ["LOCAL", "WIDE", "Bytes", "Reader", "compressible", "decode_streams", "encode_streams", "varint"]

Bytes = NDArray[np.uint8]

RAW, CONSTANT, FRAME = range(3)
# A frame of fewer bytes cannot pay for its own header.
SMALLEST_FRAME = 48
# Up to here both compressors are tried; beyond, a sample decides.
BOTH_UP_TO_BYTES = 4096
SAMPLE_BYTES = 1024
TRIAL_BYTES = 64 << 10
NOISE_PIECES, NOISE_PIECE_BYTES = 64, 256
NOISE_MARGIN = 24  # 256 random bytes leave more at an end in one of 10^11 pieces
# Matching is several times slower than Huffman alone, so it must save this share to be chosen.
MATCHES_MUST_SAVE = 0.125
# A frame that saves less is not worth the time to decode it.
WORTH_DECODING = 1 / 128
MAX_WINDOW_BYTES = 8 << 20
# Of every 2^n bytes at most share a Huffman table: one size that suits most, one that follows local changes.
WIDE, LOCAL = 16, 14
# A sample that shrinks to this share is near the floor of a bit a byte, where repeats are the only way on.
FLOOR_SHARE = 0.22


def _huffman_only(window_log: int) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters(
        compression_level=1,
        strategy=zstandard.STRATEGY_FAST,
        min_match=7,
        hash_log=6,
        window_log=window_log,
        target_length=0,
        write_content_size=True,
        write_checksum=False,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


class _Contexts(threading.local):
    def __init__(self) -> None:
        self.by_window = {window_log: _huffman_only(window_log) for window_log in range(LOCAL, WIDE + 1)}
        self.huffman = self.by_window[WIDE]
        self.quick = zstandard.ZstdCompressor(level=1, write_checksum=False, write_content_size=True)
        self.matching = zstandard.ZstdCompressor(level=3, write_checksum=False, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)


_CONTEXTS = _Contexts()


class Reader:
    """A cursor over a payload that is not trusted; everything it cannot give raises IntegrityError."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: BytesLike) -> None:
        self._data = memoryview(data).cast("B")
        self._offset = 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, without a copy."""
        stop = self._offset + size
        if stop > self._data.nbytes:
            raise IntegrityError(f"a payload of {self._data.nbytes} bytes ends inside a field")
        view = self._data[self._offset : stop]
        self._offset = stop
        return view

    @property
    def offset(self) -> int:
        """How many bytes were taken."""
        return self._offset

    def rest(self) -> memoryview:
        """All bytes that were not taken yet, which are taken now."""
        return self.take(self._data.nbytes - self._offset)

    def byte(self, *, below: int = 256) -> int:
        """One byte, refused unless it is less than `below`."""
        value = self.take(1)[0]
        if value >= below:
            raise IntegrityError(f"a payload holds {value} where a number below {below} belongs")
        return value

    def varint(self, *, most: int) -> int:
        """An unsigned LEB128 number, refused when it is more than `most` or not in its shortest form."""
        value = shift = 0
        while True:
            digit = self.byte()
            value |= (digit & 0x7F) << shift
            if value > most or (digit == 0 and shift):
                raise IntegrityError("a payload holds a number that is out of range or not in its shortest form")
            if digit < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise IntegrityError("a payload holds a number of more than 64 bits")

    def finish(self) -> None:
        """Refuse bytes that nobody asked for."""
        if self._offset != self._data.nbytes:
            raise IntegrityError(f"a payload has {self._data.nbytes - self._offset} bytes too many")


def varint(value: int) -> bytes:
    """`value` >= 0 as unsigned LEB128."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def encode_streams(
    streams: Sequence[Bytes],
    *,
    windows: Sequence[int] = (WIDE,),
    skewed: bool = False,
) -> list[BytesLike]:
    """Code 1-D contiguous `streams`, each of at least one byte; the parts may be views of them, to be joined soon.

    `windows` are logarithms, from LOCAL to WIDE, of the bytes that share a Huffman table; each is tried.  `skewed`
    says that there are no repeats but those of one byte, so that nobody need look for others.  A frame that saves
    less than the share `WORTH_DECODING` of its stream is not used.
    """
    head = bytearray(-(-len(streams) // 4))
    parts: list[BytesLike] = [head]
    for index, stream in enumerate(streams):
        kind, body = _encode(stream, windows, skewed)
        head[index >> 2] |= kind << 2 * (index & 3)
        if kind == FRAME:
            parts.append(varint(len(body)))
        parts.append(body)
    return parts


def decode_streams(reader: Reader, count: int, size: int) -> list[Bytes]:
    """Read `count` streams of `size` > 0 raw bytes each; a constant one comes back as an array of one byte.

    Allocates at most `count * size` bytes.  Raises IntegrityError for anything that `encode_streams` cannot have
    written.
    """
    head = int.from_bytes(reader.take(-(-count // 4)), "little")
    if head >> 2 * count:
        raise IntegrityError("a payload describes more streams than there are")
    streams = []
    for index in range(count):
        kind = head >> 2 * index & 3
        if kind == RAW:
            body: BytesLike = reader.take(size)
        elif kind == CONSTANT:
            body = reader.take(1)
        elif kind == FRAME:
            body = _inflate(reader.take(reader.varint(most=size)), size)
        else:
            raise IntegrityError("a payload holds a stream of an unknown kind")
        streams.append(np.frombuffer(body, np.uint8))
    return streams


def compressible(stream: Bytes) -> bool:
    """Whether Huffman coding would save at least 2 % of `stream`, which should be a sample of some KiB."""
    return len(_CONTEXTS.huffman.compress(stream.data)) < stream.size - stream.size // 50


def _encode(stream: Bytes, windows: Sequence[int], skewed: bool) -> tuple[int, BytesLike]:
    size = stream.size
    if stream[0] == stream[-1] == stream[size >> 1] and not np.any(stream != stream[0]):
        return CONSTANT, stream[:1].data
    if size < SMALLEST_FRAME:
        return RAW, stream.data
    contexts = _CONTEXTS
    huffman = contexts.by_window[windows[0]]
    if size <= BOTH_UP_TO_BYTES:
        frame = huffman.compress(stream.data)
        if not skewed or len(frame) < FLOOR_SHARE * size:
            frame = min(frame, contexts.matching.compress(stream.data), key=len)
    else:
        start = (size - SAMPLE_BYTES) // 2
        sample = stream[start : start + SAMPLE_BYTES].data
        coded = len(huffman.compress(sample))
        search = not skewed or coded < FLOOR_SHARE * SAMPLE_BYTES
        matched = len(contexts.quick.compress(sample)) if search else coded
        if matched < coded * (1 - MATCHES_MUST_SAVE):
            frame = contexts.matching.compress(stream.data)
        elif coded >= SAMPLE_BYTES and _is_noise(stream):
            return RAW, stream.data
        else:
            frame = _best_window(stream, windows).compress(stream.data)
    if len(frame) >= size - int(size * WORTH_DECODING) - 2:
        return RAW, stream.data
    return FRAME, frame


def _is_noise(stream: Bytes) -> bool:
    """Whether pieces from all over a stream show nothing that Huffman codes could save: to try it all takes longer.

    Together they hide a part that is no noise, so each must have bytes from both ends of the range as well.
    """
    if stream.size < 2 * NOISE_PIECES * NOISE_PIECE_BYTES:
        return False
    step = stream.size // NOISE_PIECES
    pieces = stream[: NOISE_PIECES * step].reshape(NOISE_PIECES, step)[:, :NOISE_PIECE_BYTES]
    if int(pieces.max(axis=1).min()) < 255 - NOISE_MARGIN or int(pieces.min(axis=1).max()) > NOISE_MARGIN:
        return False
    return len(_CONTEXTS.huffman.compress(pieces.tobytes())) >= pieces.size


def _best_window(stream: Bytes, windows: Sequence[int]) -> zstandard.ZstdCompressor:
    """The compressor that makes a longer sample smallest."""
    by_window = _CONTEXTS.by_window
    if len(windows) == 1:
        return by_window[windows[0]]
    start = max(0, stream.size - TRIAL_BYTES) // 2
    trial = stream[start : start + TRIAL_BYTES].data
    return min((by_window[window] for window in windows), key=lambda compressor: len(compressor.compress(trial)))


def _inflate(frame: memoryview, size: int) -> bytes:
    try:
        declared = zstandard.get_frame_parameters(frame)
        if declared.content_size != size or declared.window_size > MAX_WINDOW_BYTES:
            raise IntegrityError(f"a compressed stream does not declare the {size} bytes that belong there")
        data: bytes = _CONTEXTS.decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"a compressed stream does not decompress: {error}") from None
    if len(data) != size:
        raise IntegrityError(f"a compressed stream holds {len(data)} bytes, not the {size} that belong there")
    return data
