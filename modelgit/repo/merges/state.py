"""A merge that waits for resolutions: written when it stops, gone when it is finished or given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.errors import RepositoryError
from modelgit.objects import CommitId, decode, encode
from modelgit.objects.merges import MergeState
from modelgit.store.durable import make_directory, sync_directory, write_durably

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["clear_state", "read_state", "refuse_during_merge", "write_state"]


def read_state(repo: Repository) -> MergeState | None:
    """The merge under way; None when there is none, or when it is left over from a head that has moved on."""
    try:
        data = repo.paths.merge.read_bytes()
    except FileNotFoundError:
        return None
    state = decode(MergeState, data, what="the state of the merge")
    head: CommitId | None = repo.head()
    return state if head == state.head else None


def write_state(repo: Repository, state: MergeState) -> None:
    """Keep the merge."""
    make_directory(repo.paths.merge.parent)
    write_durably(repo.paths.merge, encode(state))


def clear_state(repo: Repository) -> None:
    """The merge is over."""
    if repo.paths.merge.exists():
        try:
            repo.paths.merge.unlink(missing_ok=True)
        except OSError as error:
            raise RepositoryError(f"cannot remove {repo.paths.merge}: {error.strerror or error}") from error
        sync_directory(repo.paths.merge.parent)


def refuse_during_merge(repo: Repository, verb: str) -> None:
    """Raise RepositoryError while a merge (or a cherry-pick, revert or rebase) waits for resolutions."""
    state = read_state(repo) if repo.paths.merge.exists() else None
    if state is not None:
        raise RepositoryError(
            f"a {state.name} is under way, and {verb} would lose it",
            hint=f"`mgit {state.name} --continue` finishes it, `mgit {state.name} --abort` gives it up",
        )
