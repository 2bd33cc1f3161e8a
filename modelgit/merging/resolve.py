"""Deciding conflicts: a side is taken, values are combined after all, or rows come from several sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from modelgit.errors import CheckpointFormatError, UsageError, did_you_mean
from modelgit.merging.model import matching_rule
from modelgit.merging.plan import StoredTensor
from modelgit.merging.rows import RowPlan, RowViews, Run, joined, sliced
from modelgit.merging.tensors import TensorParts
from modelgit.objects import CodedTensor, TensorId, TensorSpec
from modelgit.objects.merges import Conflict, Resolution, RowRange, SideName
from modelgit.patching.base import TensorReads, windows

__all__ = [
    "COMBINE",
    "GROW_ROWS",
    "TOKENS",
    "Combined",
    "Sides",
    "Taken",
    "Viewed",
    "find_conflicts",
    "resolve_tensor",
    "ruled_resolutions",
    "viewed",
]

COMBINE = "combine"
GROW_ROWS = "grow-rows"
TOKENS: dict[str, SideName] = {"ours-tokens": "ours", "theirs-tokens": "theirs"}
"""Methods for a table in which both sides gave one new token different rows: whose row it keeps."""
_PICKS = ("ours", "theirs", "base")


class Sides(NamedTuple):
    """One tensor on the three sides of a merge; None where a side lacks it."""

    base: StoredTensor | None
    ours: StoredTensor | None
    theirs: StoredTensor | None

    def stored(self) -> dict[SideName, TensorId | None]:
        """The tensors by side."""
        return {
            "base": None if self.base is None else self.base[1],
            "ours": None if self.ours is None else self.ours[1],
            "theirs": None if self.theirs is None else self.theirs[1],
        }


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One side's tensor as it is stored; None when it goes."""

    tensor: StoredTensor | None


@dataclass(frozen=True, kw_only=True)
class Combined:
    """The strategy makes the tensor after all; without a base where the sides do not share its shape and dtype."""

    parts: TensorParts


@dataclass(frozen=True, kw_only=True)
class Viewed:
    """A table of shape `spec` whose rows lie in several places.

    The strategy makes it of `parts`; without these it is `view` as it is.  It is coded against the stored tensor
    `parent`.
    """

    spec: TensorSpec
    plan: RowPlan
    sides: Sides
    parent: TensorId
    parts: TensorParts | None = None
    view: TensorId | None = None

    def with_fishers(self, views: RowViews, fishers: Sequence[CodedTensor | None]) -> TensorParts:
        """The parts with the Fisher diagonals of ours and theirs, as these are stored, in the order of the rows.

        A row that a side lacks has none there: its value is equal on all sides, and nothing asks.
        """
        if self.parts is None:
            raise UsageError("nothing is combined")
        found: list[CodedTensor | None] = []
        for side, coded in zip(("ours", "theirs"), fishers, strict=True):
            runs = self.plan.runs("ours" if side == "ours" else "theirs") or ()
            known = self.sides.ours if side == "ours" else self.sides.theirs
            if coded is None or known is None or coded.shape != known[0].shape:
                found.append(None)
                continue
            elements = self.spec.elements // self.spec.shape[0] if self.spec.shape[0] else 0
            width = elements * (4 if coded.scale is None else 1)
            stored: dict[SideName, TensorId | None] = {"base": None, "ours": None, "theirs": None}
            stored["ours" if side == "ours" else "theirs"] = coded.id
            found.append(CodedTensor(views.add(runs, stored, width), self.spec.shape, coded.scale))
        return replace(self.parts, fisher=tuple(found))


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
    raise UsageError(
        f"no conflict `{text}`{did_you_mean(text, names)}",
        hint="`mgit status` lists the conflicts",
    )


