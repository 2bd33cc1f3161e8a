"""Copy the tensors of a checkpoint into the parameters of a module, and say what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from modelgit.errors import UsageError
from modelgit.models.base import Likelihood, TensorState

__all__ = ["BoundModel", "bind"]

_PRECISE_BYTES = 8


@dataclass
class BoundModel:
    """A module with the weights of a commit: the TaskModel that the adapters return."""

    module: torch.nn.Module
    tensor_of: Mapping[str, str]
    head: frozenset[str]
    classes: int
    likelihood: Likelihood = "categorical"


def _floats(
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
    buffers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Give every parameter in `tensor_of` the values of its tensor; the module may still be on the meta device.

    A parameter that the module has under several names (tied weights) is one parameter afterwards, too, and is named
    once.  `buffers` maps buffers (running statistics) to their tensors.  `hints` maps tensor names to what to type
    when they are missing.  Raises UsageError for a missing tensor and for another shape.
    """
    parameters = dict(module.named_parameters())
    shared = _shared(module)
    values: dict[str, torch.Tensor] = {}
    for parameter, tensor in tensor_of.items():
        hint = (hints or {}).get(tensor)
        array = _floats(state, tensor, hint=hint)
        _check_shape(tensor, array.shape, parameters[parameter].shape, hint)
        kind = parameters[parameter].dtype
        values[parameter] = torch.from_numpy(array).to(kind if kind.itemsize == _PRECISE_BYTES else torch.float32)
    known = dict(module.named_buffers())
    for buffer, tensor in buffers.items():
        array_of = np.array(state[tensor], order="C") if tensor in state else None
        if array_of is None or array_of.dtype.kind not in "biu":
            array_of = _floats(state, tensor, hint=(hints or {}).get(tensor))
        _check_shape(tensor, array_of.shape, known[buffer].shape, (hints or {}).get(tensor))
        values[buffer] = torch.from_numpy(array_of)
    module.load_state_dict(values, strict=False, assign=True)
    for first, others in shared.items():
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, module.get_parameter(first))
    module.requires_grad_(True)


def _check_shape(tensor: str, found: tuple[int, ...], expected: Sequence[int], hint: str | None) -> None:
    if found != tuple(expected):
        raise UsageError(f"tensor `{tensor}` has shape {list(found)} and the model expects {list(expected)}", hint=hint)


def _shared(module: torch.nn.Module) -> dict[str, list[str]]:
    """The other names of every parameter that has several, by the first."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: others for first, *others in names.values() if others}
