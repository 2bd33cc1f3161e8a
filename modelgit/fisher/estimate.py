"""Estimate the diagonal of the Fisher information matrix of any task model, exactly per example.

F_i is the mean over inputs x of E_{y ~ p(.|x)} [(d log p(y|x) / d w_i)^2], in nats per squared unit of weight.  The
expectation over labels is that of the model ("exact", "rademacher", "sampled": no labels needed) or is replaced by
the label at hand ("empirical": not an estimate of F, see Kunstner et al. 2019, but what FISH masks were proposed with).
An example with several outputs (the tokens of a sequence) is one example: log p is their sum.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.fisher.directions import ESTIMATORS, EXACT_CLASSES, Estimator, check_outputs, directions
from modelgit.fisher.hooks import GradientSquares
from modelgit.fisher.settling import Settling, SettlingState
from modelgit.models.base import Batch, ExampleSet, TaskModel
from modelgit.models.outputs import batch_inputs, evaluating, module_device
from modelgit.progress import SILENT, Progress

__all__ = ["BLOCK", "ESTIMATORS", "EXACT_CLASSES", "Accumulator", "FisherDiagonal", "PartialFisher", "estimate"]

BLOCK = 128
"""Examples after which sums are in order: a state can be saved, and the ranking is looked at."""

_TASK = "Fisher"
# Directions are scaled by a power of two, and sums scaled back: squares of gradients near 1e-19 are then not lost
# in float32, and no rounding is added.
_SCALE = 2.0**16


@dataclass(frozen=True, kw_only=True)
class FisherDiagonal:
    """A diagonal by tensor name: float32 arrays with the shapes of the weights, averaged over `examples`.

    `estimator` is the one that ran, never "auto"; `data` is the fingerprint of the examples, of which `seed` drew
    which were used, and their random signs or labels.  `head` names the tensors of the task's head; `body_norm` and
    `head_norm` are the Euclidean norms of the two parts, `body_sum` and `head_sum` their traces.  When the estimate
    was to stop as soon as its ranking had settled, `criterion` is the overlap asked for and `overlap` the last one
    seen (`modelgit.fisher.settling`; None before two blocks).  `slow` names tensors whose layers are of no known kind.
    """

    estimator: str
    examples: int
    seed: int
    data: str
    values: dict[str, NDArray[np.float32]]
    head: frozenset[str] = frozenset()
    body_norm: float = 0.0
    head_norm: float = 0.0
    body_sum: float = 0.0
    head_sum: float = 0.0
    criterion: float | None = None
    overlap: float | None = None
    slow: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class PartialFisher:
    """An estimate that is not finished: what `Accumulator.restore` goes on from.

    `sums` are float64 sums over the first `examples` examples in the order of `seed`, times `scale`, by tensor name;
    they are not copies.  `settling` is what the ranking was compared by, if it was.
    """

    estimator: str
    examples: int
    seed: int
    data: str
    sums: dict[str, NDArray[np.float64]]
    scale: float = _SCALE * _SCALE
    settling: SettlingState | None = None


class Accumulator:
    """A Fisher estimate block by block, which can be saved between blocks and continued.

        with Accumulator(task_model, examples, limit=4096) as work:
            for done in work.blocks():
                save(work.state())
            diagonal = work.result()

    Examples are taken in a random order that depends on `seed` and the set alone, the first `limit` of it.  Within a
    block of 128 they are batched by length; the result does not depend on `batch_size` beyond rounding, and the
    estimate over fewer examples is a prefix of the one over more.  With `stop_when_settled` the work ends when the
    top of the ranking by two independent halves overlaps by that share twice in a row.

    The module is measured in evaluation mode and left as it was.  Held: float64 sums and the float32 sums of a block
    for each weight, and the activations of one batch.  Raises UsageError for an unknown estimator, no examples,
    outputs that do not fit, or examples without labels ("empirical"); CheckFailed when outputs are not finite.
    """

    def __init__(
        self,
        task_model: TaskModel,
        examples: ExampleSet,
        *,
        estimator: str = "auto",
        limit: int | None = 512,
        batch_size: int = 32,
        seed: int = 0,
        stop_when_settled: float | None = None,
        progress: Progress = SILENT,
    ) -> None:
        if estimator not in ESTIMATORS:
            raise UsageError(f"no Fisher estimator `{estimator}`", hint=f"known: {', '.join(ESTIMATORS)}")
        count = len(examples) if limit is None else min(limit, len(examples))
        if count < 1:
            raise UsageError("a Fisher estimate needs at least one example")
        if stop_when_settled is not None and not 0 < stop_when_settled <= 1:
            raise UsageError(f"a ranking cannot overlap by {stop_when_settled}", hint="take a share such as 0.8")
        if task_model.likelihood == "categorical" and task_model.classes == 1:
            raise UsageError("a Fisher estimate needs a head with two outputs or more, not 1")
        self.estimator: Estimator = _chosen(estimator, task_model, examples)
        order = list(range(len(examples)))
        random.Random(seed).shuffle(order)  # noqa: S311 - an order of examples, not a secret
        self._order = order[:count]
        if self.estimator == "empirical":
            _check_labels(task_model, examples, self._order)
        self._model, self._examples = task_model, examples
        self._batch_size, self._seed, self._progress = batch_size, seed, progress
        self._squares = GradientSquares(task_model.module, task_model.tensor_of)
        self._shapes = {tensor: tuple(total.shape) for tensor, total in self._squares.totals.items()}
        self._sums: dict[str, NDArray[np.float64]] = {}
        sizes = {tensor: total.numel() for tensor, total in self._squares.totals.items()}
        self._settling = None if stop_when_settled is None else Settling(sizes, stop_when_settled)
        self.done = 0

    def __enter__(self) -> Accumulator:
        return self

    def __exit__(self, *error: object) -> None:
        self._squares.totals.clear()

    def blocks(self) -> Iterator[int]:
        """Work to the end, a block at a time; gives the number of examples that are in the sums."""
        module, progress = self._model.module, self._progress
        progress.start(_TASK, len(self._order), unit="examples")
        progress.advance(_TASK, self.done)
        try:
            while self.done < len(self._order) and not (self._settling is not None and self._settling.done):
                # Blocks end at multiples of their size, also when an estimate over fewer examples is continued.
                end = min(len(self._order), (self.done // BLOCK + 1) * BLOCK)
                positions = self._order[self.done : end]
                with evaluating(module):
                    self._block(positions)
                self._collect(whole=len(positions) == BLOCK, block=self.done // BLOCK)
                self.done = end
                yield end
        finally:
            progress.finish(_TASK)

    def _block(self, positions: list[int]) -> None:
        device = module_device(self._model.module)
        chosen = self._examples.select(positions)
        for batch in chosen.batches(self._batch_size):
            self._progress.check()
            # Random numbers belong to the position in the whole set, not in the block.
            here = batch._replace(indices=tuple(positions[index] for index in batch.indices))

            def vectors(outputs: torch.Tensor, rows: slice, batch: Batch = here) -> Iterator[torch.Tensor]:
                part = _rows_of(batch, rows)
                check_outputs(outputs, part, self._examples, self._model.classes)
                return directions(self.estimator, self._model.likelihood, outputs, part, seed=self._seed, scale=_SCALE)

            self._squares.add(batch_inputs(batch, device), vectors)
            self._progress.advance(_TASK, len(batch.indices))

    def _collect(self, *, whole: bool, block: int) -> None:
        """Move the sums of a block to the float64 sums."""
        if self._settling is not None and whole:
            self._settling.add(block, self._squares.totals)
        for tensor, total in self._squares.totals.items():
            found = total.cpu().numpy()
            if tensor in self._sums:
                self._sums[tensor] += found
            else:
                self._sums[tensor] = found.astype(np.float64)
            total.zero_()

    def state(self) -> PartialFisher:
        """Where the work stands; its arrays change when it goes on, so write them first."""
        return PartialFisher(
            estimator=self.estimator,
            examples=self.done,
            seed=self._seed,
            data=self._examples.fingerprint,
            sums=self._sums,
            settling=None if self._settling is None else self._settling.state(),
        )

    def restore(self, state: PartialFisher) -> None:
        """Go on from `state`: the result is that of uninterrupted work, to the last bit.

        A state of work with a smaller limit is as good.  Raises UsageError when it belongs to another estimate.
        """
        ours = (self.estimator, self._seed, self._examples.fingerprint, self._shapes)
        theirs = (state.estimator, state.seed, state.data, {name: sums.shape for name, sums in state.sums.items()})
        settling = self._settling is None or state.settling is not None
        if ours != theirs or state.scale != _SCALE * _SCALE or state.examples > len(self._order) or not settling:
            raise UsageError("the saved state belongs to another Fisher estimate")
        self._sums = {tensor: np.array(total, np.float64) for tensor, total in state.sums.items()}
        if self._settling is not None and state.settling is not None:
            self._settling.restore(state.settling)
        self.done = state.examples

    @property
    def seen(self) -> list[int]:
        """The positions of the examples that are in the sums, in the order in which they were taken."""
        return self._order[: self.done]

    def result(self) -> FisherDiagonal:
        """The estimate over the examples so far.  Raises UsageError before the first block."""
        if self.done == 0:
            raise UsageError("a Fisher estimate needs at least one example")
        factor = 1.0 / (_SCALE * _SCALE * self.done)
        values = {tensor: np.empty(total.shape, np.float32) for tensor, total in self._sums.items()}
        head = frozenset(self._model.tensor_of[name] for name in self._model.head)
        traces, squares = [0.0, 0.0], [0.0, 0.0]
        for tensor, total in self._sums.items():
            np.multiply(total, factor, out=values[tensor], casting="same_kind")
            flat = total.reshape(-1)
            traces[tensor in head] += factor * float(flat.sum())
            squares[tensor in head] += factor * factor * float(np.dot(flat, flat))
        settling = self._settling
        return FisherDiagonal(
            estimator=self.estimator,
            examples=self.done,
            seed=self._seed,
            data=self._examples.fingerprint,
            values=values,
            head=head,
            body_norm=math.sqrt(squares[0]),
            head_norm=math.sqrt(squares[1]),
            body_sum=traces[0],
            head_sum=traces[1],
            criterion=None if settling is None else settling.criterion,
            overlap=settling.overlaps[-1] if settling is not None and settling.overlaps else None,
            slow=frozenset(self._squares.slow),
        )


def estimate(
    task_model: TaskModel,
    examples: ExampleSet,
    *,
    estimator: str = "auto",
    limit: int | None = 512,
    batch_size: int = 32,
    seed: int = 0,
    stop_when_settled: float | None = None,
    progress: Progress = SILENT,
) -> FisherDiagonal:
    """The Fisher diagonal of all parameters at the model's weights; arguments and errors are those of `Accumulator`."""
    with Accumulator(
        task_model,
        examples,
        estimator=estimator,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        stop_when_settled=stop_when_settled,
        progress=progress,
    ) as work:
        for _ in work.blocks():
            pass
        return work.result()