def resolve_tensor(
    name: str, resolution: Resolution, sides: Sides, views: RowViews, *, aligned: RowPlan | None = None
) -> Taken | Combined | Viewed:
    """Apply `resolution` to the tensor `name`, which is in conflict (or belongs to a model that is).

    `combine` merges tensors of equal shape and float dtype with the strategy; `grow-rows` merges the rows that all
    have and keeps those that one side added; ranges of rows name a side for each.  `aligned` says where the rows of a
    table are whose vocabulary is merged: then ranges count rows of the result, and a side that is taken whole brings
    the rows of its tokens.  The parts of the answer, if any, go into the ModelMerge of the model.
    Raises UsageError when the resolution does not fit the tensors.
    """
    if resolution.rows:
        return _ranged(name, resolution.rows, sides, views, aligned)
    if resolution.take is not None:
        if aligned is not None:
            every = RowRange(start=0, stop=aligned.rows, source=resolution.take)
            return _ranged(name, (every,), sides, views, aligned)
        return Taken(tensor={"base": sides.base, "ours": sides.ours, "theirs": sides.theirs}[resolution.take])
    if aligned is not None:
        if resolution.value == COMBINE and not aligned.unfounded:
            return viewed(name, aligned, sides, views)
        if resolution.value in TOKENS:
            return viewed(name, _decided(aligned, TOKENS[resolution.value]), sides, views)
    elif resolution.value == GROW_ROWS:
        return _grown(name, sides, views)
    elif resolution.value == COMBINE:
        return _combined(name, sides)
    known = list(TOKENS) if aligned is not None else [GROW_ROWS, COMBINE]
    raise UsageError(
        f"{name} cannot be resolved with `{resolution.value}`{did_you_mean(resolution.value or '', known)}",
        hint=f"`mgit resolve {name} --with {known[0]}`, `--with {known[1]}`, `--take ours`, or `--rows 0:100=ours …`",
    )


def viewed(name: str, plan: RowPlan, sides: Sides, views: RowViews) -> Taken | Viewed:
    """The table that the strategy makes of the rows that `plan` names.

    Raises UsageError where rows of the sides are no values of one kind that have a mean.
    """
    used = {run.side for runs in (plan.base, plan.ours, plan.theirs) for run in runs or ()}
    tensors = dict(zip(_SIDE_NAMES, sides, strict=True))
    specs = [tensor[0] for side, tensor in tensors.items() if tensor is not None and side in used]
    if not specs or not all(spec.shape for spec in specs) or len({(s.dtype, s.shape[1:]) for s in specs}) > 1:
        raise _misfit(name, "rows", "more than the number of rows differs")
    try:
        width = TensorSpec(dtype=specs[0].dtype, shape=(1, *specs[0].shape[1:])).size_bytes
    except CheckpointFormatError:
        raise _misfit(name, "rows", f"rows of {specs[0].dtype} do not fill whole bytes") from None
    spec = TensorSpec(dtype=specs[0].dtype, shape=(plan.rows, *specs[0].shape[1:]))
    stored = sides.stored()
    ours, theirs = (views.add(runs, stored, width) for runs in (plan.ours, plan.theirs))
    base = None if plan.base is None else views.add(plan.base, stored, width)
    # A table is coded against one of its own shape, or else against the longest: bases may be cut.
    present = [tensor for tensor in (sides.ours, sides.theirs, sides.base) if tensor is not None]
    parent = max(present, key=lambda tensor: (tensor[0] == spec, tensor[0].shape[:1]))
    if ours == theirs and base in (None, ours):
        whole = next((tensor for tensor in present if tensor == (spec, ours)), None)
        if whole is not None:
            return Taken(tensor=whole)
        return Viewed(spec=spec, plan=plan, sides=sides, parent=parent[1], view=ours)
    if not spec.kind.is_float:
        raise _misfit(name, "rows", f"{spec.dtype} values have no mean")
    parts = TensorParts(name=name, spec=spec, base=base, sides=(ours, theirs))
    return Viewed(spec=spec, plan=plan, sides=sides, parent=parent[1], parts=parts)


_SIDE_NAMES: tuple[SideName, ...] = ("base", "ours", "theirs")


def _as_they_are(sides: Sides) -> dict[SideName, tuple[Run, ...]]:
    """All rows of each side that has the tensor, in its own order."""
    return {
        side: (Run(side, 0, tensor[0].shape[0]),)
        for side, tensor in zip(_SIDE_NAMES, sides, strict=True)
        if tensor is not None and tensor[0].shape
    }


