"""`merge`: what only one side changed resolves itself, a strategy makes the rest, and conflicts wait for a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.amounts import counted
from modelgit.config.schema import MergeSettings
from modelgit.errors import MergeConflicts, NothingToDo, RepositoryError, UsageError, did_you_mean
from modelgit.merging.base import STRATEGIES, BoundStrategy, parse_rule
from modelgit.merging.learned import FIRST
from modelgit.merging.options import split_rule
from modelgit.merging.resolve import find_conflicts, ruled_resolutions
from modelgit.objects import CommitId, Manifest
from modelgit.objects.graph import merge_bases
from modelgit.objects.merges import Conflict, MergePlan, MergeState, Overlap, Resolution
from modelgit.progress import SILENT, Progress
from modelgit.repo.merges.files import OpenSide, open_side
from modelgit.repo.merges.plan import Planned, plan_sides
from modelgit.repo.merges.state import clear_state, read_state, refuse_during_merge, write_state
from modelgit.repo.tracking.commit_records import CommitResult
from modelgit.repo.tracking.training import joined, training_of
from modelgit.repo.tracking.update import check_clean, move_worktree

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "MergeResult",
    "PlannedMerge",
    "StoppedMerge",
    "abort_merge",
    "apply_state",
    "configured_rules",
    "continue_merge",
    "merge",
    "plan_merge",
    "require_head",
    "resolve_conflicts",
    "too_opposed",
    "waiting_state",
]


class MergeResult(NamedTuple):
    """What a merge did: "up-to-date", "fast-forward", "merged", or "dry-run", whose `commit` is nowhere.

    `overlaps` say of each combined tensor how much both sides changed; `signs` are those of them in which more moved in
    different directions than the limit allows.  `notes` are sentences about fall-backs that were taken; `resolved`
    counts conflicts decided by hand.
    """

    kind: str
    base: CommitId | None
    ours: CommitId
    theirs: CommitId
    plan: MergePlan | None = None
    strategy: str = ""
    commit: CommitResult | None = None
    overlaps: tuple[Overlap, ...] = ()
    signs: tuple[Overlap, ...] = ()
    notes: tuple[str, ...] = ()
    resolved: int = 0


class Sides(NamedTuple):
    """The three commits of a merge, opened."""

    base_id: CommitId | None
    base: OpenSide
    ours: OpenSide
    theirs: OpenSide


def open_sides(
    repo: Repository,
    ours: CommitId,
    theirs: CommitId,
    *,
    virtual: Callable[[Sequence[CommitId]], Manifest] | None = None,
) -> Sides:
    """Find the merge base and open the three manifests.

    Of several best common ancestors (a criss-cross) `virtual` makes one; without it the newest is taken, which is the
    closest to both sides.
    """
    bases = merge_bases(ours, theirs, repo.parents_of)
    newest = max(bases, key=lambda commit: (repo.commit_at(commit).committer.time_s, commit)) if bases else None
    base = virtual(bases) if virtual is not None and len(bases) > 1 else repo.manifest_of(newest)
    return Sides(
        newest,
        open_side(repo, base, exists=newest is not None),
        open_side(repo, repo.manifest_of(ours)),
        open_side(repo, repo.manifest_of(theirs)),
    )


def sides_of(repo: Repository, state: MergeState, *, progress: Progress = SILENT) -> Sides:
    """The three commits that a state combines."""
    if not state.verb:
        from modelgit.repo.merges.commit import virtual_base

        return open_sides(
            repo, state.ours, state.theirs, virtual=lambda bases: virtual_base(repo, bases, state, progress=progress)
        )
    return Sides(
        state.base,
        open_side(repo, repo.manifest_of(state.base), exists=state.base is not None),
        open_side(repo, repo.manifest_of(state.ours)),
        open_side(repo, repo.manifest_of(state.theirs)),
    )


class PlannedMerge(NamedTuple):
    """What a merge would do; `signs` are the `overlaps` that moved apart in more than the share `sign_limit`."""

    sides: Sides
    plan: MergePlan
    overlaps: tuple[Overlap, ...]
    sign_limit: float
    signs: tuple[Overlap, ...]
    notes: tuple[str, ...]


def plan_merge(
    repo: Repository, revision: str, *, sign_limit: float | None = None, progress: Progress = SILENT
) -> PlannedMerge:
    """What a merge of `revision` would do; nothing is changed.  Reads the tensors that both sides changed."""
    from modelgit.repo.merges.tensors import measure_overlaps

    head = require_head(repo)
    sides = open_sides(repo, head, repo.resolve(revision))
    planned = plan_sides(repo, sides, {})
    overlaps = measure_overlaps(repo, sides, planned, progress=progress)
    limit = repo.settings.merge.sign_limit if sign_limit is None else sign_limit
    return PlannedMerge(sides, planned.plan, overlaps, limit, too_opposed(overlaps, limit), planned.notes)


def too_opposed(overlaps: Sequence[Overlap], limit: float) -> tuple[Overlap, ...]:
    """The tensors whose sides moved apart in more than the share `limit` of what both changed, the worst first."""
    found = [item for item in overlaps if item.exceeds(limit)]
    return tuple(sorted(found, key=lambda item: (-item.share, item.model, item.name)))


def _sign_limit(repo: Repository, state: MergeState) -> float:
    return repo.settings.merge.sign_limit if state.sign_limit is None else state.sign_limit


def _sign_conflicts(
    repo: Repository, state: MergeState, sides: Sides, planned: Planned, progress: Progress = SILENT
) -> tuple[Conflict, ...]:
    """Tensors that were moved in different directions, where that is to stop a merge."""
    if not state.block_signs:
        return ()
    from modelgit.repo.merges.tensors import measure_overlaps

    overlaps = measure_overlaps(repo, sides, planned, progress=progress)
    return tuple(
        Conflict(
            path=item.model,
            item=item.name,
            kind="signs",
            ours=f"{item.opposed} of {item.values} values",
            theirs="the other way",
        )
        for item in too_opposed(overlaps, _sign_limit(repo, state))
    )


def merge(
    repo: Repository,
    revision: str,
    *,
    strategy: str | None = None,
    options: Mapping[str, str] | None = None,
    rules: Mapping[str, str] | None = None,
    message: str | None = None,
    fast_forward: bool = True,
    unrelated: bool = False,
    sign_limit: float | None = None,
    block_signs: bool | None = None,
    gate: str = "block",
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> MergeResult:
    """Merge `revision` into the current branch; with `unrelated`, one that has no commit in common with it too.

    `strategy` makes the values that both sides changed (None: what `[merge]` of the settings says); `rules` maps
    patterns of tensor names to other strategies ("ours", "average weights=1,2") and goes before the rules of the
    settings.  With `block_signs` a tensor is in conflict where more than the share `sign_limit` of the values that both
    sides changed moved in different directions (None: as the settings say).  With `dry_run` everything is computed and
    gated, and nothing is kept.  Raises MergeConflicts, with the work tree untouched, when somebody has to decide;
    `resolve_conflicts` and `continue_merge` go on from there.
    """
    with repo.writing():
        refuse_during_merge(repo, "another merge")
        ours = require_head(repo)
        theirs = repo.resolve(revision)
        configured = repo.settings.merge
        bound = parse_rule(configured.strategy) if strategy is None else STRATEGIES.get(strategy).bind(options or {})
        rules = {**configured_rules(configured), **(rules or {})}
        for rule in rules.values():
            parse_rule(rule)
        bases = merge_bases(ours, theirs, repo.parents_of)
        if bases == [theirs]:
            return MergeResult("up-to-date", theirs, ours, theirs)
        if not bases and not unrelated:
            raise RepositoryError(
                f"{revision} and the current branch have no commit in common: nothing says which side changed what",
                hint=f"`mgit merge {revision} --allow-unrelated` combines every tensor that both have",
            )
        source, target = repo.manifest_of(ours), repo.manifest_of(theirs)
        forward = bases == [ours] and fast_forward
        # A merge leaves the training state alone; going forward to a commit brings that commit's.
        training = (
            (training_of(repo, ours).manifest, training_of(repo, theirs).manifest) if forward else (Manifest(),) * 2
        )
        check_clean(
            repo,
            joined(source, training[0]),
            joined(target, training[1]),
            verb="merging",
            hint="`mgit commit -m …` or `mgit restore .` first",
        )
        if forward and dry_run:
            return MergeResult("fast-forward", ours, ours, theirs)
        if forward:
            view = repo.view()
            move_worktree(
                repo,
                source,
                target,
                training=training,
                description=f"merge: {revision} (fast-forward)",
                view=view,
                after=view.with_head(theirs),
                progress=progress,
            )
            return MergeResult("fast-forward", ours, ours, theirs)
        state = MergeState(
            ours=ours,
            theirs=theirs,
            base=None,
            message=message or f"Merge {_called(repo, revision)}",
            strategy=bound.name,
            options=bound.recipe,
            rules=rules,
            sign_limit=sign_limit,
            block_signs=configured.block_signs if block_signs is None else block_signs,
        )
        return apply_state(repo, state, bound, gate, progress, dry_run=dry_run)


def configured_rules(settings: MergeSettings) -> dict[str, str]:
    """The rules of `[merge]` by pattern.  Raises UsageError for one without a pattern."""
    found = {}
    for text in settings.rules:
        rule = split_rule(text)
        if rule is None:
            raise UsageError(
                f"`{text}` in merge.rules names no tensors", hint='write `rules = ["lm_head.*=ours"]` under [merge]'
            )
        found[rule[0]] = rule[1]
    return found


def resolve_conflicts(repo: Repository, name: str, resolution: Resolution) -> list[Conflict]:
    """Decide the conflicts that `name` means (a tensor, `PATH:KEY`, or a path); returns those that are still open.

    Raises UsageError when there is no such conflict or the resolution does not fit it.
    """
    with repo.writing():
        state = waiting_state(repo)
        sides = sides_of(repo, state)
        # Of all conflicts, those too that are decided already: a decision may be taken back.
        first = plan_sides(repo, sides, {})
        signs = _sign_conflicts(repo, state, sides, first)
        known = [*first.plan.conflicts, *plan_sides(repo, sides, state.resolutions).plan.conflicts, *signs]
        chosen = find_conflicts(list({conflict.id: conflict for conflict in known}.values()), name)
        if resolution.value in FIRST:  # says nothing of keys of the same file
            chosen = tuple(conflict for conflict in chosen if conflict.kind == "learned") or chosen
        resolutions = {**state.resolutions, **{conflict.id: str(resolution) for conflict in chosen}}
        for conflict in chosen:
            if conflict.kind == "vocabulary" and resolution.take is None:
                raise UsageError(
                    f"of two vocabularies in {conflict.path} one has to be taken",
                    hint=f"`mgit resolve {conflict.path} --take ours` (or theirs)",
                )
            if conflict.kind == "learned" and resolution.take is None and resolution.value not in FIRST:
                raise UsageError(
                    f"{conflict.path} cannot be resolved with `{resolution.value or resolution}`"
                    f"{did_you_mean(resolution.value or '', FIRST)}",
                    hint=f"`mgit resolve {conflict.path} --with ours-first` (or theirs-first), or `--take ours`",
                )
        planned = plan_sides(repo, sides, resolutions)
        _check_resolutions(repo, sides, planned, chosen, resolution)
        open_conflicts = planned.with_conflicts(signs).still_open(resolutions)
        write_state(repo, msgspec.structs.replace(state, resolutions=resolutions, conflicts=open_conflicts))
        return list(open_conflicts)


def continue_merge(
    repo: Repository, *, message: str | None = None, gate: str = "block", progress: Progress = SILENT
) -> MergeResult:
    """Finish the merge under way.  Raises MergeConflicts while conflicts are open."""
    with repo.writing():
        state = waiting_state(repo, "merge")
        if message is not None:
            state = msgspec.structs.replace(state, message=message)
        bound = STRATEGIES.get(state.strategy).bind(state.options)
        source, target = repo.manifest_of(state.ours), repo.manifest_of(state.theirs)
        check_clean(repo, source, target, verb="merging", hint="`mgit restore .` first, or `mgit merge --abort`")
        return apply_state(repo, state, bound, gate, progress)


def abort_merge(repo: Repository, *, verb: str = "merge") -> None:
    """Give the merge (or another verb) up.  The work tree was never touched.  Raises NothingToDo when there is none."""
    with repo.writing():
        waiting_state(repo, verb)
        clear_state(repo)


def waiting_state(repo: Repository, verb: str | None = None) -> MergeState:
    """What waits for resolutions.

    Raises NothingToDo when nothing does, RepositoryError when it is not a `verb`.
    """
    state = read_state(repo)
    if state is None:
        raise NothingToDo(f"no {verb or 'merge'} is under way", hint=f"`mgit {verb or 'merge'} REV` starts one")
    if verb is not None and state.name != verb:
        raise RepositoryError(
            f"a {state.name} is under way, not a {verb}",
            hint=f"`mgit {state.name} --continue` finishes it, `mgit {state.name} --abort` gives it up",
        )
    return state


def _check_resolutions(
    repo: Repository, sides: Sides, planned: Planned, chosen: Sequence[Conflict], resolution: Resolution
) -> None:
    """Try the resolution on every tensor it is meant for, so that a wrong one is refused when it is typed."""
    from modelgit.merging.resolve import Sides as TensorSides
    from modelgit.merging.resolve import resolve_tensor
    from modelgit.merging.rows import RowViews

    views = RowViews(repo.reader())
    for conflict in chosen:
        if conflict.path not in {*sides.ours.side.models, *sides.theirs.side.models}:
            if resolution.rows:
                raise UsageError(f"{conflict.path} has no rows", hint=f"`mgit resolve {conflict.id} --take ours`")
            continue
        if not conflict.item:
            if resolution.take is None:
                raise UsageError(
                    f"{conflict.path} is in conflict as a whole", hint=f"`mgit resolve {conflict.path} --take ours`"
                )
            continue
        models = [side.side.models.get(conflict.path, {}) for side in (sides.base, sides.ours, sides.theirs)]
        tensor = TensorSides(*(model.get(conflict.item) for model in models))
        aligned = planned.aligned.get(conflict.path, {}).get(conflict.item)
        resolve_tensor(conflict.item, resolution, tensor, views, aligned=aligned)


def apply_state(
    repo: Repository,
    state: MergeState,
    bound: BoundStrategy,
    gate: str,
    progress: Progress,
    *,
    dry_run: bool = False,
) -> MergeResult:
    """Do what a state says up to its first commit, or stop at conflicts, which are then kept (unless `dry_run`).

    `commit` of the result is None for a pick that changes nothing.
    """
    sides = sides_of(repo, state, progress=progress)
    by_hand = len(state.resolutions)
    planned = plan_sides(repo, sides, state.resolutions)
    signs = _sign_conflicts(repo, state, sides, planned, progress)
    planned = planned.with_conflicts(signs)
    ruled = ruled_resolutions(planned.still_open(state.resolutions), state.rules)
    if ruled:
        state = msgspec.structs.replace(state, resolutions={**ruled, **state.resolutions})
        planned = plan_sides(repo, sides, state.resolutions).with_conflicts(signs)
    full = planned.plan
    still_open = planned.still_open(state.resolutions)
    if still_open:
        if not dry_run:
            write_state(repo, msgspec.structs.replace(state, base=sides.base_id, conflicts=still_open))
        models = ", ".join(sorted({*sides.ours.side.models})) or "the work tree"
        count = len(still_open)
        raise StoppedMerge(
            f"{state.name} stopped; {models} is untouched; {counted(count, 'conflict')} to resolve",
            hint=f"{_way_out(still_open[0])}, then `mgit {state.name} --continue`",
            conflicts=still_open,
            plan=full,
            sides=sides,
        )
    from modelgit.repo.merges.commit import make_commit

    made = make_commit(repo, state, sides, planned, bound, gate=gate, keep=not dry_run, progress=progress)
    return MergeResult(
        "dry-run" if dry_run else "merged",
        sides.base_id,
        state.ours,
        state.theirs,
        full,
        made.strategy if made is not None else state.strategy,
        made.result if made is not None else None,
        made.overlaps if made is not None else (),
        too_opposed(made.overlaps, _sign_limit(repo, state)) if made is not None else (),
        made.notes if made is not None else (),
        by_hand,
    )


def _way_out(conflict: Conflict) -> str:
    """The command that is most likely meant."""
    name = conflict.item or conflict.path
    if conflict.kind == "signs":
        return f"`mgit resolve {name} --with combine` (or `--take ours`, or theirs)"
    if conflict.kind == "learned":
        return f"`mgit resolve {name} --with ours-first` (or theirs-first)"
    if conflict.kind == "tokens":
        return f"`mgit resolve {name} --with ours-tokens` (or theirs-tokens)"
    if conflict.kind == "shape":
        return f"`mgit resolve {name} --with grow-rows` (or `--take ours`, or theirs)"
    return f"`mgit resolve {name} --take ours` (or theirs)"


class StoppedMerge(MergeConflicts):
    """A merge that waits, with what is needed to show why."""

    def __init__(
        self, message: str, *, hint: str, conflicts: tuple[Conflict, ...], plan: MergePlan, sides: Sides
    ) -> None:
        super().__init__(message, hint=hint, conflicts=conflicts)
        self.open = conflicts
        self.plan = plan
        self.sides = sides


def require_head(repo: Repository) -> CommitId:
    """The current commit.  Raises RepositoryError when there is none."""
    head = repo.head()
    if head is None:
        raise RepositoryError("there is no commit to work on", hint="`mgit commit -m …` makes the first one")
    return head


def _called(repo: Repository, revision: str) -> str:
    return f"branch {revision}" if f"heads/{revision}" in repo.view().refs else revision
