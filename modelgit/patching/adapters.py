"""Low-rank adapters that were declared to have been merged: directories as the `peft` library writes them.

`adapter_config.json` gives rank, scaling and orientation; `adapter_model.safetensors` (or `.bin`, which is never
unpickled) holds for each adapted module X the factors `base_model.model.X.lora_A.weight` and `.lora_B.weight`.  A
declaration changes nothing of what is recorded: it spares the writer the search for factors.  One that is wrong costs
some milliseconds a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec
import numpy as np

from modelgit.errors import CheckpointFormatError, UsageError
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.numerics.floats import has_float_values, to_float64
from modelgit.numerics.lowrank import Matrix
from modelgit.objects import BlobId, LeafHasher, TensorSpec, blob_id
from modelgit.patching.correct import Product

__all__ = ["Adapter", "AdapterSet"]

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_MAX_CONFIG_BYTES = 1 << 20
_MAX_FACTOR_BYTES = 1 << 28
_HASH_STEP = 8 << 20
# The ends of the names of the first and the second factor, and whether they are those of an embedding, whose weight
# has the rows that the first one has columns.
_FACTORS = {
    "lora_A": (0, False),
    "lora_B": (1, False),
    "lora_embedding_A": (0, True),
    "lora_embedding_B": (1, True),
}


class _Config(msgspec.Struct):
    """What matters of adapter_config.json; everything else is ignored."""

    peft_type: str = "LORA"
    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool | None = False
    use_dora: bool | None = False
    fan_in_fan_out: bool | None = False
    alpha_pattern: dict[str, float] | None = None


class _Place(NamedTuple):
    spec: TensorSpec
    offset: int


class _Module(NamedTuple):
    first: _Place
    second: _Place
    is_embedding: bool


class Adapter:
    """One adapter, opened for reading.  Use as a context manager, or `close` it."""

    def __init__(self, directory: Path, *, shown: str) -> None:
        """Raises UsageError when there is no adapter, CheckpointFormatError for one that cannot have been merged so."""
        self.shown = shown
        self._config = _read_config(directory / _CONFIG, shown=f"{shown}/{_CONFIG}")
        name = next((name for name in _WEIGHTS if (directory / name).is_file()), None)
        if name is None:
            raise _no_adapter(shown, " or ".join(_WEIGHTS))
        self._reader = FileReader(directory / name, shown=f"{shown}/{name}")
        try:
            self._modules = self._find_modules()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Adapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    @property
    def modules(self) -> Iterable[str]:
        """The names of the adapted modules, as the model has them."""
        return self._modules

    def digest(self) -> BlobId:
        """The id that the file of weights has as a blob."""
        leaves = LeafHasher()
        for start in range(0, self._reader.size, _HASH_STEP):
            leaves.update(self._reader.read(start, min(_HASH_STEP, self._reader.size - start)))
        return blob_id(self._reader.size, leaves.finish())

    def scaling(self, module: str) -> float:
        """What the product of the factors of a module is multiplied by."""
        config, rank = self._config, self._rank(module)
        patterns = config.alpha_pattern or {}
        alpha = next(
            (value for key, value in patterns.items() if module == key or module.endswith(f".{key}")),
            config.lora_alpha,
        )
        return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank

    def product(self, module: str) -> Product | None:
        """What was added to the weight of a module, seen as a matrix; None for factors that do not fit together."""
        found = self._modules[module]
        first, second = self._read(found.first), self._read(found.second)
        rank = self._rank(module)
        if first is None or second is None or second.size % rank:
            return None
        down = first.reshape(rank, -1)  # (rank, inputs), of a convolution (rank, inputs x kernel)
        up = second.reshape(-1, rank) * self.scaling(module)  # (outputs, rank)
        if found.is_embedding or self._config.fan_in_fan_out:
            return Product(np.ascontiguousarray(down.T), up)
        return Product(up, np.ascontiguousarray(down.T))

    def _rank(self, module: str) -> int:
        return self._modules[module].first.spec.shape[0]

    def _read(self, place: _Place) -> Matrix | None:
        if place.spec.size_bytes > _MAX_FACTOR_BYTES or not has_float_values(place.spec.dtype):
            return None
        return to_float64(self._reader.read(place.offset, place.spec.size_bytes), place.spec.dtype)

    def _find_modules(self) -> dict[str, _Module]:
        scanned = scan_reader(self._reader)
        found: dict[tuple[str, bool], dict[int, _Place]] = {}
        places = {item.tensor: item.offset for item in scanned.ranges if item.tensor is not None}
        named = [(item.name, _Place(item.spec, places[at])) for at, item in enumerate(scanned.tensors) if at in places]
        named += [
            (view.name, _Place(view.spec, places[view.tensor] + view.offset))
            for view in scanned.views
            if not view.strides and view.spec is not None and view.tensor in places
        ]
        for name, place in named:
            parsed = _parse(name)
            if parsed is not None and place.spec.shape and all(place.spec.shape):
                module, number, is_embedding = parsed
                found.setdefault((module, is_embedding), {})[number] = place
        modules = {
            module: _Module(pair[0], pair[1], is_embedding)
            for (module, is_embedding), pair in found.items()
            if len(pair) == 2
        }
        if not modules:
            raise CheckpointFormatError(
                f"{self._reader.shown} has no tensors `X.lora_A.weight` and `X.lora_B.weight`",
                hint="commit without `--adapter`",
            )
        return modules


class AdapterSet:
    """The adapters that a commit declares, asked for by the names of the model's tensors.

    A name matches a module if it is `MODULE.weight`, or if one of the two is the other with more in front of it.
    """

    def __init__(self, directories: Iterable[tuple[Path, str]]) -> None:
        """Open the adapters in `directories`, each with what messages call it; raises like `Adapter`."""
        self._stack = ExitStack()
        self._adapters: list[Adapter] = []
        self._modules: list[dict[str, str | None]] = []
        try:
            for directory, shown in directories:
                adapter = self._stack.enter_context(Adapter(directory, shown=shown))
                self._adapters.append(adapter)
                self._modules.append(_endings(adapter.modules))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> AdapterSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def product(self, tensor: str) -> Product | None:
        """The sum of what the adapters say was added to the tensor of that name; None for nothing."""
        found = []
        for adapter, modules in zip(self._adapters, self._modules, strict=True):
            module = _lookup(modules, tensor)
            product = None if module is None else adapter.product(module)
            if product is not None:
                found.append(product)
        if not found or len({(len(item.left), len(item.right)) for item in found}) != 1:
            return None
        return Product(np.hstack([item.left for item in found]), np.hstack([item.right for item in found]))

    def unmatched(self, tensors: Iterable[str]) -> tuple[str, ...]:
        """The modules that none of these tensors is a weight of."""
        names = list(tensors)
        missing: list[str] = []
        for adapter, modules in zip(self._adapters, self._modules, strict=True):
            matched = {_lookup(modules, name) for name in names}
            missing += [module for module in adapter.modules if module not in matched]
        return tuple(missing)

    def trailer(self) -> str:
        """What the commit says about the adapters: their digests and scalings."""
        parts = []
        for adapter in self._adapters:
            scalings = sorted({adapter.scaling(module) for module in adapter.modules})
            text = f"{scalings[0]:g}" if len(scalings) == 1 else f"{scalings[0]:g} to {scalings[-1]:g}"
            parts.append(f"{adapter.digest()} scaling {text}")
        return ", ".join(parts)


def _read_config(path: Path, *, shown: str) -> _Config:
    if not path.is_file():
        raise _no_adapter(shown.removesuffix(f"/{_CONFIG}"), _CONFIG)
    with FileReader(path, shown=shown) as reader:
        if reader.size > _MAX_CONFIG_BYTES:
            raise CheckpointFormatError(f"{shown} has {reader.size} bytes, which no configuration has")
        data = reader.read(0, reader.size)
    try:
        config = msgspec.json.decode(data, type=_Config)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = ascii(str(error))[1:-1][:100]
        raise CheckpointFormatError(f"{shown} is no adapter configuration: {reason}") from None
    hint = "commit without `--adapter`: what was merged is found by itself if it is of low rank"
    if config.peft_type != "LORA" or config.use_dora:
        kind = "DoRA" if config.use_dora else ascii(config.peft_type[:40])[1:-1]
        raise CheckpointFormatError(f"{shown} is of the type {kind}, which adds no product of two factors", hint=hint)
    alphas = (config.lora_alpha, *(config.alpha_pattern or {}).values())
    if not all(math.isfinite(alpha) for alpha in alphas):
        raise CheckpointFormatError(f"{shown} has a `lora_alpha` that is not finite", hint=hint)
    return config


def _no_adapter(shown: str, missing: str) -> UsageError:
    return UsageError(f"{shown} is not a PEFT adapter: it has no {missing}", hint="`mgit commit --adapter DIR`")


def _parse(name: str) -> tuple[str, int, bool] | None:
    """(module, 0 for the first factor or 1, whether it is an embedding) of the name of a factor."""
    parts = name.removeprefix(_PREFIX).split(".")
    if parts[-1] == "weight":
        parts.pop()
    # `X.lora_A`, or `X.lora_A.NAME` in a state that keeps the names of several adapters.
    for place in (-1, -2):
        if len(parts) > -place and parts[place] in _FACTORS:
            number, is_embedding = _FACTORS[parts[place]]
            return ".".join(parts[:place]), number, is_embedding
    return None


def _endings(modules: Iterable[str]) -> dict[str, str | None]:
    """Modules by the endings of two or more parts of their weights' names; None for an ending of several."""
    found: dict[str, str | None] = {}
    for module in modules:
        parts = [*module.split("."), "weight"]
        for start in range(max(1, len(parts) - 2)):
            ending = ".".join(parts[start:])
            found[ending] = module if start == 0 or ending not in found else None
    return found


def _lookup(modules: dict[str, str | None], tensor: str) -> str | None:
    parts = tensor.split(".")
    for start in range(len(parts) - 1):
        ending = ".".join(parts[start:])
        if ending in modules:
            return modules[ending]
    return None