def _ranged(
    name: str, ranges: Sequence[RowRange], sides: Sides, views: RowViews, aligned: RowPlan | None
) -> Taken | Viewed:
    known = _as_they_are(sides)
    if aligned is not None:
        known = {"ours": aligned.ours, "theirs": aligned.theirs}
        if aligned.base is not None:
            known["base"] = aligned.base
    found: dict[SideName, list[Run]] = {"base": [], "ours": [], "theirs": []}
    for item in ranges:
        wanted = [side for side in _SIDE_NAMES if side in known or side != "base"]
        wanted = wanted if item.source == "combine" else [item.source]
        counts = {side: sum(run.length for run in known.get(side, ())) for side in wanted}
        stop = item.stop if item.stop is not None else max(counts.values())
        for side, count in sorted(counts.items(), key=lambda pair: pair[1]):
            if side not in known:
                raise _misfit(name, f"rows {item}", f"{side} has no such tensor")
            if stop > count or item.start >= stop:
                raise UsageError(
                    f"{name} cannot be resolved with rows {item}: {side} has {count} rows",
                    hint=f"`mgit resolve {name} --rows 0:{count}={item.source} --rows {count}:=…`",
                )
        clash = (
            next((low for low, high in aligned.unfounded if low < stop and high > item.start), None)
            if aligned
            else None
        )
        if item.source == "combine" and clash is not None:
            raise _misfit(name, f"rows {item}", f"row {clash} is of a token that both sides added: name a side for it")
        for side in _SIDE_NAMES:
            chosen = known.get(side, ()) if item.source == "combine" else known[item.source]
            found[side] += sliced(chosen, item.start, stop)
    # Ranges that end where no side does would drop rows that nobody said anything about.
    lengths = {sum(run.length for run in runs) for runs in known.values()}
    end = sum(run.length for run in found["ours"])
    if end not in lengths:
        last = min(count for count in lengths if count > end) - 1
        missing = f"row {end} is" if last == end else f"rows {end} to {last} are"
        raise UsageError(
            f"{name} cannot be resolved: {missing} in no range",
            hint=f"`mgit resolve {name} {' '.join(f'--rows {item}' for item in ranges)} --rows {end}:=ours`",
        )
    combines = any(item.source == "combine" for item in ranges)
    base = None if combines and "base" not in known else joined(found["base"])
    return viewed(name, RowPlan(base=base, ours=joined(found["ours"]), theirs=joined(found["theirs"])), sides, views)


def _decided(plan: RowPlan, side: SideName) -> RowPlan:
    """`plan` with the rows that have no base taken from `side`."""
    chosen = plan.runs(side) or ()
    runs = [plan.base, plan.ours, plan.theirs]
    for start, stop in plan.unfounded:
        taken = sliced(chosen, start, stop)
        runs = [
            None if old is None else (*sliced(old, 0, start), *taken, *sliced(old, stop, plan.rows)) for old in runs
        ]
    base, ours, theirs = (None if old is None else joined(old) for old in runs)
    return RowPlan(base=base, ours=ours or (), theirs=theirs or ())


def _combined(name: str, sides: Sides) -> Combined:
    base, ours, theirs = sides
    if ours is None or theirs is None:
        raise _misfit(name, COMBINE, "one side removed it")
    if ours[0] != theirs[0]:
        raise _misfit(name, COMBINE, "the sides differ in shape or dtype")
    if not ours[0].kind.is_float:
        raise _misfit(name, COMBINE, f"{ours[0].dtype} values have no mean")
    ancestor = base[1] if base is not None and base[0] == ours[0] else None
    return Combined(parts=TensorParts(name=name, spec=ours[0], base=ancestor, sides=(ours[1], theirs[1])))


def _grown(name: str, sides: Sides, views: RowViews) -> Taken | Viewed:
    base, ours, theirs = sides
    if ours is None or theirs is None:
        raise _misfit(name, GROW_ROWS, "one side removed it")
    specs = [tensor[0] for tensor in sides if tensor is not None]
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
    if not _equal(views, longer[1], shorter[1], prefix.size_bytes, shorter[0].size_bytes):
        raise _misfit(name, GROW_ROWS, "both sides added rows, and not the same ones")
    new = Run("ours" if longer is ours else "theirs", shared, max(rows) - shared)
    found = {side: joined((Run(side, 0, shared), new)) for side in _SIDE_NAMES}
    plan = RowPlan(base=None if base is None else found["base"], ours=found["ours"], theirs=found["theirs"])
    return viewed(name, plan, sides, views)


def _equal(reads: TensorReads, first: TensorId, second: TensorId, start: int, stop: int) -> bool:
    return all(
        reads.read(first, start + low, start + high) == reads.read(second, start + low, start + high)
        for low, high in windows(stop - start)
    )


def _misfit(name: str, how: str, why: str) -> UsageError:
    return UsageError(f"{name} cannot be resolved with {how}: {why}", hint=f"`mgit resolve {name} --take ours`")
