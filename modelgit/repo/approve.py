"""`approve`: an owner's signed leave for a commit to land on a branch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import NothingToDo, UsageError
from modelgit.objects import PatchFacts
from modelgit.objects.graph import ancestors
from modelgit.objects.policies import APPROVAL_KINDS
from modelgit.remotes.closure import new_commits
from modelgit.repo.notes import KnownNote, add_approval
from modelgit.repo.patch_facts import Tree, gather_facts

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Approved", "approve"]


class Approved(NamedTuple):
    """The note that was kept, and what the update changes."""

    known: KnownNote
    facts: PatchFacts


def approve(
    repo: Repository,
    base: str,
    revision: str | None = None,
    *,
    reason: str,
    override: bool = False,
    key: Path | None,
) -> Approved:
    """Approve of everything in `revision` (HEAD) that may need it when it replaces `base`.

    With `override` it may land whatever the policies of the branch say.  Raises NothingToDo when nothing needs
    approval, UsageError without a reason or a key that the allowed signers list.
    """
    if key is None:
        raise UsageError(
            "an approval counts only when it is signed", hint="`mgit config set --user user.signing_key PATH`"
        )
    base_commit, commit = repo.resolve(base), repo.resolve(revision or "HEAD")
    stop = set(ancestors([base_commit], repo.parents_of))
    commits = new_commits(repo.store, [commit], stop=stop)
    if not commits:
        raise NothingToDo(f"{commit.short} brings nothing that {base} does not have", hint="`mgit log` shows both")
    old = Tree(repo, repo.manifest_of(base_commit), repo.store)
    new = Tree(repo, repo.manifest_of(commit), repo.store)
    facts = gather_facts(old, new, commits, store=repo.store)
    kinds = [kind for kind in APPROVAL_KINDS if getattr(facts, kind)]
    if not kinds and not override:
        raise NothingToDo(
            f"nothing that {commit.short} changes over {base} needs approval",
            hint="`--override` lets it in against a verdict",
        )
    known = add_approval(repo, commit, base_commit, kinds, reason=reason, override=override, key=key)
    return Approved(known, facts)
