"""Copy the tensors of a checkpoint into the parameters of a module, and say what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from modelgit.errors import UsageError
from modelgit.models.base import Likelihood, TensorState

__all__ = ["BoundModel", "bind", "floats"]

_PRECISE_BYTES = 8


@dataclass
class BoundModel:
    """A module with the weights of a commit: the TaskModel that the adapters return."""

    module: torch.nn.Module
    tensor_of: Mapping[str, str]
    head: frozenset[str]
    classes: int
    likelihood: Likelihood = "categorical"


def floats(
    state: TensorState, name: str, *, hint: str | None = None
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Tensor `name` of `state` as a new, writable float32 array of its own shape.

    Float types of 8 and 16 bits are widened exactly; float64 is rounded.  Raises UsageError with `hint` when the
    checkpoint has no such tensor, and when its elements are not floats.
    """
    if name not in state:
        raise UsageError(f"the checkpoint has no tensor `{name}`", hint=hint)
    array = np.asarray(state[name])
    # numpy has no bfloat16 or float8 of its own; extension types that stand in for them have kind "V".
    if array.dtype.kind != "f" and not array.dtype.name.startswith(("bfloat16", "float8")):
        raise UsageError(f"tensor `{name}` holds {array.dtype}, and a weight must be a float", hint=hint)
    return np.array(array, dtype=np.float32, order="C")


def bind(
    module: torch.nn.Module,
    state: TensorState,
    tensor_of: Mapping[str, str],
    *,
    hints: Mapping[str, str] | None = None,
    buffers: Iterable[str] = (),
) -> None:
    """Give every parameter in `tensor_of` the values of its tensor; the module may still be on the meta device.

    `buffers` names buffers that are filled from tensors of the same name (running statistics).  `hints` maps tensor
    names to what to type when they are missing.  Raises UsageError for a missing tensor and for another shape.
    """
    parameters = dict(module.named_parameters())
    values: dict[str, torch.Tensor] = {}
    for parameter, tensor in tensor_of.items():
        array = floats(state, tensor, hint=(hints or {}).get(tensor))
        expected = tuple(parameters[parameter].shape)
        if array.shape != expected:
            raise UsageError(
                f"tensor `{tensor}` has shape {list(array.shape)} and the model expects {list(expected)}",
                hint=(hints or {}).get(tensor),
            )
        kind = parameters[parameter].dtype
        values[parameter] = torch.from_numpy(array).to(kind if kind.itemsize == _PRECISE_BYTES else torch.float32)
    for buffer in buffers:
        values[buffer] = torch.from_numpy(np.array(state[buffer], order="C"))
    module.load_state_dict(values, strict=False, assign=True)
    module.requires_grad_(True)
