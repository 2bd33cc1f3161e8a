"""`push`, `fetch`, `pull`: refs and what they need, between this repository and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.errors import ConflictError, IntegrityError, RemoteError, RepositoryError, UsageError
from modelgit.objects import CommitId, FisherEstimate, KeptEstimate, KeptNote, View
from modelgit.objects.graph import is_ancestor
from modelgit.objects.refs import check_ref_name
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import RefUpdate, Transport
from modelgit.remotes.estimates import MovedEstimates, advertised_estimates, fetch_estimates, push_estimates
from modelgit.remotes.notes import MovedNotes, advertised_notes, fetch_notes
from modelgit.remotes.sync import fetch as fetch_objects
from modelgit.remotes.sync import push as push_objects
from modelgit.remotes.updates import advertised_refs
from modelgit.repo.exchange.remote import DEFAULT_REMOTE, open_remote
from modelgit.repo.gates.pending import due_suites
from modelgit.repo.notes import all_notes, keep_notes, travelling_notes
from modelgit.repo.reviews.ref_policies import PushGuard, RefDecision
from modelgit.repo.statistics import keep, kept_estimates, shapes_of, weights_of_history
from modelgit.repo.upkeep.pruned import pruned_commits

if TYPE_CHECKING:
    from modelgit.repo.merges.merge import MergeResult
    from modelgit.repo.repository import Repository

__all__ = ["FetchedRefs", "PullResult", "PushedRefs", "adopt", "fetch", "fetch_from", "pull", "push"]


class FetchedRefs(NamedTuple):
    """What a fetch changed here: remote-tracking refs by name as (old, new), and what came over.

    `fisher` are the estimates that came besides, when they were asked for, `notes` the notes about what came.
    """

    remote: str
    moved: dict[str, tuple[CommitId | None, CommitId | None]]
    commits: tuple[CommitId, ...]
    objects: int
    bytes_received: int
    fisher: MovedEstimates = MovedEstimates()
    notes: MovedNotes = MovedNotes()


class PushedRefs(NamedTuple):
    """What a push did: see `remotes.sync.PushResult`.

    `due` names the branches whose tips have suites that have not run yet, with these; `fisher` are the estimates that
    were sent besides; `policies` is what the policies of protected branches said of it.
    """

    updates: tuple[RefUpdate, ...]
    commits: int
    objects: int
    bytes_sent: int
    notes: tuple[KeptNote, ...] = ()
    due: tuple[tuple[str, tuple[str, ...]], ...] = ()
    fisher: MovedEstimates = MovedEstimates()
    policies: tuple[RefDecision, ...] = ()


class PullResult(NamedTuple):
    """A fetch and the merge that followed it (None when there was nothing to merge)."""

    fetched: FetchedRefs
    merged: MergeResult | None
    before: CommitId | None
    after: CommitId | None


def push(
    repo: Repository,
    remote: str = DEFAULT_REMOTE,
    branches: Sequence[str] = (),
    *,
    tags: bool = False,
    delete: bool = False,
    force_with_lease: bool = False,
    fisher: bool = False,
    progress: Progress = SILENT,
) -> PushedRefs:
    """Send branches (the current one) and, with `tags`, all tags, and move the remote's refs, all or none.

    Notes about weights in their history, and signed acceptances, go along.  With `fisher` the kept estimates of these
    weights follow in a step of their own.

    `force_with_lease` lets a branch go back or aside, provided that the remote's is where the last fetch saw it.
    Raises RemoteError, with nothing changed, when the remote has commits that are not here, and PushRefused when a
    policy of a branch or tag refuses it.
    """
    view = repo.view()
    names = list(branches)
    if not names and not (tags and view.branch is None):
        if view.branch is None:
            raise UsageError("no branch is checked out, so say which one", hint=f"`mgit push {remote} BRANCH`")
        names = [view.branch]
    updates = []
    for name in names:
        source, _, target = name.partition(":")
        target = target or source
        seen = view.refs.get(f"remotes/{remote}/{target}")
        if delete:
            updates.append(_deletion(view, remote, target))
            continue
        commit = view.refs.get(f"heads/{source}")
        if commit is None:
            if f"tags/{source}" in view.refs:
                hint = f"`mgit push {remote} {view.branch or 'BRANCH'} --tags` sends a branch and all tags"
                raise RepositoryError(f"`{source}` is a tag, no branch", hint=hint)
            raise RepositoryError(f"no branch `{source}` to push", hint="`mgit branch` lists them")
        check_ref_name(target)
        updates.append(RefUpdate(f"heads/{target}", commit, seen, force_with_lease))
    if tags:
        updates += [RefUpdate(ref, commit) for ref, commit in sorted(view.refs.items()) if ref.startswith("tags/")]
    tips = [update.new for update in updates if update.new is not None]
    notes = travelling_notes(repo, all_notes(repo), tips, store=repo.store) if tips else []
    transport = open_remote(repo, remote)
    guard = PushGuard(repo, transport, remote, progress=progress)
    try:
        result = push_objects(
            repo.store,
            transport,
            updates,
            author=str(repo.signature()),
            remote=remote,
            branch=view.branch or "main",
            prunings=repo.retention_records.read(repo.roots.read().root.retention).prunings,
            notes=notes,
            guard=guard,
            threads=repo.threads,
            progress=progress,
        )
        moved = {update.name: update.new for update in updates if update.name.startswith("heads/")}
        _track(repo, remote, moved, f"push: {remote}")
        sent = _push_estimates(repo, transport, tips, remote, progress) if fisher else MovedEstimates()
    finally:
        transport.close()
    due = [(update.name, due_suites(repo, update.new)) for update in result.updates if update.new is not None]
    due = [item for item in due if item[1]]
    return PushedRefs(*result, due=tuple(due), fisher=sent, policies=tuple(guard.decisions))


def _deletion(view: View, remote: str, name: str) -> RefUpdate:
    """The branch of a remote that is to go, or the tag, if it is called `tags/NAME` or only a tag has that name.

    Raises RepositoryError for a name that was never seen there: an answer that it is gone would be believed.
    """
    branch = view.refs.get(f"remotes/{remote}/{name}")
    tag = name if name.startswith("tags/") else f"tags/{name}"
    if branch is None and tag in view.refs:
        return RefUpdate(tag, None, view.refs[tag], True)
    if branch is None:
        raise RepositoryError(
            f"no branch or tag `{name}` of {remote} is known here", hint=f"`mgit fetch {remote}` learns what it has"
        )
    return RefUpdate(f"heads/{name}", None, branch, True)


def _push_estimates(
    repo: Repository, transport: Transport, tips: Sequence[CommitId], remote: str, progress: Progress
) -> MovedEstimates:
    kept = kept_estimates(repo)[::-1]
    known = weights_of_history(repo, tips, {item.weights for item in kept})
    return push_estimates(
        repo.store,
        transport,
        [item for item in kept if item.weights in known],
        author=str(repo.signature()),
        remote=remote,
        threads=repo.threads,
        progress=progress,
    )


def _fetch_estimates(
    repo: Repository, transport: Transport, tips: Sequence[CommitId], remote: str, progress: Progress
) -> MovedEstimates:
    """Bring the remote's estimates of weights in the history of `tips`, which is here, and list them."""
    listed = advertised_estimates(transport.statistics(transport.root()), remote=remote)
    here = {item.key for item in kept_estimates(repo)}
    known = weights_of_history(repo, tips, {item.weights for item in listed})
    wanted = [item for item in listed if item.key not in here and item.weights in known]
    if not wanted:
        return MovedEstimates()

    def shapes(kept: KeptEstimate, record: FisherEstimate) -> dict[str, tuple[int, ...]]:
        manifest, model = known[kept.weights]
        if record.model != model:
            raise IntegrityError(f"it is said to be of model {record.model[:120]!a}, whose weights are others")
        return shapes_of(repo, manifest, model)

    with repo.session() as session:
        moved = fetch_estimates(
            session, transport, wanted, shapes=shapes, remote=remote, threads=repo.threads, progress=progress
        )
        keep(repo, [(item.key, item.id) for item in wanted], f"fetch: {remote}", session=session, origin=remote)
    return moved


