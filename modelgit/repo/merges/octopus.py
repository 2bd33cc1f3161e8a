"""Merges of more than two sides: one base, one strategy that sees all sides at once, one commit with many parents.

What needs a decision that no rule takes stops it: such branches are merged one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import IntegrityError, NothingToDo, RepositoryError
from modelgit.merging.base import STRATEGIES, BoundStrategy, parse_rule
from modelgit.merging.files import merge_file
from modelgit.merging.model import ModelMerge
from modelgit.merging.plan import Side, StoredTensor
from modelgit.merging.plan import plan as make_plan
from modelgit.merging.resolve import ruled_resolutions
from modelgit.merging.tensors import TensorParts
from modelgit.numerics.nonfinite import ValueCounts
from modelgit.objects import CommitId, FileEntry, Manifest, MergeRecipe, TensorId
from modelgit.objects.graph import is_ancestor, merge_bases
from modelgit.objects.merges import Conflict, MergeState, Overlap
from modelgit.progress import SILENT, Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.contents import file_bytes
from modelgit.repo.merges.commit import move_to
from modelgit.repo.merges.files import OpenSide, merged_weights, open_side, store_file
from modelgit.repo.merges.merge import configured_rules, require_head, too_opposed
from modelgit.repo.merges.plan import has_one_vocabulary
from modelgit.repo.merges.state import refuse_during_merge
from modelgit.repo.merges.strategies import ChosenStrategies, choose_strategies, recorded_strategies
from modelgit.repo.merges.tensors import Work, compare_all, statistics_of, store_all
from modelgit.repo.tracking.commit_records import CommitResult, write_commit
from modelgit.repo.tracking.training import training_of
from modelgit.repo.tracking.update import check_clean
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["ManyMerged", "merge_many", "remade_many"]


class ManyMerged(NamedTuple):
    """What a merge of many sides did; `combined` counts tensors that the strategy made."""

    base: CommitId
    sides: tuple[CommitId, ...]
    strategy: str
    combined: int
    overlaps: tuple[Overlap, ...]
    signs: tuple[Overlap, ...]
    notes: tuple[str, ...]
    commit: CommitResult


class _Made(NamedTuple):
    """What a merge of many sides gave, and what its recipe and its report need."""

    ran: ChosenStrategies
    manifest: Manifest
    picked: dict[str, str]
    statistics: dict[str, str]
    notes: list[str]
    overlaps: list[Overlap]
    encodings: Counter[str]
    counted: dict[TensorId, ValueCounts]
    combined: int


class _Settled(NamedTuple):
    """What folding the sides one by one decides: tensors by model, those left to the strategy, and files.

    `picked` are the resolutions, by conflict id, that rules made.
    """

    tensors: dict[str, dict[str, StoredTensor]]
    combined: dict[str, set[str]]
    files: dict[str, FileEntry | bytes]
    adding: OpenSide
    picked: dict[str, str]


def merge_many(
    repo: Repository,
    revisions: Sequence[str],
    *,
    strategy: str | None = None,
    options: Mapping[str, str] | None = None,
    rules: Mapping[str, str] | None = None,
    message: str | None = None,
    gate: str = "block",
    progress: Progress = SILENT,
) -> ManyMerged:
    """Merge two or more revisions into the current branch at once (an octopus).

    Their base is one commit that all have in common.  A tensor that one side alone changed is that side's; the strategy
    makes the others from all sides.  Raises RepositoryError, with nothing changed, for everything that somebody would
    have to decide, NothingToDo when the branch has all of them already.
    """
    with repo.writing():
        refuse_during_merge(repo, "another merge")
        head = require_head(repo)
        found = list(dict.fromkeys(repo.resolve(revision) for revision in revisions))
        theirs = [commit for commit in found if not is_ancestor(commit, head, repo.parents_of)]
        if not theirs:
            raise NothingToDo("the branch has all of these already", hint="`mgit log --graph` shows the history")
        configured = repo.settings.merge
        bound = parse_rule(configured.strategy) if strategy is None else STRATEGIES.get(strategy).bind(options or {})
        texts = {**configured_rules(configured), **(rules or {})}
        base = _common(repo, head, theirs)
        state = MergeState(
            ours=head,
            theirs=theirs[-1],
            base=base,
            message=message or f"Merge {', '.join(revisions)}",
            strategy=bound.name,
            options=bound.recipe,
            rules=texts,
        )
        return _merge(repo, state, base, (head, *theirs), bound, gate, progress)


def _common(repo: Repository, head: CommitId, theirs: Sequence[CommitId]) -> CommitId:
    """One commit that all histories have, the newest that can be found by going from side to side."""
    base = head
    for commit in theirs:
        bases = merge_bases(base, commit, repo.parents_of)
        if not bases:
            raise RepositoryError(
                f"{commit.short} has no commit in common with the others",
                hint=f"`mgit merge {commit.short} --allow-unrelated` merges it by itself",
            )
        base = max(bases, key=lambda item: (repo.commit_at(item).committer.time_s, item))
    return base


def _merge(
    repo: Repository,
    state: MergeState,
    base_id: CommitId,
    commits: tuple[CommitId, ...],
    bound: BoundStrategy,
    gate: str,
    progress: Progress,
) -> ManyMerged:
    with repo.session() as session:
        made = _computed(repo, session, base_id, commits, bound, state.rules, progress)
        manifest, before = made.manifest, repo.manifest_of(state.ours)
        from modelgit.repo.gates.gate import run_gate

        evaluations = run_gate(repo, session, manifest, commits, mode=gate, counted=made.counted, progress=progress)
        result = write_commit(
            repo,
            session,
            manifest,
            before,
            compare_manifests(repo, before, manifest, new_store=session),
            message=state.message,
            parents=commits,
            evaluations=evaluations,
            training=training_of(repo, state.ours),
            encodings=dict(made.encodings),
            recipe=MergeRecipe(
                base=base_id,
                strategy=made.ran.bound.name,
                options=made.ran.bound.recipe,
                rules=made.ran.rule_texts,
                resolutions=made.picked,
                statistics=made.statistics,
                fishers=made.ran.used,
            ),
        )
        check_clean(repo, before, manifest, verb="merging", hint="`mgit commit -m …` or `mgit restore .` first")
        session.seal()
    move_to(repo, state.head, result.id, verb="merge", session=session, progress=progress)
    signs = too_opposed(made.overlaps, repo.settings.merge.sign_limit)
    made_at = result._replace(branch=repo.view().branch)
    return ManyMerged(
        base_id, commits, made.ran.bound.name, made.combined, tuple(made.overlaps), signs, tuple(made.notes), made_at
    )


def remade_many(
    repo: Repository, commits: Sequence[CommitId], recipe: MergeRecipe, *, progress: Progress = SILENT
) -> Manifest:
    """The manifest that the recipe of a merge of many sides gives again; nothing is kept."""
    if recipe.base is None:
        raise IntegrityError("the recipe of a merge of many sides names no common commit")
    with repo.session() as session:
        bound = STRATEGIES.get(recipe.strategy).bind(recipe.options)
        made = _computed(repo, session, recipe.base, commits, bound, recipe.rules, progress, recipe=recipe)
        session.abort()
    return made.manifest


def _computed(
    repo: Repository,
    session: PackSession,
    base_id: CommitId,
    commits: Sequence[CommitId],
    bound: BoundStrategy,
    rules: dict[str, str],
    progress: Progress,
    *,
    recipe: MergeRecipe | None = None,
) -> _Made:
    """Make and store what merging `commits` gives; with the `recipe` of an earlier merge from what that one found."""
    base = open_side(repo, repo.manifest_of(base_id))
    sides = [open_side(repo, repo.manifest_of(commit)) for commit in commits]
    manifests = [base.manifest, *(side.manifest for side in sides)]
    for model in sorted(sides[0].side.models):
        if not has_one_vocabulary(repo, [found for found in manifests if _has(found, model)], model):
            raise RepositoryError(
                f"a side has another vocabulary of {model}, and only merges of two match rows by token",
                hint="merge them one after the other: `mgit merge BRANCH`",
            )
    settled = _fold(repo, base, sides, rules)
    models = sorted(model for model, names in settled.combined.items() if names)
    notes: list[str] = []
    labelled = [(f"side {number}", side.manifest) for number, side in enumerate(sides, 1)]
    if recipe is None:
        ran = choose_strategies(repo, bound, rules, labelled, base.manifest, models, notes=notes, progress=progress)
    else:
        ran = recorded_strategies(repo, recipe)
    made = _Made(ran, Manifest(), settled.picked, {}, notes, [], Counter(), {}, 0)
    reads = repo.reader(session)
    for model in models:
        parts = [
            TensorParts(
                name=name,
                spec=sides[0].side.models[model][name][0],
                base=base.side.models[model][name][1],
                sides=tuple(side.side.models[model][name][1] for side in sides),
            )
            for name in sorted(settled.combined[model])
        ]
        overlaps, split = compare_all(reads, model, parts, progress)
        run = ModelMerge(
            reads,
            parts,
            ran.bound,
            rules=ran.rules,
            fishers=ran.fishers.get(model, ()),
            split=split,
            statistics=None if recipe is None else statistics_of(recipe.statistics, model),
        )
        made.overlaps.extend(item for item in overlaps if not run.strategy_of(item.name).strategy.exact)
        made.statistics.update({f"{model}|{key}": value for key, value in run.statistics.items()})
        notes += [note for note in run.notes if note not in notes]
        writer = repo.writer(session, progress=progress)
        stored = store_all(reads, writer, run, Work({}, parts, {}), made.encodings, made.counted, progress)
        settled.tensors[model].update(stored)
    combined = sum(len(names) for names in settled.combined.values())
    return made._replace(manifest=_manifest(repo, session, sides[0], settled), combined=combined)


def _has(manifest: Manifest, model: str) -> bool:
    return any(entry.path == model for entry in manifest.models)


def _fold(repo: Repository, base: OpenSide, sides: Sequence[OpenSide], rules: Mapping[str, str]) -> _Settled:
    """Decide what ids decide, side by side: each is planned against what those before it came to.

    A tensor in conflict is what the rule of its name picks: ours, the base, or theirs, the last of the sides.
    """
    tensors = {model: dict(found) for model, found in sides[0].side.models.items()}
    files: dict[str, FileEntry | bytes] = {
        entry.path: entry for entry in sides[0].manifest.files if entry.path not in sides[0].weights
    }
    ids = dict(sides[0].side.files)
    combined: dict[str, set[str]] = {}
    adding = sides[0]
    picked: dict[str, str] = {}
    picks = {"ours": sides[0], "theirs": sides[-1], "base": base}
    for side in sides[1:]:
        plan = make_plan(base.side, Side(manifest=sides[0].side.manifest, models=tensors, files=ids), side.side)
        conflicts = [conflict for conflict in plan.conflicts if conflict.id not in picked]
        ruled = ruled_resolutions(conflicts, rules)
        _refuse([conflict for conflict in conflicts if conflict.id not in ruled])
        picked |= ruled
        for conflict in conflicts:
            taken = (
                picks[ruled[conflict.id].removeprefix("take ")].side.models.get(conflict.path, {}).get(conflict.item)
            )
            combined.get(conflict.path, set()).discard(conflict.item)
            if taken is None:
                tensors[conflict.path].pop(conflict.item, None)
            else:
                tensors[conflict.path][conflict.item] = taken
        for item in plan.tensors:
            if f"{item.model}:{item.name}" in picked:
                continue
            theirs = side.side.models.get(item.model, {}).get(item.name)
            if item.action == "combine":
                combined.setdefault(item.model, set()).add(item.name)
            elif item.action == "theirs" and item.name not in combined.get(item.model, ()):
                if item.name not in sides[0].place.get(item.model, {}):
                    if adding not in (sides[0], side):
                        raise RepositoryError(
                            f"two of the branches add tensors to {item.model}", hint="merge them one after the other"
                        )
                    adding = side
                found = tensors.setdefault(item.model, {})
                if theirs is None:
                    found.pop(item.name, None)
                else:
                    found[item.name] = theirs
        for decision in plan.files:
            path = decision.path
            entry = side.manifest.file(path)
            if decision.action == "theirs":
                files.pop(path, None) if entry is None else files.__setitem__(path, entry)
                ids.pop(path, None) if entry is None else ids.__setitem__(path, entry.digest)
            elif decision.action in ("combine", "conflict"):
                merged = merge_file(
                    path, *(_bytes(repo, item) for item in (base.manifest.file(path), files.get(path), entry))
                )
                _refuse(merged.conflicts)
                files[path] = merged.content or b""
    return _Settled(tensors, combined, files, adding, picked)


def _refuse(conflicts: Sequence[Conflict]) -> None:
    if conflicts:
        first = conflicts[0]
        rule = f"`--strategy '{first.item}=ours'` takes yours" if first.item and first.kind != "key" else ""
        raise RepositoryError(
            f"these branches conflict ({first.id}: {first.kind}), and a merge of many sides takes no decisions"
            + (" but those of rules" if rule else ""),
            hint=f"{rule}; or merge them one after the other"
            if rule
            else "merge them one after the other: `mgit merge BRANCH`",
        )


def _bytes(repo: Repository, item: FileEntry | bytes | None) -> bytes | None:
    if item is None or isinstance(item, bytes):
        return item
    return file_bytes(repo, item.digest)


def _manifest(repo: Repository, session: PackSession, ours: OpenSide, settled: _Settled) -> Manifest:
    weights, models = merged_weights(repo, session, ours, settled.adding, settled.tensors)
    entries = list(weights)
    for path, item in settled.files.items():
        entries.append(
            store_file(repo, session, path, item, ours.manifest.file(path)) if isinstance(item, bytes) else item
        )
    return Manifest(files=tuple(sorted(entries, key=lambda entry: entry.path)), models=tuple(models))
