"""The mean gradient of the labelled loss: what one step of plain training on the task would change most."""

from __future__ import annotations

import random

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from modelgit.errors import CheckFailed, UsageError
from modelgit.models.base import Batch, ExampleSet, TaskModel
from modelgit.models.outputs import batch_inputs, evaluating, module_device
from modelgit.progress import SILENT, Progress

__all__ = ["mean_gradient"]

_TASK = "gradient"


def mean_gradient(
    task_model: TaskModel,
    examples: ExampleSet,
    *,
    limit: int | None = 512,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, NDArray[np.float32]]:
    """|mean over examples of d log p(labels of x | x) / d w| by tensor name, float32 with the shapes of the weights.

    The log-probabilities of all labelled outputs of an example are added (a sequence of tokens is one example), losses
    are added over examples and divided once at the end, so that batches do not matter beyond rounding; parameters of
    one tensor are added before the absolute value.  Taken on `limit` examples in an order that depends on `seed`, as a
    Fisher estimate is, in evaluation mode; the module is left as it was.  Holds one float32 copy of the parameters
    beside the model, and its gradients.  Raises UsageError for examples without any label and for models whose outputs
    are no classes, CheckFailed when a loss is not finite.
    """
    if task_model.likelihood != "categorical":
        raise UsageError(
            "the score `gradient` needs labels, and this task's model has outputs without classes",
            hint="`--score fisher` needs no labels",
        )
    count = len(examples) if limit is None else min(limit, len(examples))
    if count < 1:
        raise UsageError("a gradient needs at least one example")
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)  # noqa: S311 - an order of examples, not a secret
    examples = examples.select(order[:count])
    module, device = task_model.module, module_device(task_model.module)
    parameters = dict(module.named_parameters())
    wanted = {name: parameters[name] for name in task_model.tensor_of}
    sums: dict[str, torch.Tensor] = {}
    for name, parameter in wanted.items():
        sums.setdefault(
            task_model.tensor_of[name],
            torch.zeros(parameter.shape, dtype=torch.promote_types(parameter.dtype, torch.float32), device=device),
        )
    progress.start(_TASK, count, unit="examples")
    try:
        with evaluating(module), torch.enable_grad():
            module.requires_grad_(False)
            for parameter in wanted.values():
                parameter.requires_grad_(True)
            for batch in examples.batches(batch_size):
                progress.check()
                loss = _loss(module(**batch_inputs(batch, device)), batch, examples)
                gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
                for name, gradient in zip(wanted, gradients, strict=True):
                    if gradient is not None:
                        sums[task_model.tensor_of[name]] += gradient.to_dense() if gradient.is_sparse else gradient
                progress.advance(_TASK, len(batch.indices))
    finally:
        progress.finish(_TASK)
    return {tensor: (total.abs_() / count).float().cpu().numpy() for tensor, total in sums.items()}


def _loss(logits: torch.Tensor, batch: Batch, examples: ExampleSet) -> torch.Tensor:
    """The sum over the examples of a batch of -log p of all their labels."""
    labels = batch.labels.to(logits.device)
    if batch.counted is not None:
        labels = labels.masked_fill(~batch.counted.to(logits.device).reshape(labels.shape), -1)
    rows = labels.reshape(len(batch.indices), -1)
    bare = (rows < 0).all(1) | (rows >= logits.shape[-1]).any(1)
    if bool(bare.any()):
        wrong = examples.examples[batch.indices[int(bare.nonzero()[0, 0])]]
        raise UsageError(
            f"example `{wrong.id}` has no label among the model's classes, which the score `gradient` needs",
            hint="`--score fisher` needs no labels",
        )
    flat = logits.reshape(-1, logits.shape[-1])
    loss = functional.cross_entropy(
        flat.to(torch.promote_types(flat.dtype, torch.float32)), rows.reshape(-1), ignore_index=-1, reduction="sum"
    )
    if not bool(loss.isfinite()):
        raise CheckFailed("the loss is not finite", hint="`mgit eval` measures the model on its suites")
    return loss
