"""`log`: commits with what their patches and verdicts say, newest first; metadata only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from modelgit.objects import Commit, CommitId, Patch
from modelgit.objects.graph import ancestors, topological
from modelgit.repo.reviews.last_words import Attested, last_word
from modelgit.repo.upkeep.pruned import pruned_commits, pruned_on

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["LogEntry", "log"]


class LogEntry(NamedTuple):
    """A commit of the log.

    `refs` are the short names that point at it, the current branch first; `pruned` is the day on which retention took
    its weights, None where they are kept.  `verdict` is the worst word on it, notes included; `signers` vouch for it,
    and `attested` are the notes about its weights, the newest first.
    """

    id: CommitId
    commit: Commit
    patch: Patch
    refs: tuple[str, ...]
    verdict: str | None
    pruned: str | None = None
    signers: tuple[str, ...] = ()
    attested: tuple[Attested, ...] = ()


def log(repo: Repository, *revisions: str, limit: int | None = None) -> Iterator[LogEntry]:
    """Commits that any of `revisions` (the current commit) reaches, once each, children before parents, then by time.

    Of `A..B` those that B reaches, without all that A reaches.
    """
    view = repo.view()
    if not revisions and view.head is None:
        return
    ends = [revision.split("..", 1) if ".." in revision else ["", revision] for revision in revisions or ("HEAD",)]
    tips = list(dict.fromkeys(repo.resolve(end or "HEAD") for _, end in ends))
    left_out = [
        repo.resolve(start or "HEAD") for (start, _), text in zip(ends, revisions, strict=False) if ".." in text
    ]
    outside = set(ancestors(left_out, repo.parents_of))
    names: dict[CommitId, list[str]] = {}
    for ref, commit in sorted(view.refs.items()):
        short = ref.split("/", 1)[1]
        if ref.startswith("tags/"):
            short = f"tag: {short}"
        if ref == f"heads/{view.branch}":
            names.setdefault(commit, []).insert(0, f"HEAD → {short}")
        else:
            names.setdefault(commit, []).append(short)
    if view.detached is not None:
        names.setdefault(view.detached, []).insert(0, "HEAD")
    commits: dict[CommitId, Commit] = {}
    pruned = pruned_commits(repo)

    def read(commit: CommitId) -> Commit:
        if commit not in commits:
            commits[commit] = repo.commit_at(commit)
        return commits[commit]

    order = topological(tips, lambda c: read(c).parents, lambda c: read(c).committer.time_s, stop=outside)
    with _notes(repo) as notes_of:
        for number, found in enumerate(order):
            if limit is not None and number >= limit:
                return
            entry = read(found)
            day = pruned_on(pruned[found]) if found in pruned else None
            attested = notes_of(found)
            verdict, signers = last_word(entry, attested)
            refs = tuple(names.get(found, ()))
            yield LogEntry(found, entry, repo.patch_of(found), refs, verdict, day, signers, attested)


@contextlib.contextmanager
def _notes(repo: Repository) -> Iterator[Callable[[CommitId], tuple[Attested, ...]]]:
    """What notes say of a commit; where none is kept, nothing that reads them is loaded."""
    if repo.roots.read().root.statistics is None:
        yield lambda _: ()
        return
    from modelgit.repo.reviews.attested import Attestations

    with Attestations(repo) as attestations:
        yield attestations.of
