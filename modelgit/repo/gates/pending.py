"""Which suites are still due on a commit: recorded as pending, or due at a push, with no verdict that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.errors import MgitError
from modelgit.objects import CommitId
from modelgit.repo.gates.suites import recorded_suites
from modelgit.repo.reviews.attested import Attestations
from modelgit.repo.reviews.last_words import words_of

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["due_suites"]


def due_suites(repo: Repository, commit: CommitId) -> tuple[str, ...]:
    """The names of the suites that are due before others take `commit`, sorted.

    Suites are those that the commit records; one that cannot be read is not due, for it will refuse by itself.
    """
    with Attestations(repo) as attestations:
        words = words_of(repo.commit_at(commit), attestations.of(commit))
    due = {suite for suite, word in words.items() if word == "pending"}
    try:
        texts = recorded_suites(repo, repo.manifest_of(commit))
        if texts.files:  # only a file of its own can be due at a push
            due |= {suite.name for suite in texts.suites() if suite.run.stage == "push" and suite.name not in words}
    except MgitError:
        pass
    return tuple(sorted(due))
