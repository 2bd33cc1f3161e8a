"""Train under a mask: everything outside it stays frozen bit for bit, whatever the optimizer does.

Masking gradients is not enough: weight decay, momentum from before and decoupled updates move weights whose gradient is
zero.  So gradients are masked (they also count in clipping and in the optimizer's statistics), and after every
step what lies outside the mask is written back from a saved copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.errors import UsageError

__all__ = ["Frozen", "MaskSource", "Violation", "freeze_outside"]

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Positions = NDArray[np.integer] | torch.Tensor | None


@runtime_checkable
class MaskSource(Protocol):
    """An object that knows its positions by name, ascending element indices or None for every element."""

    def positions(self) -> Mapping[str, Positions]:
        """Positions by name."""


@dataclass(frozen=True)
class Violation:
    """A parameter that changed outside the mask.

    `elements` is how many of its values did, or None for a parameter frozen whole, of which only a digest was kept.
    """

    name: str
    elements: int | None


class _Partial:
    """One parameter of which some positions train: the copy that holds the rest."""

    def __init__(self, name: str, parameter: torch.nn.Parameter, positions: torch.Tensor) -> None:
        self.name = name
        self.parameter = parameter
        self.positions = positions
        self.saved = parameter.detach().clone()
        self.handle = parameter.register_hook(self.mask)  # type: ignore[no-untyped-call]

    def mask(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with zeros outside; sparse ones pass, since `restore` alone decides what the weights are."""
        if gradient.layout is not torch.strided:
            return gradient
        return torch.zeros_like(gradient).put_(self.positions, gradient.take(self.positions))

    def restore(self) -> None:
        """Write the frozen values back; trained ones are kept in the copy too, which makes it one copy and no mask."""
        self.saved.put_(self.positions, self.parameter.take(self.positions))
        self.parameter.copy_(self.saved)

    def violation(self) -> Violation | None:
        changed = _words(self.parameter) != _words(self.saved)
        changed.put_(self.positions, changed.new_zeros(len(self.positions)))
        count = int(changed.sum())
        return Violation(self.name, count) if count else None


