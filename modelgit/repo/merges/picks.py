"""`cherry-pick`, `revert`, `rebase`: single commits as three-way merges with a base of their own.

To pick a commit is to merge it with its parent as the common ancestor; to revert one is to merge its parent with the
commit as the common ancestor.  So what does not overlap is exact, bit for bit, and where changes do overlap they are
added in float64 and rounded once: ours + (theirs - base), which does not depend on the order of the verbs before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.errors import GateRefused, MergeConflicts, MgitError, NothingToDo, RepositoryError, UsageError
from modelgit.merging.base import STRATEGIES, BoundStrategy, parse_rule
from modelgit.objects import CommitId
from modelgit.objects.graph import ancestors, is_ancestor, topological
from modelgit.objects.merges import MergeState, Verb
from modelgit.progress import SILENT, Progress
from modelgit.repo.merges.merge import MergeResult, apply_state, require_head, waiting_state
from modelgit.repo.merges.state import clear_state, read_state, refuse_during_merge, write_state
from modelgit.repo.tracking.update import check_clean

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["DEFAULT_STRATEGY", "Picked", "cherry_pick", "continue_picks", "rebase", "revert"]

DEFAULT_STRATEGY = "task-arithmetic"


class Picked(NamedTuple):
    """What was done: one result a commit, those that changed nothing here (`skipped`), and where the branch is now."""

    verb: Verb
    results: tuple[MergeResult, ...]
    skipped: tuple[CommitId, ...]
    before: CommitId
    after: CommitId


class _Rule(NamedTuple):
    """How values that overlap are made."""

    strategy: BoundStrategy
    rules: dict[str, str]


def cherry_pick(
    repo: Repository,
    revisions: Sequence[str],
    *,
    strategy: str = DEFAULT_STRATEGY,
    options: Mapping[str, str] | None = None,
    rules: Mapping[str, str] | None = None,
    mainline: int | None = None,
    gate: str = "block",
    progress: Progress = SILENT,
) -> Picked:
    """Apply the change of each of `revisions` (or `A..B`: all after A up to B) to the current branch, as new commits.

    The author is kept, and a trailer names the commit.  A merge commit needs `mainline`, the number (from 1) of the
    parent that its change is taken against.  Raises MergeConflicts, with the work tree untouched, when somebody has to
    decide; NothingToDo when everything is here already.
    """
    commits = _listed(repo, revisions)
    rule = _rule(strategy, options, rules)
    states = [_pick(repo, commit, rule, mainline, verb="cherry-pick") for commit in commits]
    return _start(repo, "cherry-pick", states, None, gate, progress)


def revert(
    repo: Repository,
    revisions: Sequence[str],
    *,
    strategy: str = DEFAULT_STRATEGY,
    options: Mapping[str, str] | None = None,
    rules: Mapping[str, str] | None = None,
    mainline: int | None = None,
    gate: str = "block",
    progress: Progress = SILENT,
) -> Picked:
    """Take the change of each of `revisions` back, the newest first when `A..B` is given, as new commits.

    Reverting the last commit gives back the very bytes before it.  Other arguments as for `cherry_pick`.
    """
    commits = _listed(repo, revisions)[::-1] if len(revisions) == 1 else _listed(repo, revisions)
    rule = _rule(strategy, options, rules)
    states = []
    for commit in commits:
        picked = _pick(repo, commit, rule, mainline, verb="revert")
        states.append(_reverted(repo, picked, commit))
    return _start(repo, "revert", states, None, gate, progress)


def rebase(
    repo: Repository,
    upstream: str,
    *,
    strategy: str = DEFAULT_STRATEGY,
    options: Mapping[str, str] | None = None,
    rules: Mapping[str, str] | None = None,
    gate: str = "block",
    progress: Progress = SILENT,
) -> Picked:
    """Make the commits of the current branch that `upstream` lacks again on top of it, and move the branch there.

    Merge commits are left out: what they brought is there, or among the others.  The branch and the work tree move
    once, at the end; the old commits stay in the operation log (`mgit undo`).
    """
    onto = repo.resolve(upstream)
    head = require_head(repo)
    if is_ancestor(onto, head, repo.parents_of):
        return Picked("rebase", (), (), head, head)
    here = set(ancestors((onto,), repo.parents_of))
    commits = [
        commit
        for commit in topological((head,), repo.parents_of, lambda c: repo.commit_at(c).committer.time_s, stop=here)
        if len(repo.parents_of(commit)) == 1
    ][::-1]
    rule = _rule(strategy, options, rules)
    states = [_pick(repo, commit, rule, None, verb="rebase") for commit in commits]
    return _start(repo, "rebase", states, onto, gate, progress)


def continue_picks(
    repo: Repository, verb: Verb, *, gate: str = "block", skip: bool = False, progress: Progress = SILENT
) -> Picked:
    """Go on with what waits; with `skip` without the commit that it waits for.

    Raises MergeConflicts while conflicts are open.
    """
    with repo.writing():
        state = waiting_state(repo, verb)
        rule = _rule(state.strategy, {key: str(value) for key, value in state.options.items()}, state.rules)
        rest = [_again(repo, state, commit, rule) for commit in state.todo]
        return _run(repo, verb, rest if skip else [state, *rest], state, gate, progress)


def _start(
    repo: Repository, verb: Verb, states: Sequence[MergeState], onto: CommitId | None, gate: str, progress: Progress
) -> Picked:
    with repo.writing():
        refuse_during_merge(repo, f"a {verb}")
        head = require_head(repo)
        first = MergeState(
            ours=onto or head, theirs=head, base=None, message="", strategy=DEFAULT_STRATEGY, verb=verb, start=head
        )
        source, target = repo.manifest_of(head), repo.manifest_of(onto or head)
        check_clean(repo, source, target, verb=f"a {verb}", hint="`mgit commit -m …` or `mgit restore .` first")
        return _run(repo, verb, states, first, gate, progress)


def _run(
    repo: Repository, verb: Verb, states: Sequence[MergeState], at: MergeState, gate: str, progress: Progress
) -> Picked:
    """Apply the states one after the other, each on what the one before made, and move the branch at the end."""
    from modelgit.repo.merges.commit import move_to

    tip, start = at.ours, at.head
    results: list[MergeResult] = []
    skipped: list[CommitId] = []
    try:
        for number, item in enumerate(states):
            todo = tuple(later.source for later in states[number + 1 :] if later.source is not None)
            state = msgspec.structs.replace(item, ours=tip, start=start, todo=todo)
            bound = STRATEGIES.get(state.strategy).bind(state.options)
            try:
                result = apply_state(repo, state, bound, gate, progress)
            except GateRefused as refused:
                refused.message = f"{_applying(repo, verb, state)}: {refused.message}"
                refused.args = (refused.message,)
                raise
            if result.commit is not None:
                results.append(result)
                tip = result.commit.id
            elif state.source is not None:
                skipped.append(state.source)
            if todo:
                # What is made so far must be kept by whoever collects garbage meanwhile, and found after a kill.
                write_state(repo, msgspec.structs.replace(states[number + 1], ours=tip, start=start, todo=todo[1:]))
    except MergeConflicts:
        raise
    except MgitError:
        clear_state(repo)
        raise
    view = repo.view()
    if view.head == start and tip != start:
        # The last commit changed nothing here, or there was none: only the branch is left to move.
        move_to(repo, start, tip, verb=verb, progress=progress)
    if read_state(repo) is not None:
        clear_state(repo)
    if tip == start:
        what = "nothing to apply: the branch has all of it already"
        raise NothingToDo(what, hint="`mgit log` shows what is there")
    return Picked(verb, tuple(results), tuple(skipped), start, tip)


def _applying(repo: Repository, verb: Verb, state: MergeState) -> str:
    """`rebase of 3f9c2a71d0be ("tone: friendlier")`."""
    if state.source is None:
        return verb
    return f'{verb} of {state.source.short} ("{repo.commit_at(state.source).subject}")'


def _rule(strategy: str, options: Mapping[str, str] | None, rules: Mapping[str, str] | None) -> _Rule:
    for text in (rules or {}).values():
        parse_rule(text)
    return _Rule(STRATEGIES.get(strategy).bind(options or {}), dict(rules or {}))


def _pick(repo: Repository, commit: CommitId, rule: _Rule, mainline: int | None, *, verb: Verb) -> MergeState:
    record = repo.commit_at(commit)
    parents = record.parents
    if not parents:
        raise BaseMissing(commit)
    if len(parents) > 1 and mainline is None:
        raise UsageError(
            f"{commit.short} is a merge: its change depends on the parent that it is compared with",
            hint=f"`mgit {verb} {commit.short} --mainline 1` takes what the merge brought into its first parent",
        )
    number = mainline or 1
    if not 1 <= number <= len(parents):
        raise UsageError(
            f"{commit.short} has {len(parents)} parents, and no number {number}",
            hint=f"`mgit {verb} {commit.short} --mainline 1`",
        )
    return MergeState(
        ours=commit,
        theirs=commit,
        base=parents[number - 1],
        message=record.message.rstrip("\n"),
        strategy=rule.strategy.name,
        options=rule.strategy.recipe,
        rules=rule.rules,
        verb=verb,
        source=commit,
        author=str(record.author),
    )


def _again(repo: Repository, state: MergeState, commit: CommitId, rule: _Rule) -> MergeState:
    """The state of a commit that was still to do."""
    mainline = None if len(repo.parents_of(commit)) < 2 else 1
    verb: Verb = "revert" if state.verb == "revert" else "rebase" if state.verb == "rebase" else "cherry-pick"
    picked = _pick(repo, commit, rule, mainline, verb=verb)
    return _reverted(repo, picked, commit) if verb == "revert" else picked


def _reverted(repo: Repository, picked: MergeState, commit: CommitId) -> MergeState:
    """The state that takes back what `picked` would apply: base and other side change places."""
    if picked.base is None:
        raise BaseMissing(commit)
    message = f'Revert "{repo.commit_at(commit).subject}"\n\nThis takes back commit {commit.short}.'
    return msgspec.structs.replace(picked, base=commit, theirs=picked.base, author="", message=message)


class BaseMissing(RepositoryError):
    """The first commit of a history changes nothing that could be compared."""

    def __init__(self, commit: CommitId) -> None:
        super().__init__(
            f"{commit.short} is the first commit of its history: there is nothing that it changed",
            hint="`mgit restore --source REV PATH` brings its files here",
        )


def _listed(repo: Repository, revisions: Sequence[str]) -> list[CommitId]:
    """Commits by revision; a range gives its commits, the oldest first."""
    found: list[CommitId] = []
    for text in revisions:
        if ".." not in text:
            found.append(repo.resolve(text))
            continue
        first, last = (repo.resolve(part or "HEAD") for part in text.split("..", 1))
        outside = set(ancestors((first,), repo.parents_of))
        between = topological(
            (last,), repo.parents_of, lambda commit: repo.commit_at(commit).committer.time_s, stop=outside
        )
        found += list(between)[::-1]
    if not found:
        raise NothingToDo(f"there is no commit in {' '.join(revisions)}", hint="`mgit log A..B` lists a range")
    return found
