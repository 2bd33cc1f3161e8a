"""Train under a mask: everything outside it stays frozen bit for bit, whatever the optimizer does.

Masking gradients is not enough: weight decay, momentum from before and decoupled updates move weights whose gradient is
zero.  So an optimizer is handed what may train and nothing else (see `torch_steps`).  Gradients are masked besides:
they count in clipping, and an infinite one outside the mask skips no step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.integrations.torch_steps import ELEMENTWISE, Part, Steps, put_values, take_values
from modelgit.integrations.torch_watch import Journal, Place, Violation, Watch, places_of

__all__ = ["Frozen", "MaskSource", "Violation", "freeze_outside"]

Positions = NDArray[np.integer] | torch.Tensor | None
Regions = dict[str, tuple[torch.nn.Parameter, torch.Tensor | None]]


@runtime_checkable
class MaskSource(Protocol):
    """An object that knows its positions by name, ascending element indices or None for every element."""

    def positions(self) -> Mapping[str, Positions]:
        """Positions by name."""


class Frozen:
    """A model that trains only under a mask; also a context manager that ends it.

    `masked_parameters` counts the positions that train, `steps` the steps of the optimizer since.
    """

    def __init__(
        self,
        places: list[Place],
        optimizer: torch.optim.Optimizer,
        regions: Regions,
        *,
        masters: Mapping[str, torch.Tensor],
        keep_graph: bool,
        watch: Watch,
        journal: Journal | None,
    ) -> None:
        self.masked_parameters = 0
        self.steps = 0
        self._watch = watch
        self._flags: list[tuple[torch.nn.Parameter, bool]] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._trained: list[tuple[Place, torch.nn.Parameter]] = []
        self._closed = False
        parts: list[Part] = []
        frozen: list[int] = []
        known: dict[int, str] = {}
        for place in places:
            parameter = place.now()
            if not isinstance(parameter, torch.nn.Parameter) or id(parameter) in known:
                continue
            name, held = place.name, masters.get(place.name, parameter)
            known |= {id(parameter): name, id(held): name}
            if name not in regions:
                frozen += [id(parameter), id(held)]
                self._freeze(parameter, keep_graph=keep_graph)
                continue
            self._trained.append((place, parameter))
            positions = regions[name][1]
            self.masked_parameters += parameter.numel() if positions is None else len(positions)
            if positions is None or len(positions) == parameter.numel():
                continue
            part = Part(name, parameter, held, positions, compressed=type(optimizer) in ELEMENTWISE)
            parts.append(part)
            self._mask_gradients(parameter, part)
        self._steps = Steps(optimizer, parts, frozen, known, before=self._check_places, after=self._after_step)
        self._journal = journal

    def _freeze(self, parameter: torch.nn.Parameter, *, keep_graph: bool) -> None:
        """Let no gradient be computed, or let it be zero where a wrapper waits for it."""
        if keep_graph and parameter.requires_grad:
            self._hook(parameter, _forget_gradient)
        else:
            self._flags.append((parameter, parameter.requires_grad))
            parameter.requires_grad_(False)
        parameter.grad = None

    def _hook(self, parameter: torch.nn.Parameter, hook: Callable[[torch.Tensor], None]) -> None:
        self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def _mask_gradients(self, parameter: torch.nn.Parameter, part: Part) -> None:
        def mask(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            if gradient is None or gradient.layout is not torch.strided:
                return  # a step takes from sparse ones what it needs
            positions = part.positions.to(gradient.device)
            with torch.no_grad():
                if gradient.requires_grad:  # part of a graph itself: it may not change
                    kept = take_values(gradient, positions)
                    parameter.grad = put_values(torch.zeros_like(gradient), positions, kept)
                else:  # in place: new pages for a tensor of zeros cost ten times the zeros
                    kept = take_values(gradient, positions)
                    put_values(gradient.zero_(), positions, kept)

        self._hook(parameter, mask)
        mask(parameter)  # a gradient that is there already

    def _check_places(self) -> None:
        for place, parameter in self._trained:
            if place.now() is not parameter:
                raise UsageError(
                    f"`{place.name}` was replaced after the model was frozen, so the optimizer does not train it",
                    hint="load weights without `assign=True`, or make the optimizer and freeze again",
                )

    def _after_step(self) -> None:
        self.steps += 1
        if self._journal is not None:
            self._journal.step()

    def verify(self) -> list[Violation]:
        """Parameters and persistent buffers that are not, bit for bit, those of the start outside the mask."""
        self._steps.leave()
        return self._watch.violations()

    def close(self) -> None:
        """Let everything train again, with `requires_grad` as before.

        Moments of parameters that trained in part are dropped: the optimizer begins anew with these.
        """
        if self._closed:
            return
        self._closed = True
        self._steps.close()
        for hook in self._hooks:
            hook.remove()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        if self._journal is not None:
            self._journal.close()

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
    masters: Mapping[str, torch.Tensor] | None = None,
    journal: Path | str | None = None,
    journal_every: int = 1,
    reference: Mapping[str, Any] | None = None,
) -> Frozen:
    """Let only the positions in `mask` of `model` train with `optimizer`, from now until `close()`.

    `mask` maps parameter names to ascending indices into the flattened parameter (C order), or None for all of it;
    parameters that it leaves out get `requires_grad` False.  With `tensor_of` (parameter to tensor name, as in a
    TaskModel) the mask is by tensor name.  Names are those inside wrappers (`DistributedDataParallel`,
    `torch.compile`).  `masters` are the copies that the optimizer has in place of parameters, by parameter name
    (float32 for a model in bf16); you copy them back after a step, as always.

    With a `journal`, every `journal_every`-th step appends a line that says whether anything outside the mask differs
    from the start (see `fisher.journal`); `reference`, such as `repo.load("HEAD")`, lets it count by how many values.

    Memory: indices (8 bytes) and values of the positions.  An optimizer that is not elementwise (`ELEMENTWISE`) takes
    one copy of each parameter that trains in part.  Raises UsageError for a name that the model does not have, for
    positions outside the parameter, for tied parameters with different masks, and for sharded parameters (FSDP,
    ZeRO-3).
    """
    given = mask.positions() if isinstance(mask, MaskSource) else mask
    optimizer = _unwrapped_optimizer(optimizer)
    model, keep_graph = _unwrapped(model)
    if journal_every < 1:
        raise UsageError(f"a journal of every {journal_every} steps", hint="`journal_every=1` checks every step")
    places = list(places_of(model))
    named = [(place.name, p) for place in places if isinstance(p := place.now(), torch.nn.Parameter)]
    _refuse_sharded(model, named)
    names = dict(tensor_of or {})
    regions: Regions = {}
    first_name = {id(parameter): name for name, parameter in reversed(named)}
    keys: dict[str, str] = {}
    chosen: dict[str, torch.Tensor | None] = {}
    for name, parameter in named:
        key = names.get(name, name)
        if key not in given:
            continue
        positions = chosen[key] = _positions(given[key], name, parameter)
        first = first_name[id(parameter)]
        if first in regions and not _same(regions[first][1], positions):
            raise UsageError(f"`{name}` and `{first}` are one tied parameter with two different masks")
        if positions is None or len(positions):
            regions[first] = (parameter, positions)
            keys[first] = key
    unknown = sorted(set(given) - set(chosen))
    if unknown:
        raise UsageError(f"the mask names `{unknown[0]}`, which the model does not have")
    held = _checked_masters(dict(masters or {}), dict(named), first_name)
    inside = {id(item) for group in optimizer.param_groups for item in group["params"]}
    foreign = next((name for name, (p, _) in regions.items() if id(held.get(name, p)) not in inside), None)
    if foreign is not None:
        raise UsageError(
            f"`{foreign}` is in the mask and not in the optimizer, so it would not train",
            hint="give the optimizer all parameters; copies that it has in their place go in `masters`",
        )
    still = next((name for name, (parameter, _) in regions.items() if not parameter.requires_grad), None)
    if still is not None:
        raise UsageError(f"`{still}` is in the mask and has `requires_grad` False, so it would not train")
    _refuse_frozen(optimizer)
    watched = {name: positions for name, (_, positions) in regions.items()}
    watch = Watch(places, watched, names, keys, reference)
    notes = None  # before anything is changed: it may not be writable
    if journal is not None:
        masked = sum(p.numel() if positions is None else len(positions) for p, positions in regions.values())
        notes = Journal(Path(journal), watch, optimizer, mask=chosen, every=journal_every, masked=masked)
    return Frozen(places, optimizer, regions, masters=held, keep_graph=keep_graph, watch=watch, journal=notes)


def _unwrapped_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer whose steps can be watched: a wrapper (accelerate's) has it as `optimizer`."""
    found = optimizer
    while not hasattr(found, "_optimizer_step_post_hooks") and hasattr(found, "optimizer"):
        found = found.optimizer
    if not isinstance(found, torch.optim.Optimizer) or not hasattr(found, "_optimizer_step_post_hooks"):
        raise UsageError(f"{type(optimizer).__name__} is not a torch optimizer, so its steps cannot be watched")
    return found


