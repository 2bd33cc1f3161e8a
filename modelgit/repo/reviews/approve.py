"""`approve`: an owner's signed leave for a commit to land on a branch, or to become a protected tag."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import NothingToDo, UsageError
from modelgit.objects import PatchFacts
from modelgit.objects.graph import ancestors
from modelgit.objects.policies import APPROVAL_KINDS
from modelgit.objects.refs import BRANCHES, TAGS, check_ref_name
from modelgit.policy.base import shown_ref
from modelgit.policy.decide import policies_of
from modelgit.remotes.closure import new_commits
from modelgit.repo.notes import KnownNote, add_approval
from modelgit.repo.reviews.patch_facts import Tree, gather_facts
from modelgit.repo.reviews.ref_policies import policies_at
from modelgit.repo.revisions import branch_of

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
    branch: str | None = None,
    tag: str | None = None,
    override: bool = False,
    key: Path | None,
) -> Approved:
    """Approve of everything in `revision` (HEAD) that may need it when `branch` moves from `base` to it.

    Without `branch` it is the branch that `base` is, here or on a remote; `tag` is one that is to name the commit, and
    that the tip `base` judges.  With `override` the commit may land whatever the policies of the branch or tag say.
    Raises NothingToDo when nothing needs approval, UsageError without a reason, a branch, or a key that the allowed
    signers list.
    """
    if key is None:
        raise UsageError(
            "an approval counts only when it is signed", hint="`mgit config set --user user.signing_key PATH`"
        )
    base_commit, commit = repo.resolve(base), repo.resolve(revision or "HEAD")
    ref = _approved_ref(repo, base, branch, tag)
    commits = new_commits(repo.store, [commit], stop=set(ancestors([base_commit], repo.parents_of)))
    if not commits and tag is None:
        raise NothingToDo(f"{commit.short} brings nothing that {base} does not have", hint="`mgit log` shows both")
    new = Tree(repo, repo.manifest_of(commit), repo.store)
    law = Tree(repo, repo.manifest_of(base_commit), repo.store)
    policies = policies_of(policies_at(law), ref)
    if not policies:
        raise NothingToDo(
            f"no policy of {base} protects {shown_ref(ref)}, so that nobody asks for an approval",
            hint="`mgit config list` shows policies; those of the tip count",
        )
    facts = gather_facts(law if commits else new, new, commits, store=repo.store)
    kinds = [kind for kind in APPROVAL_KINDS if getattr(facts, kind)]
    if not kinds and not override:
        raise NothingToDo(
            f"nothing that {commit.short} changes over {base} needs approval",
            hint="`--override` lets it in against a verdict",
        )
    known = add_approval(
        repo, commit, base_commit, kinds, ref=ref, policies=policies, reason=reason, override=override, key=key
    )
    return Approved(known, facts)


def _approved_ref(repo: Repository, base: str, branch: str | None, tag: str | None) -> str:
    """The full name of the branch or tag that an approval is for.  Raises UsageError when it cannot be told."""
    if branch is not None and tag is not None:
        raise UsageError("an approval is for a branch or for a tag, not for both", hint="approve of each by itself")
    if tag is not None:
        check_ref_name(tag, what="tag")
        return f"{TAGS}{tag}"
    name = branch if branch is not None else branch_of(repo, base)[1]
    if not name:
        raise UsageError(
            f"`{base}` is no branch, so say which one the approval is for",
            hint=f"`mgit approve --base {base} --branch NAME -m REASON`",
        )
    check_ref_name(name)
    return f"{BRANCHES}{name}"
