"""Estimate the diagonal of the Fisher information matrix of a classifier, exactly per example.

F_i is the mean over inputs x of E_{y ~ p(.|x)} [(d log p(y|x) / d w_i)^2], in nats per squared unit of weight.  The
expectation over labels is that of the model ("exact", "rademacher", "sampled": no labels needed) or is replaced by
the label at hand ("empirical": not an estimate of F, see Kunstner et al. 2019, but what FISH masks were proposed with).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modelgit.errors import CheckFailed, UsageError
from modelgit.fisher.factors import cholesky_columns, label_directions, sampled_labels, signed_directions
from modelgit.fisher.hooks import GradientSquares
from modelgit.fisher.modes import batch_inputs, evaluating, module_device
from modelgit.models.base import Batch, ExampleSet, TaskModel
from modelgit.progress import SILENT, Progress

__all__ = ["ESTIMATORS", "EXACT_CLASSES", "FisherDiagonal", "estimate"]

ESTIMATORS = ("auto", "exact", "rademacher", "sampled", "empirical")
EXACT_CLASSES = 8
"""With at most this many classes "auto" is "exact" (one pass per class but one), else "rademacher" (one pass)."""

_TASK = "Fisher"
# Directions are scaled by a power of two, and sums scaled back: squares of gradients near 1e-19 are then not lost
# in float32, and no rounding is added.
_SCALE = 2.0**16


@dataclass(frozen=True, kw_only=True)
class FisherDiagonal:
    """A diagonal by tensor name: float32 arrays with the shapes of the weights, averaged over `examples`.

    `estimator` is the one that ran, never "auto"; `data` is the fingerprint of the examples.
    """

    estimator: str
    examples: int
    seed: int
    data: str
    values: dict[str, NDArray[np.float32]]


def estimate(
    task_model: TaskModel,
    examples: ExampleSet,
    *,
    estimator: str = "auto",
    limit: int | None = 512,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = SILENT,
) -> FisherDiagonal:
    """The Fisher diagonal of all parameters at the model's weights, on the first `limit` examples.

    The result does not depend on `batch_size` beyond rounding; `seed` matters for "rademacher" and "sampled" only.
    The module is measured in evaluation mode and left as it was.  Raises UsageError for an unknown estimator, no
    examples, or examples without labels ("empirical"); CheckFailed when logits are not finite.
    """
    if estimator not in ESTIMATORS:
        raise UsageError(f"no Fisher estimator `{estimator}`", hint=f"known: {', '.join(ESTIMATORS)}")
    count = len(examples) if limit is None else min(limit, len(examples))
    if count < 1:
        raise UsageError("a Fisher estimate needs at least one example")
    classes = task_model.classes
    if classes < 2:
        raise UsageError(f"a Fisher estimate needs a head with two outputs or more, not {classes}")
    if estimator == "auto":
        estimator = "exact" if classes <= EXACT_CLASSES else "rademacher"
    if estimator == "empirical":
        _check_labels(examples, count, classes)
    draws = _draws(estimator, count, classes, seed)
    module, device = task_model.module, module_device(task_model.module)
    progress.start(_TASK, count, unit="examples")
    try:
        with evaluating(module), GradientSquares(module, task_model.tensor_of) as squares:
            for batch in examples.batches(batch_size, limit=count):
                progress.check()
                squares.add(batch_inputs(batch, device), _directions(estimator, batch, draws, examples, classes))
                progress.advance(_TASK, len(batch.indices))
    finally:
        progress.finish(_TASK)
    values = {
        tensor: total.mul_(1.0 / (_SCALE * _SCALE)).div_(count).cpu().numpy()
        for tensor, total in squares.totals.items()
    }
    return FisherDiagonal(estimator=estimator, examples=count, seed=seed, data=examples.fingerprint, values=values)


def _draws(estimator: str, count: int, classes: int, seed: int) -> torch.Tensor | None:
    """Random numbers by example, so that they do not depend on how examples are batched."""
    generator = torch.Generator().manual_seed(seed)
    if estimator == "rademacher":
        return torch.randint(0, 2, (count, classes - 1), generator=generator).double() * 2 - 1
    if estimator == "sampled":
        return torch.rand(count, generator=generator, dtype=torch.float64)
    return None


def _directions(
    estimator: str, batch: Batch, draws: torch.Tensor | None, examples: ExampleSet, classes: int
) -> Callable[[torch.Tensor], Iterable[torch.Tensor]]:
    """The directions of one batch, as a function of its logits."""

    def directions(logits: torch.Tensor) -> Iterator[torch.Tensor]:
        if logits.shape != (len(batch.indices), classes):
            raise UsageError(
                f"the model gave logits of shape {list(logits.shape)} for {len(batch.indices)} examples and "
                f"{classes} classes"
            )
        finite = logits.isfinite().all(1)
        if not bool(finite.all()):
            wrong = examples.examples[batch.indices[int((~finite).nonzero()[0, 0])]]
            raise CheckFailed(f"the model's logits for example `{wrong.id}` are not finite")
        p = logits.double().softmax(1)
        drawn = None if draws is None else draws[list(batch.indices)].to(p.device)
        if estimator == "empirical":
            yield label_directions(p, batch.labels.to(p.device)) * _SCALE
        elif drawn is None:
            yield from (column * _SCALE for column in cholesky_columns(p))
        elif estimator == "rademacher":
            yield signed_directions(p, drawn) * _SCALE
        else:
            yield label_directions(p, sampled_labels(p, drawn)) * _SCALE

    return directions


def _check_labels(examples: ExampleSet, count: int, classes: int) -> None:
    for example in examples.examples[:count]:
        if not 0 <= example.label < classes:
            raise UsageError(
                f"example `{example.id}` has no label among the model's {classes} classes, which the empirical "
                "estimator needs",
                hint="take the estimator `exact` or `rademacher`, which need no labels",
            )
