"""Deciding conflicts: a side is taken, values are combined after all, or a vocabulary that grew is merged by rows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelgit.errors import UsageError
from modelgit.merging.model import matching_rule
from modelgit.merging.plan import StoredTensor
from modelgit.merging.tensors import TensorParts
from modelgit.objects import TensorId, TensorSpec
from modelgit.objects.merges import Conflict, Resolution
from modelgit.patching.base import WINDOW_BYTES, TensorReads, TensorSource, windows

__all__ = ["Combined", "Grown", "GrownTensor", "Taken", "find_conflicts", "resolve_tensor", "ruled_resolutions"]

COMBINE = "combine"
GROW_ROWS = "grow-rows"
_PICKS = ("ours", "theirs", "base")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One side's tensor as it is stored; None when it goes."""

    tensor: StoredTensor | None


@dataclass(frozen=True, kw_only=True)
class Combined:
    """The strategy makes the tensor after all; without a base where the sides do not share its shape and dtype."""

    parts: TensorParts


@dataclass(frozen=True, kw_only=True)
class Grown:
    """The first rows are merged as `parts`; the tensor has shape `spec`, and its last rows are those of `longer`."""

    parts: TensorParts
    spec: TensorSpec
    longer: TensorId

    def source(self, reads: TensorReads, prefix: TensorSource) -> GrownTensor:
        """The whole tensor, given the source of its merged first rows."""
        return GrownTensor(reads, self.spec, prefix, self.longer)


