"""What a suite compares with: its names for baselines, and the commits that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import UnknownRevision
from modelgit.objects import CommitId, ManifestId
from modelgit.objects.graph import ancestors, is_ancestor, merge_bases

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["PARENT", "Baseline", "find_baselines", "is_parent", "parents_of_merge"]

PARENT, FIRST_PARENT = "parent", "parent:1"
_PATTERN = frozenset("*?[")


class Baseline(NamedTuple):
    """A commit to compare with, and what it is called: "parent", "tag:v1.0", "branch:main", or as it was typed.

    The further parents of a merge are "parent:2", "parent:3", ...
    """

    name: str
    commit: CommitId


def is_parent(name: str) -> bool:
    """Whether a baseline of this name is a parent of the candidate."""
    return name == PARENT or name.startswith(f"{PARENT}:")


def parents_of_merge(repo: Repository, parents: Sequence[CommitId], known: Sequence[CommitId]) -> list[Baseline]:
    """The sides of a merge that none of the commits `known` has in its history; none for what is no merge.

    Whoever compares a merge with one commit in place of its parents compares with these, too: what only the other side
    had right may have broken.
    """
    if len(parents) < 2:
        return []
    return [
        baseline
        for baseline in _parents(parents)
        if not any(is_ancestor(baseline.commit, commit, repo.parents_of) for commit in known)
    ]


def find_baselines(
    repo: Repository, names: Sequence[str], parents: Sequence[CommitId], *, candidate: ManifestId | None = None
) -> tuple[list[Baseline], list[str]]:
    """The baselines called `names` of a candidate with these `parents`, and the names that mean nothing yet.

    "parent" is every parent of a merge, each a baseline of its own, "parent:1" the first alone.  "tag:PATTERN" is the
    newest tag that matches, among those in the candidate's history if there is one; a tag of the `candidate` itself is
    none.  Nothing yet are the parent of a first commit, a pattern that no tag matches, and anything before there is a
    commit.
    Raises UnknownRevision for what is named and not there.
    """
    found: list[Baseline] = []
    missing: list[str] = []
    for name in names:
        kind, _, rest = name.partition(":")
        if name == PARENT:
            found += _parents(parents)
            missing += [] if parents else [name]
            continue
        if name == FIRST_PARENT:
            commit = next(iter(parents), None)
        elif not parents and not repo.view().refs:
            commit = None
        elif kind == "tag" and rest:
            tag = _newest_tag(repo, rest, parents, candidate)
            name, commit = (name, None) if tag is None else tag
        elif kind == "branch" and rest:
            commit = _branch(repo, rest)
        elif kind == "merge-base" and rest:
            commit = _merge_base(repo, rest, parents)
        else:
            commit = repo.resolve(name)
        if commit is None:
            missing.append(name)
        else:
            found.append(Baseline(name, commit))
    return found, missing


def _parents(parents: Sequence[CommitId]) -> list[Baseline]:
    return [
        Baseline(PARENT if number == 1 else f"{PARENT}:{number}", commit) for number, commit in enumerate(parents, 1)
    ]


def _newest_tag(
    repo: Repository, pattern: str, parents: Sequence[CommitId], candidate: ManifestId | None
) -> tuple[str, CommitId] | None:
    tags = {ref.removeprefix("tags/"): commit for ref, commit in repo.view().refs.items() if ref.startswith("tags/")}
    matching = [(name, commit) for name, commit in tags.items() if fnmatchcase(name, pattern)]
    if not matching:
        if _PATTERN.isdisjoint(pattern):
            raise UnknownRevision(f"no tag `{pattern}`, which the suite compares with", hint="`mgit tag` lists tags")
        return None
    if parents:
        history = set(ancestors(parents, repo.parents_of))
        behind = [item for item in matching if item[1] in history]
        # A release that is measured after it was tagged would otherwise be compared with itself.
        matching = behind or [item for item in matching if repo.commit_at(item[1]).manifest != candidate]
    if not matching:
        return None
    name, commit = max(matching, key=lambda item: (repo.commit_at(item[1]).committer.time_s, item[0]))
    return f"tag:{name}", commit


def _branch(repo: Repository, name: str) -> CommitId:
    refs = repo.view().refs
    for ref in (f"heads/{name}", f"remotes/{name}", f"remotes/origin/{name}"):
        if ref in refs:
            return refs[ref]
    raise UnknownRevision(f"no branch `{name}`, which the suite compares with", hint="`mgit branch` lists branches")


def _merge_base(repo: Repository, revision: str, parents: Sequence[CommitId]) -> CommitId | None:
    other = repo.resolve(revision)
    if not parents:
        return None
    bases = merge_bases(parents[0], other, repo.parents_of)
    if not bases:
        raise UnknownRevision(
            f"this history has nothing in common with `{revision}`, which the suite compares with",
            hint='`baselines = ["parent"]` under [run] of the suite',
        )
    return bases[0]
