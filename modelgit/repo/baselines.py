"""What a suite compares with: its names for baselines, and the commits that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import UnknownRevision
from modelgit.objects import CommitId
from modelgit.objects.graph import is_ancestor, merge_bases

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Baseline", "find_baselines"]

_PATTERN = frozenset("*?[")


class Baseline(NamedTuple):
    """A commit to compare with, and what it is called: "parent", "tag:v1.0", "branch:main", or as it was typed."""

    name: str
    commit: CommitId


def find_baselines(repo: Repository, names: Sequence[str], parent: CommitId | None) -> tuple[list[Baseline], list[str]]:
    """The baselines called `names` of a candidate whose parent is `parent`, and the names that mean nothing yet.

    "tag:PATTERN" is the newest tag that matches, among those in the candidate's history if there is one.  Nothing yet
    are the parent of a first commit, a pattern that no tag matches, and anything before there is a commit.
    Raises UnknownRevision for what is named and not there.
    """
    found: list[Baseline] = []
    missing: list[str] = []
    for name in names:
        kind, _, rest = name.partition(":")
        if name == "parent":
            commit = parent
        elif parent is None and not repo.view().refs:
            commit = None
        elif kind == "tag" and rest:
            tag = _newest_tag(repo, rest, parent)
            name, commit = (name, None) if tag is None else tag
        elif kind == "branch" and rest:
            commit = _branch(repo, rest)
        elif kind == "merge-base" and rest:
            commit = _merge_base(repo, rest, parent)
        else:
            commit = repo.resolve(name)
        if commit is None:
            missing.append(name)
        else:
            found.append(Baseline(name, commit))
    return found, missing


def _newest_tag(repo: Repository, pattern: str, parent: CommitId | None) -> tuple[str, CommitId] | None:
    tags = {ref.removeprefix("tags/"): commit for ref, commit in repo.view().refs.items() if ref.startswith("tags/")}
    matching = [(name, commit) for name, commit in tags.items() if fnmatchcase(name, pattern)]
    if not matching:
        if _PATTERN.isdisjoint(pattern):
            raise UnknownRevision(f"no tag `{pattern}`, which the suite compares with", hint="`mgit tag` lists tags")
        return None
    if parent is not None:
        behind = [item for item in matching if is_ancestor(item[1], parent, repo.parents_of)]
        matching = behind or matching
    name, commit = max(matching, key=lambda item: (repo.commit_at(item[1]).committer.time_s, item[0]))
    return f"tag:{name}", commit


def _branch(repo: Repository, name: str) -> CommitId:
    refs = repo.view().refs
    for ref in (f"heads/{name}", f"remotes/{name}", f"remotes/origin/{name}"):
        if ref in refs:
            return refs[ref]
    raise UnknownRevision(f"no branch `{name}`, which the suite compares with", hint="`mgit branch` lists branches")


def _merge_base(repo: Repository, revision: str, parent: CommitId | None) -> CommitId | None:
    other = repo.resolve(revision)
    if parent is None:
        return None
    bases = merge_bases(parent, other, repo.parents_of)
    if not bases:
        raise UnknownRevision(
            f"this history has nothing in common with `{revision}`, which the suite compares with",
            hint='`baselines = ["parent"]` under [run] of the suite',
        )
    return bases[0]
