"""The directions v of a batch whose squared gradients (J^T v)^2 average to the Fisher diagonal, by estimator.

The outputs of an example are R independent distributions (`modelgit.models.base`), so its Fisher matrix is the sum over
them.  "exact" takes each output and column of the factor alone.  "rademacher" adds the columns of all outputs with
random signs: terms between two outputs or columns have mean zero, so one pass is enough and nothing is biased.
"sampled" and "empirical" take the gradient of log p of one label for each output, drawn or given.

Random numbers come from a stream for each example (Philox, keyed by the seed and the example's position in its set),
in the order of its counted outputs: they depend neither on batches nor on padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from modelgit.errors import CheckFailed, UsageError
from modelgit.fisher.factors import cholesky_columns, label_directions, sampled_labels, signed_directions
from modelgit.models.base import Batch, ExampleSet, Likelihood

__all__ = ["ESTIMATORS", "EXACT_CLASSES", "EXACT_PASSES", "Estimator", "check_outputs", "directions"]

Estimator = Literal["exact", "rademacher", "sampled", "empirical"]
ESTIMATORS = ("auto", "exact", "rademacher", "sampled", "empirical")

EXACT_CLASSES = 8
"""With at most this many classes and one output "auto" is "exact" (one pass per class but one), else "rademacher"."""

EXACT_PASSES = 512
"""As many backward passes as "exact" makes at most for one batch."""

# Softmax and factor are computed in float64 for so many logits at a time (8 MB): a vocabulary of 150,000 makes
# rows of a megabyte, and all rows of a batch at once would need many times the memory of the logits.
_CHUNK_ELEMENTS = 1 << 20
_MASK = (1 << 64) - 1


def check_outputs(outputs: torch.Tensor, batch: Batch, examples: ExampleSet, classes: int) -> None:
    """Raise UsageError for outputs of an unexpected shape, CheckFailed for some that are not finite."""
    count = len(batch.indices)
    wrong_classes = classes > 0 and outputs.shape[-1] != classes
    if not 2 <= outputs.ndim <= 3 or outputs.shape[0] != count or wrong_classes:
        raise UsageError(
            f"the model gave outputs of shape {list(outputs.shape)} for {count} examples"
            + (f" and {classes} classes" if classes > 0 else "")
        )
    if batch.counted is not None and batch.counted.shape != outputs.shape[:-1]:
        raise UsageError(
            f"the model gave outputs of shape {list(outputs.shape)}, and the examples say that "
            f"{list(batch.counted.shape)} of them count"
        )
    finite = outputs.isfinite().all(-1)
    if batch.counted is not None:
        finite |= ~batch.counted.to(finite.device)
    if not bool(finite.all()):
        wrong = examples.examples[batch.indices[int((~finite).nonzero()[0, 0])]]
        raise CheckFailed(
            f"the model's outputs for example `{wrong.id}` are not finite",
            hint="`mgit eval` measures the model on its suites",
        )


def directions(
    estimator: Estimator, likelihood: Likelihood, outputs: torch.Tensor, batch: Batch, *, seed: int, scale: float = 1.0
) -> Iterator[torch.Tensor]:
    """The directions for detached `outputs`, each of their shape and dtype, times `scale`.

    `batch.indices` key the random numbers.  At most one direction and a chunk of rows are held.  Raises UsageError
    when "exact" would need too many passes, and when "empirical" is asked of means.
    """
    if likelihood == "gaussian":
        yield from _gaussian(estimator, outputs, batch.indices, seed, scale)
        return
    rows = _Rows(outputs, batch)
    if estimator == "exact":
        yield from rows.columns(scale)
    else:
        yield rows.one(estimator, seed, scale)


def _gaussian(
    estimator: Estimator, outputs: torch.Tensor, indices: Sequence[int], seed: int, scale: float
) -> Iterator[torch.Tensor]:
    """Unit variance: the factor is the identity, `[B, D]`."""
    if outputs.ndim != 2:
        raise UsageError(f"the model gave means of shape {list(outputs.shape)}, not one vector for each example")
    width = outputs.shape[1]
    if estimator == "exact":
        _check_passes(width, "a mean of {} numbers", width)
        for at in range(width):
            direction = torch.zeros_like(outputs)
            direction[:, at] = scale
            yield direction
        return
    if estimator == "empirical":
        raise UsageError(
            "the empirical estimator needs labels, and the outputs of this task are means",
            hint="take the estimator `rademacher`",
        )
    direction = torch.empty_like(outputs)
    for row, index in enumerate(indices):
        stream = _Stream(seed, index)
        drawn = stream.signs(1, width) if estimator == "rademacher" else stream.normals(width)
        direction[row] = drawn.to(outputs.device).reshape(-1) * scale
    yield direction


class _Rows:
    """Logits as rows `[B R, C]`, and which of them are counted for which example."""

    def __init__(self, outputs: torch.Tensor, batch: Batch) -> None:
        self.outputs = outputs
        self.flat = outputs.reshape(-1, outputs.shape[-1])
        self.labels = batch.labels.reshape(-1)
        per_example = len(self.flat) // len(batch.indices)
        counted = torch.ones(len(batch.indices), per_example, dtype=torch.bool)
        if batch.counted is not None:
            counted = batch.counted.reshape(counted.shape).cpu()
        self.of = [(counted[row].nonzero()[:, 0] + row * per_example) for row in range(len(counted))]
        self.indices = batch.indices

    def columns(self, scale: float) -> Iterator[torch.Tensor]:
        """Every column of every output, the outputs of all examples side by side."""
        outputs, classes = max(map(len, self.of)), self.flat.shape[1]
        _check_passes(outputs * (classes - 1), "{} outputs of {} classes", outputs, classes)
        for nth in range(outputs):
            rows = torch.stack([at[nth] for at in self.of if len(at) > nth]).to(self.flat.device)
            p = self.flat[rows].double().softmax(1)
            for column in cholesky_columns(p):
                direction = torch.zeros_like(self.flat)
                direction[rows] = (column * scale).to(direction.dtype)
                yield direction.reshape(self.outputs.shape)

    def one(self, estimator: Estimator, seed: int, scale: float) -> torch.Tensor:
        """The one direction of an estimator that needs one pass."""
        direction = torch.zeros_like(self.flat)
        classes = self.flat.shape[1]
        chunk = max(1, _CHUNK_ELEMENTS // classes)
        for rows, drawn in self._drawn(estimator, seed, chunk):
            here = rows.to(self.flat.device)
            p = self.flat[here].double().softmax(1)
            if estimator == "rademacher":
                vectors = signed_directions(p, drawn.to(p.device))
            elif estimator == "sampled":
                vectors = label_directions(p, sampled_labels(p, drawn.to(p.device)))
            else:
                labels = self.labels[rows].to(p.device)
                vectors = label_directions(p, labels.clamp_min(0)) * (labels >= 0)[:, None]
            direction[here] = (vectors * scale).to(direction.dtype)
        return direction.reshape(self.outputs.shape)

    def _drawn(self, estimator: Estimator, seed: int, chunk: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Row numbers and their random numbers, at most `chunk` rows at a time; many small examples go together."""
        waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        held = 0
        for index, rows in zip(self.indices, self.of, strict=True):
            stream = _Stream(seed, index)
            for start in range(0, len(rows), chunk):
                part = rows[start : start + chunk]
                if held + len(part) > chunk:
                    yield _together(waiting)
                    waiting, held = [], 0
                if estimator == "rademacher":
                    drawn = stream.signs(len(part), self.flat.shape[1] - 1)
                else:
                    drawn = stream.uniforms(len(part)) if estimator == "sampled" else torch.empty(len(part))
                waiting.append((part, drawn))
                held += len(part)
        if waiting:
            yield _together(waiting)


