"""What models with many outputs say, batch by batch: losses of tokens, divergences of outputs, embeddings.

A language model's predictions are a distribution over a vocabulary for each token, `[N, T, V]`.  They are never kept:
of each batch only a number for each output remains.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.evals.losses import Losses
from modelgit.models.base import Batch, ExampleSet, TaskModel
from modelgit.models.outputs import (
    OutputRows,
    batch_inputs,
    evaluating,
    module_device,
    output_rows,
    row_parts,
    run_model,
    suitable_batch,
)
from modelgit.progress import SILENT, Progress

__all__ = ["embeddings", "output_divergences", "output_losses"]

Check = Callable[[], None]


def _no_check() -> None:
    """There is no budget to be over."""


def output_losses(
    model: TaskModel, examples: ExampleSet, *, check: Check = _no_check, progress: Progress = SILENT
) -> Losses:
    """The negative log-likelihood of every labelled output: of each next token for a causal language model.

    Logits of one batch are held beside the model.  `check` is called before each batch and may raise.  Raises
    UsageError for a model of numbers or one that cannot be run, CheckFailed when logits are not finite.
    """
    if model.likelihood != "categorical":
        raise UsageError("a likelihood of labels needs classes, and the outputs of this model are numbers")
    sums = torch.zeros(len(examples), dtype=torch.float64)
    counts = torch.zeros(len(examples), dtype=torch.int64)

    def add(batch: Batch, rows: OutputRows) -> None:
        owners = torch.tensor(batch.indices)
        for part in row_parts(len(rows.values), rows.values.shape[1]):
            labels = rows.labels[part]
            known = labels >= 0
            if bool((labels >= rows.values.shape[1]).any()):
                raise UsageError(f"a label is outside of the model's {rows.values.shape[1]} classes")
            log_p = rows.values[part].double().log_softmax(1)
            losses = -log_p.gather(1, labels.clamp(min=0)[:, None])[:, 0][known]
            owner = owners[rows.example[part][known].cpu()]
            sums.index_add_(0, owner, losses.cpu())
            counts.index_add_(0, owner, torch.ones_like(owner))

    _each_batch("losses", [(model, examples)], add, check, progress)
    return Losses(sums.numpy(), counts.numpy())


def output_divergences(
    old: tuple[TaskModel, ExampleSet],
    new: tuple[TaskModel, ExampleSet],
    *,
    check: Check = _no_check,
    progress: Progress = SILENT,
) -> NDArray[np.float64]:
    """KL(old || new) of every output in nats, float64 `[M]`: of every token for a language model or a tagger.

    Each side is a model with its inputs for the same examples, which must be the same inputs.  For outputs that are
    numbers it is half the squared distance.  Held are both models, their outputs for one batch, and 8 bytes for each
    output.  Raises UsageError when the two do not compare, CheckFailed when outputs are not finite.
    """
    if old[0].likelihood != new[0].likelihood:
        raise UsageError(f"the outputs do not compare: {old[0].likelihood} before, {new[0].likelihood} after")
    found: list[NDArray[np.float64]] = []

    def add(_: Batch, before: OutputRows, after: OutputRows) -> None:
        if before.values.shape != after.values.shape:
            raise UsageError(
                f"the outputs do not compare: {before.values.shape[1]} classes before, {after.values.shape[1]} after"
            )
        for part in row_parts(len(before.values), before.values.shape[1]):
            one, other = before.values[part].double(), after.values[part].to(before.values.device).double()
            if old[0].likelihood == "gaussian":
                divergence = 0.5 * (other - one).square().sum(1)
            else:
                log_p, log_q = one.log_softmax(1), other.log_softmax(1)
                p = log_p.exp()
                # Rounding cannot make a divergence negative.
                divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1).clamp(min=0)
            found.append(divergence.cpu().numpy())

    _each_batch("divergence", [old, new], add, check, progress)
    return np.concatenate(found) if found else np.zeros(0)


def embeddings(
    model: TaskModel, examples: ExampleSet, *, check: Check = _no_check, progress: Progress = SILENT
) -> NDArray[np.float32]:
    """One vector for each example, float32 `[N, D]`: a sentence embedding, or what a classifier's head is given.

    Raises UsageError for a model without either, CheckFailed when values are not finite.
    """
    made: list[NDArray[np.float32]] = []
    with _seen_by_head(model) as seen:

        def add(batch: Batch, found: OutputRows) -> None:
            values = found.values if model.likelihood == "gaussian" else seen(len(batch.indices))
            if not made:
                made.append(np.full((len(examples), values.shape[1]), np.nan, dtype=np.float32))
            made[0][list(batch.indices)] = values.float().cpu().numpy()

        _each_batch("embeddings", [(model, examples)], add, check, progress)
    return made[0] if made else np.zeros((0, 0), dtype=np.float32)


class _seen_by_head:  # noqa: N801 - a context manager, which reads as a verb
    """Inside, what the head of a classifier was given last: a function of the number of examples."""

    def __init__(self, model: TaskModel) -> None:
        self._model = model
        self._given: torch.Tensor | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> Callable[[int], torch.Tensor]:
        if self._model.likelihood == "categorical":
            owners = {name.rpartition(".")[0] for name in self._model.head}
            if len(owners) != 1:
                raise UsageError(
                    "the model has no embedding: it is no sentence embedding, and its head is not one layer",
                    hint='write `kind = "sentence-embedding"` under a task of its own in mgit.toml',
                )
            head = self._model.module.get_submodule(owners.pop())
            self._handle = head.register_forward_pre_hook(self._keep)
        return self._take

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _keep(self, _: torch.nn.Module, given: tuple[object, ...]) -> None:
        self._given = given[0] if given and isinstance(given[0], torch.Tensor) else None

    def _take(self, count: int) -> torch.Tensor:
        given, self._given = self._given, None
        if given is None or given.ndim != 2 or len(given) != count:
            raise UsageError(
                f"the model has no embedding: its head is not given one vector for each of {count} examples",
                hint='write `kind = "sentence-embedding"` under a task of its own in mgit.toml',
            )
        return given


def _each_batch(
    task: str,
    sides: list[tuple[TaskModel, ExampleSet]],
    use: Callable[..., None],
    check: Check,
    progress: Progress,
) -> None:
    """Call `use(batch, rows, ...)` with the counted outputs of each side, for every batch of the first one's examples.

    Raises UsageError when the sides do not read the examples alike.
    """
    first = sides[0][1]
    progress.start(task, len(first), unit="examples")
    try:
        with evaluating(*(model.module for model, _ in sides)), torch.inference_mode():
            size = min(suitable_batch(model, examples) for model, examples in sides) if len(first) else 1
            for batches in zip_longest(*(examples.batches(size) for _, examples in sides)):
                progress.check()
                check()
                _refuse_other_inputs(first, batches)
                rows = [
                    output_rows(
                        model, run_model(model, batch_inputs(batch, module_device(model.module))), batch, examples
                    )
                    for (model, examples), batch in zip(sides, batches, strict=True)
                ]
                use(batches[0], *rows)
                progress.advance(task, len(batches[0].indices))
    finally:
        progress.finish(task)


def _refuse_other_inputs(examples: ExampleSet, batches: tuple[Batch | None, ...]) -> None:
    first = batches[0]
    for other in batches[1:]:
        if (
            first is None
            or other is None
            or other.indices != first.indices
            or other.inputs.keys() != first.inputs.keys()
            or not all(torch.equal(value, other.inputs[name]) for name, value in first.inputs.items())
        ):
            near = "" if first is None else f" from `{examples.examples[first.indices[0]].id}` on"
            raise UsageError(
                f"the outputs do not compare: the two sides read the examples{near} differently "
                "(another tokenizer, or other settings of it)"
            )
