"""Gradients of one weight tensor by example, as contributions that can be added, and then squared and summed.

The square is taken per example: the square of a sum over examples has another expectation.  Within an example all
contributions to one tensor (tokens, repeated calls, tied weights) are added before the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["Contribution", "Grouped", "Outer", "Part", "Rows", "Vectors", "add_one", "add_squares"]

# One buffer per example that stays in the cache beats a batched product; small matrices go in chunks to spare calls,
# and large ones (a vocabulary) by rows, so that neither buffer nor sums leave the cache between two examples.
_CPU_CHUNK_ELEMENTS = 1 << 17
_CPU_TILE_ELEMENTS = 1 << 20
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

    `output` holds the gradients of the outputs, float32 `[B, T, O]`, and `inputs` the inputs, `[B, T, I]`.  The
    tensor may have any shape with O rows and I values in each (the kernel of a convolution).
    """

    output: torch.Tensor
    inputs: torch.Tensor

    def add_example(self, gradient: torch.Tensor, example: int) -> None:
        """Add g^T a of one example."""
        _matrix(gradient).addmm_(self.output[example].t(), self.inputs[example])

    def add_squares(self, total: torch.Tensor) -> None:
        """Sum (g^T a)^2 over examples; with one position the square of a product is the product of squares."""
        total = _matrix(total)
        count, positions, _ = self.output.shape
        if positions == 1:
            total.addmm_(self.output[:, 0].square().t(), self.inputs[:, 0].square())
            return
        on_cpu = total.device.type == "cpu"
        chunk = (_CPU_CHUNK_ELEMENTS if on_cpu else _ACCELERATOR_CHUNK_ELEMENTS) // total.numel()
        if chunk > 1:
            for start in range(0, count, chunk):
                part = slice(start, start + chunk)
                product = torch.bmm(self.output[part].transpose(1, 2), self.inputs[part])
                total.add_(product.square_().sum(0))
            return
        tile = max(1, (_CPU_TILE_ELEMENTS if on_cpu else _ACCELERATOR_CHUNK_ELEMENTS) // total.shape[1])
        buffer = torch.empty_like(total[:tile])
        for start in range(0, len(total), tile):
            rows = total[start : start + tile]
            product = buffer[: len(rows)]
            for example in range(count):
                torch.mm(self.output[example, :, start : start + tile].t(), self.inputs[example], out=product)
                rows.addcmul_(product, product)

    def rows(self, example: int, ids: torch.Tensor) -> torch.Tensor:
        """The rows `ids` of the gradient of one example, `[len(ids), I]`."""
        return self.output[example][:, ids].t() @ self.inputs[example]


@dataclass(frozen=True)
class Grouped:
    """The kernel of a convolution in groups: for each group an outer product, summed over positions.

    `output` is `[B, G, O / G, T]`, `inputs` `[B, G, T, I]`, for a tensor of O rows of I values, the groups' in turn.
    """

    output: torch.Tensor
    inputs: torch.Tensor

    def add_example(self, gradient: torch.Tensor, example: int) -> None:
        """Add one example."""
        gradient.add_((self.output[example] @ self.inputs[example]).reshape(gradient.shape))

    def add_squares(self, total: torch.Tensor) -> None:
        """As many examples at a time as make a small buffer."""
        chunk = max(1, _CPU_TILE_ELEMENTS // total.numel())
        for start in range(0, len(self.output), chunk):
            part = slice(start, start + chunk)
            product = self.output[part] @ self.inputs[part]
            total.add_(product.square_().sum(0).reshape(total.shape))


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

    def touched(self, example: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The distinct rows that one example uses, and their gradients."""
        unique, position = self.ids[example].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        sums = self.output.new_zeros((len(unique), self.output.shape[-1]))
        return unique, sums.index_add_(0, position, self.output[example])


@dataclass(frozen=True)
class Part:
    """A contribution to the rows from `start` to `stop` only (the query part of a joint projection)."""

    inner: Contribution
    start: int
    stop: int

    def add_example(self, gradient: torch.Tensor, example: int) -> None:
        """Add to those rows."""
        self.inner.add_example(gradient[self.start : self.stop], example)

    def add_squares(self, total: torch.Tensor) -> None:
        """Add to those rows."""
        self.inner.add_squares(total[self.start : self.stop])


def add_squares(total: torch.Tensor, contributions: Sequence[Contribution], count: int) -> None:
    """Add to `total` the sum over `count` examples of (the sum of `contributions`)^2."""
    if len(contributions) == 1:
        contributions[0].add_squares(total)
        return
    outer = [contribution for contribution in contributions if isinstance(contribution, Outer)]
    rows = [contribution for contribution in contributions if isinstance(contribution, Rows)]
    if len(contributions) == 2 and len(outer) == 1 and len(rows) == 1:
        _add_tied(total, outer[0], rows[0], count)
        return
    gradient = torch.empty_like(total)
    for example in range(count):
        gradient.zero_()
        for contribution in contributions:
            contribution.add_example(gradient, example)
        total.addcmul_(gradient, gradient)


def _add_tied(total: torch.Tensor, outer: Outer, rows: Rows, count: int) -> None:
    """An embedding tied to the output layer: (o + r)^2 = o^2 + (2 o + r) r, and r is zero but for a few rows."""
    outer.add_squares(total)
    for example in range(count):
        ids, gradients = rows.touched(example)
        total.index_add_(0, ids, (2 * outer.rows(example, ids) + gradients) * gradients)
    used = rows.ids.unique()  # type: ignore[no-untyped-call]
    total[used] = total[used].clamp_min(0)  # where o + r vanishes, rounding may leave a little less than nothing


def add_one(total: torch.Tensor, contributions: Sequence[Contribution], example: int) -> None:
    """Add to `total` the plain gradient of one example of the batch."""
    for contribution in contributions:
        contribution.add_example(total, example)


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(tensor.shape[0], -1)
