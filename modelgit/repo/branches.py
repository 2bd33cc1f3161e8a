"""Branches and tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.errors import RepositoryError, UnknownRevision
from modelgit.objects import CommitId, View
from modelgit.objects.graph import is_ancestor
from modelgit.objects.refs import check_ref_name

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["branches", "create_branch", "create_tag", "delete_branch", "delete_tag", "rename_branch", "tags"]


def branches(repo: Repository, *, remotes: bool = False) -> dict[str, CommitId]:
    """Branch tips by name; with `remotes` the remote-tracking branches as `origin/main`."""
    prefix = "remotes/" if remotes else "heads/"
    return {ref[len(prefix) :]: commit for ref, commit in sorted(repo.view().refs.items()) if ref.startswith(prefix)}


def tags(repo: Repository) -> dict[str, CommitId]:
    """Tags by name."""
    return {ref[5:]: commit for ref, commit in sorted(repo.view().refs.items()) if ref.startswith("tags/")}


def create_branch(repo: Repository, name: str, *, start: str | None = None) -> CommitId:
    """Make a branch at `start` (the current commit) without switching to it."""
    return _create(repo, f"heads/{name}", start, "branch", force=False)


def create_tag(repo: Repository, name: str, *, target: str | None = None, force: bool = False) -> CommitId:
    """Make a tag at `target` (the current commit)."""
    return _create(repo, f"tags/{name}", target, "tag", force=force)


def _create(repo: Repository, ref: str, start: str | None, kind: str, *, force: bool) -> CommitId:
    name = ref.split("/", 1)[1]
    check_ref_name(name, what=kind)
    commit = repo.resolve(start or "HEAD")

    def change(view: View) -> View:
        if ref in view.refs and not force:
            raise RepositoryError(
                f"{kind} {name} exists already (at {view.refs[ref].short})", hint=f"`mgit {kind} -d {name}` removes it"
            )
        return view.with_moved({ref: commit})

    repo.publish(change, f"{kind}: {name}")
    return commit


def delete_branch(repo: Repository, name: str, *, force: bool = False) -> CommitId:
    """Delete a branch; without `force` only one whose commits another branch, tag or remote branch still reaches."""
    return _delete(repo, f"heads/{name}", "branch", force=force)


def delete_tag(repo: Repository, name: str) -> CommitId:
    """Delete a tag."""
    return _delete(repo, f"tags/{name}", "tag", force=True)


def _delete(repo: Repository, ref: str, kind: str, *, force: bool) -> CommitId:
    name = ref.split("/", 1)[1]
    view = repo.view()
    if ref not in view.refs:
        raise UnknownRevision(f"no {kind} `{name}`", hint=f"`mgit {kind}` lists them")
    if kind == "branch" and name == view.branch:
        raise RepositoryError(f"{name} is the current branch", hint="`mgit switch` to another one first")
    tip = view.refs[ref]
    if not force:
        others = [commit for other, commit in view.refs.items() if other != ref]
        if not any(is_ancestor(tip, other, repo.parents_of) for other in others):
            raise RepositoryError(
                f"{name} has commits that nothing else reaches", hint=f"`mgit branch -D {name}` deletes it all the same"
            )
    repo.publish(lambda now: now.with_moved({ref: None}), f"{kind} -d: {name}")
    return tip


def rename_branch(repo: Repository, old: str, new: str) -> None:
    """Give a branch another name; the current branch stays current."""
    check_ref_name(new)

    def change(view: View) -> View:
        if f"heads/{old}" not in view.refs and old != view.branch:
            raise UnknownRevision(f"no branch `{old}`", hint="`mgit branch` lists them")
        if f"heads/{new}" in view.refs:
            raise RepositoryError(f"branch {new} exists already", hint=f"`mgit branch -d {new}` removes it")
        refs = {f"heads/{new}" if ref == f"heads/{old}" else ref: commit for ref, commit in view.refs.items()}
        return View(refs=refs, branch=new if view.branch == old else view.branch, detached=view.detached)

    repo.publish(change, f"branch -m: {old} to {new}")
