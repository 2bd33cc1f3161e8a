"""Which encoding a tensor gets: decided by sampling the tensor, never by belief.

Eight runs of 8192 words are looked at, a quarter of each where enough of them changed (about a millisecond). The cost
of byte planes is estimated by the entropy of each plane, that of a sparse record by the share of changed words: log2
of the number of position sets plus the entropy of the changed values; under a mask that is stored already by the
values alone. That of differences in context is their entropy given the exponents of the base. Estimates are within a
few per cent of the coded size. Where two are that close and the smallest size is wanted, the sample is coded both
ways. Small tensors are not estimated at all but coded in every way that is open to them.

What takes longer must be smaller for it, by an amount that `effort` sets: dense differences are read and written at
a fraction of the speed of sparse ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.codecs.base import CODECS, Effort, Layout, Words
from modelgit.codecs.context import exponent_shift
from modelgit.codecs.masked import MaskedCodec
from modelgit.numerics.bits import difference, rotate_sign, split_planes

__all__ = ["SPARSE_CODECS", "Choice", "SampleRuns", "estimate_choices", "sample_runs"]

SPARSE_CODECS = frozenset({"sparse", "sparse-context", "masked", "masked-context"})
"""Codecs whose work is in proportion to the changed words."""

_RUNS = 8
_RUN_WORDS = 8192
# Distributions show in a part of the sample: the first of so many pieces of each few thousand words.
_PIECES, _PIECE_WORDS = 4, 512
_RAW_ABOVE = 0.975  # coding that saves less than this is not worth its time
_DELTA_BELOW = 0.95  # a delta must beat the full record by this much: it makes every later read longer
_FLOOR_BITS = 0.02  # a constant plane still costs a frame
_SPLIT_POSITIONS, _PLAIN_POSITIONS = 1.01, 1.07  # bits of a position over the bound, with split gaps and without
_CONTEXT_CODING = 1.01  # what packing and Huffman codes lose to the entropy
_REPEATS = 0.95  # fitted to differences in which one byte has a share from 0.38 to 0.997
_UNIT_BITS = 0.008  # headers and tables of context coding, per word
_CLOSE = 1.05  # estimates are not better than that
# Below this share of changed words sparse records take a fraction of the time of dense differences, which then must be
# smaller by so much.
_FEW = 0.1
_DENSE_BELOW: dict[Effort, float] = {"fast": 0.85, "balanced": 0.93, "tight": 0.99}
# Packing takes twice the time of byte planes: in a hurry it must save so much.
_PACKED_BELOW = 0.85
# So few that dense differences are not considered, and so many that sparse ones are slower and must be smaller.
_TOO_FEW_FOR_DENSE = 0.04
_MANY = 0.25
_SPARSE_BELOW = 0.9


class Choice(NamedTuple):
    """One admissible encoding: codec name, index of the base among the candidates (None: no base), bits per word.

    `reason` names the bits per word of the alternatives.  `mask` is the index of the mask that positions come from.
    """

    codec: str
    base: int | None
    bits: float
    reason: str = ""
    mask: int | None = None


SampleRuns = Sequence[tuple[int, int]]
Places = NDArray[np.intp]


def sample_runs(words: int) -> SampleRuns:
    """(start, stop) word ranges of the sample of a tensor of `words` words."""
    if words <= _RUNS * _RUN_WORDS:
        return [(0, words)]
    starts = np.linspace(0, words - _RUN_WORDS, _RUNS).astype(np.int64)
    return [(int(start), int(start) + _RUN_WORDS) for start in starts]


def estimate_choices(
    sample: Words,
    bases: Sequence[Callable[[], Words | None]],
    layout: Layout,
    *,
    masks: Sequence[Places] = (),
    effort: Effort = "balanced",
) -> list[Choice]:
    """All admissible encodings of the sampled tensor, the one to take first.

    `bases` give the samples of the candidate base tensors at the same positions, or None when one cannot be read.
    `masks` are the places in the sample at which it may have been changed and nowhere else.
    """
    width = 8 * layout.word_bytes
    if not sample.size:
        return [Choice("raw", None, 0.0)]
    read: dict[int, Words] = {}
    for index, of_base in enumerate(bases):
        base = of_base()
        if base is not None and base.size == sample.size:
            read[index] = base
    # Of few changes all are needed to count them.
    thin = not masks and all(_share(sample, base) >= _FEW for base in read.values())
    seen = _thinned(sample) if thin else sample
    full = _plane_bits(_rotated(seen, layout))
    choices = [Choice("raw", None, float(width))]
    if full < _RAW_ABOVE * width:
        choices.append(Choice("planes", None, full))
    whole = min(choice.bits for choice in choices)
    for index, base in read.items():
        choices += _against(seen, _thinned(base) if thin else base, index, masks, layout, whole, effort)
    if effort == "tight":
        choices = _measured(choices, sample, read, masks, layout)
    choices.sort(key=lambda choice: choice.bits)
    reason = _reason(choices)
    return [choice._replace(reason=reason) for choice in choices]


def _thinned(sample: Words) -> Words:
    """A quarter of a sample, from all over it; a small one as it is."""
    block = _PIECES * _PIECE_WORDS
    blocks = sample.size // block
    if blocks < _RUNS:
        return sample
    return sample[: blocks * block].reshape(blocks, block)[:, :_PIECE_WORDS].reshape(-1)


def _share(sample: Words, base: Words) -> float:
    return np.count_nonzero(sample != base) / sample.size


def _against(
    sample: Words, base: Words, index: int, masks: Sequence[Places], layout: Layout, whole: float, effort: Effort
) -> list[Choice]:
    """Choices with one base; those of dense differences only if they are smaller than the `whole` tensor is."""
    codes = np.empty_like(sample)
    difference(sample, base, codes, is_float=layout.is_float)
    places = np.flatnonzero(codes)
    share = places.size / sample.size
    context = _Context(codes, base, layout, effort)
    positions = _position_bits(share) * (_PLAIN_POSITIONS if effort == "fast" else _SPLIT_POSITIONS)
    changed = codes[places]
    values = min(_plane_bits(changed), _plane_bits(sample[places])) if places.size else 0.0
    found = [Choice("sparse", index, positions + share * values)]
    if effort == "tight" and 0 < share < _MANY:
        found.append(Choice("sparse-context", index, positions + share * min(values, context.bits_at(places))))
    for number, mask in enumerate(masks):
        found += _under(number, mask, sample, codes, places, index, context, effort)
    if share < _TOO_FEW_FOR_DENSE:
        return found
    planes = _plane_bits(codes)
    dense = [Choice("delta", index, planes), Choice("context", index, min(planes, context.bits_at(slice(None))))]
    if effort == "fast" and dense[1].bits > _PACKED_BELOW * planes:
        del dense[1]
    if share < _FEW:
        dense = [choice for choice in dense if choice.bits < _DENSE_BELOW[effort] * found[0].bits]
    elif share > _MANY:
        least = min(choice.bits for choice in dense)
        found = [choice for choice in found if choice.bits < _SPARSE_BELOW * least]
    return found + [choice for choice in dense if choice.bits < _DELTA_BELOW * whole]


def _under(
    number: int,
    mask: Places,
    sample: Words,
    codes: Words,
    changed: Places,
    index: int,
    context: _Context,
    effort: Effort,
) -> list[Choice]:
    """Choices under a mask: none if something changed outside of it."""
    if int(np.count_nonzero(codes[mask])) != changed.size:
        return []
    if not mask.size:
        return [Choice("masked", index, 0.0, mask=number)]
    share, inside = mask.size / sample.size, changed.size / mask.size
    every = share * min(_plane_bits(codes[mask]), _plane_bits(sample[mask]))
    values = min(_plane_bits(codes[changed]), _plane_bits(sample[changed])) if changed.size else 0.0
    some = share * (_position_bits(inside) * _SPLIT_POSITIONS + inside * values)
    least = min(every, some)
    found = [Choice("masked", index, least, mask=number)]
    if effort == "tight" and changed.size:
        ordered = min(least, share * context.bits_at(mask))
        found.append(Choice("masked-context", index, ordered, mask=number))
    return found


def _measured(
    choices: list[Choice], sample: Words, bases: dict[int, Words], masks: Sequence[Places], layout: Layout
) -> list[Choice]:
    """The choices with the bits that coding the sample takes, for those that may turn out to be the smallest."""
    best = min(choice.bits for choice in choices)
    close = {choice for choice in choices if choice.bits <= _CLOSE * best}
    if len(close) < 2:
        return choices
    return [
        choice._replace(bits=_coded_bits(choice, sample, bases, masks, layout)) if choice in close else choice
        for choice in choices
    ]


def _coded_bits(
    choice: Choice, sample: Words, bases: dict[int, Words], masks: Sequence[Places], layout: Layout
) -> float:
    codec = CODECS.get(choice.codec)
    if isinstance(codec, MaskedCodec) and choice.mask is not None:
        codec = codec.under(masks[choice.mask].astype(np.uint32))  # a sample is shorter than a unit
    base = None if choice.base is None else bases[choice.base]
    step = codec.unit_bytes // layout.word_bytes
    size = 0
    for start in range(0, sample.size, step):
        part = slice(start, start + step)
        payload = codec.encode(sample[part], layout, base=None if base is None else base[part], effort="tight")
        size += len(payload)
    return 8 * size / sample.size


def _reason(choices: Sequence[Choice]) -> str:
    """Such as `bits a word: context 3.1, delta 3.9, planes 10.7, raw 16`; of several bases the better one counts."""
    seen: dict[str, float] = {}
    for choice in choices:
        seen[choice.codec] = min(choice.bits, seen.get(choice.codec, choice.bits))
    return "bits a word: " + ", ".join(f"{codec} {bits:.3g}" for codec, bits in seen.items())


class _Context:
    """Differences given the exponents of the base."""

    def __init__(self, codes: Words, base: Words, layout: Layout, effort: Effort) -> None:
        shift = exponent_shift(codes, base, layout, effort)
        mask = (1 << (8 * layout.word_bytes - 1 - shift)) - 1
        # Exact below 16, by octaves beyond, where the bits below the highest are as good as random.
        floats = codes.astype(np.float32)
        octaves = (floats.view(np.uint32) >> 23).astype(np.intp) - 127
        self._extra = np.maximum(octaves, 0)
        self._extra[codes < 16] = 0
        symbols = np.where(codes < 16, codes.astype(np.intp) & 15, octaves + 12)
        self._exponents = (base >> np.array(shift, base.dtype) & np.array(mask, base.dtype)).astype(np.intp)
        self._pairs = self._exponents * 80 + symbols

    def bits_at(self, places: Places | slice) -> float:
        """Entropy per word of the differences at these places of the sample."""
        exponents, pairs, extra = self._exponents[places], self._pairs[places], self._extra[places]
        bits = _total_bits(np.bincount(pairs)) - _total_bits(np.bincount(exponents)) + int(extra.sum())
        return _CONTEXT_CODING * bits / extra.size + _UNIT_BITS


def _total_bits(counts: NDArray[np.intp]) -> float:
    """Of all symbols together, but for a term that depends on their number alone."""
    seen = counts[counts > 0].astype(np.float64)
    return -float((seen * np.log2(seen)).sum())


def _rotated(words: Words, layout: Layout) -> Words:
    if not layout.is_float:
        return words
    out = np.empty_like(words)
    rotate_sign(words, out)
    return out


def _plane_bits(words: Words) -> float:
    planes = np.empty((words.dtype.itemsize, words.size), np.uint8)
    split_planes(np.ascontiguousarray(words), planes)
    return sum(min(8.0, max(_huffman_bits(plane), _FLOOR_BITS)) for plane in planes)


def _position_bits(share: float) -> float:
    if share in {0.0, 1.0}:
        return 0.0
    return float(-(share * np.log2(share) + (1 - share) * np.log2(1 - share)))


def _huffman_bits(plane: NDArray[np.uint8]) -> float:
    """Bits a byte: the entropy, and what is lost where one byte is so frequent that it seems to repeat itself."""
    counts = np.bincount(plane, minlength=256).astype(np.float64)
    shares = counts[counts > 0] / plane.size
    entropy = float(-(shares * np.log2(shares)).sum())
    return entropy * (1 + _REPEATS * float(shares.max()) ** 3)
