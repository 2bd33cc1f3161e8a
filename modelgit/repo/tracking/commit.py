"""`commit`: what changed goes into packs, the gate looks at what was rebuilt from them, and then the root moves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import ConflictError, NothingToDo, RepositoryError, UsageError
from modelgit.objects import CommitId, Manifest, MaskId, View, is_source
from modelgit.objects.paths import is_within
from modelgit.patching.jobs import Stored
from modelgit.progress import SILENT, Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.contents import tensors_of
from modelgit.repo.merges.state import refuse_during_merge
from modelgit.repo.tracking.commit_records import NO_TRAINING_STATE, CommitResult, count_encodings, write_commit
from modelgit.repo.tracking.outside import Outside, forget_stale, open_outside, refuse_stale, remember_stale
from modelgit.repo.tracking.record import nonfinite_counts, record_worktree
from modelgit.repo.tracking.training import record_training, training_files, training_of
from modelgit.repo.tracking.tree import work_files
from modelgit.repo.tracking.update import check_clean, move_worktree
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.patching.adapters import AdapterSet
    from modelgit.repo.patches.masks import StoredMask
    from modelgit.repo.repository import Repository

__all__ = ["BegunCommit", "begin_commit", "check_lossless", "check_request", "commit", "publish_commit"]


class BegunCommit(NamedTuple):
    """What a commit is made from: the view with the branch that it goes on, the last commit there and its manifest.

    `outside` is the checkpoint that is recorded in place of the work tree, `selected` says by path what gets a new
    state (None: everything).
    """

    view: View
    parent: CommitId | None
    before: Manifest
    outside: Outside | None
    selected: dict[str, bool] | None
    worktree: bool
    branch: str | None


def commit(
    repo: Repository,
    message: str,
    *,
    only: Sequence[str] = (),
    gate: str = "block",
    allow_empty: bool = False,
    masks: Sequence[str] = (),
    base: str | None = None,
    adapters: Sequence[Path | str] = (),
    source: str | None = None,
    as_path: str | None = None,
    worktree: bool = True,
    branch: str | None = None,
    author: str | None = None,
    progress: Progress = SILENT,
) -> CommitResult:
    """Record everything tracked that changed, or the paths that match one of the `only` patterns.

    `gate` is "block" (a broken limit refuses the commit) or "warn" (it is recorded in the commit).  `masks` name the
    FISH masks that the change was made under; positions outside of them must not have changed.  `base` names a
    published model (`hf:org/name@COMMIT`): what it holds is recorded as external, and the commit names it.  `adapters`
    are directories of PEFT adapters that were merged into the parent's weights: their factors are what is stored.

    `source` is a checkpoint directory or file that is recorded, as it lies there, as the new state of the tracked path
    `as_path` (of the only tracked model); everything else stays as in the parent.  The work tree gets the files as
    well, unless `worktree` is False; then the commit may also go on another `branch`.

    Raises NothingToDo when nothing changed, GateRefused when the gate says no, SourceChangedError when a file is being
    written meanwhile; in each case nothing was recorded.
    """
    check_request(message, only=only, gate=gate, source=source, as_path=as_path, worktree=worktree, branch=branch)
    declared = _declare_base(repo, base, progress=progress) if base is not None else None
    with repo.writing():
        begun = begin_commit(repo, only=only, source=source, as_path=as_path, worktree=worktree, branch=branch)
        parent, before, outside, selected = begun.parent, begun.before, begun.outside, begun.selected
        named_masks = _find_masks(repo, masks)
        with repo.session() as session:
            with _open(adapters) as opened:
                tree = record_worktree(
                    repo,
                    session,
                    before,
                    only=selected,
                    outside=outside,
                    adapters=opened,
                    masks=[mask.record for mask in named_masks],
                    progress=progress,
                )
                names = _tensor_names(repo, session, tree.manifest) if opened else set()
                unmatched = opened.unmatched(names) if opened else ()
                trailers = {"adapter": opened.trailer()} if opened else {}
            if declared is not None:
                trailers["base"] = declared
            check_lossless(repo, begun, tree.manifest, progress=progress)
            model_bytes = session.bytes_written
            training = NO_TRAINING_STATE
            if outside is None:  # what lies in the work tree belongs to another model than one from elsewhere
                training = record_training(repo, session, parent, tree.manifest, only=selected, progress=progress)
            training_bytes = session.bytes_written - model_bytes
            kept = training_of(repo, parent)
            same_state = training.manifest == kept.manifest
            if not allow_empty and same_state and _same_tree(tree.manifest, before):
                raise NothingToDo("nothing changed since the last commit", hint="`mgit status` shows what is tracked")
            counts = _counts(tree.manifest, tree.stored)
            changes = compare_manifests(repo, before, tree.manifest, new_store=session, counts=counts)
            mask_ids = _check_masks(repo, session, tree.manifest, before, named_masks)
            from modelgit.repo.gates.gate import run_gate

            evaluations = run_gate(
                repo,
                session,
                tree.manifest,
                () if parent is None else (parent,),
                mode=gate,
                counted=nonfinite_counts(tree.stored.values()),
                shown_by="mgit eval --staged" if outside is None and selected is None else "",
                progress=progress,
            )
            result = write_commit(
                repo,
                session,
                tree.manifest,
                before,
                changes,
                message=message,
                parents=() if parent is None else (parent,),
                author=author,
                evaluations=evaluations,
                masks=mask_ids,
                training=training,
                trailers=trailers,
                encodings=count_encodings(tree.stored),
            )._replace(unmatched=unmatched, training_bytes=training_bytes)
            session.seal()
        publish_commit(repo, begun, result, session, progress=progress)
        return result._replace(branch=begun.view.branch)


def check_request(
    message: str,
    *,
    only: Sequence[str],
    gate: str,
    source: str | None,
    as_path: str | None,
    worktree: bool,
    branch: str | None,
) -> None:
    """Refuse arguments of a commit that cannot be meant, before anything is read.  Raises UsageError."""
    if not message.strip():
        raise UsageError("the commit message is empty", hint="`mgit commit -m 'what and why'`")
    if gate not in ("block", "warn"):
        raise UsageError(f"no gate mode `{gate}`", hint="known: block, warn")
    _check_source(source, as_path, only, worktree, branch)


def begin_commit(
    repo: Repository,
    *,
    only: Sequence[str],
    source: str | None,
    as_path: str | None,
    worktree: bool,
    branch: str | None,
) -> BegunCommit:
    """Find out what a commit is made from; the caller holds the work tree.

    Raises NothingToDo when nothing is tracked, RepositoryError during a merge.
    """
    refuse_during_merge(repo, "a commit")
    view = _on_branch(repo.view(), branch, worktree)
    before = repo.manifest_of(view.head)
    if not repo.settings.track.paths and not before.files:
        raise NothingToDo("nothing is tracked yet", hint="`mgit track PATH` says what to record")
    outside = None if source is None else open_outside(repo, source, as_path, before)
    if outside is None:
        selected = _selection(repo, before, only)
    else:
        selected = outside.selection(before, outside.with_settings(repo, before))
    return BegunCommit(view, view.head, before, outside, selected, worktree, branch)


def check_lossless(repo: Repository, begun: BegunCommit, manifest: Manifest, *, progress: Progress = SILENT) -> None:
    """Refuse a commit that would take others back, or overwrite what nobody recorded.  Raises RepositoryError."""
    if begun.outside is None:
        refuse_stale(repo, manifest, begun.before)
    elif begun.worktree:
        check_clean(
            repo,
            begun.before,
            manifest,
            verb="the new state",
            hint="`--no-worktree` leaves the files alone, `mgit restore` gives them up",
            progress=progress,
        )


def publish_commit(
    repo: Repository,
    begun: BegunCommit,
    result: CommitResult,
    session: PackSession,
    *,
    rewritten: Collection[str] | None = None,
    progress: Progress = SILENT,
) -> None:
    """Move the root to a commit whose session is sealed, and with it the files that the work tree does not have yet.

    `rewritten` are paths whose files were recorded as something else than what lies there, all kept elsewhere.
    """
    view, description = begun.view, f"commit: {result.commit.subject}"
    if (begun.outside is not None and begun.worktree) or rewritten is not None:
        move_worktree(
            repo,
            begun.before,
            result.manifest,
            description=description,
            view=view,
            after=view.with_head(result.id),
            paths=rewritten,
            session=session,
            progress=progress,
        )
        return
    moves_current = begun.branch is None or begun.branch == repo.view().branch
    if begun.outside is not None and moves_current:
        remember_stale(repo, begun.parent, begun.before)
    repo.publish(
        _advance_current(view, result.id) if moves_current else _advance_other(view, result.id),
        description,
        session=session,
        author=str(result.commit.author),
    )
    if begun.outside is None:
        forget_stale(repo)


def _check_source(
    source: str | None, as_path: str | None, only: Sequence[str], worktree: bool, branch: str | None
) -> None:
    if source is None:
        if as_path is not None or not worktree or branch is not None:
            raise UsageError("`--as`, `--no-worktree` and `--branch` go with `--from`", hint="`mgit commit --from DIR`")
    elif only:
        raise UsageError("`--from` records one checkpoint and nothing else", hint="leave `--only` out")
    elif branch is not None and worktree:
        raise UsageError(
            f"the work tree cannot get the files of another branch ({branch})",
            hint="`--no-worktree` records without touching it",
        )


def _on_branch(view: View, branch: str | None, worktree: bool) -> View:
    """The view as it would be on `branch`."""
    if branch is None or branch == view.branch or worktree:
        return view
    if f"heads/{branch}" not in view.refs:
        raise RepositoryError(f"no branch `{branch}`", hint=f"`mgit branch {branch}` makes it")
    return View(refs=view.refs, branch=branch)


def _advance_other(before: View, commit: CommitId) -> Callable[[View], View]:
    """A change of the view: a branch that is not the current one moves from where it was to `commit`."""
    ref = f"heads/{before.branch}"

    def change(view: View) -> View:
        if view.refs.get(ref) != before.refs.get(ref):
            raise ConflictError(f"{before.branch} moved while this was being recorded", hint="run the command again")
        return view.with_moved({ref: commit})

    return change


def _open(adapters: Sequence[Path | str]) -> AbstractContextManager[AdapterSet | None]:
    if not adapters:
        return nullcontext()
    from modelgit.patching.adapters import AdapterSet

    return AdapterSet([(Path(directory), str(directory)) for directory in adapters])


def _tensor_names(repo: Repository, session: PackSession, manifest: Manifest) -> set[str]:
    return {name for model in manifest.models for name in tensors_of(repo, manifest, model, store=session)}


def _advance_current(before: View, commit: CommitId) -> Callable[[View], View]:
    """A change of the view: the current branch (or the detached head) moves from where it was to `commit`.

    The change raises ConflictError when the branch is not where it was.
    """

    def change(view: View) -> View:
        if (view.branch, view.head) != (before.branch, before.head):
            raise ConflictError(
                f"{before.branch or 'HEAD'} moved while this was being recorded",
                hint="`mgit status`, then run the command again",
            )
        return view.with_head(commit)

    return change


def _declare_base(repo: Repository, base: str, *, progress: Progress = SILENT) -> str:
    """Make sure that a published model is among those that need not be stored; returns its full name."""
    from modelgit.repo.exchange.borrow import add

    if not is_source(base):
        raise UsageError(f"not a published model: `{base}`", hint="write it as `hf:org/name@COMMIT`")
    known = {line.target for line in repo.store.lenders.lines}
    return base if base in known else add(repo, base, progress=progress).state.target


def _same_tree(new: Manifest, old: Manifest) -> bool:
    return new.files == old.files and new.models == old.models


def _selection(repo: Repository, before: Manifest, only: Sequence[str]) -> dict[str, bool] | None:
    if not only:
        return None
    state = training_of(repo, repo.head()).manifest
    paths = {*work_files(repo), *training_files(repo), *(entry.path for entry in (*before.files, *state.files))}
    patterns = [pattern.rstrip("/") for pattern in only]
    selected = {
        path: any(fnmatchcase(path, pattern) or is_within(path, pattern) for pattern in patterns) for path in paths
    }
    if not any(selected.values()):
        raise UsageError(f"no tracked file matches {', '.join(only)}", hint="`mgit status` shows what is tracked")
    return selected


def _counts(manifest: Manifest, stored: Mapping[str, Sequence[Stored]]) -> dict[tuple[str, str], int | None]:
    counts: dict[tuple[str, str], int | None] = {}
    for model in manifest.models:
        for path in model.weights:
            for item in stored.get(path, ()):
                counts[model.path, item.name] = item.values_changed
    return counts


def _find_masks(repo: Repository, names: Sequence[str]) -> list[StoredMask]:
    if not names:
        return []
    from modelgit.repo.patches.masks import find_mask

    return [find_mask(repo, name) for name in names]


def _check_masks(
    repo: Repository, session: PackSession, manifest: Manifest, before: Manifest, masks: Sequence[StoredMask]
) -> tuple[MaskId, ...]:
    if not masks:
        return ()
    from modelgit.repo.patches.strayed import outside_mask, strayed_words

    ids = []
    for mask in masks:
        strayed = outside_mask(repo, mask.record, before, manifest, new_store=session)
        if strayed:
            raise RepositoryError(
                f"{strayed_words(strayed)} changed outside of mask {mask.label}",
                hint=f"`mgit mask apply {mask.label}` puts them back, `mgit commit` without `--mask` records them",
            )
        ids.append(mask.id)
    return tuple(ids)
