"""Codecs alone, one thread, in memory: size and speed on the encoder's matrices beside ZipNN, BitX and zstd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import numpy as np
import peers
from peers import Speed
from table import Row
from variants import Variants, words_of

from modelgit.codecs.base import CODECS, Codec, Effort, Layout, Words
from modelgit.numerics.sparse import encode_positions

__all__ = ["codec_rows"]

_EFFORTS: tuple[Effort, ...] = ("fast", "balanced", "tight")
_PUBLISHED = {"bf16": 1.498, "fp32": 1.199, "fp16": 1.175}  # of ZipNN, where it is not installed
_DECODE_SHARE = {"bf16": 0.7, "fp16": 0.7, "fp32": 0.6}
_DELTAS = (
    ("fine-tune", "base", "dense_200"),
    ("consecutive", "dense_150", "dense_200"),
    ("heavy", "base", "heavy_300"),
)


def codec_rows(variants: Variants, *, runs: int) -> Iterator[Row]:
    """Base weights and dense differences, and the positions of sparse ones."""
    yield from _base(variants, runs)
    yield from _deltas(variants, runs)
    yield from _positions(variants)


def encoder_words(variants: Variants, name: str, dtype: str) -> Words:
    """The encoder's matrices one after another: what a language model consists of."""
    arrays = variants.arrays(name, dtype)
    return np.concatenate(
        [words_of(arrays[key]) for key in sorted(arrays) if "encoder" in key and arrays[key].ndim == 2]
    )


def speed_of(codec: Codec, words: Words, base: Words | None, effort: Effort) -> Speed:
    """Code and decode every unit once.  Raises RuntimeError when the words do not come back."""
    layout = Layout(words.dtype.itemsize, True)
    step = codec.unit_bytes // words.dtype.itemsize
    units = range(0, words.size, step)
    out = np.empty_like(words)

    def part(start: int) -> Words | None:
        return None if base is None else base[start : start + step]

    def decode(payloads: object) -> None:
        for start, payload in zip(units, payloads, strict=True):
            codec.decode(payload, layout, out[start : start + step], base=part(start))

    found = peers.measure(
        words.nbytes,
        lambda: [codec.encode(words[at : at + step], layout, base=part(at), effort=effort) for at in units],
        decode,
    )
    if not np.array_equal(out, words):
        raise RuntimeError(f"codec {codec.name} gave other words back")
    return found


def _median(runs: int, *measures: Callable[[], Speed]) -> list[Speed]:
    """The medians of each measure, taken in turn, so that a slow minute hits all of them."""
    found = [[measure() for measure in measures] for _ in range(runs)]
    return [Speed(*(median(values) for values in zip(*column, strict=True))) for column in zip(*found, strict=True)]


def _base(variants: Variants, runs: int) -> Iterator[Row]:
    group = "Base weights, codec alone (encoder matrices, one thread)"
    for dtype in ("bf16", "fp32", "fp16"):
        words = encoder_words(variants, "base", dtype)
        measures = [partial(speed_of, CODECS.get("planes"), words, None, effort) for effort in _EFFORTS]
        if peers.has_zipnn():
            measures.append(partial(peers.zipnn, words, dtype))
        found = _median(runs, *measures)
        zipnn = found.pop() if peers.has_zipnn() else None
        for effort, own in zip(_EFFORTS, found, strict=True):
            note = f"in {own.encode:.0f}, out {own.decode:.0f} MB/s"
            if zipnn is None:
                yield Row(group, f"{dtype} ratio, {effort}", own.ratio, "x", _PUBLISHED[dtype] * 0.999, note=note)
                continue
            note += f"; ZipNN {zipnn.ratio:.4f}, in {zipnn.encode:.0f}, out {zipnn.decode:.0f}"
            yield Row(group, f"{dtype} ratio, {effort}", own.ratio, "x", zipnn.ratio * 0.999, note=note)
            if effort != "tight":
                inward, outward = own.encode / zipnn.encode, own.decode / zipnn.decode
                yield Row(group, f"{dtype} compression over ZipNN, {effort}", inward, "x", 1.0)
                yield Row(group, f"{dtype} decompression over ZipNN, {effort}", outward, "x", _DECODE_SHARE[dtype])


def _deltas(variants: Variants, runs: int) -> Iterator[Row]:
    group = "Dense differences, codec alone (encoder matrices, one thread)"
    names = [name for name in ("delta", "context") if name in CODECS.names()]
    for dtype in ("bf16", "fp32", "fp16"):
        for what, before, after in _DELTAS:
            base, words = (encoder_words(variants, name, dtype) for name in (before, after))
            other = ""
            if dtype != "fp16":
                other = f"; BitX layout {words.nbytes / peers.bitx_bytes(words, base):.3f}"
            measures = [partial(speed_of, CODECS.get(name), words, base, "balanced") for name in names]
            for name, found in zip(names, _median(runs, *measures), strict=True):
                note = f"in {found.encode:.0f}, out {found.decode:.0f} MB/s{other}"
                yield Row(group, f"{dtype} {what}, {name}", found.ratio, "x", note=note)


def _positions(variants: Variants) -> Iterator[Row]:
    group = "Positions of sparse changes, codec alone"
    for name in ("sparse", "sparse_rand"):
        arrays, before = variants.arrays(name, "fp32"), variants.arrays("base", "fp32")
        bits = changed = 0
        bound = 0.0
        for key, array in arrays.items():
            flat, old = words_of(array), words_of(before[key])
            places = np.flatnonzero(flat != old)
            if array.ndim == 2 and places.size:
                bits += 8 * len(encode_positions(places, flat.size))
                changed += places.size
                share = places.size / flat.size
                bound -= flat.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) if share < 1 else 0.0
        note = f"{changed:,} positions; {bound / changed:.2f} if they were spread at random in each tensor"
        yield Row(group, f"fp32 {name}", bits / changed, "bits", 9.8, "at most", note)
        base, words = (encoder_words(variants, file, "fp32") for file in ("base", name))
        other = peers.xor_zstd_bytes(words, base)
        for codec in (name for name in ("sparse", "sparse-context") if name in CODECS.names()):
            found = speed_of(CODECS.get(codec), words, base, "tight")
            note = f"{found.ratio:.1f}x; in {found.encode:.0f}, out {found.decode:.0f} MB/s"
            ratio = other / (words.nbytes / found.ratio)
            yield Row(group, f"fp32 {name}, {codec}, over XOR + zstd-3", ratio, "x", 1.6, note=note)
