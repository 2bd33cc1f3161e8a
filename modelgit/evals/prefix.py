"""Outputs of the layers that a change left alone, kept for the next model that has the same ones.

A patch of the last layers, another try of it, a blend with its parent: all compute the same first layers on the same
inputs.  What the last unchanged layer gives for a batch is kept by everything that it depends on: the tensors up to
there, their settings, and the very inputs of the batch, padding included.  So predictions are the same to the last bit
as without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from modelgit.models.base import TaskModel
from modelgit.objects import domain
from modelgit.store.checked_files import read_checked, write_checked

if TYPE_CHECKING:
    import torch

__all__ = ["KeptActivations", "kept_activations"]

_MAGIC = b"mgitlyrs"
_TUPLE, _PLAIN = b"t", b"p"


def kept_activations(
    directory: Path,
    limit_bytes: int,
    model: TaskModel,
    ids: Mapping[str, str],
    before: Mapping[str, str],
    *,
    context: str,
) -> KeptActivations | None:
    """A cache for one model, None where it has no row of layers, or none that something else could share.

    `ids` names the content of every tensor of the model, `before` that of the model it is compared with; `context` says
    all else that outputs depend on.
    """
    found = _layers(model)
    if found is None or any(name not in ids for name in model.tensor_of.values()):
        return None
    prefix, layers = found
    tensors = {name: ids[tensor] for name, tensor in model.tensor_of.items() if name not in model.head}
    outside = sorted((name, value) for name, value in tensors.items() if not name.startswith(prefix))
    inside = [
        sorted((name, value) for name, value in tensors.items() if name.startswith(f"{prefix}{number}."))
        for number in range(len(layers))
    ]
    keys = []
    content: list[object] = [context, outside]
    for one in inside:
        content = [*content, one]
        keys.append(blake3(domain("activations") + repr(content).encode()).hexdigest())
    same = 0
    if all(before.get(model.tensor_of[name]) == value for name, value in outside):
        for one in inside:
            if any(before.get(model.tensor_of[name]) != value for name, value in one):
                break
            same += 1
    return KeptActivations(directory, limit_bytes, layers, keys, same)


def _layers(model: TaskModel) -> tuple[str, Sequence[torch.nn.Module]] | None:
    """The one list of layers of the module that no other list holds, and how the names of its parameters begin."""
    from torch import nn

    lists = [(name, item) for name, item in model.module.named_modules() if isinstance(item, nn.ModuleList)]
    top = [(name, item) for name, item in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if len(top) != 1 or len(top[0][1]) < 2:
        return None
    name, item = top[0]
    return f"{name}.", list(item)


class KeptActivations:
    """Runs a module with what is kept, and keeps what is not; at most `limit_bytes` lie in `directory`.

    `keys[i]` names all that the output of layer i depends on beside the inputs; the first `same` layers are those of
    the model that this one is compared with.
    """

    def __init__(
        self, directory: Path, limit_bytes: int, layers: Sequence[torch.nn.Module], keys: Sequence[str], same: int
    ) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._layers = layers
        self._keys = keys
        self._store = same
        self._proven = False
        # The deepest that another model left; the one that this model shares with its baseline is made if need be.
        known = [depth for depth, key in enumerate(keys, start=1) if (directory / key).is_dir()]
        self._use = max(known, default=0)

    @property
    def is_useful(self) -> bool:
        """Whether anything could be taken from it, or left for others."""
        return self._use > 0 or self._store > 0

    def run(self, module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`module(**inputs)`, the same to the last bit."""
        name = _digest(inputs)
        for depth in sorted({self._use, self._store} - {0}, reverse=True):
            held = _read(self._directory / self._keys[depth - 1] / name)
            if held is not None:
                return self._continued(module, inputs, depth, *held)
        if not self._store:
            output: torch.Tensor = module(**inputs)
            return output
        return self._kept(module, inputs, self._directory / self._keys[self._store - 1] / name)

    def _continued(
        self,
        module: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
        depth: int,
        hidden: torch.Tensor,
        wrapped: bool,
    ) -> torch.Tensor:
        """Run the module with the first `depth` layers giving `hidden`."""
        device = next(module.parameters()).device

        def given(*_: Any, **__: Any) -> Any:
            value = hidden.to(device)
            return (value,) if wrapped else value

        with _replaced(self._layers[:depth], given):
            output: torch.Tensor = module(**inputs)
        return output

    def _kept(self, module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], path: Path) -> torch.Tensor:
        seen: list[tuple[torch.Tensor, bool]] = []

        def look(_: Any, __: Any, output: Any) -> None:
            wrapped = isinstance(output, tuple)
            value = output[0] if wrapped else output
            if not wrapped or len(output) == 1:
                seen.append((value.detach().to("cpu"), wrapped))

        handle = self._layers[self._store - 1].register_forward_hook(look)
        try:
            output: torch.Tensor = module(**inputs)
        finally:
            handle.remove()
        if len(seen) != 1:
            self._store = 0
            return output
        if not self._proven:
            # A model may use more of its layers than the last one's output: then there is no clean cut.
            again = self._continued(module, inputs, self._store, *seen[0])
            self._proven = bool((again == output).all())
            if not self._proven:
                self._store = 0
                return output
        self._write(path, *seen[0])
        return output

    def _write(self, path: Path, hidden: torch.Tensor, wrapped: bool) -> None:
        import torch

        if hidden.dtype != torch.float32:
            return
        shape = np.array([hidden.ndim, *hidden.shape], "<u4").tobytes()
        data = (_TUPLE if wrapped else _PLAIN) + shape + hidden.contiguous().numpy().astype("<f4").tobytes()
        if len(data) > self._limit:
            return
        self._make_room(len(data))
        write_checked(path, _MAGIC, data)

    def _make_room(self, size: int) -> None:
        """Remove what was written first until `size` bytes more are within the limit."""
        held = []
        for file in self._directory.rglob("*"):
            with contextlib.suppress(OSError):
                if file.is_file():
                    status = file.stat()
                    held.append((status.st_mtime_ns, status.st_size, file))
        total = sum(bytes_held for _, bytes_held, _ in held) + size
        for _, bytes_held, file in sorted(held):
            if total <= self._limit:
                return
            with contextlib.suppress(OSError):
                file.unlink()
                total -= bytes_held


@contextlib.contextmanager
def _replaced(layers: Sequence[torch.nn.Module], forward: Any) -> Iterator[None]:
    """The layers compute nothing and give what `forward` does."""
    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _digest(inputs: Mapping[str, torch.Tensor]) -> str:
    hasher = blake3(domain("activations"))
    for name in sorted(inputs):
        value = inputs[name].detach().to("cpu").contiguous()
        hasher.update(f"{name} {value.dtype} {list(value.shape)}\0".encode())
        hasher.update(value.numpy().tobytes())
    return hasher.hexdigest()


def _read(path: Path) -> tuple[torch.Tensor, bool] | None:
    """What was kept, and whether the layer gave it in a tuple; None when there is nothing that is whole."""
    import torch

    data = read_checked(path, _MAGIC)
    if data is None:
        return None
    ndim = int(np.frombuffer(data, "<u4", count=1, offset=1)[0])
    shape = np.frombuffer(data, "<u4", count=ndim, offset=5).tolist()
    values = np.frombuffer(data, "<f4", offset=5 + 4 * ndim).astype(np.float32).reshape(shape)
    return torch.from_numpy(values), data[:1] == _TUPLE
