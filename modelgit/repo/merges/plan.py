"""What a merge would do: decisions by id, small files merged, vocabularies matched by token, and all conflicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.amounts import counted
from modelgit.merging.files import merge_file
from modelgit.merging.learned import FIRST, Clash
from modelgit.merging.plan import plan as make_plan
from modelgit.merging.resolve import Sides as TensorSides
from modelgit.merging.resolve import Viewed, viewed
from modelgit.merging.rows import RowPlan, RowViews
from modelgit.merging.sentencepiece import FILES
from modelgit.merging.vocabulary import (
    VOCABULARY_FILES,
    Tables,
    Vocabulary,
    is_token_table,
    merge_vocabularies,
    read_vocabulary,
    row_plan,
    stretches,
)
from modelgit.merging.vocabulary_files import LEARNED, NAMES, Versions, aligned_versions, read_offsets, unreached
from modelgit.objects import Manifest
from modelgit.objects.merges import Action, Conflict, MergePlan, Resolution, SideName, TensorDecision
from modelgit.objects.paths import join_path
from modelgit.repo.contents import file_bytes

if TYPE_CHECKING:
    from modelgit.repo.merges.merge import Sides
    from modelgit.repo.repository import Repository

__all__ = ["Planned", "has_one_vocabulary", "plan_sides"]

_SHOWN = 24


class Planned(NamedTuple):
    """A plan with all of its conflicts, open or decided; the contents of small files that are settled (None: gone).

    `aligned` says by model and tensor how the rows of tables are matched; `notes` are sentences about vocabularies.
    """

    plan: MergePlan
    contents: Mapping[str, bytes | None]
    aligned: Mapping[str, Mapping[str, RowPlan]]
    notes: tuple[str, ...] = ()

    def still_open(self, resolutions: Mapping[str, str]) -> tuple[Conflict, ...]:
        """The conflicts that nothing in `resolutions` decides; a side that is taken decides all of a file."""
        taken = {name for name, text in resolutions.items() if Resolution.parse(text).take is not None}
        return tuple(
            c
            for c in self.plan.conflicts
            if c.path not in taken and (c.id not in resolutions or (c.kind == "vocabulary" and c.id not in taken))
        )

    def with_conflicts(self, more: Sequence[Conflict]) -> Planned:
        """The same with `more` conflicts of tensors that could be combined."""
        if not more:
            return self
        plan = msgspec.structs.replace(self.plan, conflicts=(*self.plan.conflicts, *more))
        return self._replace(plan=plan)


class _Aligned(NamedTuple):
    """One model's vocabulary: decisions for its tables, versions of its files, and what cannot be matched."""

    tables: Mapping[str, RowPlan]
    decisions: Mapping[str, TensorDecision]
    versions: Mapping[str, Versions]
    conflicts: tuple[Conflict, ...]
    merged: Vocabulary | None
    folder: str
    model: str


class _Known(NamedTuple):
    """The vocabularies of the sides."""

    base: Vocabulary | None
    ours: Vocabulary
    theirs: Vocabulary


def plan_sides(repo: Repository, sides: Sides, resolutions: Mapping[str, str]) -> Planned:
    """Plan a merge; of weights only rows of tokens that both sides added are read.

    `resolutions` decide conflicts of files by their id.
    """
    plan = make_plan(sides.base.side, sides.ours.side, sides.theirs.side)
    aligned = {}
    for model in sorted({*sides.ours.side.models} & {*sides.theirs.side.models}):
        found = _align(repo, sides, plan, model, resolutions)
        if found is not None:
            aligned[model] = found
    versions = {path: three for item in aligned.values() for path, three in item.versions.items()}
    contents, conflicts = _merge_files(repo, sides, plan, resolutions, versions)
    notes = []
    for item in aligned.values():
        conflicts += item.conflicts or _checked(repo, sides, plan, item, contents)
        notes += _notes(repo, sides, item, contents)
    decided = {(model, name): item.decisions[name] for model, item in aligned.items() for name in item.decisions}
    kept = tuple(conflict for conflict in plan.conflicts if (conflict.path, conflict.item) not in decided)
    tensors = tuple(decided.get((decision.model, decision.name), decision) for decision in plan.tensors)
    plan = msgspec.structs.replace(plan, tensors=tensors, conflicts=(*kept, *conflicts))
    return Planned(plan, contents, {model: item.tables for model, item in aligned.items()}, tuple(notes))