def _together(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([rows for rows, _ in parts]), torch.cat([drawn for _, drawn in parts])


class _Stream:
    """The random numbers of one example."""

    def __init__(self, seed: int, index: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed & _MASK, index], np.uint64))

    def signs(self, rows: int, width: int) -> torch.Tensor:
        """Float64 -1 and 1, `[rows, width]`: one bit each, from whole words for each row."""
        words = -(-width // 64)
        raw = self._bits.random_raw(rows * words).astype("<u8").reshape(rows, words)
        bits = np.unpackbits(raw.view(np.uint8), axis=1, count=width, bitorder="little")
        return torch.from_numpy(bits).double().mul_(2).sub_(1)

    def uniforms(self, count: int) -> torch.Tensor:
        """Float64 in [0, 1), `[count]`."""
        raw = self._bits.random_raw(count) >> np.uint64(11)
        return torch.from_numpy(raw.astype(np.float64) * 2.0**-53)

    def normals(self, count: int) -> torch.Tensor:
        """Float64 standard normal, `[count]`, by inverting the distribution function."""
        drawn: torch.Tensor = torch.special.ndtri(self.uniforms(count) + 2.0**-54)
        return drawn


def _check_passes(passes: int, what: str, *numbers: int) -> None:
    if passes > EXACT_PASSES:
        raise UsageError(
            f"the exact estimator needs {passes} backward passes for "
            f"{what.format(*(f'{number:,}' for number in numbers))}, more than {EXACT_PASSES}",
            hint="take the estimator `rademacher`, which needs one pass and has no bias",
        )
