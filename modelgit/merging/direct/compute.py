"""The tensors of a merge of open files as sources of bytes, made window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from modelgit.errors import UsageError
from modelgit.merging.base import BoundStrategy
from modelgit.merging.direct.checkpoint import Located
from modelgit.merging.direct.plan import COPY, Wanted, floating
from modelgit.merging.direct.reads import CheckpointReads, same_bytes
from modelgit.merging.model import Diagonals, ModelMerge
from modelgit.merging.tensors import TensorParts
from modelgit.numerics.floats import from_float64, has_float_values, to_float64
from modelgit.objects import TensorId, TensorSpec
from modelgit.progress import SILENT, Progress

__all__ = ["DirectMerge", "MadeTensor"]

_WIDE = "F64"
_WIDE_BYTES = 8


class _Reads(Protocol):
    def read(self, start: int, stop: int) -> bytes | bytearray | memoryview: ...


@dataclass(frozen=True, kw_only=True)
class MadeTensor:
    """A tensor of the output while it is written.

    `held_bytes` is what it holds until it goes: its whole computation, for a strategy that sees whole tensors.
    """

    name: str
    spec: TensorSpec
    source: _Reads
    held_bytes: int = 0

    def read(self, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Raw bytes `start` to `stop`."""
        return self.source.read(start, stop)


class DirectMerge:
    """All tensors of an output, in order.

    A tensor that is the same on all sides, to the byte, is copied; of every other one the strategy sees all values
    (nothing is split by who changed it: files do not say what was meant to stay).  Values are computed in float64 and
    rounded once, to the output's dtype.  `prepare` runs the
    first pass of a strategy that has one.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        strategies: Mapping[str, BoundStrategy],
        *,
        reads: CheckpointReads | None = None,
        fishers: Sequence[Diagonals | None] = (),
        progress: Progress = SILENT,
    ) -> None:
        self._reads = reads or CheckpointReads()
        self._wanted = list(wanted)
        self._parts: dict[str, TensorParts] = {}
        assigned: dict[str, str] = {}
        self.copied = 0
        for item in self._wanted:
            progress.check()
            if item.rule == COPY or (len(item.sides) > 1 and item.factor == 1 and same_bytes(list(item.sides))):
                self.copied += 1
                continue
            if not floating(item.sides[0]):
                raise UsageError(
                    f"{item.name} holds {item.sides[0].spec.dtype} values, which differ and have no mean",
                    hint=f"`--strategy '{item.name}=ours'` takes the first",
                )
            self._parts[item.name] = self._part(item, strategies[item.rule])
            assigned[item.name] = item.rule
        self.merge = (
            ModelMerge(
                self._reads,
                self._parts.values(),
                next(iter(strategies.values())),
                rules=dict(strategies),
                fishers=fishers,
                assigned=assigned,
                keep_equal=False,
            )
            if self._parts
            else None
        )

    @property
    def specs(self) -> list[tuple[str, TensorSpec]]:
        """Names, dtypes and shapes of the output."""
        return [(item.name, _out_spec(item)) for item in self._wanted]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how values were made; complete after the first pass."""
        return () if self.merge is None else self.merge.notes

    def prepare(self) -> None:
        """Run the first pass, for strategies that have one."""
        if self.merge is not None:
            self.merge.prepare()

    def tensor(self, index: int) -> MadeTensor:
        """The tensor at that place of the output."""
        item = self._wanted[index]
        spec = _out_spec(item)
        if self.merge is None or item.name not in self._parts:
            side = item.sides[0]
            plain = spec == side.spec and item.factor == 1
            return MadeTensor(name=item.name, spec=spec, source=side if plain else _Converted(side, spec, item.factor))
        source: _Reads = self.merge.source(item.name)
        held = 0
        if self.merge.strategy_of(item.name).strategy.scope == "tensor":
            held = spec.elements * _WIDE_BYTES * (len(item.sides) + 3)
        if self._parts[item.name].spec.dtype != spec.dtype or item.factor != 1:
            source = _Narrowed(source, spec, item.factor)
        return MadeTensor(name=item.name, spec=spec, source=source, held_bytes=held)

    def _part(self, item: Wanted, bound: BoundStrategy) -> TensorParts:
        out = _out_spec(item)
        base = item.base if "base" in bound.strategy.needs else None
        inputs = [*item.sides, *([base] if base is not None else [])]
        wide = item.factor != 1 or any(tensor.spec.dtype != out.dtype for tensor in inputs)
        drawn = any(option.name == "seed" for option in bound.strategy.options)

        def add(tensor: Located) -> TensorId:
            return self._reads.add(tensor, wide=wide, hashed=drawn)

        return TensorParts(
            name=item.name,
            spec=TensorSpec(dtype=_WIDE if wide else out.dtype, shape=out.shape),
            base=None if base is None else add(base),
            sides=tuple(add(side) for side in item.sides),
        )


def _out_spec(item: Wanted) -> TensorSpec:
    first = item.sides[0]
    converts = item.dtype and floating(first) and has_float_values(first.spec.dtype)
    dtype = item.dtype if converts else first.spec.dtype
    return TensorSpec(dtype=dtype, shape=first.spec.shape)


class _Narrowed:
    """Float64 values, times a factor, rounded once to a dtype."""

    def __init__(self, source: _Reads, spec: TensorSpec, factor: float) -> None:
        self._source = source
        self._spec = spec
        self._factor = factor
        self._unit = spec.kind.bits // 8

    def read(self, start: int, stop: int) -> memoryview:
        wide = self._source.read(start // self._unit * _WIDE_BYTES, stop // self._unit * _WIDE_BYTES)
        return _narrow(np.frombuffer(wide, "<f8"), self._spec, self._factor)


class _Converted:
    """The values of a file's tensor, times a factor, rounded once to a dtype."""

    def __init__(self, tensor: Located, spec: TensorSpec, factor: float) -> None:
        self._tensor = tensor
        self._spec = spec
        self._factor = factor

    def read(self, start: int, stop: int) -> memoryview:
        unit, own = self._spec.kind.bits // 8, self._tensor.spec.kind.bits // 8
        raw = self._tensor.read(start // unit * own, stop // unit * own)
        return _narrow(to_float64(raw, self._tensor.spec.dtype), self._spec, self._factor)


def _narrow(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], spec: TensorSpec, factor: float) -> memoryview:
    return from_float64(values if factor == 1 else values * factor, spec.dtype).data.cast("B")
