"""Run a model on batches: outputs as rows, in evaluation mode, on the module's own device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from modelgit.errors import CheckFailed, UsageError
from modelgit.models.base import Batch, ExampleSet, TaskModel

__all__ = [
    "OutputRows",
    "batch_inputs",
    "evaluating",
    "module_device",
    "output_rows",
    "row_parts",
    "run_model",
    "suitable_batch",
]

# Rows of a vocabulary are widened to float64 a few million numbers at a time.
_CHUNK_ELEMENTS = 1 << 22
_BATCH = 64
_BATCH_ELEMENTS = 1 << 24


class OutputRows(NamedTuple):
    """The counted outputs of a batch, flat: `values` `[M, C]`, the row of the batch each belongs to, labels `[M]`.

    `chosen` (bool `[B, R]`, None for all) says where they stood.
    """

    values: torch.Tensor
    example: torch.Tensor
    labels: torch.Tensor
    chosen: torch.Tensor | None

    def of(self, outputs: torch.Tensor) -> torch.Tensor:
        """The same rows of another tensor with the shape of the outputs."""
        return outputs if self.chosen is None else outputs[self.chosen]

    def back(self, values: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Rows put back to where they stood, zeros elsewhere: the shape, type and device of `outputs`."""
        if self.chosen is None:
            return values.to(outputs.dtype)
        whole = torch.zeros_like(outputs)
        whole[self.chosen] = values.to(outputs.dtype)
        return whole


def suitable_batch(model: TaskModel, examples: ExampleSet) -> int:
    """A batch size that keeps the outputs of one batch near 64 MiB: 64 for classifiers, less for vocabularies."""
    first = next(iter(examples.batches(1, limit=1)))
    outputs = first.labels.shape[1] if first.labels.ndim == 2 else 1
    return max(1, min(_BATCH, _BATCH_ELEMENTS // max(1, model.classes * outputs)))


def run_model(model: TaskModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The outputs of the module.  Raises UsageError when it cannot be run on the inputs."""
    try:
        outputs: torch.Tensor = model.module(**inputs)
    except (RuntimeError, TypeError, IndexError) as error:
        raise UsageError(f"the model cannot be run on the examples: {error}") from error
    return outputs


def output_rows(model: TaskModel, outputs: torch.Tensor, batch: Batch, examples: ExampleSet) -> OutputRows:
    """The counted outputs of a batch as rows, on the device of `outputs`.

    Raises UsageError for another shape than the model's likelihood has, CheckFailed when a counted output is not
    finite (minus infinity is a logit: a class that is ruled out).
    """
    count = len(batch.indices)
    gaussian = model.likelihood == "gaussian"
    counted = batch.counted
    axes = (2,) if gaussian else (2, 3) if counted is None else (3,)
    if (
        outputs.ndim not in axes
        or len(outputs) != count
        or (counted is not None and counted.shape != outputs.shape[:2])
    ):
        kind = "means `[B, D]`" if gaussian else "logits `[B, C]` or `[B, R, C]`"
        raise UsageError(f"the model gives {list(outputs.shape)} for {count} examples, where {kind} are expected")
    device = outputs.device
    rows = torch.arange(count, device=device)
    labels = batch.labels.to(device)
    if outputs.ndim == 2:
        found = OutputRows(outputs, rows, labels if labels.ndim == 1 else labels.new_full((count,), -1), None)
    else:
        chosen = counted.to(device) if counted is not None else outputs.new_ones(outputs.shape[:2], dtype=torch.bool)
        if labels.shape != chosen.shape:
            labels = labels.new_full(chosen.shape, -1)
        found = OutputRows(outputs[chosen], rows[:, None].expand_as(chosen)[chosen], labels[chosen], chosen)
    wrong = found.values.isnan() | (found.values == torch.inf)
    if gaussian:
        wrong |= found.values == -torch.inf
    bad = wrong.any(1) | ~found.values.isfinite().any(1)
    if bool(bad.any()):
        first = int(found.example[int(bad.nonzero()[0, 0])])
        name = examples.examples[batch.indices[first]].id
        what = "outputs" if gaussian else "logits"
        raise CheckFailed(
            f"the model's {what} for example `{name}` are not finite",
            hint="`mgit eval` measures the model on its suites",
        )
    return found


def row_parts(rows: int, classes: int) -> Iterator[slice]:
    """Slices of `rows` rows whose float64 copies stay small whatever the number of classes."""
    size = max(1, _CHUNK_ELEMENTS // max(1, classes))
    for start in range(0, rows, size):
        yield slice(start, start + size)


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
