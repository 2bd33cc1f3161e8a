"""The commit of a merge: its tensors and files become a manifest, the gate looks at it, and the root moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.errors import MergeConflicts
from modelgit.merging.base import STRATEGIES, BoundStrategy
from modelgit.objects import CommitId, Manifest, MergeRecipe
from modelgit.objects.merges import MergeState, Overlap
from modelgit.progress import SILENT, Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.merges.files import merged_files, merged_weights, open_side
from modelgit.repo.merges.plan import Planned, plan_sides
from modelgit.repo.merges.tensors import MergedTensors, merge_tensors
from modelgit.repo.tracking.commit_records import CommitResult, write_commit
from modelgit.repo.tracking.training import training_of
from modelgit.repo.tracking.update import check_clean, move_worktree
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.merges.merge import Sides
    from modelgit.repo.repository import Repository

__all__ = ["MergedCommit", "make_commit", "merged_manifest", "move_to", "remade", "virtual_base"]


class MergedCommit(NamedTuple):
    """The commit of a merge, with what there is to say about it; `strategy` is the one that ran."""

    result: CommitResult
    strategy: str
    overlaps: tuple[Overlap, ...]
    notes: tuple[str, ...]


def make_commit(
    repo: Repository,
    state: MergeState,
    sides: Sides,
    planned: Planned,
    bound: BoundStrategy,
    *,
    gate: str,
    keep: bool = True,
    progress: Progress,
) -> MergedCommit | None:
    """Compute, check and record the merge.

    The work tree and the branch move unless more is `todo`, or nothing is to be kept.

    None for a pick that changes nothing.  Raises GateRefused (nothing recorded, nothing moved) when the merged model
    breaks a limit.
    """
    start = repo.manifest_of(state.head)
    with repo.session() as session:
        tensors = merge_tensors(repo, session, state, sides, planned, bound, progress)
        manifest, before = _manifest_of(repo, session, sides, planned, tensors), sides.ours.manifest
        if state.verb and (manifest.files, manifest.models) == (before.files, before.models):
            session.abort()
            return None
        from modelgit.repo.gates.gate import run_gate

        parents = (state.ours,) if state.verb else (state.ours, state.theirs)
        evaluations = run_gate(repo, session, manifest, parents, mode=gate, counted=tensors.counted, progress=progress)
        result = write_commit(
            repo,
            session,
            manifest,
            before,
            compare_manifests(repo, before, manifest, new_store=session),
            message=state.message,
            parents=parents,
            author=state.author or None,
            evaluations=evaluations,
            training=training_of(repo, state.ours),
            encodings=tensors.encodings,
            trailers={state.verb: str(state.source)} if state.source is not None else None,
            recipe=MergeRecipe(
                base=sides.base_id,
                strategy=tensors.ran.bound.name,
                options=tensors.ran.bound.recipe,
                rules=tensors.ran.rule_texts,
                resolutions=state.resolutions,
                statistics=tensors.statistics,
                fishers=tensors.ran.used,
                theirs=state.theirs if state.verb else None,
            ),
        )
        made = MergedCommit(result, tensors.ran.bound.name, tensors.overlaps, tensors.notes)
        if not keep:
            session.abort()
            return made
        verb = "merging" if not state.verb else f"the {state.verb}"
        check_clean(
            repo,
            start,
            manifest,
            verb=verb,
            hint="`mgit commit -m …` first, or `mgit restore .` to give the changes up",
        )
        session.seal()
    if state.todo:
        return made
    move_to(repo, state.head, result.id, verb=state.name, session=session, progress=progress)
    return made._replace(result=result._replace(branch=repo.view().branch))


def move_to(
    repo: Repository,
    start: CommitId,
    commit: CommitId,
    *,
    verb: str,
    session: PackSession | None = None,
    progress: Progress = SILENT,
) -> None:
    """Bring the work tree and the current branch from `start`, where they are, to `commit`."""
    view = repo.view()
    move_worktree(
        repo,
        repo.manifest_of(start),
        repo.manifest_of(commit),
        description=f"{verb}: {repo.commit_at(commit).subject}",
        view=view,
        after=view.with_head(commit),
        session=session,
        progress=progress,
    )


def virtual_base(
    repo: Repository, bases: Sequence[CommitId], state: MergeState, *, progress: Progress = SILENT
) -> Manifest:
    """One common ancestor made of several, each merged with the next as `state` says, oldest first.

    So histories that merged each other meet at what these merges made, and a change that came over either way counts
    once.  What conflicts is the newer base's.  The result is in no commit; garbage collection takes it.
    """
    from modelgit.repo.merges.merge import open_sides

    ordered = sorted(bases, key=lambda commit: (repo.commit_at(commit).committer.time_s, commit))
    bound = STRATEGIES.get(state.strategy).bind(state.options)
    merged, manifest = ordered[0], repo.manifest_of(ordered[0])
    for commit in ordered[1:]:
        sides = open_sides(repo, merged, commit, virtual=lambda found: virtual_base(repo, found, state))
        sides = sides._replace(ours=open_side(repo, manifest))
        planned, taken = plan_sides(repo, sides, {}), dict[str, str]()
        while planned.still_open(taken):
            taken |= {conflict.id: "take theirs" for conflict in planned.still_open(taken)}
            planned = plan_sides(repo, sides, taken)
        with repo.session() as session:
            inner = msgspec.structs.replace(state, resolutions=taken)
            tensors = merge_tensors(repo, session, inner, sides, planned, bound, progress)
            manifest = _manifest_of(repo, session, sides, planned, tensors)
            session.seal()
        merged = commit
    return manifest


def merged_manifest(
    repo: Repository,
    session: PackSession,
    state: MergeState,
    sides: Sides,
    planned: Planned,
    bound: BoundStrategy,
    progress: Progress = SILENT,
) -> Manifest:
    """What a merge without conflicts would give, its tensors written to `session`."""
    tensors = merge_tensors(repo, session, state, sides, planned, bound, progress)
    return _manifest_of(repo, session, sides, planned, tensors)


def _manifest_of(
    repo: Repository,
    session: PackSession,
    sides: Sides,
    planned: Planned,
    tensors: MergedTensors,
) -> Manifest:
    """The manifest of merged tensors and files."""
    weights, models = merged_weights(repo, session, sides.ours, sides.theirs, tensors.final)
    files = merged_files(repo, session, sides.ours, sides.theirs, planned.plan, planned.contents)
    return Manifest(files=tuple(sorted([*weights, *files], key=lambda entry: entry.path)), models=tuple(models))


def remade(repo: Repository, state: MergeState, recipe: MergeRecipe, sides: Sides, *, progress: Progress) -> Manifest:
    """The manifest that a recipe gives again; nothing is kept.

    Raises MergeConflicts when conflicts are open that the recipe has no word on.
    """
    planned = plan_sides(repo, sides, state.resolutions)
    still_open = planned.still_open(state.resolutions)
    if still_open:
        raise MergeConflicts(f"the recipe does not decide {still_open[0].id}", conflicts=still_open)
    bound = STRATEGIES.get(recipe.strategy).bind(recipe.options)
    with repo.session() as session:
        tensors = merge_tensors(repo, session, state, sides, planned, bound, progress, recipe=recipe)
        manifest = _manifest_of(repo, session, sides, planned, tensors)
        session.abort()
    return manifest