def _fetch_notes(
    repo: Repository, transport: Transport, tips: Sequence[CommitId], remote: str, progress: Progress
) -> MovedNotes:
    """Bring the remote's notes about weights in the history of `tips`, which is here, and list them.

    What the remote does wrong here is told and stops nothing: the commits have come already.
    """
    try:
        listed = advertised_notes(transport.statistics(transport.root()), remote=remote)
        here = {item.id for item in all_notes(repo)}
        fresh = [msgspec.structs.replace(item, origin=remote) for item in listed if item.id not in here]
        wanted = travelling_notes(repo, fresh, tips)
        if not wanted:
            return MovedNotes()
        with repo.session() as session:
            moved = fetch_notes(session, transport, wanted, remote=remote, threads=repo.threads, progress=progress)
            if moved.notes:
                keep_notes(repo, moved.notes, f"fetch: {remote}", session=session)
    except (RemoteError, IntegrityError) as error:
        return MovedNotes(refused=(error.message,))
    return moved


def _track(repo: Repository, remote: str, moved: Mapping[str, CommitId | None], description: str) -> None:
    """Note where the remote's branches are now."""
    refs = {f"remotes/{remote}/{ref.removeprefix('heads/')}": commit for ref, commit in moved.items()}
    repo.publish(lambda view: view.with_moved(refs), description)