def _vocabulary_of(repo: Repository, manifest: Manifest, model: str) -> Vocabulary | None:
    """The vocabulary of a model, by the files beside its weights."""
    folder = _folder(manifest, model)
    found = {name: _bytes(repo, manifest, join_path(folder, name)) for name in VOCABULARY_FILES}
    return read_vocabulary({name: data for name, data in found.items() if data is not None})


def has_one_vocabulary(repo: Repository, manifests: Sequence[Manifest], model: str) -> bool:
    """Whether the rows of a model's tables are the same tokens everywhere, as far as files say."""
    paths = [join_path(_folder(manifests[0], model), name) for name in VOCABULARY_FILES]
    if all(len({entry and entry.digest for entry in (m.file(path) for m in manifests)}) == 1 for path in paths):
        return True
    known = [_vocabulary_of(repo, manifest, model) for manifest in manifests]
    return len({None if item is None else frozenset(item.ids.items()) for item in known}) == 1


def _folder(manifest: Manifest, model: str) -> str:
    entry = manifest.model(model)
    if entry is not None and model in entry.weights:
        return PurePosixPath(model).parent.as_posix()
    return model


def _align(
    repo: Repository, sides: Sides, plan: MergePlan, model: str, resolutions: Mapping[str, str]
) -> _Aligned | None:
    """Match the rows of a model's tables by token; None where all sides have one vocabulary, or it cannot be read."""
    folder = _folder(sides.ours.manifest, model)
    paths = {join_path(folder, name) for name in VOCABULARY_FILES}
    if not any(file.action != "keep" and file.path in paths for file in plan.files):
        return None
    manifests = [side.manifest for side in (sides.base, sides.ours, sides.theirs)]
    base, ours, theirs = (_vocabulary_of(repo, manifest, model) for manifest in manifests)
    if ours is None or theirs is None or (ours.ids == theirs.ids and (base is None or base.ids == ours.ids)):
        return None
    if base is None and sides.base.side.models.get(model):
        return None  # rows of the base have no names, so that they can be matched by number alone
    known = _Known(base, ours, theirs)
    source = join_path(folder, ours.source)
    resolution = Resolution.parse(resolutions[source]) if source in resolutions else Resolution()
    taken = resolution.take
    first = FIRST.get(resolution.value or "") if taken is None else taken
    found = merge_vocabularies(base, ours, theirs)
    clash = found if isinstance(found, Clash) else _lonely(sides, model, known, found)
    conflicts = () if clash is None else (Conflict(path=source, kind="vocabulary", ours=clash[0], theirs=clash[1]),)
    side = {"ours": ours, "theirs": theirs, "base": base}[taken] if taken is not None else None
    merged = side if side is not None else found
    if isinstance(merged, Clash) or (clash is not None and side is None):
        # Until one is taken, what else differs in these files is no question of its own.
        paths_kept = [join_path(folder, name) for name in NAMES if not name.endswith("config.json")]
        kept = {path: (_bytes(repo, manifests[1], path),) * 3 for path in paths_kept}
        return _Aligned({}, {}, kept, conflicts, None, folder, model)
    tables, decisions, more = _match(repo, sides, plan, model, known, merged, taken)
    versions: dict[str, Versions] = {}
    learned: list[Conflict] = []
    differ = ours.ids != theirs.ids and (base is None or base.ids not in (ours.ids, theirs.ids))
    height = max((table.rows for table in tables.values()), default=None)
    for name in NAMES:
        path = join_path(folder, name)
        three = _three(repo, manifests, path)
        if taken is not None and not name.endswith("config.json"):
            whole = three[("base", "ours", "theirs").index(taken)]
            versions[path] = (whole, whole, whole)
        elif taken is not None or differ or (name in LEARNED and three[0] is not None and len({*three}) == len(three)):
            aligned = aligned_versions(name, three, known, merged, height, first=first)
            if isinstance(aligned, Clash):
                words = {"ours": f"{aligned.ours} in {name}", "theirs": aligned.theirs}
                learned.append(Conflict(path=source, kind="learned", **words))
                # Whatever else is in conflict in the file is shown at once.
                aligned = aligned_versions(name, three, known, merged, height, first="ours")
            versions[path] = three if isinstance(aligned, Clash) else aligned
    return _Aligned(tables, decisions, versions, (*conflicts, *learned[:1], *more), merged, folder, model)


