"""What a model says about examples: log-probabilities, computed once and kept by the identity of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import BugError, UsageError
from modelgit.evals.cache import PredictionCache
from modelgit.evals.metrics import log_softmax, margins, top_labels
from modelgit.evals.prefix import KeptActivations
from modelgit.models.base import ExampleSet, TaskModel
from modelgit.progress import SILENT, Progress

__all__ = ["PredictionSource", "Predictions", "predict"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """`log_probs` (nats, float32 `[n, C]`) of the examples at `indices` (int64 `[n]`, ascending positions)."""

    indices: NDArray[np.int64]
    log_probs: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.int32]:
        """The most likely class, int32 `[n]`; -1 where the model computed NaN."""
        return top_labels(self.log_probs)

    @property
    def margins(self) -> NDArray[np.float64]:
        """p1 - p2, float64 `[n]`."""
        return margins(self.log_probs)

    def take(self, wanted: NDArray[np.int64]) -> Predictions:
        """The rows at `wanted` (ascending, all present in `indices`)."""
        rows = np.searchsorted(self.indices, wanted)
        if rows.size and (rows.max() >= self.indices.size or not np.array_equal(self.indices[rows], wanted)):
            raise BugError("predictions were asked for examples that they do not hold")
        return Predictions(self.indices[rows], self.log_probs[rows])


def predict(
    model: TaskModel,
    examples: ExampleSet,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    kept: KeptActivations | None = None,
    progress: Progress = SILENT,
) -> NDArray[np.float32]:
    """Log-probabilities of every example, float32 `[N, C]`, in the order of the set.

    `device` is where the module is; `kept` may have outputs of its first layers.
    Runs in evaluation mode without gradients; the module's mode is restored.  Batches are made by similar length,
    so a value may differ in its last bits when the same example is scored among others.  Raises UsageError when the
    model cannot be run on the inputs or gives logits of another shape.
    """
    import torch

    if model.likelihood != "categorical":
        raise UsageError("suites compare classes, and the outputs of this model are numbers")
    rows = np.full((len(examples), model.classes), np.nan, dtype=np.float32)
    seen = np.zeros(len(examples), dtype=bool)
    training = model.module.training
    model.module.eval()
    progress.start("predict", len(examples), unit="examples")
    try:
        with torch.inference_mode():
            for batch in examples.batches(batch_size):
                progress.check()
                try:
                    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
                    outputs = model.module(**inputs) if kept is None else kept.run(model.module, inputs)
                    logits = outputs.detach().to("cpu", torch.float32).numpy()
                except (RuntimeError, TypeError, IndexError) as error:
                    raise UsageError(f"the model cannot be run on the examples: {error}") from error
                if logits.shape != (len(batch.indices), model.classes):
                    raise UsageError(
                        f"the model gives logits of shape {list(logits.shape)} for {len(batch.indices)} examples, "
                        f"where [{len(batch.indices)}, {model.classes}] are expected"
                    )
                rows[list(batch.indices)] = log_softmax(logits)
                seen[list(batch.indices)] = True
                progress.advance("predict", len(batch.indices))
    finally:
        progress.finish("predict")
        model.module.train(training)
    if not seen.all():
        raise BugError(f"{int((~seen).sum())} of {len(seen)} examples were in no batch")
    return rows


class PredictionSource:
    """The predictions of one model on one set of examples: those known so far, and a way to get the others.

    `key` names everything that they depend on (`cache.prediction_key`); `compute` gives log-probabilities float32
    `[n, C]` for ascending positions, and is called for what is missing.  Held are the rows known so far.
    """

    def __init__(
        self,
        key: str,
        count: int,
        compute: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        *,
        cache: PredictionCache | None = None,
    ) -> None:
        self._key = key
        self._count = count
        self._compute = compute
        self._cache = cache
        self._known: Predictions | None = None
        self._looked = False

    @property
    def complete(self) -> bool:
        """Whether all predictions are known, so that asking for them costs nothing."""
        known = self.known()
        return known is not None and known.indices.size == self._count

    def known(self) -> Predictions | None:
        """What was computed so far, here or by an earlier run."""
        if not self._looked and self._cache is not None:
            held = self._cache.read(self._key, examples=self._count)
            if held is not None:
                self._known = Predictions(*held)
        self._looked = True
        return self._known

    def predictions(self, indices: NDArray[np.int64] | None = None) -> Predictions:
        """Predictions at `indices` (ascending), or all.  Computes what is missing and adds it to the cache."""
        wanted = np.arange(self._count, dtype=np.int64) if indices is None else indices
        known = self.known()
        missing = wanted if known is None else wanted[~np.isin(wanted, known.indices)]
        if known is None:
            known = self._keep(wanted, self._compute(wanted))
        elif missing.size:
            rows = self._compute(missing)
            if rows.shape[1] != known.log_probs.shape[1]:
                # Whatever was kept is not of this model.
                known = self._keep(wanted, self._compute(wanted))
            else:
                indices = np.concatenate((known.indices, missing))
                order = np.argsort(indices)
                known = self._keep(indices[order], np.concatenate((known.log_probs, rows))[order])
        return known.take(wanted)

    def _keep(self, indices: NDArray[np.int64], rows: NDArray[np.float32]) -> Predictions:
        self._known = Predictions(indices, rows)
        if self._cache is not None:
            self._cache.write(self._key, indices, rows, examples=self._count)
        return self._known
