"""The codec contract: one unit of words in, one payload out, and back, bit for bit.

A *unit* is a run of machine words of one tensor (see `Layout`); units are coded independently, so that they can be
coded in parallel and a range of a tensor can be read alone.  How units become records of a pack is the business of
`patching` and `store`; a codec never sees a file.
"""

from __future__ import annotations

from typing import Literal as OneOf
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from modelgit.objects import TensorSpec
from modelgit.registry import Registry

__all__ = ["CODECS", "WINDOWS", "Codec", "Effort", "Layout", "Words", "layout_of", "word_dtype"]

Words = NDArray[np.unsignedinteger]

Effort = OneOf["fast", "balanced", "tight"]
"""How much time coding may take for how little space; it changes what a writer tries, never what a reader must know."""

WINDOWS: dict[Effort, tuple[int, ...]] = {"fast": (16,), "balanced": (16,), "tight": (16, 15, 14)}
"""Which sizes of Huffman tables are tried (`numerics.streams`)."""


class Layout(NamedTuple):
    """How raw bytes group into words: `word_bytes` is 1, 2, 4 or 8; `is_float` as in `DType`."""

    word_bytes: int
    is_float: bool


class Codec(Protocol):
    """One way to code a unit.

    `name` is stored in records and never reused for another layout.  `needs_base` says that `base`, the words of
    another tensor at the same positions, must be given both ways.  `unit_bytes` is the raw size of a full unit, a
    power of two of at most 8 MiB.  `random_access` says that `decode` can start inside a unit.
    """

    name: str
    needs_base: bool
    unit_bytes: int
    random_access: bool

    def encode(self, words: Words, layout: Layout, *, base: Words | None = None, effort: Effort = "balanced") -> bytes:
        """Code `words` (1-D, contiguous, dtype `word_dtype(layout)`, any length up to a unit, possibly 0).

        Thread-safe; does not modify its arguments.
        """

    def decode(
        self, payload: bytes | memoryview, layout: Layout, out: Words, *, base: Words | None = None, start: int = 0
    ) -> None:
        """Fill `out` with the words from `start` on (`start` > 0 only with `random_access`).

        `out` is 1-D and contiguous; without `random_access` its length is the whole unit's.  `base` has the length
        of `out` and is aligned with it; it may be `out` itself.
        Raises IntegrityError for a payload that is not one, in one sentence, without allocating more than a small
        multiple of the unit's size: payloads may come from a hostile remote.
        """


CODECS: Registry[Codec] = Registry(
    "codec",
    "modelgit.codecs",
    {
        "raw": "modelgit.codecs.raw:RAW",
        "planes": "modelgit.codecs.planes:PLANES",
        "delta": "modelgit.codecs.delta:DELTA",
        "sparse": "modelgit.codecs.sparse:SPARSE",
        "context": "modelgit.codecs.context:CONTEXT",
        "sparse-context": "modelgit.codecs.sparse_context:SPARSE_CONTEXT",
        "masked": "modelgit.codecs.masked:MASKED",
        "masked-context": "modelgit.codecs.masked:MASKED_CONTEXT",
    },
)


def layout_of(spec: TensorSpec) -> Layout:
    """The word layout of a tensor."""
    kind = spec.kind
    return Layout(kind.word_bytes, kind.is_float)


def word_dtype(layout: Layout) -> np.dtype[np.unsignedinteger]:
    """The little-endian unsigned numpy dtype of one word."""
    return np.dtype(f"<u{layout.word_bytes}")
