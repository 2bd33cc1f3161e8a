"""Which refs a push may move: forward, unless its author says from where and means it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from modelgit.amounts import counted
from modelgit.errors import IntegrityError, RemoteError, UsageError
from modelgit.objects import CommitId
from modelgit.objects.graph import ancestors, is_ancestor
from modelgit.objects.refs import BRANCHES, TAGS, check_view_ref, short_ref
from modelgit.remotes.base import RefUpdate, RemoteRoot
from modelgit.remotes.reading import CombinedStore
from modelgit.store.base import ObjectStore

__all__ = ["advertised_refs", "allowed_updates", "contains_commit"]


def advertised_refs(state: RemoteRoot, *, remote: str) -> dict[str, CommitId]:
    """The branches and tags of a remote by full name.

    Raises RemoteError when one has a name that would be refused here.
    """
    found = {name: commit for name, commit in state.view.refs.items() if not name.startswith("remotes/")}
    for name in found:
        try:
            check_view_ref(name)
        except UsageError as error:
            raise RemoteError(f"{remote} shows a ref that mgit does not take: {error.message}") from None
    return found


def allowed_updates(
    updates: Sequence[RefUpdate], state: RemoteRoot, store: CombinedStore, near: ObjectStore, *, remote: str
) -> list[RefUpdate]:
    """The updates that change anything, each with the commit that the remote has now as `expected`.

    Raises UsageError for a bad name and RemoteError for a move that would lose commits of others.
    """
    allowed = []
    for update in updates:
        check_view_ref(update.name)
        current = state.view.refs.get(update.name)
        if current == update.new:
            continue
        if update.name == state.checked_out:
            raise RemoteError(
                f"{short_ref(update.name)} is checked out in {remote}, whose files would no longer belong to it",
                hint="push another branch and merge it there, or push to a directory of its own",
            )
        if update.force or update.new is None:
            _check_lease(update, current, remote)
        elif current is not None:
            _check_forward(update, current, update.new, store, near, remote)
        allowed.append(update._replace(expected=current))
    return allowed


def contains_commit(store: CombinedStore, tip: CommitId | None, commit: CommitId) -> bool:
    """Whether a remote's `tip` is `commit` or comes from it; False where that cannot be read."""
    if tip is None:
        return False
    try:
        return is_ancestor(commit, tip, lambda item: store.read_commit(item).parents)
    except (IntegrityError, RemoteError):
        return False


def _check_lease(update: RefUpdate, current: CommitId | None, remote: str) -> None:
    if current == update.expected:
        return
    there = f"is at {current.short}" if current is not None else "does not exist"
    known = f"at {update.expected.short}" if update.expected is not None else "absent"
    raise RemoteError(
        f"{remote}/{short_ref(update.name)} {there}, you know it as {known}",
        hint=f"`mgit fetch {remote}` shows what is there; nothing was changed on {remote}",
    )


def _check_forward(
    update: RefUpdate, current: CommitId, new: CommitId, store: CombinedStore, near: ObjectStore, remote: str
) -> None:
    name = short_ref(update.name)
    if update.name.startswith(TAGS):
        raise RemoteError(
            f"{remote} has a tag {name} already, at {current.short}",
            hint=f"choose another name: others may rely on this one; nothing was changed on {remote}",
        )
    ours = set(ancestors((new,), lambda commit: store.read_commit(commit).parents))
    if current in ours:
        return
    try:
        theirs = list(_only_theirs(current, ours, store))
        newest = max(store.read_commit(commit).committer.time_s for commit in theirs)
        count = counted(len(theirs), "commit")
        detail = f"({current.short}, {_age(time.time() - newest)})"
    except (IntegrityError, RemoteError):
        count, detail = "commits", f"({current.short})"
    who = f"{name} does" if near.has(current) and update.name.startswith(BRANCHES) else "you do"
    raise RemoteError(
        f"{remote}/{name} has {count} that {who} not have {detail}",
        hint=f"`mgit pull` merges {'it' if count == '1 commit' else 'them'}; nothing was changed on {remote}",
    )


def _only_theirs(current: CommitId, ours: Iterable[CommitId], store: CombinedStore) -> Iterator[CommitId]:
    return ancestors((current,), lambda commit: store.read_commit(commit).parents, stop=set(ours))


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{counted(count, unit)} ago"
    return "just now"
