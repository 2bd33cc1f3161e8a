"""Measure a module and leave it as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modelgit.models.base import Batch

__all__ = ["batch_inputs", "evaluating", "module_device"]


@contextmanager
def evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, normalisation statistics fixed) inside; modes and `requires_grad` restored after."""
    training = [(part, part.training) for module in modules for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in training:
            part.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def module_device(module: torch.nn.Module) -> torch.device:
    """Where the module's parameters lie; the CPU for a module without any."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def batch_inputs(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """The keyword arguments of `batch` on `device`."""
    return {name: value.to(device) for name, value in batch.inputs.items()}
