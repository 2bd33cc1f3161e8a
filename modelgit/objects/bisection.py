"""The state of a bisection, kept between two answers."""

from __future__ import annotations

from modelgit.objects.canonical import Record
from modelgit.objects.ids import CommitId

__all__ = ["Bisection"]


class Bisection(Record, frozen=True, kw_only=True):
    """A search for the first bad commit.

    It began on `branch` ("": on none) at `origin`.  `bad` is the bad commit, `good` those from which it comes and that
    are good, `skipped` those of which nothing is known; `asked` is the one in question, and `answers` are all that were
    given, in their order.  With `in_place` the work tree is left alone.
    """

    branch: str
    origin: CommitId
    bad: CommitId | None = None
    good: tuple[CommitId, ...] = ()
    skipped: tuple[CommitId, ...] = ()
    asked: CommitId | None = None
    in_place: bool = False
    answers: tuple[tuple[str, CommitId], ...] = ()