class Frozen:
    """A model that trains only under a mask; also a context manager that ends it.

    `masked_parameters` counts the positions that train.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        regions: Mapping[str, tuple[torch.nn.Parameter, torch.Tensor | None]],
    ) -> None:
        self.masked_parameters = 0
        self._optimizer = optimizer
        self._partial: list[_Partial] = []
        self._digests: list[tuple[str, torch.nn.Parameter, bytes]] = []
        self._flags: list[tuple[torch.nn.Parameter, bool]] = []
        self._groups: list[tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]] = []
        self._closed = False
        for name, parameter in model.named_parameters():
            if name not in regions:
                self._flags.append((parameter, parameter.requires_grad))
                parameter.requires_grad_(False)
                parameter.grad = None
                self._digests.append((name, parameter, _digest(parameter)))
                continue
            positions = regions[name][1]
            self.masked_parameters += parameter.numel() if positions is None else len(positions)
            if positions is not None and len(positions) < parameter.numel():
                self._partial.append(_Partial(name, parameter, positions))
                if parameter.grad is not None:
                    parameter.grad = self._partial[-1].mask(parameter.grad)
        self._withdraw()
        self._step_hook = optimizer.register_step_post_hook(lambda *_: self.restore())

    def _withdraw(self) -> None:
        """Take wholly frozen parameters out of the optimizer: it cannot move what it does not know."""
        frozen = {id(parameter) for parameter, _ in self._flags}
        for group in self._optimizer.param_groups:
            parameters = group["params"]  # changed in place: some optimizers keep the list itself
            self._groups.append((parameters, list(parameters)))
            parameters[:] = [parameter for parameter in parameters if id(parameter) not in frozen]

    @torch.no_grad()
    def restore(self) -> None:
        """Write back everything outside the mask.  Runs by itself after every `optimizer.step()`."""
        for partial in self._partial:
            partial.restore()

    @torch.no_grad()
    def verify(self) -> list[Violation]:
        """Parameters with values outside the mask that are not, bit for bit, those of the start."""
        found = [partial.violation() for partial in self._partial]
        whole = [Violation(name, None) for name, parameter, old in self._digests if _digest(parameter) != old]
        return sorted([violation for violation in found if violation] + whole, key=lambda violation: violation.name)

    def close(self) -> None:
        """Let everything train again: hooks off, `requires_grad` and the optimizer's groups as before."""
        if self._closed:
            return
        self._closed = True
        self._step_hook.remove()
        for partial in self._partial:
            partial.handle.remove()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        for parameters, before in self._groups:
            parameters[:] = before

    def __enter__(self) -> Frozen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def freeze_outside(
    model: torch.nn.Module,
    mask: Mapping[str, Positions] | MaskSource,
    optimizer: torch.optim.Optimizer,
    *,
    tensor_of: Mapping[str, str] | None = None,
) -> Frozen:
    """Let only the positions in `mask` of `model` train with `optimizer`, from now until `close()`.

    `mask` maps parameter names to ascending indices into the flattened parameter (C order), or None for all of it;
    parameters that it leaves out get `requires_grad` False and leave the optimizer.  With `tensor_of` (parameter to
    tensor name, as in a TaskModel) the mask is by tensor name.  Memory: one copy of each parameter that trains in part.
    Call it after the model is on its device and the optimizer is made.  Buffers (running statistics) are none of the
    optimizer's business: keep normalisation layers that have them in evaluation mode.  Raises UsageError for a name
    that the model does not have, for positions outside the parameter, and for tied parameters with different masks.
    """
    given = mask.positions() if isinstance(mask, MaskSource) else mask
    if not hasattr(optimizer, "register_step_post_hook"):
        raise UsageError(f"{type(optimizer).__name__} is not a torch optimizer, so its steps cannot be watched")
    regions: dict[str, tuple[torch.nn.Parameter, torch.Tensor | None]] = {}
    first_name = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
    used: set[str] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = name if tensor_of is None else tensor_of.get(name, name)
        if key not in given:
            continue
        used.add(key)
        positions = _positions(given[key], name, parameter)
        first = first_name[id(parameter)]
        if first in regions and not _same(regions[first][1], positions):
            raise UsageError(f"`{name}` and `{first}` are one tied parameter with two different masks")
        if positions is None or len(positions):
            regions[first] = (parameter, positions)
    unknown = sorted(set(given) - used)
    if unknown:
        raise UsageError(f"the mask names `{unknown[0]}`, which the model does not have")
    odd = next((n for n, p in model.named_parameters() if p.element_size() not in _WORDS), None)
    if odd is not None:
        raise UsageError(f"`{odd}` has elements of {model.get_parameter(odd).dtype}, which a mask cannot hold")
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    foreign = next((name for name, (parameter, _) in regions.items() if id(parameter) not in known), None)
    if foreign is not None:
        raise UsageError(f"`{foreign}` is in the mask and not in the optimizer, so it would not train")
    return Frozen(model, optimizer, regions)


def _positions(given: Positions, name: str, parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """Checked, on the parameter's device, int64."""
    if given is None:
        return None
    positions = torch.as_tensor(np.ascontiguousarray(given) if isinstance(given, np.ndarray) else given)
    if positions.ndim != 1 or positions.is_floating_point() or positions.dtype == torch.bool:
        raise UsageError(f"the mask's positions for `{name}` are not a list of element indices")
    positions = positions.to(parameter.device, torch.int64)
    if len(positions) and not (
        int(positions[0]) >= 0 and int(positions[-1]) < parameter.numel() and bool((positions.diff() > 0).all())
    ):
        raise UsageError(f"the mask's positions for `{name}` do not ascend within its {parameter.numel()} elements")
    return positions


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _words(values: torch.Tensor) -> torch.Tensor:
    """The bits as integers: NaN equals itself, and -0 differs from 0."""
    flat = values.detach().contiguous()
    return flat.view(_WORDS[flat.element_size()])


def _digest(parameter: torch.Tensor) -> bytes:
    digest = blake3()
    for part in _pieces(_words(parameter).reshape(-1)):
        digest.update(part)
    return digest.digest()


def _pieces(flat: torch.Tensor, size: int = 1 << 24) -> Iterator[memoryview]:
    for start in range(0, len(flat), size):
        yield flat[start : start + size].cpu().numpy().data.cast("B")