def _chosen(estimator: str, task_model: TaskModel, examples: ExampleSet) -> Estimator:
    """The estimator itself; "auto" is exact for one output of few classes, and random signs else."""
    if estimator != "auto":
        return cast(Estimator, estimator)
    batch = next(iter(examples.select([0]).batches(1)))
    one = task_model.likelihood == "gaussian" or (batch.counted is None and batch.labels.ndim == 1)
    return "exact" if one and 0 < task_model.classes <= EXACT_CLASSES else "rademacher"


def _check_labels(task_model: TaskModel, examples: ExampleSet, order: list[int]) -> None:
    classes = task_model.classes
    for position in order:
        example = examples.examples[position]
        batch = next(iter(examples.select([position]).batches(1)))
        known = batch.labels >= 0
        if batch.labels.ndim > 1 and batch.counted is not None:
            known |= ~batch.counted
        if not bool(known.all()) or (classes > 0 and int(batch.labels.max()) >= classes):
            raise UsageError(
                f"example `{example.id}` has no label"
                + (f" among the model's {classes} classes" if classes > 0 else "")
                + ", which the empirical estimator needs",
                hint="take the estimator `exact` or `rademacher`, which need no labels",
            )


def _rows_of(batch: Batch, rows: slice) -> Batch:
    counted = None if batch.counted is None else batch.counted[rows]
    return batch._replace(labels=batch.labels[rows], indices=batch.indices[rows], counted=counted)
