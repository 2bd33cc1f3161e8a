"""What of a live model lies outside a mask, and whether it is still what it was: by fingerprint, without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from modelgit.fisher.journal import JournalEnd, JournalStart, JournalStep, JournalWriter, Leak, Watched
from modelgit.fisher.outside import fingerprint, mask_fingerprint, model_fingerprint
from modelgit.integrations.torch_steps import put_values, take_values

__all__ = ["Journal", "Place", "Violation", "Watch", "places_of"]

_PIECE = 1 << 24  # bytes that come over from an accelerator at a time
_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16",
    "int32": "I32", "uint32": "U32", "float32": "F32", "complex64": "C64", "int64": "I64", "uint64": "U64",
    "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class Violation:
    """A parameter or buffer that changed outside the mask.

    `elements` is how many of its values did; None where only that some did is known, for want of a reference.
    """

    name: str
    elements: int | None


class Place(NamedTuple):
    """Where a parameter or buffer lives; `name` is its name without the prefixes of wrappers."""

    name: str
    owner: torch.nn.Module
    leaf: str
    is_buffer: bool

    def now(self) -> torch.Tensor | None:
        """What is there now: loading weights may have put another tensor there."""
        table: Mapping[str, torch.Tensor | None] = self.owner._buffers if self.is_buffer else self.owner._parameters
        return table.get(self.leaf)


def places_of(model: torch.nn.Module) -> Iterator[Place]:
    """Every parameter under each of its names, then every persistent buffer."""
    for kind in ("_parameters", "_buffers"):
        for prefix, owner in model.named_modules(remove_duplicate=False):
            for wrapper in ("_orig_mod.", "_checkpoint_wrapped_module."):
                prefix = (prefix + ".").replace(wrapper, "").removesuffix(".")
            for leaf, tensor in getattr(owner, kind).items():
                if tensor is not None and leaf not in (owner._non_persistent_buffers_set if kind == "_buffers" else ()):
                    yield Place(f"{prefix}.{leaf}" if prefix else leaf, owner, leaf, kind == "_buffers")


class _Item(NamedTuple):
    place: Place
    positions: torch.Tensor | None  # None: all of it is outside
    watched: Watched


class Watch:
    """Fingerprints of everything outside `regions` (positions by parameter name, None for all) as it is now.

    `tensor_of` gives the tensor names of parameters, `keys` those under which the mask has what it names.  Held are
    32 characters a tensor.  With a `reference`, tensors by name (arrays, torch tensors, or what
    `Repository.load` gives), violations are counted: it is read when one was found, and never before.
    """

    def __init__(
        self,
        places: list[Place],
        regions: Mapping[str, torch.Tensor | None],
        tensor_of: Mapping[str, str],
        keys: Mapping[str, str],
        reference: Mapping[str, Any] | None,
    ) -> None:
        self._reference = reference
        self._items: dict[str, _Item] = {}
        names: dict[int, list[str]] = {}
        for place in places:
            names.setdefault(id(place.now()), []).append(place.name)
        seen: set[int] = set()
        for place in places:
            tensor = place.now()
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            aliases = [tensor_of.get(name, name) for name in names[id(tensor)]]
            first = keys.get(place.name, aliases[0])
            if first in self._items:  # several parameters stand for one tensor without being tied
                first = place.name
            positions = regions.get(place.name)
            if place.name in regions and positions is None:
                continue
            more = tuple(name for name in dict.fromkeys(aliases) if name != first)
            watched = Watched(_dtype_name(tensor), tuple(tensor.shape), _live_fingerprint(tensor, positions), more)
            self._items[first] = _Item(place, positions, watched)

    @property
    def tensors(self) -> dict[str, Watched]:
        """What is watched, by tensor name, as it was at the start."""
        return {name: item.watched for name, item in self._items.items()}

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints by tensor name as they are now; of what is gone, empty."""
        found = {}
        for name, item in self._items.items():
            tensor = item.place.now()
            found[name] = "" if tensor is None else _live_fingerprint(tensor, item.positions)
        return found

    def leaks(self, now: Mapping[str, str]) -> list[Leak]:
        """Tensors whose fingerprint is not that of the start."""
        wrong = [name for name, item in self._items.items() if now[name] != item.watched.digest]
        return [Leak(name, self._count(name)) for name in sorted(wrong)]

    def violations(self) -> list[Violation]:
        """The same by parameter name."""
        leaks = self.leaks(self.fingerprints())
        return sorted(
            (Violation(self._items[leak.tensor].place.name, leak.values) for leak in leaks), key=lambda item: item.name
        )

    def _count(self, name: str) -> int | None:
        """How many values outside the mask differ from the reference; None without one of the same type."""
        item = self._items[name]
        tensor, reference = item.place.now(), self._reference
        known = next((n for n in (name, *item.watched.aliases) if reference is not None and n in reference), None)
        if tensor is None or known is None or reference is None:
            return None
        old = reference[known]
        array = old.detach().cpu().contiguous() if isinstance(old, torch.Tensor) else np.ascontiguousarray(old)
        if isinstance(array, torch.Tensor):
            array = array.reshape(-1).view(torch.uint8).numpy()
        before = array.reshape(-1).view(np.uint8)
        now = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if len(before) != len(now):
            return None
        changed = (before != now).reshape(-1, tensor.element_size()).any(1)
        if item.positions is not None:
            changed[item.positions.cpu().numpy()] = False
        return int(np.count_nonzero(changed)) or None


