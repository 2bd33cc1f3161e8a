"""Squared gradients per example for a whole module: hooks where operations are known, one example at a time elsewhere.

While the module runs, every operation that uses a weight in a known way (`modelgit.fisher.uses`) gets a hook on its
output.  From the gradient there and its inputs follow the weight's gradients by example, at the cost of one backward
pass for a batch and without weight gradients.  Whether that is right for the module at hand (weights may also be used
in other ways, axes may be swapped) is not assumed: a probe compares with autograd, and tensors that differ take the
slow way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from modelgit.errors import BugError
from modelgit.fisher.slow import ExampleGradients
from modelgit.fisher.squares import Contribution, add_one, add_squares
from modelgit.fisher.uses import Use, Weights, attention_in_steps, uses_of, view_of

__all__ = ["GradientSquares"]

_PROBE_RELATIVE = 1e-3
_PROBE_ABSOLUTE = 1e-5
# A batch is cut so that its outputs stay below this: for a language model they are the largest thing there is.
_OUTPUT_ELEMENTS = 1 << 26
# Operations that may have one row for all examples (positions, the sum of two weights).
_SHARED = {functional.embedding, torch.Tensor.add, torch.add, torch.Tensor.mul, torch.mul}


class GradientSquares:
    """Sums over examples of squared gradients, by tensor name: `totals`, float32 with the shape of the parameter.

    The caller puts the module in evaluation mode and restores `requires_grad`, which is switched off here.  `tensor_of`
    maps parameter names to tensor names; gradients of parameters of one tensor are added before the square.  `slow`
    names tensors that go one example at a time, known after the first batch.
    """

    def __init__(self, module: nn.Module, tensor_of: Mapping[str, str]) -> None:
        self.module = module
        parameters = dict(module.named_parameters())
        self._parameters = {name: parameters[name] for name in tensor_of}
        self._tensors = {id(parameters[name]): tensor for name, tensor in tensor_of.items()}
        self._tensor_of = dict(tensor_of)
        self.totals: dict[str, torch.Tensor] = {}
        for name, tensor in tensor_of.items():
            if tensor not in self.totals:
                self.totals[tensor] = torch.zeros_like(
                    parameters[name], dtype=torch.float32, memory_format=torch.contiguous_format, requires_grad=False
                )
        self.slow: set[str] = set()
        self._recorder = _Recorder(self._tensors, self.slow, self._reduce)
        self._seen: dict[str, torch.Tensor] | None = None
        self._probed = False
        self._rows_at_once = 0
        self._one_by_one: ExampleGradients | None = None

    def add(
        self,
        inputs: Mapping[str, torch.Tensor],
        directions: Callable[[torch.Tensor, slice], Iterable[torch.Tensor]],
    ) -> None:
        """Add the squares of J^T v for every example of a batch and every direction v.

        `inputs` are the keyword arguments of the module, with the example as first axis.  `directions` gets the
        detached outputs of some rows of the batch, and which rows these are, and gives directions of the outputs'
        shape, one backward pass each.
        """
        if not self._probed:
            self._probe(inputs)
            self._probed = True
        count = len(next(iter(inputs.values())))
        for start in range(0, count, self._rows_at_once):
            part = slice(start, min(count, start + self._rows_at_once))
            rows = {name: value[part] for name, value in inputs.items()}
            with torch.enable_grad():
                outputs = self._run(rows)
                for vector, last in _with_last(directions(outputs.detach(), part)):
                    self._backward(outputs, vector.to(outputs.dtype), retain=not last)
                    if self.slow:
                        self._add_slowly(rows, vector.to(outputs.dtype))
                self._recorder.forget()

    def _add_slowly(self, inputs: Mapping[str, torch.Tensor], vector: torch.Tensor) -> None:
        if self._one_by_one is None:
            wanted = {name: self._parameters[name] for name, tensor in self._tensor_of.items() if tensor in self.slow}
            self._one_by_one = ExampleGradients(self.module, wanted)
        self._one_by_one.add_squares(inputs, vector, self._tensor_of, self.totals)

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.module.requires_grad_(False)
        with self._recorder.recording(len(next(iter(inputs.values())))):
            outputs: torch.Tensor = self.module(**inputs)
        return outputs

    def _backward(self, outputs: torch.Tensor, vector: torch.Tensor, *, retain: bool) -> None:
        leaves = self._recorder.leaves
        if not leaves or not outputs.requires_grad:
            return
        torch.autograd.grad(outputs, leaves, vector, retain_graph=retain, allow_unused=True)
        self._recorder.settle()

    def _reduce(self, tensor: str, contributions: Sequence[Contribution], count: int) -> None:
        if self._seen is not None:
            add_one(self._seen[tensor], contributions, 0)
        else:
            add_squares(self.totals[tensor], contributions, count)

    def _probe(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Find tensors whose gradients the hooks do not see in full, on two rows of the first batch.

        Only the first row has a gradient, and what the hooks find for the first row must be all of it: a layer that
        mixes the axes up finds some elsewhere.
        """
        rows = {name: value[[0, -1]] for name, value in inputs.items()}
        with torch.enable_grad():
            self.module.requires_grad_(True)
            outputs: torch.Tensor = self.module(**rows)
            # Any direction will do; this one is no multiple of (1, 1, ...), which a softmax would not see.
            vector = torch.zeros_like(outputs)
            vector[0] = torch.linspace(-1.0, 1.0, outputs[0].numel(), device=outputs.device).reshape(outputs[0].shape)
            expected = self._autograd(outputs, vector)
            outputs = outputs.detach()
            self._rows_at_once = max(1, _OUTPUT_ELEMENTS // max(1, outputs[0].numel()))
            self._recorder.probing = True
            try:
                self._compare(rows, outputs, vector, expected)
            finally:
                self._recorder.probing, self._seen = False, None
                self._recorder.forget()

    def _compare(
        self,
        rows: Mapping[str, torch.Tensor],
        outputs: torch.Tensor,
        vector: torch.Tensor,
        expected: Mapping[str, torch.Tensor],
    ) -> None:
        """Put the tensors into `slow` whose gradients by the hooks are not those that `expected` holds the negative of.

        `expected` is used up.
        """
        try:
            found = self._run(rows)
            same = found.shape == outputs.shape and torch.allclose(found, outputs, rtol=1e-3, atol=1e-4)
        except (RuntimeError, IndexError, ValueError, TypeError):
            same = False
        if not same:
            # The recorder gives rows that all examples share to each of them; not every module bears that.
            self._recorder.spreading = False
            found = self._run(rows)
        largest = {tensor: _largest(value) for tensor, value in expected.items()}
        floor = _PROBE_ABSOLUTE * max(largest.values(), default=0.0)
        # What the hooks find is taken from what there should be in place, so that nothing else of that size is held.
        self._seen = dict(expected)
        self._backward(found, vector, retain=False)
        self.slow |= self._recorder.failed
        for tensor, difference in self._seen.items():
            if not _largest(difference) <= _PROBE_RELATIVE * largest[tensor] + floor:
                self.slow.add(tensor)

    def _autograd(self, outputs: torch.Tensor, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Minus the gradient, by tensor."""
        summed: dict[str, torch.Tensor] = {}
        if outputs.requires_grad:
            gradients = torch.autograd.grad(outputs, list(self._parameters.values()), vector, allow_unused=True)
            for name, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    dense = (gradient.to_dense() if gradient.is_sparse else gradient).float()
                    tensor = self._tensor_of[name]
                    summed[tensor] = summed[tensor] - dense if tensor in summed else -dense
        for tensor, total in self.totals.items():
            if tensor not in summed:
                summed[tensor] = torch.zeros_like(total)
        return summed


def _largest(values: torch.Tensor) -> float:
    """The largest absolute value."""
    if not values.numel():
        return 0.0
    low, high = values.aminmax()
    return max(float(high), -float(low))


class _Recorder(TorchFunctionMode):
    """Sees every operation while a module runs, and hooks those that use weights in a known way.

    `leaves` are what to differentiate by: the outputs of the first such operations, as weights have no gradient.
    `reduce` gets a tensor's contributions and the number of examples when all of them are there.  `spreading` gives
    each example its own copy of a row that all share, so that its gradient comes by example.  While `probing`, a use
    that fails puts its tensors into `failed`.
    """

    def __init__(
        self, tensors: Mapping[int, str], slow: set[str], reduce: Callable[[str, Sequence[Contribution], int], None]
    ) -> None:
        super().__init__()
        self.leaves: list[torch.Tensor] = []
        self.spreading, self.probing = True, False
        self.failed: set[str] = set()
        self._slow, self._reduce = slow, reduce
        self._weights = Weights(tensors)
        self._uses: dict[str, int] = {}
        self._pending: dict[str, list[Contribution]] = {}
        self._count = 0
        self._second_axis = False

    @contextmanager
    def recording(self, count: int) -> Iterator[None]:
        """Record what runs inside, for a batch of `count` examples."""
        self.forget()
        self._count = count
        with self:
            yield
        self._weights.forget_views()

    def forget(self) -> None:
        """Let go of a batch and its graph."""
        self.leaves.clear()
        self._uses.clear()
        self._pending.clear()
        self._weights.forget_views()

    def settle(self) -> None:
        """A backward pass is over: what waited for uses that took no part is complete."""
        for tensor, contributions in self._pending.items():
            self._reduce(tensor, contributions, self._count)
        self._pending.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward and not self._second_axis:
            return self._attention(args, kwargs)
        output = func(*args, **kwargs)
        if not torch.is_grad_enabled():
            return output
        views = view_of(func, args, self._weights.find, output)
        for tensor, view in views:
            self._weights.note(tensor, view)
        if views or not isinstance(output, torch.Tensor):
            return output
        uses = [use for use in uses_of(func, args, kwargs, self._weights.find) if use.view.tensor not in self._slow]
        return self._hooked(func, uses, output) if uses else output

    def _attention(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """torch's own attention.  Inside, queries are `[T, B, D]`, or flattened in that order."""
        self._second_axis = True
        try:
            with self:
                return attention_in_steps(*args, **kwargs)
        finally:
            self._second_axis = False

    def _hooked(self, func: object, uses: Sequence[Use], output: torch.Tensor) -> torch.Tensor:
        for use in uses:
            self._uses[use.view.tensor] = self._uses.get(use.view.tensor, 0) + 1
        if not output.requires_grad:
            # Weights are off, so the graph starts at the first use's output: no weight gradient is ever computed.
            # What goes on is a copy, because a leaf must not be changed in place (ReLU(inplace=True)).
            shared = func in _SHARED and self.spreading and not self._second_axis
            if shared and output.ndim > 2 and output.shape[0] == 1 and self._count > 1:
                output = output.expand(self._count, *output.shape[1:]).contiguous()
            self.leaves.append(output.requires_grad_(True))
            output = output.clone()
        output.register_hook(partial(self._gradient, uses, self._second_axis))  # type: ignore[no-untyped-call]
        return output

    def _gradient(self, uses: Sequence[Use], second_axis: bool, gradient: torch.Tensor) -> None:
        by = partial(_by_example, self._count, second_axis)
        gradient = gradient.float()
        for use in uses:
            tensor = use.view.tensor
            try:
                contribution = use.contribution(gradient, by)
            except (RuntimeError, ValueError, IndexError) as error:
                if self.probing:
                    self.failed.add(tensor)
                    continue
                raise BugError(f"gradients for `{tensor}` lost the axis of examples after the first batch") from error
            if self._uses[tensor] == 1:
                self._reduce(tensor, [contribution], self._count)
            else:
                self._pending.setdefault(tensor, []).append(contribution)


def _by_example(count: int, second_axis: bool, values: torch.Tensor) -> torch.Tensor:
    """Bring `values`, whose leading axes are examples and positions, into the form `[B, T, last axis]`."""
    if second_axis:
        return values.reshape(-1, count, values.shape[-1]).transpose(0, 1)
    if values.shape[0] % count:
        raise ValueError(f"a leading axis of {values.shape[0]} for {count} examples")
    return values.reshape(count, -1, values.shape[-1])


def _with_last(vectors: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, bool]]:
    """Each vector, and whether it is the last."""
    held = None
    for vector in vectors:
        if held is not None:
            yield held, False
        held = vector
    if held is not None:
        yield held, True
