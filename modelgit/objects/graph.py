"""The graph of commits as pure functions: who comes from whom, and where two histories meet.

Every function takes `parents`, which gives the parents of a commit; it is called at most once per commit and walk.
Nothing relies on clocks: a commit's time only decides in which order unrelated commits are listed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache

from modelgit.errors import IntegrityError
from modelgit.objects.ids import CommitId

__all__ = ["ahead_behind", "ancestors", "first_parents", "is_ancestor", "merge_bases", "topological"]

Parents = Callable[[CommitId], Sequence[CommitId]]


def ancestors(tips: Iterable[CommitId], parents: Parents, *, stop: Collection[CommitId] = ()) -> Iterator[CommitId]:
    """The commits reachable from `tips`, these included, each once, breadth first.

    Commits in `stop` are neither given nor walked through.  A cycle (only a damaged or hostile store can show one)
    does no harm: every commit is visited once.
    """
    seen = set(stop)
    queue: deque[CommitId] = deque()
    for tip in tips:
        if tip not in seen:
            seen.add(tip)
            queue.append(tip)
    while queue:
        commit = queue.popleft()
        yield commit
        for parent in parents(commit):
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)


def first_parents(tip: CommitId, parents: Parents) -> Iterator[CommitId]:
    """`tip`, its first parent, the first parent of that, and so on: the states that one branch went through."""
    commit: CommitId | None = tip
    while commit is not None:
        yield commit
        commit = next(iter(parents(commit)), None)


def is_ancestor(ancestor: CommitId, of: CommitId, parents: Parents) -> bool:
    """Whether `of` is `ancestor` or comes from it."""
    return any(commit == ancestor for commit in ancestors((of,), parents))


def merge_bases(a: CommitId, b: CommitId, parents: Parents) -> list[CommitId]:
    """All best common ancestors of `a` and `b`, sorted by id.

    There is none for unrelated histories and several after a criss-cross.  A common ancestor is best when no other
    common ancestor comes from it.  Everything between it and another one that comes from it is common too, so it is
    enough to take away the parents of common ancestors.
    """
    if a == b:
        return [a]
    known = cache(parents)
    common = set(ancestors((a,), known)) & set(ancestors((b,), known))
    return sorted(common.difference(*map(known, common)))


def ahead_behind(ours: CommitId, theirs: CommitId, parents: Parents) -> tuple[int, int]:
    """(how many commits only `ours` has, how many only `theirs` has)."""
    if ours == theirs:
        return 0, 0
    known = cache(parents)
    mine, yours = set(ancestors((ours,), known)), set(ancestors((theirs,), known))
    return len(mine - yours), len(yours - mine)


def topological(
    tips: Iterable[CommitId],
    parents: Parents,
    time: Callable[[CommitId], int],
    *,
    stop: Collection[CommitId] = (),
) -> Iterator[CommitId]:
    """The commits reachable from `tips` and not in `stop`, children before parents.

    Where that leaves a choice, the newest by `time` (seconds) comes first, then the smallest id, so that the order
    is the same everywhere.  Raises IntegrityError for a cycle.
    """
    above: dict[CommitId, tuple[CommitId, ...]] = {}

    def remember(commit: CommitId) -> Sequence[CommitId]:
        above[commit] = tuple(dict.fromkeys(parents(commit)))
        return above[commit]

    for _ in ancestors(tips, remember, stop=stop):
        pass
    children = dict.fromkeys(above, 0)
    for commits in above.values():
        for parent in commits:
            if parent in children:
                children[parent] += 1
    ready = [(-time(commit), commit) for commit, count in children.items() if not count]
    heapq.heapify(ready)
    given = 0
    while ready:
        _, commit = heapq.heappop(ready)
        given += 1
        yield commit
        for parent in above[commit]:
            if parent in children:
                children[parent] -= 1
                if not children[parent]:
                    heapq.heappush(ready, (-time(parent), parent))
    if given != len(above):
        raise IntegrityError(
            "the history has a cycle: a commit comes from itself", hint="`mgit fsck` names the commits"
        )
