"""Gradients of one weight tensor by example, as contributions that can be added, and then squared and summed.

The square is taken per example: the square of a sum over examples has another expectation.  Within an example all
contributions to one tensor (tokens, repeated calls, tied weights) are added before the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["Contribution", "Outer", "Rows", "Vectors", "add_squares", "add_sum"]

# One buffer per example that stays in the cache beats a batched product; small matrices go in chunks to spare calls.
_CPU_CHUNK_ELEMENTS = 1 << 17
_ACCELERATOR_CHUNK_ELEMENTS = 1 << 26


class Contribution(Protocol):
    """What one call of a module adds to the gradient of one tensor, for each example of a batch."""

    def add_example(self, gradient: torch.Tensor, example: int) -> None:
        """Add the part of `example` to `gradient`, which has the tensor's shape."""

    def add_squares(self, total: torch.Tensor) -> None:
        """Add the sum over examples of the squared gradients to `total`."""


@dataclass(frozen=True)
class Vectors:
    """Gradients that are known in full: float32 `[B, *shape of the tensor]`."""

    gradients: torch.Tensor

    def add_example(self, gradient: torch.Tensor, example: int) -> None:
        """Add one row."""
        gradient.add_(self.gradients[example])

    def add_squares(self, total: torch.Tensor) -> None:
        """Square, sum over rows."""
        total.add_(self.gradients.square().sum(0))


@dataclass(frozen=True)
class Outer:
    """The weight `[O, I]` of a linear map: the sum over positions t of g_t a_t^T.

    `output` holds the gradients of the outputs, float32 `[B, T, O]`, and `inputs` the inputs, `[B, T, I]`.
    """

    output: torch.Tensor
    inputs: torch.Tensor

    def add_example(self, gradient: torch.Tensor, example: int) -> None:
        """Add g^T a of one example."""
        gradient.addmm_(self.output[example].t(), self.inputs[example])

    def add_squares(self, total: torch.Tensor) -> None:
        """Sum (g^T a)^2 over examples; with one position the square of a product is the product of squares."""
        count, positions, _ = self.output.shape
        if positions == 1:
            total.addmm_(self.output[:, 0].square().t(), self.inputs[:, 0].square())
            return
        limit = _CPU_CHUNK_ELEMENTS if total.device.type == "cpu" else _ACCELERATOR_CHUNK_ELEMENTS
        chunk = limit // total.numel()
        if chunk > 1:
            for start in range(0, count, chunk):
                part = slice(start, start + chunk)
                product = torch.bmm(self.output[part].transpose(1, 2), self.inputs[part])
                total.add_(product.square_().sum(0))
            return
        buffer = torch.empty_like(total)
        for example in range(count):
            torch.mm(self.output[example].t(), self.inputs[example], out=buffer)
            total.addcmul_(buffer, buffer)


@dataclass(frozen=True)
class Rows:
    """The weight `[V, D]` of an embedding: gradients of outputs, added by row.

    `ids` is int64 `[B, T]`, `output` float32 `[B, T, D]`.
    """

    ids: torch.Tensor
    output: torch.Tensor

    def add_example(self, gradient: torch.Tensor, example: int) -> None:
        """Scatter one example's gradients to their rows."""
        gradient.index_add_(0, self.ids[example], self.output[example])

    def add_squares(self, total: torch.Tensor) -> None:
        """Add equal ids within an example, square, scatter: rows that no example uses are not touched."""
        count, width, rows = len(self.ids), self.output.shape[-1], total.shape[0]
        keys = self.ids + torch.arange(count, device=self.ids.device)[:, None] * rows
        unique, position = keys.reshape(-1).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        sums = total.new_zeros((len(unique), width)).index_add_(0, position, self.output.reshape(-1, width))
        total.index_add_(0, unique % rows, sums.square_())


def add_squares(total: torch.Tensor, contributions: Sequence[Contribution], count: int) -> None:
    """Add to `total` the sum over `count` examples of (the sum of `contributions`)^2."""
    if len(contributions) == 1:
        contributions[0].add_squares(total)
        return
    gradient = torch.empty_like(total)
    for example in range(count):
        gradient.zero_()
        for contribution in contributions:
            contribution.add_example(gradient, example)
        total.addcmul_(gradient, gradient)


def add_sum(total: torch.Tensor, contributions: Sequence[Contribution], count: int) -> None:
    """Add to `total` the plain gradient of the batch: the sum over contributions and `count` examples."""
    for contribution in contributions:
        for example in range(count):
            contribution.add_example(total, example)