class GrownTensor:
    """A tensor whose first rows come from a merge and whose last rows come from one side; a TensorSource."""

    step_bytes = WINDOW_BYTES

    def __init__(self, reads: TensorReads, spec: TensorSpec, prefix: TensorSource, longer: TensorId) -> None:
        self.spec = spec
        self._reads = reads
        self._prefix = prefix
        self._longer = longer

    def read(self, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Raw bytes `start` to `stop`."""
        border = self._prefix.spec.size_bytes
        if stop <= border:
            return self._prefix.read(start, stop)
        if start >= border:
            return self._reads.read(self._longer, start, stop)
        return bytearray(self._prefix.read(start, border)) + self._reads.read(self._longer, border, stop)

    def read_into(self, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        out[:] = self.read(start, start + out.nbytes)


def ruled_resolutions(conflicts: Sequence[Conflict], rules: Mapping[str, str]) -> dict[str, str]:
    """What rules that pick a side ("pos.*" to "ours") decide of the conflicts of tensors, as text by conflict id."""
    found = {}
    for conflict in conflicts:
        rule = rules.get(matching_rule(conflict.item, rules)) if conflict.item else None
        if rule in _PICKS:
            found[conflict.id] = f"take {rule}"
    return found


def find_conflicts(conflicts: Sequence[Conflict], text: str) -> tuple[Conflict, ...]:
    """The conflicts that `text` names: an id (`PATH:ITEM`), a path (all in it), or an item that is in one path only.

    Raises UsageError when there is none, or when an item is in conflict in several paths.
    """
    exact = tuple(conflict for conflict in conflicts if text in (conflict.id, conflict.path))
    if exact:
        return exact
    items = tuple(conflict for conflict in conflicts if conflict.item == text)
    if len(items) > 1:
        raise UsageError(
            f"`{text}` is in conflict in {len(items)} places", hint=f"name one of them: `mgit resolve {items[0].id}`"
        )
    if items:
        return items
    names = [name for conflict in conflicts for name in (conflict.id, conflict.item, conflict.path) if name]
    near = difflib.get_close_matches(text, names, n=1)
    raise UsageError(
        f"no conflict `{text}`" + (f"; did you mean `{near[0]}`?" if near else ""),
        hint="`mgit status` lists the conflicts",
    )


def resolve_tensor(
    name: str,
    resolution: Resolution,
    *,
    reads: TensorReads,
    base: StoredTensor | None,
    ours: StoredTensor | None,
    theirs: StoredTensor | None,
) -> Taken | Combined | Grown:
    """Apply `resolution` to the tensor `name`, which is in conflict (or belongs to a model that is).

    `combine` merges tensors of equal shape and float dtype with the strategy; `grow-rows` merges the rows that all
    have and keeps those that one side added.  The parts of the answer, if any, go into the ModelMerge of the model.
    Raises UsageError when the resolution does not fit the tensors.
    """
    if resolution.take is not None:
        return Taken(tensor={"base": base, "ours": ours, "theirs": theirs}[resolution.take])
    if resolution.value == GROW_ROWS:
        return _grown(name, reads, base, ours, theirs)
    if resolution.value == COMBINE:
        return _combined(name, base, ours, theirs)
    near = difflib.get_close_matches(resolution.value or "", [GROW_ROWS, COMBINE], n=1)
    raise UsageError(
        f"tensors cannot be resolved with `{resolution.value}`" + (f"; did you mean `{near[0]}`?" if near else ""),
        hint=f"`mgit resolve {name} --with {GROW_ROWS}`, `--with {COMBINE}`, or `--take ours`",
    )


def _combined(name: str, base: StoredTensor | None, ours: StoredTensor | None, theirs: StoredTensor | None) -> Combined:
    if ours is None or theirs is None:
        raise _misfit(name, COMBINE, "one side removed it")
    if ours[0] != theirs[0]:
        raise _misfit(name, COMBINE, "the sides differ in shape or dtype")
    if not ours[0].kind.is_float:
        raise _misfit(name, COMBINE, f"{ours[0].dtype} values have no mean")
    ancestor = base[1] if base is not None and base[0] == ours[0] else None
    return Combined(parts=TensorParts(name=name, spec=ours[0], base=ancestor, sides=(ours[1], theirs[1])))


def _grown(
    name: str,
    reads: TensorReads,
    base: StoredTensor | None,
    ours: StoredTensor | None,
    theirs: StoredTensor | None,
) -> Grown:
    if ours is None or theirs is None:
        raise _misfit(name, GROW_ROWS, "one side removed it")
    specs = [tensor[0] for tensor in (base, ours, theirs) if tensor is not None]
    if len({(spec.dtype, spec.shape[1:]) for spec in specs}) > 1 or not all(spec.shape for spec in specs):
        raise _misfit(name, GROW_ROWS, "more than the number of rows differs")
    if not ours[0].kind.is_float:
        raise _misfit(name, GROW_ROWS, f"{ours[0].dtype} values have no mean")
    rows = [ours[0].shape[0], theirs[0].shape[0]]
    shared = min(rows) if base is None else base[0].shape[0]
    if min(rows) < shared:
        raise _misfit(name, GROW_ROWS, "one side removed rows")
    longer, shorter = (ours, theirs) if rows[0] >= rows[1] else (theirs, ours)
    prefix = TensorSpec(dtype=ours[0].dtype, shape=(shared, *ours[0].shape[1:]))
    if not _equal(reads, longer[1], shorter[1], prefix.size_bytes, shorter[0].size_bytes):
        raise _misfit(name, GROW_ROWS, "both sides added rows, and not the same ones")
    parts = TensorParts(name=name, spec=prefix, base=None if base is None else base[1], sides=(ours[1], theirs[1]))
    return Grown(parts=parts, spec=longer[0], longer=longer[1])


def _equal(reads: TensorReads, first: TensorId, second: TensorId, start: int, stop: int) -> bool:
    return all(
        reads.read(first, start + low, start + high) == reads.read(second, start + low, start + high)
        for low, high in windows(stop - start)
    )


def _misfit(name: str, how: str, why: str) -> UsageError:
    return UsageError(f"{name} cannot be resolved with {how}: {why}", hint=f"`mgit resolve {name} --take ours`")