def _unwrapped(model: torch.nn.Module) -> tuple[torch.nn.Module, bool]:
    """The model inside wrappers, and whether one of them waits for the gradient of every parameter."""
    waits = False
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            inner, waits = model.module, True
        elif isinstance(model, torch.nn.DataParallel):
            inner = model.module
        if not isinstance(inner, torch.nn.Module):
            return model, waits
        model = inner


def _refuse_frozen(optimizer: torch.optim.Optimizer) -> None:
    if any(isinstance(getattr(hook, "__self__", None), Steps) for hook in optimizer._optimizer_step_pre_hooks.values()):
        raise UsageError(
            f"this {type(optimizer).__name__} trains under a mask already",
            hint="`close()` what `freeze_outside` returned first",
        )


def _refuse_sharded(model: torch.nn.Module, named: list[tuple[str, torch.nn.Parameter]]) -> None:
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    odd = next((n for n, p in named if hasattr(p, "placements") or hasattr(p, "ds_id") or p.is_meta), None)
    if odd is not None or "FullyShardedDataParallel" in kinds:
        raise UsageError(
            f"`{odd or 'the model'}` is sharded or not in memory, and a mask is by positions of whole parameters",
            hint="train replicas (DistributedDataParallel) in place of shards (FSDP, ZeRO-3)",
        )


def _checked_masters(
    masters: dict[str, torch.Tensor], named: dict[str, torch.nn.Parameter], first_name: Mapping[int, str]
) -> dict[str, torch.Tensor]:
    """Master copies by the first name of their parameter."""
    found = {}
    for name, master in masters.items():
        parameter = named.get(name)
        if parameter is None or master.shape != parameter.shape:
            raise UsageError(f"the master copy of `{name}` does not fit any parameter of that name")
        found[first_name[id(parameter)]] = master
    return found


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


@torch.no_grad()
def _forget_gradient(parameter: torch.Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.zero_()