def _three(repo: Repository, manifests: Sequence[Manifest], path: str) -> Versions:
    """A file on base, ours and theirs."""
    base, ours, theirs = (_bytes(repo, manifest, path) for manifest in manifests)
    return base, ours, theirs


def _lonely(sides: Sides, model: str, known: _Known, merged: Vocabulary) -> Clash | None:
    """What to say of a table that one side alone has, so that nothing gives the rows of tokens that it lacks."""
    ours, theirs = (side.side.models[model] for side in (sides.ours, sides.theirs))
    for mine, other, vocabulary in ((ours, theirs, known.ours), (theirs, ours, known.theirs)):
        if merged.ids == vocabulary.ids:
            continue
        for name in sorted(set(mine) - set(other)):
            if is_token_table(name, mine[name][0].shape, vocabulary):
                words = (f"has {name}", "has other tokens and no such table")
                return Clash(*words) if mine is ours else Clash(words[1], words[0])
    return None


def _match(
    repo: Repository,
    sides: Sides,
    plan: MergePlan,
    model: str,
    known: _Known,
    merged: Vocabulary,
    taken: SideName | None,
) -> tuple[dict[str, RowPlan], dict[str, TensorDecision], list[Conflict]]:
    """Where the rows of each table of a model are, and what becomes of it."""
    views = RowViews(repo.reader())
    plans: dict[str, RowPlan] = {}
    decisions: dict[str, TensorDecision] = {}
    conflicts: list[Conflict] = []
    for decision in plan.tensors:
        name = decision.name
        tensor = TensorSides(
            *(side.side.models.get(model, {}).get(name) for side in (sides.base, sides.ours, sides.theirs))
        )
        if (
            decision.model != model
            or not _is_table(name, tensor, known)
            or tensor.ours is None
            or tensor.theirs is None
        ):
            continue
        rows = Tables(
            None if tensor.base is None else tensor.base[0].shape[0],
            tensor.ours[0].shape[0],
            tensor.theirs[0].shape[0],
        )
        found = row_plan(merged, *known, rows, like=taken)
        side, height = (known.theirs, rows.theirs) if decision.action == "theirs" else (known.ours, rows.ours)
        if decision.action not in ("combine", "conflict") and side.ids == merged.ids and height == found.rows:
            continue
        unfounded = _differing(views, name, found, tensor)
        plans[name] = found = replace(found, unfounded=unfounded)
        action: Action = "conflict" if unfounded else "combine"
        decisions[name] = TensorDecision(model=model, name=name, action=action, reason="rows are matched by token")
        if unfounded:
            tokens = {row: token for token, row in merged.ids.items()}
            count = sum(stop - start for start, stop in unfounded)
            more = f" and {count - 1} more" if count > 1 else ""
            first = tokens[unfounded[0][0]][:_SHOWN]
            conflicts.append(
                Conflict(
                    path=model, item=name, kind="tokens", ours=f"{first!r}{more}", theirs="the same, with other values"
                )
            )
    return plans, decisions, conflicts


def _is_table(name: str, tensor: TensorSides, known: _Known) -> bool:
    pairs = [(stored[0], side) for stored, side in zip(tensor, known, strict=True) if stored is not None]
    if len({(spec.dtype, spec.shape[1:]) for spec, _ in pairs}) != 1:
        return False
    return all(side is not None and is_token_table(name, spec.shape, side) for spec, side in pairs)


def _differing(views: RowViews, name: str, plan: RowPlan, tensor: TensorSides) -> tuple[tuple[int, int], ...]:
    """The rows without a base that are not the same on both sides."""
    table = viewed(name, plan, tensor, views) if plan.unfounded else None
    if not isinstance(table, Viewed) or table.parts is None:
        return ()
    width = table.spec.size_bytes // table.spec.shape[0]
    rows = [
        row
        for start, stop in plan.unfounded
        for row in range(start, stop)
        if len({bytes(views.read(side, row * width, (row + 1) * width)) for side in table.parts.sides}) > 1
    ]
    return stretches(rows)


