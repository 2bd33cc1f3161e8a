"""What a change of weights does to behaviour: the KL divergence, predicted at the old weights and measured.

With J the Jacobian of the logits at the old weights, p the old probabilities and d the change,

    E KL(old || new) = 1/2 E[(J d)^T (diag p - p p^T)(J d)] + O(|d|^3).

J d comes from a central difference along d: two forward passes, and all cross terms are in it.  The diagonal form
1/2 sum F_i d_i^2 leaves the cross terms out and is right only for incoherent changes (rounding, unbiased
sparsification); for a fine-tune it is about a thousand times too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from modelgit.errors import CheckFailed, UsageError
from modelgit.fisher.modes import batch_inputs, evaluating, module_device
from modelgit.models.base import ExampleSet, TaskModel
from modelgit.progress import SILENT, Progress

__all__ = ["Behaviour", "Share", "behaviour", "diagonal_kl", "fisher_share"]

LOCAL_KL = 0.05
"""Above this measured KL, in nats, a quadratic form says nothing: the measured number counts."""
LOCAL_ERROR = 0.25
_TASK = "KL"
_STEP = 0.05
_LONGEST_STEP = 0.5
# float32 logits carry an error near 1e-6; a step that moves them by a hundredth keeps it below one in a thousand.
_VISIBLE_MOVE = 0.01


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Old against new on `examples` inputs; KL in nats per example, averaged.

    `measured_kl` is KL(old || new); `predicted_kl` the quadratic form at the old weights.  `reliable` says whether
    the form holds here: the measured KL is at most 0.05 and the two differ by at most a quarter, so that the form may
    stand in for the measurement of similar changes.  `agreement` is the share of inputs with the same top class.  Of
    the `labelled` inputs, `old_correct` and `new_correct` are right, `negative_flips` became wrong and
    `positive_flips` right.
    """

    examples: int
    predicted_kl: float
    measured_kl: float
    reliable: bool
    agreement: float
    labelled: int
    old_correct: int
    new_correct: int
    negative_flips: int
    positive_flips: int


def behaviour(
    old: TaskModel,
    new: TaskModel,
    examples: ExampleSet,
    *,
    limit: int | None = 512,
    batch_size: int = 64,
    progress: Progress = SILENT,
) -> Behaviour:
    """Compare two models with the same tensors on the first `limit` examples: four forward passes.

    Raises UsageError when the tensors differ in name or shape or there are no examples, CheckFailed when logits are not
    finite.
    """
    count = len(examples) if limit is None else min(limit, len(examples))
    if count < 1:
        raise UsageError("a comparison needs at least one example")
    changes = _changes(old, new)
    device = module_device(old.module)
    sums = [0.0] * 8
    step = None
    progress.start(_TASK, count, unit="examples")
    try:
        with evaluating(old.module, new.module), torch.no_grad():
            for batch in examples.batches(batch_size, limit=count):
                progress.check()
                inputs = batch_inputs(batch, device)
                before = _logits(old, inputs)
                after = _logits(new, batch_inputs(batch, module_device(new.module)))
                after = after.to(device)
                if step is None:
                    move = float((after - before).square().mean().sqrt())
                    step = min(_LONGEST_STEP, max(_STEP, _VISIBLE_MOVE / move if move > 0 else _LONGEST_STEP))
                slope = (_shifted(old, changes, step, inputs) - _shifted(old, changes, -step, inputs)) / (2 * step)
                log_p, log_q = before.log_softmax(1), after.log_softmax(1)
                p = log_p.exp()
                measured = (p * (log_p - log_q)).sum(1)
                predicted = 0.5 * ((p * slope.square()).sum(1) - (p * slope).sum(1).square())
                top, new_top, labels = before.argmax(1), after.argmax(1), batch.labels.to(device)
                known = labels >= 0
                was, now = (top == labels) & known, (new_top == labels) & known
                parts = (measured, predicted, top == new_top, known, was, now, was & ~now, now & ~was)
                sums = [total + float(part.double().sum()) for total, part in zip(sums, parts, strict=True)]
                progress.advance(_TASK, len(batch.indices))
    finally:
        progress.finish(_TASK)
    measured_kl, predicted_kl = max(0.0, sums[0] / count), max(0.0, sums[1] / count)
    return Behaviour(
        examples=count,
        predicted_kl=predicted_kl,
        measured_kl=measured_kl,
        reliable=measured_kl <= LOCAL_KL and abs(predicted_kl - measured_kl) <= LOCAL_ERROR * measured_kl,
        agreement=sums[2] / count,
        labelled=int(sums[3]),
        old_correct=int(sums[4]),
        new_correct=int(sums[5]),
        negative_flips=int(sums[6]),
        positive_flips=int(sums[7]),
    )


