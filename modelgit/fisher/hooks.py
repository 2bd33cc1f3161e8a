"""Squared gradients per example for a whole module: hooks where layers are known, one example at a time elsewhere.

Linear, Embedding and LayerNorm layers give their per-example gradients from what passes through them, at the cost of
one backward pass for a batch and without weight gradients.  Whether that holds for the module at hand (weights may be
used outside their layer, axes may be swapped) is not assumed: a probe compares with autograd, and tensors that differ
take the slow way, as do those of other layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType

import torch
from torch import nn
from torch.nn import functional

from modelgit.errors import BugError
from modelgit.fisher.slow import ExampleGradients
from modelgit.fisher.squares import Contribution, Outer, Rows, Vectors, add_squares, add_sum

__all__ = ["GradientSquares"]

_PROBE_RELATIVE = 1e-3
_PROBE_ABSOLUTE = 1e-5


class GradientSquares:
    """Sums over examples of squared gradients, by tensor name: `totals`, float32 with the shape of the parameter.

    A context manager: hooks are on the module inside it, and `requires_grad` of its parameters is off.  The caller
    puts the module in evaluation mode and restores `requires_grad`.  `tensor_of` maps parameter names to tensor
    names; gradients of parameters of one tensor are added before the square.
    """

    def __init__(self, module: nn.Module, tensor_of: Mapping[str, str]) -> None:
        self.module = module
        parameters = dict(module.named_parameters())
        self._tensors = {id(parameters[name]): tensor for name, tensor in tensor_of.items()}
        self.totals: dict[str, torch.Tensor] = {}
        for name, tensor in tensor_of.items():
            if tensor not in self.totals:
                self.totals[tensor] = torch.zeros_like(
                    parameters[name], dtype=torch.float32, memory_format=torch.contiguous_format, requires_grad=False
                )
        self._parameters = {name: parameters[name] for name in tensor_of}
        self._tensor_of = dict(tensor_of)
        self.slow = self._unknown_layers()
        self._stack = ExitStack()
        self._leaves: list[torch.Tensor] = []
        self._uses: dict[str, int] = {}
        self._pending: dict[str, list[Contribution]] = {}
        self._mixed: set[str] = set()
        self._count = 0
        self._seen: dict[str, torch.Tensor] = {}
        self._probing = False
        self._listening = True
        self._probed = False
        self._one_by_one: ExampleGradients | None = None

    def _unknown_layers(self) -> set[str]:
        """Tensors of which some parameter belongs to a layer that is not one of the known kinds."""
        unknown: set[str] = set()
        for part in self.module.modules():
            for parameter in part.parameters(recurse=False):
                if id(parameter) in self._tensors and not _is_known(part):
                    unknown.add(self._tensors[id(parameter)])
        return unknown

    def __enter__(self) -> GradientSquares:
        for part in self.module.modules():
            if _is_known(part):
                handle = part.register_forward_hook(self._forward, with_kwargs=True)
                self._stack.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._leaves.clear()
        self._pending.clear()

    def add(
        self,
        inputs: Mapping[str, torch.Tensor],
        directions: Callable[[torch.Tensor], Iterable[torch.Tensor]],
    ) -> None:
        """Add the squares of J^T v for every example of a batch and every direction v.

        `inputs` are the keyword arguments of the module, with the example as first axis.  `directions` gets the
        detached logits `[B, C]` and gives directions of that shape, one backward pass each.
        """
        if not self._probed:
            self._probe(inputs)
            self._probed = True
        with torch.enable_grad():
            logits = self._run(inputs)
            vectors = [vector.to(logits.dtype) for vector in directions(logits.detach())]
            for at, vector in enumerate(vectors):
                self._backward(logits, vector, retain=at + 1 < len(vectors))
            self._leaves.clear()
            if self.slow:
                self._add_slowly(inputs, vectors)

    def _add_slowly(self, inputs: Mapping[str, torch.Tensor], vectors: Sequence[torch.Tensor]) -> None:
        if self._one_by_one is None:
            wanted = {name: self._parameters[name] for name, tensor in self._tensor_of.items() if tensor in self.slow}
            self._one_by_one = ExampleGradients(self.module, wanted)
        with self._deaf():
            for vector in vectors:
                self._one_by_one.add_squares(inputs, vector, self._tensor_of, self.totals)

    @contextmanager
    def _deaf(self) -> Iterator[None]:
        """The hooks do nothing inside."""
        self._listening = False
        try:
            yield
        finally:
            self._listening = True

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self._leaves.clear()
        self._uses.clear()
        self._count = len(next(iter(inputs.values())))
        self.module.requires_grad_(False)
        logits: torch.Tensor = self.module(**inputs)
        return logits

    def _backward(self, logits: torch.Tensor, vector: torch.Tensor, *, retain: bool) -> None:
        if not self._leaves or not logits.requires_grad:
            return
        torch.autograd.grad(logits, self._leaves, vector, retain_graph=retain, allow_unused=True)
        for tensor, contributions in self._pending.items():
            self._reduce(tensor, contributions)
        self._pending.clear()

    def _forward(
        self, part: nn.Module, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor], output: torch.Tensor
    ) -> torch.Tensor:
        given = args[0] if args else kwargs.get("input")
        if given is None or not self._listening or not torch.is_grad_enabled():
            return output
        for parameter in part.parameters(recurse=False):
            tensor = self._tensors.get(id(parameter))
            if tensor is not None:
                self._uses[tensor] = self._uses.get(tensor, 0) + 1
        if not output.requires_grad:
            # Weights are off, so the graph starts at the first layer's output: no weight gradient is ever computed.
            # What goes on is a copy, because a leaf must not be changed in place (ReLU(inplace=True)).
            self._leaves.append(output.requires_grad_(True))
            output = output.clone()
        output.register_hook(partial(self._gradient, part, given.detach()))  # type: ignore[no-untyped-call]
        return output

    def _gradient(self, part: nn.Module, given: torch.Tensor, output: torch.Tensor) -> None:
        owned = {
            name: tensor
            for name, parameter in part.named_parameters(recurse=False)
            if (tensor := self._tensors.get(id(parameter))) is not None and tensor not in self.slow
        }
        if not owned:
            return
        if output.shape[0] != self._count or (self._probing and bool(output[1:].any())):
            if not self._probing:
                raise BugError(f"gradients for `{min(owned.values())}` lost the axis of examples after the first batch")
            self._mixed.update(owned.values())
            return
        for name, contribution in _contributions(part, given, output.float(), owned):
            tensor = owned[name]
            if self._uses[tensor] == 1:
                self._reduce(tensor, [contribution])
            else:
                self._pending.setdefault(tensor, []).append(contribution)

    def _reduce(self, tensor: str, contributions: Sequence[Contribution]) -> None:
        if self._probing:
            add_sum(self._seen[tensor], contributions, self._count)
        else:
            add_squares(self.totals[tensor], contributions, self._count)

    def _probe(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Find tensors whose gradients the hooks do not see in full, on two rows of the first batch.

        Only the first row has a gradient, so a layer that sees one in the second mixes the axes up.
        """
        rows = {name: value[[0, -1]] for name, value in inputs.items()}
        self._seen = {tensor: torch.zeros_like(total) for tensor, total in self.totals.items()}
        self._probing = True
        try:
            with torch.enable_grad():
                logits = self._run(rows)
                vector = torch.zeros_like(logits)
                # Any direction will do; this one is no multiple of (1, 1, ...), which a softmax would not see.
                vector[0] = torch.linspace(-1.0, 1.0, logits.shape[1], dtype=logits.dtype, device=logits.device)
                self._backward(logits, vector, retain=False)
                self._leaves.clear()
                expected = self._autograd(rows, vector)
        finally:
            self._probing = False
        largest = max((float(value.abs().max()) for value in expected.values() if value.numel()), default=0.0)
        for tensor, value in expected.items():
            if not value.numel():
                continue
            allowed = _PROBE_RELATIVE * float(value.abs().max()) + _PROBE_ABSOLUTE * largest
            if not float((self._seen[tensor] - value).abs().max()) <= allowed:
                self.slow.add(tensor)
        self.slow |= self._mixed
        self._seen.clear()

    def _autograd(self, rows: Mapping[str, torch.Tensor], vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gradient of the same rows, by tensor, with the hooks off."""
        self.module.requires_grad_(True)
        with self._deaf():
            logits = self.module(**rows)
        summed = {tensor: torch.zeros_like(total) for tensor, total in self.totals.items()}
        if logits.requires_grad:
            gradients = torch.autograd.grad(logits, list(self._parameters.values()), vector, allow_unused=True)
            for name, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    summed[self._tensor_of[name]] += gradient.to_dense() if gradient.is_sparse else gradient
        return summed


def _is_known(part: nn.Module) -> bool:
    if type(part) is nn.Embedding:
        return part.max_norm is None and not part.scale_grad_by_freq
    return type(part) in (nn.Linear, nn.LayerNorm)


def _contributions(
    part: nn.Module, given: torch.Tensor, output: torch.Tensor, owned: Mapping[str, str]
) -> Iterable[tuple[str, Contribution]]:
    """The contributions of one call of `part` on `given`, `[B, ...]`, with output gradients float32 `[B, ...]`."""
    count = output.shape[0]
    if isinstance(part, nn.Linear):
        flat = output.reshape(count, -1, part.out_features)
        if "weight" in owned:
            yield "weight", Outer(flat, given.float().reshape(count, -1, part.in_features))
        if "bias" in owned:
            yield "bias", Vectors(flat.sum(1))
    elif isinstance(part, nn.Embedding):
        ids, flat = given.reshape(count, -1), output.reshape(count, -1, part.embedding_dim)
        if part.padding_idx is not None:  # autograd gives the padding row no gradient
            flat = flat * (ids != part.padding_idx)[:, :, None]
        yield "weight", Rows(ids, flat)
    elif isinstance(part, nn.LayerNorm):
        shape = (count, -1, *part.normalized_shape)
        if "weight" in owned:
            normed = functional.layer_norm(given.float(), part.normalized_shape, None, None, part.eps)
            yield "weight", Vectors((output * normed).reshape(shape).sum(1))
        if "bias" in owned:
            yield "bias", Vectors(output.reshape(shape).sum(1))