def _checked(
    repo: Repository, sides: Sides, plan: MergePlan, item: _Aligned, contents: Mapping[str, bytes | None]
) -> list[Conflict]:
    """A conflict where the merged tokenizer does not name the rows as the merged tables have them."""
    if item.merged is None:
        return []
    actions = {file.path: file.action for file in plan.files}
    found: dict[str, bytes] = {}
    for name in VOCABULARY_FILES:
        path = join_path(item.folder, name)
        if path not in contents and actions.get(path) in ("combine", "conflict"):
            return []  # it is in conflict itself
        side = sides.theirs if actions.get(path) == "theirs" else sides.ours
        data = contents[path] if path in contents else _bytes(repo, side.manifest, path)
        if data is not None:
            found[name] = data
    made = read_vocabulary(found)
    if made is not None and made.ids == item.merged.ids:
        return _displaced(repo, sides, item, contents)
    lost = next((token for token, row in item.merged.ids.items() if made is None or made.ids.get(token) != row), "")
    words = f"{lost[:_SHOWN]!r} would have another row" if lost else "there would be tokens without a row"
    return [
        Conflict(path=join_path(item.folder, item.merged.source), kind="vocabulary", ours=words, theirs="changed too")
    ]


def _displaced(repo: Repository, sides: Sides, item: _Aligned, contents: Mapping[str, bytes | None]) -> list[Conflict]:
    """A conflict where a piece of a merged SentencePiece file has another distance to its row than on its side."""
    if item.merged is None:
        return []
    manifests = [sides.ours.manifest, sides.theirs.manifest]
    for name in FILES:
        path = join_path(item.folder, name)
        data = [contents.get(path), *(_bytes(repo, manifest, path) for manifest in manifests)]
        if len({*data}) < len(data) or None in data:
            continue  # not a file that was made of both
        known = [_vocabulary_of(repo, manifest, item.model) for manifest in manifests]
        merged, *before = (read_offsets(file, ids) for file, ids in zip(data, [item.merged, *known], strict=True))
        for side in reversed(before):
            moved = next((piece for piece, offset in side.items() if merged.get(piece) != offset), None)
            if moved is not None:
                words = f"{moved[:_SHOWN]!r} would have another row than {name} says"
                return [
                    Conflict(
                        path=join_path(item.folder, item.merged.source),
                        kind="vocabulary",
                        ours=words,
                        theirs="changed too",
                    )
                ]
    return []


def _notes(repo: Repository, sides: Sides, item: _Aligned, contents: Mapping[str, bytes | None]) -> list[str]:
    """What the merged tokenizer does no longer, though a side's own did."""
    path = join_path(item.folder, "tokenizer.json")
    three = _three(repo, [sides.base.manifest, sides.ours.manifest, sides.theirs.manifest], path)
    made = contents.get(path)
    if made is None or None in three or made in three:
        return []
    lost = unreached(three, made)
    if not lost:
        return []
    words = f"{counted(len(lost), 'token')}" if len(lost) > 1 else "a token"
    return [f"{path}: no text gives {words} any more, whose parts merges of the other side take first ({lost[0]!a})"]


def _merge_files(
    repo: Repository,
    sides: Sides,
    plan: MergePlan,
    resolutions: Mapping[str, str],
    versions: Mapping[str, Versions],
) -> tuple[dict[str, bytes | None], list[Conflict]]:
    """Merge every file that both sides changed: the contents of those that are settled, and all conflicts of files.

    `versions` are other contents of the three sides, of files of any kind.
    """
    contents: dict[str, bytes | None] = {}
    conflicts: list[Conflict] = []
    for decision in plan.files:
        path = decision.path
        if decision.action not in ("combine", "conflict") and path not in versions:
            continue
        three = versions.get(path) or (
            *(_bytes(repo, side.manifest, path) for side in (sides.base, sides.ours, sides.theirs)),
        )
        given = {
            key[len(path) + 1 :]: Resolution.parse(text)
            for key, text in resolutions.items()
            if key == path or key.startswith(path + ":")
        }
        if path in versions and given.get("", Resolution()).value in FIRST:
            given.pop("")  # it has decided what the versions are
        merged = merge_file(path, three[0], three[1], three[2], resolutions=given)
        if merged.conflicts:
            conflicts += merged.conflicts
        else:
            contents[path] = merged.content
    return contents, conflicts


def _bytes(repo: Repository, manifest: Manifest, path: str) -> bytes | None:
    entry = manifest.file(path)
    return None if entry is None else file_bytes(repo, entry.digest)
