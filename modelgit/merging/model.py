"""The merge of one model: which strategy makes which tensor, the first pass over the model, and the sources."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol
from urllib.parse import quote, unquote

import numpy as np

from modelgit.errors import BugError, UsageError
from modelgit.merging.base import Array, BoundStrategy, Part, Where
from modelgit.merging.combine import element_bytes
from modelgit.merging.tensors import STEP_BYTES, MergedTensor, TensorParts
from modelgit.numerics.floats import to_float64
from modelgit.objects import CodedTensor, GramEntry, TensorId
from modelgit.patching.base import TensorReads, windows
from modelgit.patching.statistics import read_values

__all__ = ["DEFAULT_RULE", "Diagonals", "ModelMerge", "matching_rule"]

DEFAULT_RULE = "*"
_PASS_BYTES = 1 << 20  # first passes look at so much of each side at a time: as float64 it stays in the cache


class Diagonals(Protocol):
    """Where the Fisher diagonals of a side are: an estimate of a repository, or an open file."""

    def coded(self) -> dict[str, CodedTensor]:
        """The values of each tensor, by its name."""

    def coded_grams(self) -> dict[str, GramEntry]:
        """The Gram matrix of what goes into each linear layer, by the name of its weight."""


def matching_rule(name: str, rules: Iterable[str]) -> str:
    """The pattern among `rules` that decides about the tensor `name`: the longest that matches, else "*".

    Of two equally long ones the first in alphabetical order; so the order in which rules were given means nothing.
    """
    matches = sorted((rule for rule in rules if fnmatchcase(name, rule)), key=lambda rule: (-len(rule), rule))
    return matches[0] if matches else DEFAULT_RULE


class ModelMerge:
    """All tensors of one model that a strategy has to make.

    `tensors` that come without Fisher diagonals get those of their name in `fishers`, one estimate (or None) a side.
    `rules` maps patterns of tensor names to other strategies than `strategy`; `assigned` says by name which of them
    makes a tensor, where patterns do not.  `split` names the tensors of which some side is sparse or masked.  Without
    `keep_equal`, values that are equal on all sides are the strategy's, too.  `statistics`, taken from a recipe,
    replaces the first pass, so that a merge can be made again bit for bit.

    After `prepare`, `notes` holds what the user should know, and `statistics` what belongs in the recipe.
    """

    def __init__(
        self,
        reads: TensorReads,
        tensors: Iterable[TensorParts],
        strategy: BoundStrategy,
        *,
        rules: Mapping[str, BoundStrategy] | None = None,
        fishers: Sequence[Diagonals | None] = (),
        split: Iterable[str] = (),
        statistics: Mapping[str, str] | None = None,
        assigned: Mapping[str, str] | None = None,
        keep_equal: bool = True,
    ) -> None:
        self._reads = reads
        self._strategies: dict[str, BoundStrategy] = {DEFAULT_RULE: strategy, **(rules or {})}
        self._diagonals = [None if estimate is None else estimate.coded() for estimate in fishers]
        self._grams = [{} if estimate is None else estimate.coded_grams() for estimate in fishers]
        self._split = frozenset(split)
        self._keep_equal = keep_equal
        self._tensors: dict[str, TensorParts] = {}
        self._rule: dict[str, str] = {}
        missing: dict[int, list[str]] = {}
        unfitted: dict[str, list[str]] = {}
        for parts in sorted(tensors, key=lambda parts: parts.name):
            if fishers and len(fishers) != len(parts.sides):
                raise BugError(f"{len(fishers)} Fisher estimates for {len(parts.sides)} sides of {parts.name}")
            rule = matching_rule(parts.name, rules or ()) if assigned is None else assigned[parts.name]
            self._rule[parts.name] = rule
            self._tensors[parts.name] = self._with_statistics(parts)
            needs = self._strategies[rule].strategy.needs
            if "fisher" in needs:
                for side, tensor in enumerate(self._tensors[parts.name].fisher):
                    if tensor is None and side < len(fishers) and fishers[side] is not None:
                        missing.setdefault(side, []).append(parts.name)
            if "grams" in needs and len(parts.spec.shape) > 1 and None in self._tensors[parts.name].grams:
                instead = "by their diagonals alone" if "fisher" in needs else "by the weights alone"
                unfitted.setdefault(instead, []).append(parts.name)
        self._notes = [
            f"side {side + 1} has no Fisher estimate of {_names(names)}: its values count with that side's mean"
            for side, names in sorted(missing.items())
        ]
        self._notes += [
            f"{_names(names)}: no Gram matrix on every side (no linear layer, or no estimate with them); combined {how}"
            for how, names in sorted(unfitted.items())
        ]
        self._lock = threading.Lock()
        self._statistics = _read_statistics(statistics) if statistics is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Every fall-back that was taken, one sentence each; complete after `prepare`."""
        return tuple(self._notes)

    @property
    def statistics(self) -> dict[str, str]:
        """What the first pass found, as text that reads back exactly, for the recipe."""
        return {
            f"{quote(rule, safe='*?[]')}:{key}": repr(float(value))
            for rule, values in sorted(self.prepare().items())
            for key, value in sorted(values.items())
        }

    def prepare(self) -> Mapping[str, Mapping[str, float]]:
        """Run the first pass of every strategy that is in use, once; the numbers by rule."""
        with self._lock:
            if self._statistics is None:
                found = {}
                for rule in sorted(set(self._rule.values())):
                    chosen = [parts for name, parts in self._tensors.items() if self._rule[name] == rule]
                    prepared = self._strategies[rule].prepare(_Material(self._reads, chosen, self._diagonals))
                    found[rule] = dict(prepared.statistics)
                    self._notes += [note for note in prepared.notes if note not in self._notes]
                self._statistics = found
            return self._statistics

    def strategy_of(self, name: str) -> BoundStrategy:
        """The strategy that makes the tensor `name`."""
        return self._strategies[self._rule[name]] if name in self._rule else self._strategies[DEFAULT_RULE]

    def source(self, name: str) -> MergedTensor:
        """The merged tensor `name`, to be read in windows.  Raises UsageError when it is not part of this merge."""
        if name not in self._tensors:
            raise UsageError(f"{name} is not a tensor that this merge combines")
        return MergedTensor(
            self._reads,
            self._tensors[name],
            self.strategy_of(name),
            statistics=self.prepare().get(self._rule[name], {}),
            split=name in self._split,
            keep_equal=self._keep_equal,
        )

    def _with_statistics(self, parts: TensorParts) -> TensorParts:
        none = (None,) * len(parts.sides)
        if parts.fisher:  # of a table with rows in an order of its own, which no matrix knows of
            return replace(parts, grams=none)
        found = tuple(_diagonal_for(parts, entries) for entries in self._diagonals) or none
        grams = tuple(_gram_for(parts, entries) for entries in self._grams) or none
        return replace(parts, fisher=found, grams=grams)


