"""Gradients by example for layers without a cheaper way: vmap where it works, else one backward pass each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

__all__ = ["ExampleGradients"]

_CHUNK_ELEMENTS = 1 << 22


class ExampleGradients:
    """Per-example gradients of `module` with respect to `parameters` (by parameter name), in full."""

    def __init__(self, module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> None:
        self.module = module
        self.parameters = dict(parameters)
        self._vectorised = True

    def add_squares(
        self,
        inputs: Mapping[str, torch.Tensor],
        vector: torch.Tensor,
        tensor_of: Mapping[str, str],
        totals: Mapping[str, torch.Tensor],
    ) -> None:
        """Add (J^T v)^2 of every example to the totals of the tensors; parameters of one tensor are added first.

        `vector` `[B, C]` holds v for each example.  The first operation that vmap does not know makes the object go
        on one example at a time.
        """
        elements = max(1, sum(parameter.numel() for parameter in self.parameters.values()))
        chunk = max(1, _CHUNK_ELEMENTS // elements)
        for start in range(0, len(vector), chunk):
            rows = slice(start, start + chunk)
            part = {name: value[rows] for name, value in inputs.items()}
            for tensor, gradient in self._gradients(part, vector[rows], tensor_of).items():
                totals[tensor].add_(gradient.float().square_().sum(0))

    def _gradients(
        self, inputs: Mapping[str, torch.Tensor], vector: torch.Tensor, tensor_of: Mapping[str, str]
    ) -> dict[str, torch.Tensor]:
        """Gradients `[n, *shape]` by tensor name."""
        gradients = None
        if self._vectorised and len(vector) > 1:
            try:
                gradients = self._by_vmap(inputs, vector)
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                self._vectorised = False  # an operation without a batching rule, or control flow that looks at data
        if gradients is None:
            gradients = self._one_by_one(inputs, vector)
        summed: dict[str, torch.Tensor] = {}
        for name, gradient in gradients.items():
            tensor = tensor_of[name]
            summed[tensor] = summed[tensor] + gradient if tensor in summed else gradient
        return summed

    def _by_vmap(self, inputs: Mapping[str, torch.Tensor], vector: torch.Tensor) -> dict[str, torch.Tensor]:
        def projection(
            parameters: dict[str, torch.Tensor], row: dict[str, torch.Tensor], direction: torch.Tensor
        ) -> torch.Tensor:
            single = {name: value[None] for name, value in row.items()}
            logits = functional_call(self.module, parameters, kwargs=single)
            projected: torch.Tensor = (logits[0] * direction).sum()
            return projected

        detached = {name: parameter.detach() for name, parameter in self.parameters.items()}
        per_example = vmap(grad(projection), in_dims=(None, 0, 0))
        gradients: dict[str, torch.Tensor] = per_example(detached, dict(inputs), vector)
        return gradients

    def _one_by_one(self, inputs: Mapping[str, torch.Tensor], vector: torch.Tensor) -> dict[str, torch.Tensor]:
        wanted = list(self.parameters.values())
        stacks = {
            name: parameter.new_zeros((len(vector), *parameter.shape)) for name, parameter in self.parameters.items()
        }
        for parameter in wanted:
            parameter.requires_grad_(True)
        try:
            for row in range(len(vector)):
                logits = self.module(**{name: value[row : row + 1] for name, value in inputs.items()})
                if not logits.requires_grad:
                    continue
                gradients = torch.autograd.grad(logits, wanted, vector[row : row + 1], allow_unused=True)
                for stack, gradient in zip(stacks.values(), gradients, strict=True):
                    if gradient is not None:
                        stack[row] = gradient.to_dense() if gradient.is_sparse else gradient
        finally:
            for parameter in wanted:
                parameter.requires_grad_(False)
        return stacks
