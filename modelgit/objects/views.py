"""Tensors that are views: several names, slices, transpositions and repetitions over the bytes of one stored tensor."""

from __future__ import annotations

from collections.abc import Sequence

from modelgit.errors import CheckpointFormatError
from modelgit.objects.canonical import Record
from modelgit.objects.tensors import TensorSpec

__all__ = ["MAX_REPEATED_BYTES", "STORAGE_SUFFIX", "TensorView", "check_view", "row_major"]

STORAGE_SUFFIX = " (storage)"
"""Ends the name of a stored tensor that is only what views show parts of, and no tensor of the model."""

MAX_REPEATED_BYTES = 1 << 34
"""A view with a stride of 0 may repeat its storage up to this size; more is an attempt to exhaust memory."""


class TensorView(Record, frozen=True, kw_only=True):
    """A name for (a part of) tensor number `tensor` of a file's table.

    `spec` is None when it is that tensor's own.  The first element lies at byte `offset`; `strides` counts elements
    per dimension, and is empty for row-major order.
    """

    name: str
    tensor: int
    spec: TensorSpec | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor without gaps whose last dimension is contiguous."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def check_view(view: TensorView, base: TensorSpec) -> TensorSpec:
    """The spec of what `view` shows of a stored tensor of spec `base`.

    Raises CheckpointFormatError when it reaches beyond that tensor, or repeats it without measure.
    """
    spec = view.spec or base
    spec.check()
    if (
        view.offset < 0
        or any(stride < 0 for stride in view.strides)
        or (view.strides and (len(view.strides) != len(spec.shape) or spec.kind.bits % 8))
    ):
        raise CheckpointFormatError(f"tensor {view.name[:60]!a} has an impossible offset or stride")
    size = end = spec.size_bytes
    if view.strides and size:
        steps = sum((extent - 1) * stride for extent, stride in zip(spec.shape, view.strides, strict=True))
        end = (steps + 1) * (spec.kind.bits // 8)
    if size and view.offset + end > base.size_bytes:
        raise CheckpointFormatError(
            f"tensor {view.name[:60]!a} reaches to byte {view.offset + end} of a storage of {base.size_bytes}"
        )
    if size > max(base.size_bytes, MAX_REPEATED_BYTES):
        raise CheckpointFormatError(f"tensor {view.name[:60]!a} repeats its storage into {size} bytes")
    return spec