class _Material:
    """The Material of one rule's tensors."""

    def __init__(
        self,
        reads: TensorReads,
        tensors: Sequence[TensorParts],
        diagonals: Sequence[Mapping[str, CodedTensor] | None],
    ) -> None:
        self._reads = reads
        self._tensors = tensors
        self._by_name = {tensor.name: tensor for tensor in tensors}
        self._estimates = diagonals
        self.sides = len(tensors[0].sides)
        self.names = [tensor.name for tensor in tensors]

    def parts(self, name: str | None = None) -> Iterator[Part]:
        chosen = self._tensors if name is None else [self._by_name[name]]
        for tensor in chosen:
            dtype, unit = tensor.spec.dtype, element_bytes(tensor.spec.dtype)
            copies = 2 if dtype == "C64" else 1  # the real and the imaginary part are as important as their number
            for start, stop in windows(tensor.spec.size_bytes, step_bytes=_PASS_BYTES):
                first, last = start // unit, stop // unit
                yield Part(
                    where=Where(name=tensor.name, start=first, count=last - first),
                    base=None if tensor.base is None else self._floats(tensor.base, start, stop, dtype),
                    sides=tuple(self._floats(side, start, stop, dtype) for side in tensor.sides),
                    fisher=tuple(
                        None if diagonal is None else np.repeat(self._diagonal(diagonal, first, last), copies)
                        for diagonal in tensor.fisher
                    ),
                )

    def diagonals(self) -> Iterator[tuple[Array | None, ...]]:
        present = [entries for entries in self._estimates if entries is not None]
        shared = set.intersection(*(set(entries) for entries in present)) if present else set()
        for name in sorted(shared):
            if len({entries[name].shape for entries in present}) > 1:
                continue  # a resized tensor is not part of the body that the sides share
            for first, last in windows(present[0][name].elements, step_bytes=STEP_BYTES // 4):
                yield tuple(
                    None if entries is None else self._diagonal(entries[name], first, last)
                    for entries in self._estimates
                )

    def _diagonal(self, tensor: CodedTensor, first: int, last: int) -> Array:
        return read_values(self._reads, tensor, first, last).astype(np.float64)

    def _floats(self, tensor: TensorId, start: int, stop: int, dtype: str) -> Array:
        return to_float64(self._reads.read(tensor, start, stop), dtype)


def _diagonal_for(parts: TensorParts, entries: Mapping[str, CodedTensor] | None) -> CodedTensor | None:
    """The diagonal of this tensor, if it has the tensor's shape (or more rows of it)."""
    coded = None if entries is None else entries.get(parts.name)
    return coded if coded is not None and _covers(coded.shape, parts.spec.shape) else None


def _gram_for(parts: TensorParts, entries: Mapping[str, GramEntry]) -> GramEntry | None:
    """The Gram matrix of what goes into this tensor, if it has the tensor's shape."""
    coded, shape = entries.get(parts.name), parts.spec.shape
    if coded is None or len(shape) < 2:
        return None
    return coded if coded.size == (shape[0] if coded.first else math.prod(shape[1:])) else None


def _names(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")


def _covers(larger: tuple[int, ...], smaller: tuple[int, ...]) -> bool:
    if larger == smaller:
        return True
    if not larger or len(larger) != len(smaller):
        return False
    return larger[1:] == smaller[1:] and larger[0] >= smaller[0]


def _read_statistics(texts: Mapping[str, str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for key, text in texts.items():
        # The names of statistics may hold those of tensors, colons and all; the rule's own are quoted.
        rule, colon, name = key.partition(":")
        try:
            value = float(text)
        except ValueError:
            colon = ""
        if not colon:
            raise UsageError(f"not a statistic of a merge: {key[:60]} = {text[:40]!r}")
        found.setdefault(unquote(rule), {})[name] = value
    return found