def diagonal_kl(
    diagonal: Mapping[str, NDArray[np.float32]],
    old: Mapping[str, NDArray[np.floating]],
    new: Mapping[str, NDArray[np.floating]],
) -> float:
    """1/2 sum F_i (new_i - old_i)^2 in nats: a forecast for incoherent changes only (see the module's text).

    Raises UsageError when a tensor of the diagonal is missing or has another shape.
    """
    total = 0.0
    for name, fisher in diagonal.items():
        if name not in old or name not in new or not fisher.shape == old[name].shape == new[name].shape:
            raise UsageError(f"tensor `{name}` of the Fisher estimate is not in both models with its shape")
        delta = np.asarray(new[name], np.float64) - np.asarray(old[name], np.float64)
        total += float(np.sum(fisher.astype(np.float64) * delta * delta))
    return 0.5 * total


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of the diagonal Fisher mass that lies at changed positions: in all, and of the whole by tensor."""

    total: float
    by_tensor: dict[str, float]


def fisher_share(diagonal: Mapping[str, NDArray[np.float32]], changed: Mapping[str, NDArray[np.int64] | None]) -> Share:
    """How much of sum F the positions in `changed` carry; None means every element of the tensor.

    Tensors without an estimate have no mass.  `by_tensor` lists changed tensors, largest first.
    """
    whole = sum(float(values.sum(dtype=np.float64)) for values in diagonal.values())
    masses: dict[str, float] = {}
    for name, positions in changed.items():
        if name in diagonal:
            values = diagonal[name].reshape(-1)
            masses[name] = float((values if positions is None else values[positions]).sum(dtype=np.float64))
    scale = 1.0 / whole if whole > 0 else 0.0
    ordered = sorted(masses.items(), key=lambda item: (-item[1], item[0]))
    return Share(total=sum(masses.values()) * scale, by_tensor={name: mass * scale for name, mass in ordered})


def _changes(old: TaskModel, new: TaskModel) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Old weight and difference of the parameters that changed, by the old module's parameter names."""
    after = {
        new.tensor_of[name]: parameter for name, parameter in new.module.named_parameters() if name in new.tensor_of
    }
    changes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    seen: set[str] = set()
    for name, parameter in old.module.named_parameters():
        tensor = old.tensor_of.get(name)
        if tensor is None:
            continue
        seen.add(tensor)
        if tensor not in after:
            raise UsageError(f"tensor `{tensor}` is not in the new model")
        if after[tensor].shape != parameter.shape:
            raise UsageError(
                f"tensor `{tensor}` has shape {list(parameter.shape)} in the old model and "
                f"{list(after[tensor].shape)} in the new one"
            )
        delta = after[tensor].detach().to(parameter.device, parameter.dtype) - parameter.detach()
        if bool(delta.any()):
            changes[name] = (parameter.detach(), delta)
    extra = sorted(set(after) - seen)
    if extra:
        raise UsageError(f"tensor `{extra[0]}` is not in the old model")
    return changes


def _logits(model: TaskModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = model.module(**inputs).double()
    if not bool(logits.isfinite().all()):
        raise CheckFailed("the model's logits are not finite")
    return logits


def _shifted(
    model: TaskModel,
    changes: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    step: float,
    inputs: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Logits at old + `step` (new - old), float64; the model's own weights are not touched."""
    weights = {name: torch.add(before, delta, alpha=step) for name, (before, delta) in changes.items()}
    logits: torch.Tensor = functional_call(model.module, weights, kwargs=dict(inputs))
    return logits.double()
