"""The plan of a three-way merge, from ids alone: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelgit.objects import ContentId, ManifestId, TensorId, TensorSpec
from modelgit.objects.merges import Action, Conflict, ConflictKind, FileDecision, MergePlan, TensorDecision

__all__ = ["Side", "StoredTensor", "plan"]

StoredTensor = tuple[TensorSpec, TensorId]

_REASONS: dict[tuple[bool, bool], str] = {
    (False, True): "added",
    (True, False): "removed",
    (True, True): "changed",
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the three manifests of a merge, opened as far as planning needs.

    `models` maps a model's path to its tensors by logical name; `files` holds every file that is not one of a
    model's weight files.  `manifest` is None for the empty side (no common ancestor).
    """

    manifest: ManifestId | None = None
    models: Mapping[str, Mapping[str, StoredTensor]] = field(default_factory=dict)
    files: Mapping[str, ContentId] = field(default_factory=dict)


def plan(base: Side, ours: Side, theirs: Side) -> MergePlan:
    """Decide what ids decide: what only one side changed, and what both changed alike, resolves itself.

    Integers, booleans and packed bits that both sides changed conflict: such values are counters, tables and codes that
    have no mean.  Without any common ancestor, tensors of equal shape and dtype are combined and not called added
    twice.
    """
    tensors: list[TensorDecision] = []
    conflicts: list[Conflict] = []
    for model in sorted({*base.models, *ours.models, *theirs.models}):
        found = _plan_model(
            model,
            base.models.get(model),
            ours.models.get(model),
            theirs.models.get(model),
            unrelated=base.manifest is None,
        )
        tensors += found[0]
        conflicts += found[1]
    files = []
    for path in sorted({*base.files, *ours.files, *theirs.files}):
        decision, conflict = _plan_file(path, base.files.get(path), ours.files.get(path), theirs.files.get(path))
        files.append(decision)
        conflicts += conflict
    return MergePlan(
        base=base.manifest,
        ours=ours.manifest,
        theirs=theirs.manifest,
        tensors=tuple(tensors),
        files=tuple(files),
        conflicts=tuple(conflicts),
    )


def _settled(base: object, ours: object, theirs: object) -> tuple[Action, str] | None:
    """The part of a three-way merge that is the same for tensors and files; None where both changed differently."""
    if ours == theirs:
        if ours == base:
            return "keep", "unchanged"
        return "both-same", f"{_REASONS[base is not None, ours is not None]} alike on both sides"
    if ours == base:
        return "theirs", f"{_REASONS[base is not None, theirs is not None]} on theirs only"
    if theirs == base:
        return "ours", f"{_REASONS[base is not None, ours is not None]} on ours only"
    return None


def _plan_model(
    model: str,
    base: Mapping[str, StoredTensor] | None,
    ours: Mapping[str, StoredTensor] | None,
    theirs: Mapping[str, StoredTensor] | None,
    *,
    unrelated: bool,
) -> tuple[list[TensorDecision], list[Conflict]]:
    """All tensors of one model; a model that one side deleted, or that both added, is one conflict and not hundreds."""
    b, o, t = base or {}, ours or {}, theirs or {}
    names = sorted({*b, *o, *t})
    if base is not None and (ours is None) != (theirs is None) and (o or t) != b:
        reason = "model deleted on " + ("ours, changed on theirs" if ours is None else "theirs, changed on ours")
        conflict = Conflict(path=model, kind="deleted-changed", ours=_count(ours), theirs=_count(theirs))
        return [TensorDecision(model=model, name=n, action="conflict", reason=reason) for n in names], [conflict]
    decisions: list[TensorDecision] = []
    conflicts: list[Conflict] = []
    for name in names:
        action, reason, kind = _plan_tensor(b.get(name), o.get(name), t.get(name), unrelated)
        decisions.append(TensorDecision(model=model, name=name, action=action, reason=reason))
        if kind is not None:
            texts = {"ours": _describe(o.get(name), kind), "theirs": _describe(t.get(name), kind)}
            conflicts.append(Conflict(path=model, item=name, kind=kind, **texts))
    if conflicts and base is None and not unrelated:
        conflicts = [Conflict(path=model, kind="added-added", ours=_count(ours), theirs=_count(theirs))]
    return decisions, conflicts


def _plan_tensor(
    base: StoredTensor | None,
    ours: StoredTensor | None,
    theirs: StoredTensor | None,
    unrelated: bool,
) -> tuple[Action, str, ConflictKind | None]:
    settled = _settled(base, ours, theirs)
    if settled is not None:
        return *settled, None
    if ours is None or theirs is None:
        where = "ours, changed on theirs" if ours is None else "theirs, changed on ours"
        return "conflict", f"removed on {where}", "deleted-changed"
    if ours[0].dtype != theirs[0].dtype:
        return "conflict", "dtypes differ", "dtype"
    if ours[0].shape != theirs[0].shape:
        return "conflict", "shapes differ", "shape"
    if base is None and not unrelated:
        return "conflict", "added on both sides", "added-added"
    if base is not None and base[0].dtype != ours[0].dtype:
        return "conflict", "both sides changed the dtype", "dtype"
    if base is not None and base[0].shape != ours[0].shape:
        return "conflict", "both sides changed the shape", "shape"
    if not ours[0].kind.is_float:
        return "conflict", f"both changed {ours[0].dtype} values, which have no mean", "integer"
    return "combine", "changed on both sides" if base is not None else "no common ancestor", None


def _plan_file(
    path: str, base: ContentId | None, ours: ContentId | None, theirs: ContentId | None
) -> tuple[FileDecision, list[Conflict]]:
    settled = _settled(base, ours, theirs)
    if settled is not None:
        return FileDecision(path=path, action=settled[0], reason=settled[1]), []
    if ours is None or theirs is None:
        where = "ours, changed on theirs" if ours is None else "theirs, changed on ours"
        conflict = Conflict(
            path=path,
            kind="deleted-changed",
            ours="deleted" if ours is None else "changed",
            theirs="deleted" if theirs is None else "changed",
        )
        return FileDecision(path=path, action="conflict", reason=f"deleted on {where}"), [conflict]
    reason = "changed on both sides" if base is not None else "added on both sides"
    return FileDecision(path=path, action="combine", reason=reason), []


def _describe(tensor: StoredTensor | None, kind: ConflictKind) -> str:
    if tensor is None:
        return "deleted"
    spec = tensor[0]
    if kind == "shape":
        return str(list(spec.shape))
    if kind == "dtype":
        return spec.dtype
    return f"{spec.dtype} {list(spec.shape)}"


def _count(tensors: Mapping[str, StoredTensor] | None) -> str:
    return "deleted" if tensors is None else f"{len(tensors)} tensors"
