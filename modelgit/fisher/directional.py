"""What a change of weights does to the outputs, predicted at the old weights with all cross terms.

With J the Jacobian of the outputs z at the old weights, H their Fisher information (diag p - p p^T for logits, the
identity for means of unit variance) and d the change,

    E KL(old || new) = 1/2 E[(J d)^T H (J d)] + O(|d|^3) = 1/2 d^T F d + O(|d|^3),

exactly, where the diagonal of F would leave all cross terms out.  J d is one Jacobian-vector product (forward mode,
Pearlmutter 1994), or a central difference where a layer has no forward mode.  One backward pass with H J d gives F d
for all weights at once, so d_g^T F d / 2, summed over the values of a tensor g, is what that tensor carries: these
parts add up to the whole, and some may be negative (a change that undoes part of another's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from modelgit.errors import UsageError
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

__all__ = ["Change", "Directional", "directional", "share_equal", "take_change"]

_TASK = "directional KL"
_CHUNK_ELEMENTS = 1 << 20
# A backward pass keeps the activations of its whole batch.
_BATCH = 16
# float32 outputs carry an error near 1e-6; a step that moves them by a hundredth keeps it below one in a thousand.
_VISIBLE_MOVE = 0.01
_SHORTEST_STEP, _LONGEST_STEP = 1e-3, 100.0
# Forward and backward mode compute one number in two ways; where they differ by more, one misses part of the model.
_SAME = 0.01
# Less than this is rounding in float32 (a change that a normalisation takes out): there is nothing to share out.
_ROUNDING_KL = 1e-14

make_dual: Callable[..., torch.Tensor] = forward_ad.make_dual
unpack_dual: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = forward_ad.unpack_dual

Method = Literal["jvp", "central differences"]


@dataclass(frozen=True)
class Change:
    """new - old by parameter name of the old module, for the parameters that differ.

    `apart` names tensors that do not compare (in one model only, or of another shape), `buffers` those that differ but
    are no parameters (running statistics): no derivative reaches them.
    """

    deltas: Mapping[str, torch.Tensor]
    apart: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Directional:
    """The quadratic form on `examples` inputs, in nats per example, and how J d was computed.

    `by_tensor` are the parts of the tensors that changed, which add up to `kl` and may be negative; None where the
    model has no gradient, or one that does not see the whole change (`note` says it).
    """

    kl: float
    examples: int
    method: Method
    by_tensor: Mapping[str, float] | None
    note: str | None = None


def share_equal(old: TaskModel, new: TaskModel) -> None:
    """Let parameters with equal values lie in memory once: a small change then costs little more than one model."""
    before = {old.tensor_of[n]: p for n, p in old.module.named_parameters() if n in old.tensor_of}
    for name, parameter in new.module.named_parameters():
        other = before.get(new.tensor_of.get(name, ""))
        if other is not None and _alike(parameter, other) and torch.equal(parameter, other):
            parameter.data = other.data


def take_change(old: TaskModel, new: TaskModel) -> Change:
    """new - old, written over the weights of `new`, which cannot be run afterwards: no third model is held."""
    after = {new.tensor_of[n]: p for n, p in new.module.named_parameters() if n in new.tensor_of}
    deltas: dict[str, torch.Tensor] = {}
    by_tensor: dict[str, torch.Tensor | None] = {}
    apart: set[str] = set()
    for name, parameter in old.module.named_parameters():
        tensor = old.tensor_of.get(name)
        if tensor is None:
            continue
        if tensor not in by_tensor:
            other = after.get(tensor)
            if other is None or other.shape != parameter.shape or not parameter.is_floating_point():
                apart.add(tensor)
                by_tensor[tensor] = None
            else:
                by_tensor[tensor] = _difference(parameter.detach(), other.detach())
        delta = by_tensor[tensor]
        if delta is not None:
            deltas[name] = delta
    apart |= after.keys() - by_tensor.keys()
    buffers = dict(new.module.named_buffers())
    moved = [
        name
        for name, buffer in old.module.named_buffers()
        if name in buffers and not (_alike(buffer, buffers[name]) and torch.equal(buffer, buffers[name]))
    ]
    for parameter in new.module.parameters():
        parameter.data = parameter.data.new_empty(0)
    return Change(deltas, tuple(sorted(apart)), tuple(moved))


def _difference(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor | None:
    """after - before in the memory of `after`; None where nothing differs."""
    if after.data_ptr() == before.data_ptr():
        return None
    delta = after.to(before.device, before.dtype).sub_(before)
    return delta if bool(delta.any()) else None


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def directional(
    model: TaskModel,
    change: Change,
    examples: ExampleSet,
    *,
    limit: int | None = 512,
    batch_size: int | None = None,
    progress: Progress = SILENT,
) -> Directional:
    """1/2 d^T F d at the weights of `model`, in all and by tensor, on the first `limit` examples.

    Costs a forward pass with tangents and a forward and backward pass.  Held: the model, the change, the activations
    of 16 examples and the gradient of one tensor; with central differences a shifted copy of what changed, too.  The
    model is measured in evaluation mode and left as it was.  Raises UsageError when there are no examples or the model
    cannot be run, CheckFailed when outputs are not finite.
    """
    count = len(examples) if limit is None else min(limit, len(examples))
    if count < 1:
        raise UsageError("a comparison needs at least one example")
    size = batch_size or min(_BATCH, suitable_batch(model, examples))
    total = 0.0
    slopes = _Slopes(model, change.deltas)
    progress.start(_TASK, count, unit="examples")
    try:
        with evaluating(model.module), _Parts(model, change.deltas) as parts:
            for batch in examples.batches(size, limit=count):
                progress.check()
                inputs = batch_inputs(batch, module_device(model.module))
                rows, slope = slopes.of(inputs, batch, examples)
                divergence, pull = _curve(model, rows, slope)
                total += divergence
                parts.add(inputs, rows, pull)
                progress.advance(_TASK, len(batch.indices))
    finally:
        progress.finish(_TASK)
    kl = max(0.0, total / count)
    by_tensor = None if parts.problem else {name: value / count for name, value in sorted(parts.totals.items())}
    notes = [note for note in (slopes.note, parts.problem) if note]
    if (
        by_tensor is not None
        and kl > _ROUNDING_KL
        and abs(sum(by_tensor.values()) - kl) > _SAME * max(kl, *map(abs, by_tensor.values()), 0.0)
    ):
        by_tensor = None
        notes.append("the model's gradient does not see the whole change, so it is not shared out among tensors")
    return Directional(kl=kl, examples=count, method=slopes.method, by_tensor=by_tensor, note="; ".join(notes) or None)


def _curve(model: TaskModel, rows: OutputRows, slope: torch.Tensor) -> tuple[float, torch.Tensor]:
    """1/2 sum over rows of s^T H s in nats, and H s `[M, C]` in float32, for the moves s = J d of the outputs."""
    if model.likelihood == "gaussian":
        return 0.5 * float(slope.double().square().sum()), slope
    total = 0.0
    pull = torch.empty_like(slope)
    for part in row_parts(*slope.shape):
        p = rows.values[part].double().softmax(1)
        move = torch.where(p > 0, slope[part].double(), 0.0)
        curved = p * (move - (p * move).sum(1, keepdim=True))
        total += 0.5 * float((move * curved).sum())
        pull[part] = curved.to(pull.dtype)
    return total, pull


class _Slopes:
    """J d of a batch: forward mode until a layer refuses, then central differences."""

    def __init__(self, model: TaskModel, deltas: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.deltas = deltas
        self.method: Method = "jvp"
        self.note: str | None = None
        self._step: float | None = None
        parameters = dict(model.module.named_parameters())
        self._old = {name: parameters[name].detach() for name in deltas}

    def of(
        self, inputs: Mapping[str, torch.Tensor], batch: Batch, examples: ExampleSet
    ) -> tuple[OutputRows, torch.Tensor]:
        """The counted outputs, and the slope of each along the change, `[M, C]`."""
        if self.method == "jvp":
            found = self._forward_mode(inputs)
            if found is not None:
                rows = output_rows(self.model, found[0], batch, examples)
                slope = rows.of(found[1])
                if bool(slope.isfinite().all()):
                    return rows, slope
            self.method = "central differences"
            self.note = "a layer has no forward derivative, so the form is a central difference"
        with torch.no_grad():
            rows = output_rows(self.model, run_model(self.model, inputs), batch, examples)
            return rows, self._central(inputs, rows)

    def _forward_mode(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
        try:
            with torch.no_grad(), _plain_kernels(), forward_ad.dual_level():
                moving = {name: make_dual(self._old[name], delta) for name, delta in self.deltas.items()}
                outputs, slope = unpack_dual(functional_call(self.model.module, moving, kwargs=dict(inputs)))
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return None
        return outputs, torch.zeros_like(outputs) if slope is None else slope

    def _central(self, inputs: Mapping[str, torch.Tensor], rows: OutputRows) -> torch.Tensor:
        if self._step is None:
            move = self._difference(inputs, rows, 1.0).double().square().mean().sqrt()
            wanted = _VISIBLE_MOVE / float(move) if float(move) > 0 else _LONGEST_STEP
            self._step = min(_LONGEST_STEP, max(_SHORTEST_STEP, wanted))
        return self._difference(inputs, rows, self._step)

    def _difference(self, inputs: Mapping[str, torch.Tensor], rows: OutputRows, step: float) -> torch.Tensor:
        ahead, behind = (rows.of(self._shifted(inputs, sign * step)).double() for sign in (1, -1))
        return torch.where(ahead.isfinite() & behind.isfinite(), (ahead - behind) / (2 * step), 0.0)

    def _shifted(self, inputs: Mapping[str, torch.Tensor], step: float) -> torch.Tensor:
        weights = {name: torch.add(self._old[name], delta, alpha=step) for name, delta in self.deltas.items()}
        outputs: torch.Tensor = functional_call(self.model.module, weights, kwargs=dict(inputs))
        return outputs


class _Parts:
    """d * (F d), summed over each tensor as soon as its gradient is there; the gradient is dropped at once."""

    def __init__(self, model: TaskModel, deltas: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.deltas = deltas
        self.problem: str | None = None
        self.totals = {model.tensor_of[name]: 0.0 for name in deltas}
        self._handles: list[RemovableHandle] = []
        self._kept: dict[torch.nn.Parameter, torch.Tensor | None] = {}

    def __enter__(self) -> Self:
        for name, parameter in self.model.module.named_parameters():
            parameter.requires_grad_(name in self.deltas)
            if name in self.deltas:
                self._kept[parameter], parameter.grad = parameter.grad, None
                take = partial(self._take, self.model.tensor_of[name], self.deltas[name])
                self._handles.append(parameter.register_post_accumulate_grad_hook(take))  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter, gradient in self._kept.items():
            parameter.grad = gradient

    def _take(self, tensor: str, delta: torch.Tensor, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None:
            self.totals[tensor] += 0.5 * _dot(gradient.to_dense() if gradient.is_sparse else gradient, delta)
        parameter.grad = None

    def add(self, inputs: Mapping[str, torch.Tensor], rows: OutputRows, pull: torch.Tensor) -> None:
        """Add what one batch says: J^T (H J d), by one backward pass."""
        if self.problem is not None or not self.deltas:
            return
        try:
            with torch.enable_grad():
                outputs = self.model.module(**inputs)
                if outputs.requires_grad:
                    outputs.backward(rows.back(pull, outputs))
        except RuntimeError as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.problem = f"the model has no gradient ({why}), so the divergence is not shared out among tensors"


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    """The sum of products in float64, a million at a time."""
    flat, flat_other = one.reshape(-1), other.reshape(-1)
    total = 0.0
    for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
        part = slice(start, start + _CHUNK_ELEMENTS)
        total += float(flat[part].double() @ flat_other[part].double())
    return total


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Attention from plain operations: fused kernels have no forward mode."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        plain: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    except ImportError:  # torch before 2.3
        plain = nullcontext()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with plain:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
