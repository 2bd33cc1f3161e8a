"""Other tools' ways to code the same words, where they are installed; each is timed in CPU seconds of the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

__all__ = ["Speed", "bitx_bytes", "has_zipnn", "measure", "xor_zstd_bytes", "zipnn", "zipnn_delta_bytes", "zstd_bytes"]

Words = NDArray[np.unsignedinteger]
_CHUNK = 1 << 20
_ZSTD = zstandard.ZstdCompressor(level=3)
_ZIPNN_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class Speed(NamedTuple):
    """`ratio` is raw over coded bytes; `encode` and `decode` are raw MB per CPU second."""

    ratio: float
    encode: float
    decode: float


def measure(raw: int, encode: Callable[[], Sequence[bytes]], decode: Callable[[Sequence[bytes]], object]) -> Speed:
    """Time one coding and one decoding of `raw` bytes."""
    started = time.process_time()
    coded = encode()
    middle = time.process_time()
    decode(coded)
    ended = time.process_time()
    return Speed(raw / sum(map(len, coded)), raw / (middle - started) / 1e6, raw / max(ended - middle, 1e-9) / 1e6)


def has_zipnn() -> bool:
    """Whether the `zipnn` package can be imported."""
    try:
        import zipnn  # noqa: F401
    except ImportError:
        return False
    return True


def zipnn(words: Words, dtype: str) -> Speed:
    """ZipNN with one thread.  It shuffles its input in place, so it gets a copy, made before the clock starts."""
    from zipnn import ZipNN

    coder = ZipNN(input_format="byte", bytearray_dtype=_ZIPNN_DTYPES[dtype], threads=1)
    copy = bytearray(words.tobytes())
    return measure(words.nbytes, lambda: [coder.compress(copy)], lambda coded: coder.decompress(coded[0]))


def zipnn_delta_bytes(words: Words, base: Words, dtype: str) -> int:
    """Bytes of ZipNN on the XOR of both, which is its delta mode."""
    from zipnn import ZipNN

    coder = ZipNN(input_format="byte", bytearray_dtype=_ZIPNN_DTYPES[dtype], threads=1)
    return min(words.nbytes, len(coder.compress(bytearray((words ^ base).tobytes()))))


def zstd_bytes(words: Words) -> int:
    """Bytes of zstd level 3 on the words as they are."""
    return len(_ZSTD.compress(words.data))


def xor_zstd_bytes(words: Words, base: Words) -> int:
    """Bytes of zstd level 3 on the XOR of both."""
    return len(_ZSTD.compress((words ^ base).data))


def bitx_bytes(words: Words, base: Words) -> int:
    """Bytes of bf16 or fp32 words in BitX's layout (ZipLLM): XOR, exponents apart from the rest, zstd-3 per MiB."""
    changed = words ^ base
    bits = 8 * words.dtype.itemsize
    exponent = ((changed >> (bits - 9)) & 0xFF).astype(np.uint8)
    sign = (changed >> (bits - 1)).astype(words.dtype)
    if bits == 16:
        streams = [exponent, ((sign << 7) | (changed & 0x7F)).astype(np.uint8)]
    else:
        rest = (sign << 23) | (changed & 0x7FFFFF)
        streams = [exponent, np.ascontiguousarray(rest.view(np.uint8).reshape(-1, 4)[:, :3]).reshape(-1)]
    return sum(
        len(_ZSTD.compress(stream[start : start + _CHUNK].data))
        for stream in streams
        for start in range(0, stream.size, _CHUNK)
    )