class Journal:
    """Writes what `watch` sees of every `every`-th step to the journal at `path`."""

    def __init__(
        self,
        path: Path,
        watch: Watch,
        optimizer: torch.optim.Optimizer,
        *,
        mask: Mapping[str, torch.Tensor | None],
        every: int,
        masked: int,
    ) -> None:
        self._writer = JournalWriter(path)
        self._watch = watch
        self._optimizer = optimizer
        self._every = every
        self._steps = 0
        tensors = watch.tensors
        self._writer.write(
            JournalStart(
                first=self._writer.taken + 1,
                every=every,
                optimizer=type(optimizer).__name__,
                masked=masked,
                mask=mask_fingerprint({name: None if at is None else at.cpu().numpy() for name, at in mask.items()}),
                digest=model_fingerprint({name: item.digest for name, item in tensors.items()}),
                tensors=tensors,
            )
        )

    def step(self) -> None:
        """A step is over."""
        self._steps += 1
        if self._steps % self._every:
            return
        now = self._watch.fingerprints()
        leaks = self._watch.leaks(now)
        rates = [group["lr"] for group in self._optimizer.param_groups if "lr" in group]
        self._writer.write(
            JournalStep(
                step=self._writer.taken + self._steps,
                digest=model_fingerprint(now),
                violations=sum(leak.values or 1 for leak in leaks),
                optimizer=type(self._optimizer).__name__,
                lr=tuple(float(rate) for rate in rates),
                leaks=tuple(leaks),
            )
        )

    def close(self) -> None:
        """Write the last line."""
        self._writer.write(JournalEnd(steps=self._steps, digest=model_fingerprint(self._watch.fingerprints())))
        self._writer.close()


def _dtype_name(tensor: torch.Tensor) -> str:
    """The name of the element type in safetensors' vocabulary, torch's own where that has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    return _NAMES.get(name, name)


@torch.no_grad()
def _live_fingerprint(tensor: torch.Tensor, positions: torch.Tensor | None) -> str:
    """The fingerprint of a tensor outside `positions`.

    They are zero while it is taken, and what they were again afterwards: no copy of the tensor is made.  Autograd
    does not hear of that (`data`), since nothing will have changed.
    """
    data = tensor.data.contiguous()
    if positions is None:
        return fingerprint(_pieces(data))
    positions = positions.to(data.device)
    kept = take_values(data, positions)
    try:
        data.view(-1).index_fill_(0, positions, 0)
        return fingerprint(_pieces(data))
    finally:
        put_values(data, positions, kept)


def _pieces(data: torch.Tensor) -> Iterator[memoryview]:
    flat = data.reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        yield flat.numpy().data
        return
    for start in range(0, len(flat), _PIECE):
        yield flat[start : start + _PIECE].cpu().numpy().data
