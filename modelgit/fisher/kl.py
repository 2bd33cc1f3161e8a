"""What a change of weights does to the outputs, measured: KL divergence, flips, likelihood of the labels.

Every example has R independent outputs (see `models.base`), so its divergence is the sum over its counted ones:

    categorical   KL(p || q) = sum_c p_c (log p_c - log q_c)         gaussian   KL = 1/2 |mean_new - mean_old|^2

`directional` predicts the same number from the old weights and the change.  The diagonal form here,
1/2 sum_i F_i d_i^2, leaves all cross terms out and holds only for incoherent changes (rounding, unbiased
sparsification); along a fine-tune it is about a thousand times too small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from modelgit.errors import CheckFailed, UsageError
from modelgit.models.base import Batch, ExampleSet, TaskModel, TensorState
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

__all__ = [
    "Flip",
    "Mass",
    "Measured",
    "fisher_mass",
    "measure",
]

_TASK = "KL"
_LISTED = 20
# Rows of a vocabulary are widened to float64 a few million numbers at a time.
_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One example whose most likely class changed on at least one output.

    `index` is its position in the set; `kl` in nats, over all its outputs, of which `changed` out of `outputs` have
    another top class.  With one output `old` and `new` are the two classes, `old_margin` and `new_margin` the lead of
    the top class over the second, in probability; with several they are -1 and 0.
    """

    index: int
    kl: float
    changed: int
    outputs: int
    old: int = -1
    new: int = -1
    old_margin: float = 0.0
    new_margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Old against new on `examples` inputs with `outputs` counted outputs in all.

    `kl` is KL(old || new) in nats per example, averaged; `kl / (outputs / examples)` is the mean per output (token).
    `agreement` is the share of outputs with the same top class, `flipped` the number of examples with a changed one,
    `flips` the ones among them that diverge most.  Of the `labelled` outputs, `old_correct` and `new_correct` are
    right, `negative_flips` became wrong and `positive_flips` right; `old_loss` and `new_loss` are the mean negative
    log-likelihoods of their labels in nats (None without labels).  For gaussian outputs only `kl` means something.
    """

    examples: int
    outputs: int
    kl: float
    agreement: float
    flipped: int
    flips: tuple[Flip, ...]
    labelled: int
    old_correct: int
    new_correct: int
    negative_flips: int
    positive_flips: int
    old_loss: float | None
    new_loss: float | None

    @property
    def kl_per_output(self) -> float:
        """Nats per counted output: per token for a language model."""
        return self.kl * self.examples / max(1, self.outputs)


def measure(
    old: TaskModel,
    new: TaskModel,
    examples: ExampleSet,
    *,
    limit: int | None = 512,
    batch_size: int | None = None,
    listed: int = _LISTED,
    progress: Progress = SILENT,
) -> Measured:
    """Compare the outputs of two models on the first `limit` examples: one forward pass of each.

    The models may differ in everything but their outputs; neither is touched.  The result does not depend on the batch
    size beyond rounding.  Held: both models and the outputs of one batch.  Raises UsageError when the outputs do not
    compare or there are no examples, CheckFailed when they are not finite.
    """
    count = len(examples) if limit is None else min(limit, len(examples))
    if count < 1:
        raise UsageError("a comparison needs at least one example")
    if old.likelihood != new.likelihood:
        raise UsageError(f"the outputs do not compare: {old.likelihood} before, {new.likelihood} after")
    device = module_device(old.module)
    sums = _Sums(listed)
    progress.start(_TASK, count, unit="examples")
    try:
        with evaluating(old.module, new.module), torch.no_grad():
            for batch in examples.batches(batch_size or suitable_batch(old, examples), limit=count):
                progress.check()
                before = run_model(old, batch_inputs(batch, device))
                after = run_model(new, batch_inputs(batch, module_device(new.module))).to(device)
                if before.shape != after.shape:
                    raise UsageError(
                        f"the outputs do not compare: {_sizes(before)} before, {_sizes(after)} after",
                        hint="a divergence needs the same classes on both sides",
                    )
                one, other = (output_rows(model, out, batch, examples) for model, out in ((old, before), (new, after)))
                if old.likelihood == "gaussian":
                    sums.add_gaussian(one, other)
                else:
                    sums.add_categorical(one, other, batch, single=before.ndim == 2)
                progress.advance(_TASK, len(batch.indices))
    finally:
        progress.finish(_TASK)
    return sums.result(count)


def _sizes(outputs: torch.Tensor) -> str:
    return f"{outputs.shape[-1]} classes"


class _Sums:
    """What `measure` adds up over batches."""

    def __init__(self, listed: int) -> None:
        self.listed = listed
        self.totals = dict.fromkeys(("kl", "same", "labelled", "was", "now", "lost", "won", "old", "new"), 0.0)
        self.outputs = 0
        self.flipped = 0
        self.flips: list[Flip] = []

    def add_gaussian(self, one: OutputRows, other: OutputRows) -> None:
        self.outputs += len(one.values)
        self.totals["kl"] += float(0.5 * (other.values.double() - one.values.double()).square().sum())
        self.totals["same"] += len(one.values)

    def add_categorical(self, one: OutputRows, other: OutputRows, batch: Batch, *, single: bool) -> None:
        device = one.values.device
        kl = torch.zeros(len(batch.indices), dtype=torch.float64, device=device)
        moved = torch.zeros(len(batch.indices), dtype=torch.int64, device=device)
        tops: list[tuple[torch.Tensor, ...]] = []
        for part in row_parts(len(one.values), one.values.shape[1]):
            log_p, log_q = (rows.values[part].double().log_softmax(1) for rows in (one, other))
            labels, owner = one.labels[part], one.example[part]
            p = log_p.exp()
            divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1)
            kl.index_add_(0, owner, divergence)
            top, new_top = log_p.argmax(1), log_q.argmax(1)
            moved.index_add_(0, owner, (top != new_top).long())
            known = (labels >= 0) & (labels < log_p.shape[1])
            was, now = (top == labels) & known, (new_top == labels) & known
            at = labels.clamp(0, log_p.shape[1] - 1)[:, None]
            losses = [torch.where(known, -side.gather(1, at)[:, 0], 0.0).sum() for side in (log_p, log_q)]
            for name, value in (
                ("same", (top == new_top).sum()),
                ("labelled", known.sum()),
                ("was", was.sum()),
                ("now", now.sum()),
                ("lost", (was & ~now).sum()),
                ("won", (now & ~was).sum()),
                ("old", losses[0]),
                ("new", losses[1]),
            ):
                self.totals[name] += float(value)
            if single:
                tops.append((top, new_top, _lead(p), _lead(log_q.exp())))
        if not bool(kl.isfinite().all()):
            raise CheckFailed("the divergence is infinite: the new model rules out what the old one does not")
        self.outputs += len(one.values)
        self.totals["kl"] += float(kl.sum())
        self._list(kl, moved, one, batch, tops)

    def _list(
        self,
        kl: torch.Tensor,
        moved: torch.Tensor,
        rows: OutputRows,
        batch: Batch,
        tops: list[tuple[torch.Tensor, ...]],
    ) -> None:
        changed = moved.nonzero()[:, 0].tolist()
        self.flipped += len(changed)
        outputs = torch.bincount(rows.example, minlength=len(batch.indices)).tolist()
        columns = [torch.cat(column).tolist() for column in zip(*tops, strict=True)]
        for row in changed:
            single = {
                name: column[row]
                for name, column in zip(("old", "new", "old_margin", "new_margin"), columns, strict=False)
            }
            self.flips.append(
                Flip(
                    index=batch.indices[row],
                    kl=float(kl[row]),
                    changed=int(moved[row]),
                    outputs=outputs[row],
                    **single,
                )
            )
        self.flips = sorted(self.flips, key=lambda flip: (-flip.kl, flip.index))[: self.listed]

    def result(self, count: int) -> Measured:
        totals = self.totals
        labelled = int(totals["labelled"])
        return Measured(
            examples=count,
            outputs=self.outputs,
            kl=max(0.0, totals["kl"] / count),
            agreement=totals["same"] / max(1, self.outputs),
            flipped=self.flipped,
            flips=tuple(self.flips),
            labelled=labelled,
            old_correct=int(totals["was"]),
            new_correct=int(totals["now"]),
            negative_flips=int(totals["lost"]),
            positive_flips=int(totals["won"]),
            old_loss=totals["old"] / labelled if labelled else None,
            new_loss=totals["new"] / labelled if labelled else None,
        )


def _lead(p: torch.Tensor) -> torch.Tensor:
    """p1 - p2 of each row; 1 where there is one class."""
    if p.shape[1] < 2:
        return torch.ones_like(p[:, 0])
    two = p.topk(2, dim=1).values
    return two[:, 0] - two[:, 1]


@dataclass(frozen=True, kw_only=True)
class Mass:
    """The diagonal Fisher information on what changed.

    `share` is the part of sum F that lies on changed values, `by_tensor` the same part by tensor.  `divergence` is
    1/2 sum F d^2 in nats over the tensors that compare: a forecast for incoherent changes only (see the text above).
    """

    share: float
    by_tensor: dict[str, float]
    divergence: float


def fisher_mass(
    diagonal: Mapping[str, NDArray[np.float32]],
    old: TensorState,
    new: TensorState,
    changed: Iterable[str],
) -> Mass:
    """How much of sum F lies on the values that differ, among the tensors `changed`, and what the diagonal predicts.

    Tensors that are in one model only, or have another shape, count whole and predict nothing.  One tensor of each of
    the three is held at a time where the mappings read lazily.
    """
    wanted = frozenset(changed)
    whole, divergence = 0.0, 0.0
    masses: dict[str, float] = {}
    for name in diagonal:
        fisher = diagonal[name]
        mass = float(fisher.sum(dtype=np.float64))
        whole += mass
        if name not in wanted:
            continue
        if name not in old or name not in new or not fisher.shape == old[name].shape == new[name].shape:
            masses[name] = mass
            continue
        pieces = list(_pieces(fisher, old[name], new[name]))
        masses[name] = sum(piece.mass for piece in pieces)
        divergence += sum(piece.divergence for piece in pieces)
    scale = 1.0 / whole if whole > 0 else 0.0
    ordered = sorted(masses.items(), key=lambda item: (-item[1], item[0]))
    return Mass(
        share=sum(masses.values()) * scale,
        by_tensor={name: mass * scale for name, mass in ordered},
        divergence=divergence,
    )


class _Piece(NamedTuple):
    mass: float
    divergence: float


def _pieces(fisher: NDArray[np.float32], old: NDArray[np.generic], new: NDArray[np.generic]) -> Iterator[_Piece]:
    """Sums over a few million values at a time, so that the float64 copies stay small."""
    flat = [np.asarray(array).reshape(-1) for array in (fisher, old, new)]
    for start in range(0, flat[0].size, _CHUNK_ELEMENTS):
        f, before, after = (array[start : start + _CHUNK_ELEMENTS] for array in flat)
        delta = after.astype(np.float64) - before.astype(np.float64)
        f = f.astype(np.float64)
        yield _Piece(float(f[delta != 0].sum()), 0.5 * float(np.sum(f * delta * delta)))
