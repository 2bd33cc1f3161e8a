"""From what a person types to a commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from modelgit.errors import UnknownRevision, did_you_mean
from modelgit.objects import CommitId, View
from modelgit.objects.refs import BRANCHES, REMOTES

if TYPE_CHECKING:
    from modelgit.store.base import ObjectStore

__all__ = ["Commits", "branch_of", "find_ref", "resolve"]

_SUFFIX = re.compile(r"(.*?)((?:[~^][0-9]*)*)\Z", re.DOTALL)
_STEP = re.compile(r"([~^])([0-9]*)")
_HEX = re.compile(r"(?:b3:)?([0-9a-f]{4,64})\Z")
_MAX_STEPS = 1_000_000


class Commits(Protocol):
    """Where revisions are looked up: a repository, or a remote."""

    @property
    def store(self) -> ObjectStore:
        """What has the commits."""

    def view(self) -> View:
        """The refs."""

    def parents_of(self, commit: CommitId, /) -> Sequence[CommitId]:
        """The parents of a commit."""


def find_ref(view: View, name: str) -> str | None:
    """The full ref that a name means: what it is in full, or else a branch before a tag before a remote branch."""
    for candidate in (name, f"heads/{name}", f"tags/{name}", f"remotes/{name}"):
        if candidate in view.refs:
            return candidate
    return None


def branch_of(repo: Commits, name: str) -> tuple[str, str]:
    """The remote ("" for none) and the branch that `name` stands for; ("", "") for what is no branch."""
    ref = find_ref(repo.view(), name) or ""
    if ref.startswith(REMOTES):
        remote, _, branch = ref.removeprefix(REMOTES).partition("/")
        return remote, branch
    return "", ref.removeprefix(BRANCHES) if ref.startswith(BRANCHES) else ""


def resolve(repo: Commits, revision: str) -> CommitId:
    """The commit that `revision` names.

    Understands branch, tag, `remote/branch`, `HEAD` or `@`, an id or a unique prefix of at least four digits, each
    followed by any number of `~N` (first parents) and `^N` (N-th parent).  Raises UnknownRevision with the nearest
    name.
    """
    match = _SUFFIX.match(revision)
    name, suffix = (match.group(1), match.group(2)) if match else (revision, "")
    commit = _resolve_name(repo, name or "HEAD", revision)
    for sign, digits in _STEP.findall(suffix):
        count = int(digits or 1)
        if sign == "~":
            if count > _MAX_STEPS:
                raise UnknownRevision(
                    f"`{revision}` goes back further than any history", hint="`mgit log --oneline` shows what there is"
                )
            for _ in range(count):
                commit = _parent(repo, commit, 1, revision)
        elif count:
            commit = _parent(repo, commit, count, revision)
    return commit


def _parent(repo: Commits, commit: CommitId, number: int, revision: str) -> CommitId:
    parents = repo.parents_of(commit)
    if number > len(parents):
        raise UnknownRevision(
            f"`{revision}` asks for parent {number} of {commit.short}, which has {len(parents)}",
            hint="`mgit log --oneline` shows the history",
        )
    return parents[number - 1]


def _resolve_name(repo: Commits, name: str, revision: str) -> CommitId:
    view = repo.view()
    if name in ("HEAD", "@"):
        if view.head is None:
            raise UnknownRevision(
                f"branch {view.branch} has no commit yet", hint="`mgit commit -m …` makes the first one"
            )
        return view.head
    match = _HEX.match(name)
    ref = find_ref(view, name) if match is None or len(match.group(1)) < 64 else None
    if ref is not None:
        _refuse_shadow(repo, view, ref, name, match.group(1) if match else "")
        return view.refs[ref]
    if match:
        found = _by_prefix(repo, match.group(1))
        if len(found) == 1:
            return found.pop()
        if found:
            names = ", ".join(sorted(item.short for item in found)[:4])
            raise UnknownRevision(f"`{name}` could be {len(found)} commits: {names}", hint="type more digits")
    short = {ref.split("/", 1)[1] for ref in view.refs}
    raise UnknownRevision(
        f"no branch, tag or commit `{revision}`{did_you_mean(name, short)}",
        hint="`mgit branch` lists branches, `mgit log` commits",
    )


def _refuse_shadow(repo: Commits, view: View, ref: str, name: str, digits: str) -> None:
    """Raise UnknownRevision for a name that a tag takes from something else: whoever may push tags chooses their names.

    A tag `origin/main` would otherwise be the base of a check, and its files the law.
    """
    if ref != f"tags/{name}":
        return
    others = [other for other in (f"remotes/{name}",) if other in view.refs]
    if digits:
        others += [commit.hex for commit in _by_prefix(repo, digits) if commit != view.refs[ref]]
    if others:
        raise UnknownRevision(f"`{name}` could be {ref} or {others[0]}", hint=f"say `{ref}`, or `{others[0]}`")


def _by_prefix(repo: Commits, digits: str) -> set[CommitId]:
    if len(digits) == 64:
        exact = CommitId(bytes.fromhex(digits))
        return {exact} if repo.store.has(exact) else set()
    return {
        CommitId(item.digest)
        for item in repo.store.objects()
        if item.kind == "commit" and item.digest.hex().startswith(digits)
    }