def fetch(
    repo: Repository,
    remote: str = DEFAULT_REMOTE,
    *,
    prune: bool = False,
    fisher: bool = False,
    progress: Progress = SILENT,
) -> FetchedRefs:
    """Bring all branches and tags of a remote; local branches stay where they are.

    Notes about weights in their history follow in a step of their own, with `fisher` so do estimates.

    Every object is checked against its id before it becomes visible.  A tag that exists here is never moved.
    """
    transport = open_remote(repo, remote)
    try:
        return fetch_from(repo, transport, remote, prune=prune, fisher=fisher, progress=progress)
    finally:
        transport.close()


def fetch_from(
    repo: Repository, transport: Transport, remote: str, *, prune: bool, fisher: bool, progress: Progress
) -> FetchedRefs:
    """As `fetch`, through a transport that is open already."""
    state = transport.root()
    refs = advertised_refs(state, remote=remote)
    heads = {ref: commit for ref, commit in refs.items() if ref.startswith("heads/")}
    tags = {ref: commit for ref, commit in refs.items() if ref.startswith("tags/")}
    view = repo.view()
    session = repo.session()
    result = fetch_objects(
        session,
        transport,
        [*heads.values(), *tags.values()],
        have=view.tips,
        pruned=pruned_commits(repo),
        prunings=state.prunings,
        remote=remote,
        threads=repo.threads,
        progress=progress,
    )
    prefix = f"remotes/{remote}/"
    wanted = {prefix + ref.removeprefix("heads/"): commit for ref, commit in heads.items()}

    def change(now: View) -> View:
        refs = dict(now.refs)
        if prune:
            refs = {ref: commit for ref, commit in refs.items() if not ref.startswith(prefix) or ref in wanted}
        refs.update(wanted)
        for ref, commit in tags.items():
            refs.setdefault(ref, commit)
        return now.with_refs(refs)

    after = repo.publish(change, f"fetch: {remote}", session=result.session, prunings=result.prunings)
    moved = {
        ref: (view.refs.get(ref), after.refs.get(ref))
        for ref in sorted({*view.refs, *after.refs})
        if view.refs.get(ref) != after.refs.get(ref) and ref.startswith((prefix, "tags/"))
    }
    tips = [*heads.values(), *tags.values()]
    brought = _fetch_estimates(repo, transport, tips, remote, progress) if fisher else MovedEstimates()
    notes = _fetch_notes(repo, transport, tips, remote, progress)
    return FetchedRefs(remote, moved, result.commits, result.objects, result.bytes_received, brought, notes)


def pull(
    repo: Repository,
    remote: str = DEFAULT_REMOTE,
    branch: str | None = None,
    *,
    strategy: str | None = None,
    fisher: bool = False,
    progress: Progress = SILENT,
) -> PullResult:
    """Fetch (with `fisher` estimates, too), then merge the remote's branch of that name into the current one."""
    view = repo.view()
    name = branch or view.branch
    if name is None:
        raise UsageError("no branch is checked out, so say which one", hint=f"`mgit pull {remote} BRANCH`")
    fetched = fetch(repo, remote, fisher=fisher, progress=progress)
    ref = f"remotes/{remote}/{name}"
    tip = repo.view().refs.get(ref)
    if tip is None:
        raise RemoteError(f"{remote} has no branch {name}", hint=f"`mgit push {remote} {name}` makes it")
    before = repo.head()
    if before == tip or (before is not None and is_ancestor(tip, before, repo.parents_of)):
        return PullResult(fetched, None, before, before)
    if before is None:
        adopt(repo, tip, f"pull: {remote}/{name}", progress)
        return PullResult(fetched, None, None, tip)
    from modelgit.repo.merges.merge import merge

    merged = merge(repo, f"{remote}/{name}", strategy=strategy, progress=progress)
    return PullResult(fetched, merged, before, repo.head())


def adopt(repo: Repository, tip: CommitId, description: str, progress: Progress) -> None:
    """Check out a commit on a branch that has none yet."""
    from modelgit.objects import Manifest
    from modelgit.repo.tracking.training import joined, training_of
    from modelgit.repo.tracking.update import check_clean, move_worktree

    with repo.writing():
        view = repo.view()
        if view.head is not None or view.branch is None:
            raise ConflictError("the branch got a commit meanwhile", hint="run it again")
        target, training = repo.manifest_of(tip), training_of(repo, tip).manifest
        check_clean(repo, Manifest(), joined(target, training), verb="checking out", hint="move the files away first")
        after = View(refs={**view.refs, f"heads/{view.branch}": tip}, branch=view.branch)
        move_worktree(
            repo,
            Manifest(),
            target,
            training=(Manifest(), training),
            description=description,
            view=view,
            after=after,
            progress=progress,
        )
