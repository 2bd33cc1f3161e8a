"""Gram matrices of the inputs of linear layers: what RegMean and MaTS know about the data of a side.

G = mean of x x^T over the inputs x that the layer sees at the positions of the examples; padding does not count.  What
is recognised is the operation, as in a Fisher pass (`modelgit.fisher.uses`).  A weight that is also used in another way
(an embedding tied to the output layer) has none: no matrix would say what depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from modelgit.errors import CheckFailed
from modelgit.fisher.uses import Weights, attention_in_steps, linear_inputs, uses_of, view_of
from modelgit.models.base import ExampleSet, TaskModel
from modelgit.models.outputs import batch_inputs, evaluating, module_device
from modelgit.progress import SILENT, Progress

__all__ = ["GramMatrices", "gram_matrices"]

_TASK = "inputs"
_MASK = "attention_mask"


class GramMatrices(NamedTuple):
    """Float32 `[I, I]` by the name of the layer's weight; `first` names weights whose first axis the inputs meet."""

    matrices: dict[str, NDArray[np.float32]]
    first: frozenset[str]


def gram_matrices(
    task_model: TaskModel,
    examples: ExampleSet,
    positions: Sequence[int],
    *,
    batch_size: int = 32,
    progress: Progress = SILENT,
) -> GramMatrices:
    """The Gram matrices of all linear layers over the examples at `positions`: one forward pass, in evaluation mode.

    Products of a batch are float32, their sums float64.  Inputs at positions that the model's `attention_mask` leaves
    out do not count, so the batch size changes rounding only.  Held: a float64 matrix for each layer, and the
    activations of a batch.  Raises CheckFailed where inputs are not finite.
    """
    module = task_model.module
    parameters = dict(module.named_parameters())
    recorder = _Recorder({id(parameters[name]): tensor for name, tensor in task_model.tensor_of.items()})
    device = module_device(module)
    progress.start(_TASK, len(positions), unit="examples")
    with evaluating(module):
        for batch in examples.select(positions).batches(batch_size):
            progress.check()
            inputs = batch_inputs(batch, device)
            mask = inputs.get(_MASK)
            with torch.no_grad(), recorder.counting(None if mask is None or mask.ndim != 2 else mask.bool()):
                module(**inputs)
            progress.advance(_TASK, len(batch.indices))
    progress.finish(_TASK)
    made: dict[str, NDArray[np.float32]] = {}
    for tensor, total in recorder.sums.items():
        if tensor in recorder.mixed or not recorder.rows[tensor]:
            continue
        matrix = total / recorder.rows[tensor]
        if not np.isfinite(matrix).all():
            raise CheckFailed(f"what goes into `{tensor}` is not finite on some of the examples")
        made[tensor] = matrix.astype(np.float32)
    return GramMatrices(made, frozenset(recorder.first & made.keys()))


class _Recorder(TorchFunctionMode):
    """Adds up x x^T of what meets a weight in a linear map, while a module runs.

    `mixed` are weights that something else uses, too, or that are used both ways round.
    """

    def __init__(self, tensors: Mapping[int, str]) -> None:
        super().__init__()
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.rows: dict[str, int] = {}
        self.first: set[str] = set()
        self.mixed: set[str] = set()
        self._weights = Weights(tensors)
        self._mask: torch.Tensor | None = None
        self._inside = False
        self._last: tuple[torch.Tensor, int, NDArray[np.float64], int] | None = None

    def counting(self, mask: torch.Tensor | None) -> _Recorder:
        """The mode for one batch, of which the positions in `mask` `[B, T]` count."""
        self._mask, self._last = mask, None
        self._weights.forget_views()
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward and not self._inside:
            return self._attention(args, kwargs)
        output = func(*args, **kwargs)
        for tensor, view in view_of(func, args, self._weights.find, output):
            self._weights.note(tensor, view)
        found = linear_inputs(func, args, kwargs, self._weights.find)
        if found is None:
            self.mixed |= {use.view.tensor for use in uses_of(func, args, kwargs, self._weights.find)}
        else:
            view, inputs, first = found
            self._add(view.tensor, inputs, first=first)
            if view.stop is not None:
                self.mixed.add(view.tensor)  # other rows may have other inputs
        return output

    def _attention(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """torch's own attention.  Inside, positions come before examples."""
        self._inside = True
        try:
            with self:
                return attention_in_steps(*args, **kwargs)
        finally:
            self._inside = False

    def _add(self, tensor: str, inputs: torch.Tensor, *, first: bool) -> None:
        # Queries, keys and values have one input; something that changes it in place gives it another version.
        version = 0 if inputs.is_inference() else inputs._version
        if self._last is None or self._last[0] is not inputs or self._last[1] != version:
            counted = self._counted(inputs)
            self._last = (inputs, version, (counted.t() @ counted).double().cpu().numpy(), len(counted))
        _, _, product, count = self._last
        if tensor not in self.sums:
            self.sums[tensor], self.rows[tensor] = product.copy(), count
            self.first |= {tensor} if first else set()
        elif (tensor in self.first) is not first or self.sums[tensor].shape != product.shape:
            self.mixed.add(tensor)
        else:
            self.sums[tensor] += product
            self.rows[tensor] += count

    def _counted(self, inputs: torch.Tensor) -> torch.Tensor:
        """The inputs of positions that count, float32 `[N, I]`."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if self._mask is None:
            return rows
        ways = (self._mask.t(), self._mask) if self._inside else (self._mask, self._mask.t())
        for mask in ways:  # positions may come first
            if inputs.shape[:-1] == mask.shape:
                return rows[mask.reshape(-1)]
        # Flattened, or something that has no positions any more.
        return rows[ways[0].reshape(-1)] if len(rows) == self._mask.numel() else rows
