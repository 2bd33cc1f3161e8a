"""What an optimizer sees of a model that trains under a mask, from the beginning of a step to its end.

An optimizer that treats every element for itself (`ELEMENTWISE`) is handed the masked positions of a parameter as a
vector of their own, and writes into that: weight decay, momentum and rounding cannot touch what it does not have, its
moments take memory for those positions only, and no copy of a weight is needed.  Any other optimizer works on
the whole parameter, and what lies outside the mask is written back from a copy, whatever it did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch

from modelgit.errors import UsageError

__all__ = ["ELEMENTWISE", "Part", "Steps", "put_values", "take_values"]

ELEMENTWISE: frozenset[type[torch.optim.Optimizer]] = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.Adadelta,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.ASGD,
        torch.optim.LBFGS,
    }
)
"""Optimizers for which a parameter is a bag of elements.  The very classes: a subclass may do anything."""


class Part:
    """One parameter of which some `positions` train (int64, ascending, flattened in C order; at least one, not all).

    `held` is what the optimizer has for it: the parameter itself, or the user's master copy.
    """

    def __init__(
        self, name: str, parameter: torch.nn.Parameter, held: torch.Tensor, positions: torch.Tensor, *, compressed: bool
    ) -> None:
        self.name = name
        self.parameter = parameter
        self.held = held
        self.positions = positions
        self.saved = None if compressed else held.detach().clone()
        self.values: torch.nn.Parameter | None = None
        self.gradient: torch.Tensor | None = None

    def take(self) -> torch.nn.Parameter:
        """The masked values as a parameter, with their gradients; the whole gradient waits in `gradient`."""
        held = self.held
        if self.positions.device != held.device:  # the model was moved after it was frozen
            self.positions = self.positions.to(held.device)
        now = take_values(held, self.positions)
        if self.values is None or self.values.dtype != now.dtype or self.values.device != now.device:
            self.values = torch.nn.Parameter(now)
        else:
            self.values.copy_(now)
        self.gradient, held.grad = held.grad, None
        self.values.grad = None if self.gradient is None else _gradients(self.gradient, self.positions)
        return self.values

    def give(self) -> None:
        """Write what the optimizer made of the masked values into the parameter."""
        if self.values is not None:
            put_values(self.held, self.positions, self.values.detach())
            self.values.grad = None
        if self.held.grad is None:
            self.held.grad = self.gradient
        self.gradient = None

    def restore(self) -> None:
        """Write back what lies outside of the mask."""
        if self.saved is None:
            return
        if self.saved.device != self.held.device:
            self.saved, self.positions = self.saved.to(self.held.device), self.positions.to(self.held.device)
        trained = take_values(self.held, self.positions)
        self.held.copy_(self.saved)
        put_values(self.held, self.positions, trained)

    def shrink(self, state: dict[str, Any]) -> None:
        """Bring moments that were made for the whole parameter (before it was frozen, or loaded) to the masked part."""
        for key, value in state.items():
            if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape == (len(self.positions),):
                continue
            if value.shape == self.held.shape:
                state[key] = take_values(value, self.positions.to(value.device))
            elif value.numel() != 1:
                raise UsageError(
                    f"the optimizer's `{key}` for `{self.name}` has shape {list(value.shape)}: it was saved under"
                    " another mask, or for another model"
                )


class Steps:
    """Watches the steps of `optimizer`: `parts` train in part, tensors whose ids are in `frozen` do not train at all.

    `known` has the names of everything that belongs to the model, by id.  `before` is called before each step and may
    refuse it, `after` when a step is over and the model whole again.  The optimizer's groups are as the user made them
    except during a step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parts: Iterable[Part],
        frozen: Iterable[int],
        known: dict[int, str],
        *,
        before: Callable[[], None],
        after: Callable[[], None],
    ) -> None:
        self.optimizer = optimizer
        self.parts = list(parts)
        self.compressed = type(optimizer) in ELEMENTWISE
        self._frozen = frozenset(frozen)
        self._known = known
        self._before_step, self._after_step = before, after
        self._groups: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
        self._accepted = {id(item) for group in optimizer.param_groups for item in group["params"]}
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_state_dict_pre_hook(lambda _: self.leave()),
        ]
        hooks: Any = optimizer._optimizer_step_post_hooks
        hooks.move_to_end(self._handles[1].id, last=False)  # the hooks of others see a whole model
        self._caller: FrameType | None = None

    def _before(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self._caller is not None and _is_running(self._caller):
            return None  # the step of a base class, called by that of a subclass
        self.leave()  # a step that was interrupted
        self._check_groups()
        self._before_step()
        closure = kwargs.get("closure") if len(args) < 2 else args[1]
        if closure is not None:
            closure = self._outside(closure)
            args, kwargs = (args[0], closure, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}
        self.enter()
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self._fit_history(self.optimizer)
        self._caller = sys._getframe(1)
        return args, kwargs

    def _after(self, *_: object) -> None:
        if self._caller is not None and self._caller is not sys._getframe(1) and _is_running(self._caller):
            return
        self._caller = None
        self.leave()
        self._after_step()

    def _outside(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, run on the model as it is outside of steps, with what was tried so far in it."""

        def evaluate() -> Any:
            self.leave()
            result = closure()
            self.enter()
            return result

        return evaluate

    @torch.no_grad()
    def enter(self) -> None:
        """Show the optimizer what may train."""
        replaced: dict[int, torch.Tensor] = {}
        if self.compressed:
            for part in self.parts:
                values = replaced[id(part.held)] = part.take()
                state = self.optimizer.state.pop(part.held, None)
                if state is not None:
                    if not isinstance(self.optimizer, torch.optim.LBFGS):  # its state is of all parameters together
                        part.shrink(state)
                    self.optimizer.state[values] = state
        for group in self.optimizer.param_groups:
            members = group["params"]  # changed in place: LBFGS keeps the list itself
            self._groups.append((members, list(members)))
            members[:] = [replaced.get(id(item), item) for item in members if id(item) not in self._frozen]

    @torch.no_grad()
    def leave(self) -> None:
        """Make the model and the optimizer whole again; nothing happens outside of a step."""
        if not self._groups:
            return
        for members, before in self._groups:
            members[:] = before
        self._groups = []
        for part in self.parts:
            if not self.compressed:
                part.restore()
                continue
            part.give()
            state = self.optimizer.state.pop(part.values, None) if part.values is not None else None
            if state is not None:
                self.optimizer.state[part.held] = state

    def close(self) -> None:
        """Watch no longer.  Moments of what trained in part are dropped: there are none for the rest of it."""
        self.leave()
        self._caller = None
        for handle in self._handles:
            handle.remove()
        if not self.compressed:
            return
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.state.clear()
            self.optimizer._numel_cache = None
        for part in self.parts:
            state = self.optimizer.state.pop(part.held, None)
            if state is not None and isinstance(self.optimizer, torch.optim.Adagrad):  # makes its state only once
                start = float(self.optimizer.defaults["initial_accumulator_value"])
                whole = torch.full_like(part.held, start, requires_grad=False)
                self.optimizer.state[part.held] = {**state, "sum": put_values(whole, part.positions, state["sum"])}

    def _check_groups(self) -> None:
        """Accept parameters that are not the model's; refuse frozen ones in a group that was added meanwhile."""
        for group in self.optimizer.param_groups:
            for item in group["params"]:
                if id(item) in self._accepted:
                    continue
                if id(item) in self._known:
                    raise UsageError(
                        f"`{self._known[id(item)]}` was added to the optimizer after it was frozen",
                        hint="close what `freeze_outside` returned, and freeze again with a mask that has it",
                    )
                self._accepted.add(id(item))

    def _fit_history(self, optimizer: torch.optim.LBFGS) -> None:
        """Drop curvature pairs of another space: those of all parameters say nothing of the masked ones alone."""
        optimizer._numel_cache = None
        count = sum(item.numel() for group in optimizer.param_groups for item in group["params"])
        for state in optimizer.state.values():
            before = state.get("prev_flat_grad")
            if before is not None and before.numel() != count:
                state.clear()


def _is_running(frame: FrameType) -> bool:
    """Whether a call is still going on, seen from here."""
    at: FrameType | None = sys._getframe(1)
    while at is not None and at is not frame:
        at = at.f_back
    return at is not None


def take_values(tensor: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The elements at `positions` (flattened in C order), a new vector.  Five times as fast as `take` where it can."""
    flat = tensor.detach()
    return flat.view(-1).index_select(0, positions) if flat.is_contiguous() else flat.take(positions)


def put_values(tensor: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Write `values` to `positions` in place."""
    if tensor.is_contiguous():
        tensor.view(-1).index_copy_(0, positions, values)
        return tensor
    return tensor.put_(positions, values)


def _gradients(gradient: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The gradient at `positions`; of sparse ones (embeddings) no dense copy is made."""
    if gradient.layout is torch.strided:
        return take_values(gradient, positions)
    found = gradient.coalesce()
    if found.sparse_dim() != 1:
        return found.to_dense().take(positions)
    rows, values = found.indices()[0], found.values()
    if not len(rows):
        return values.new_zeros(len(positions))
    width = gradient[0].numel()
    at = torch.searchsorted(rows, positions // width).clamp_(max=len(rows) - 1)
    chosen = values.reshape(len(rows), width)[at, positions % width]
    return torch.where(rows[at] == positions // width, chosen, chosen.new_zeros(()))
