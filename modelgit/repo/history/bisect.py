"""`bisect`: find the commit that broke something, by asking about as few commits as possible.

What is between the commits that are known to be good and the one that is known to be bad is halved with each answer:
the next commit to ask about is the one for which either answer leaves the fewest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from typing import Literal as OneOf

import msgspec

from modelgit.errors import RepositoryError, UsageError
from modelgit.objects import CommitId, decode, encode
from modelgit.objects.bisection import Bisection
from modelgit.objects.graph import ancestors, is_ancestor
from modelgit.progress import SILENT, Progress
from modelgit.repo.tracking.switch import switch
from modelgit.store.durable import make_directory, write_durably

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Answer", "Step", "current_bisection", "current_step", "mark", "reset_bisection", "start_bisection"]

Answer = OneOf["good", "bad", "skip"]


class Step(NamedTuple):
    """Where a bisection is.

    `next` is the commit to ask about, None when it is over or when a good or a bad commit is missing.  `found` is the
    first bad commit; when skipped ones are in the way `suspects` has several, and `found` is None.  `left` is how many
    commits remain in question, `questions` about how many answers that takes.
    """

    state: Bisection
    next: CommitId | None = None
    found: CommitId | None = None
    suspects: tuple[CommitId, ...] = ()
    left: int = 0

    @property
    def questions(self) -> int:
        """About how many answers are needed still."""
        return max(0, self.left).bit_length() - 1 if self.left else 0


def current_bisection(repo: Repository) -> Bisection | None:
    """The bisection under way, or None."""
    try:
        data = repo.paths.bisect.read_bytes()
    except FileNotFoundError:
        return None
    return decode(Bisection, data, what="the state of the bisection")


def current_step(repo: Repository) -> Step:
    """Where the bisection under way is.  Raises RepositoryError when none is."""
    return _next(repo, _state(repo))


def _state(repo: Repository) -> Bisection:
    state = current_bisection(repo)
    if state is None:
        raise RepositoryError("no bisection is under way", hint="`mgit bisect start BAD GOOD`")
    return state


def start_bisection(
    repo: Repository,
    bad: str | None = None,
    good: Sequence[str] = (),
    *,
    checkout: bool = True,
    progress: Progress = SILENT,
) -> Step:
    """Begin; with a bad and at least one good commit the first one to ask about is brought into the work tree.

    Without `checkout` the work tree stays as it is.  Raises RepositoryError when a bisection is under way, or when a
    good commit does not lead to the bad one.
    """
    if current_bisection(repo) is not None:
        raise RepositoryError(
            "a bisection is under way", hint="`mgit bisect log` shows it, `mgit bisect reset` ends it"
        )
    view = repo.view()
    if view.head is None:
        raise UsageError("there is no commit to look through", hint="`mgit commit -m …` makes the first one")
    state = Bisection(
        branch=view.branch or "",
        origin=view.head,
        bad=None if bad is None else repo.resolve(bad),
        good=tuple(dict.fromkeys(repo.resolve(name) for name in good)),
        in_place=not checkout,
    )
    return _go_on(repo, state, progress)


def mark(repo: Repository, answer: Answer, revisions: Sequence[str] = (), *, progress: Progress = SILENT) -> Step:
    """Answer for `revisions` (the commit that was asked about), and bring the next one.

    Raises RepositoryError when no bisection is under way, UsageError when the answers contradict each other.
    """
    state = _state(repo)
    commits = [repo.resolve(name) for name in revisions]
    if not commits:
        asked = state.asked or repo.head()
        if asked is None:
            raise UsageError("which commit?", hint="`mgit bisect log` shows what was answered; name the commit")
        commits = [asked]
    if answer == "bad":
        if len(commits) > 1:
            raise UsageError("one commit is the bad one", hint="`mgit bisect bad REV`")
        state = msgspec.structs.replace(state, bad=commits[0])
    elif answer == "good":
        state = msgspec.structs.replace(state, good=tuple(dict.fromkeys((*state.good, *commits))))
    else:
        state = msgspec.structs.replace(state, skipped=tuple(dict.fromkeys((*state.skipped, *commits))))
    answers = (*state.answers, *((answer, commit) for commit in commits))
    return _go_on(repo, msgspec.structs.replace(state, answers=answers), progress)


def reset_bisection(repo: Repository, *, progress: Progress = SILENT) -> str:
    """End it and go back to where it began; returns the name of the branch or commit.

    Raises RepositoryError when none is under way or the work tree is not clean.
    """
    state = _state(repo)
    view = repo.view()
    target = state.branch or str(state.origin)
    if not state.in_place and (view.branch or "") != state.branch:
        switch(repo, target, detach=not state.branch, progress=progress)
    elif not state.branch and view.head != state.origin and not state.in_place:
        switch(repo, target, detach=True, progress=progress)
    repo.paths.bisect.unlink(missing_ok=True)
    return state.branch or state.origin.short


def _go_on(repo: Repository, state: Bisection, progress: Progress) -> Step:
    step = _next(repo, state)
    if step.next is not None:
        state = msgspec.structs.replace(state, asked=step.next)
        if not state.in_place and repo.head() != step.next:
            switch(repo, str(step.next), detach=True, progress=progress)
    make_directory(repo.paths.bisect.parent)
    write_durably(repo.paths.bisect, encode(state))
    return step._replace(state=state)


def _next(repo: Repository, state: Bisection) -> Step:
    if state.bad is None or not state.good:
        return Step(state)
    for commit in state.good:
        if commit == state.bad:
            raise UsageError(
                f"{commit.short} cannot be both good and bad", hint="`mgit bisect reset` ends it; begin again"
            )
        # Later on a good commit may lie on a branch that the bad one, nearer by now, does not come from.
        if state.asked is None and not is_ancestor(commit, state.bad, repo.parents_of):
            raise UsageError(
                f"the good commit {commit.short} does not lead to the bad one, {state.bad.short}",
                hint="name a good commit that it comes from: `mgit log --graph --oneline` shows them",
            )
    known = set(ancestors(state.good, repo.parents_of))
    open_ = list(ancestors((state.bad,), repo.parents_of, stop=known))
    if len(open_) == 1:
        return Step(state, found=state.bad, left=1)
    # A commit is implied bad only by the bad one itself; every other is asked about unless it was skipped.
    below = _counts(repo, open_)
    asked = [commit for commit in open_ if commit != state.bad and commit not in state.skipped]
    if not asked:
        return Step(state, suspects=tuple(open_), left=len(open_))
    best = min(asked, key=lambda commit: (-min(below[commit], len(open_) - below[commit]), commit))
    return Step(state, next=best, left=len(open_))


def _counts(repo: Repository, commits: Sequence[CommitId]) -> dict[CommitId, int]:
    """For each commit how many of `commits` it comes from, itself included; sets are the bits of a number."""
    place = {commit: at for at, commit in enumerate(commits)}
    sets: dict[CommitId, int] = {}
    for tip in commits:
        stack = [tip]
        while stack:
            commit = stack[-1]
            if commit in sets:
                stack.pop()
                continue
            parents = [parent for parent in repo.parents_of(commit) if parent in place]
            missing = [parent for parent in parents if parent not in sets]
            if missing:
                stack += missing
                continue
            bits = 1 << place[commit]
            for parent in parents:
                bits |= sets[parent]
            sets[commit] = bits
            stack.pop()
    return {commit: bits.bit_count() for commit, bits in sets.items()}
