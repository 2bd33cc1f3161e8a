"""Which commits keep their weights: `[retention]` read against the history, as a plan that nothing acts on.

A training run is a branch with hundreds of commits.  Retention thins its line: what it does not keep loses its
weights, and stays in the history with its message, verdicts and tables of tensors.  Only the first-parent line of a
branch of the family is thinned, back to where it meets any other history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from modelgit.config.schema import RetentionSettings
from modelgit.objects import CommitId, View
from modelgit.objects.graph import ancestors, first_parents, merge_bases
from modelgit.repo.gates.gate import recorded_verdicts
from modelgit.repo.merges.state import read_state
from modelgit.repo.upkeep.pruned import pruned_commits

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["TRAINING_STATE", "RetentionPlan", "Thinned", "plan_retention"]

TRAINING_STATE = "training-state"


class Thinned(NamedTuple):
    """One commit of a family's lines: why its weights are kept, None when they are not."""

    commit: CommitId
    branch: str
    kept: str | None


class RetentionPlan(NamedTuple):
    """What `[retention]` says of a view.

    `families` holds the commits of each family, newest first; `pruned` maps the commits that lose their weights now to
    their family (those that lost them before are not among them); `expired` are commits that lose training state.
    `unmeasured` maps families to the metric of their `best` where no commit has recorded it.
    """

    families: dict[str, list[Thinned]]
    pruned: dict[CommitId, str]
    expired: dict[CommitId, str]
    unmeasured: dict[str, str]


def plan_retention(repo: Repository, view: View) -> RetentionPlan:
    """Read the settings against the view.  Reads metadata only."""
    settings = {name: rule for name, rule in repo.settings.retention.items() if name != TRAINING_STATE}
    outside = set(ancestors(_other_tips(view, tuple(settings)), repo.parents_of))
    fixed = _fixed(repo, view)
    lines = {
        name: {
            branch: list(_line(repo, tip, outside))
            for branch, tip in sorted(_branches(view).items())
            if fnmatchcase(branch, name)
        }
        for name in settings
    }
    forks = _forks(repo, view, outside)
    gone = pruned_commits(repo)
    families: dict[str, list[Thinned]] = {}
    kept_somewhere: set[CommitId] = set()
    for name, branches in lines.items():
        families[name] = []
        for branch, line in branches.items():
            reasons = _keep(repo, settings[name], line)
            for commit in line:
                why = fixed.get(commit) or forks.get(commit) or reasons.get(commit)
                families[name].append(Thinned(commit, branch, why))
                if why is not None:
                    kept_somewhere.add(commit)
    pruned = {
        item.commit: name
        for name, items in families.items()
        for item in items
        if item.commit not in kept_somewhere and item.commit not in gone
    }
    if TRAINING_STATE in repo.settings.retention:
        lines[TRAINING_STATE] = {branch: list(_line(repo, tip, set())) for branch, tip in _branches(view).items()}
    unmeasured = {
        name: rule.best
        for name, rule in repo.settings.retention.items()
        if rule.best is not None and any(lines[name].values()) and not _is_measured(repo, rule.best, lines[name])
    }
    return RetentionPlan(families, pruned, _expired(repo, view), unmeasured)


def _branches(view: View) -> dict[str, CommitId]:
    return {ref.removeprefix("heads/"): tip for ref, tip in view.refs.items() if ref.startswith("heads/")}


def _other_tips(view: View, patterns: tuple[str, ...]) -> Iterator[CommitId]:
    """Branches whose whole history keeps its weights.

    What a remote is known to have of a family is of the family, or pushing a run would be the end of its retention.
    """
    for ref, tip in view.refs.items():
        kind, _, name = ref.partition("/")
        if kind == "tags":
            continue
        name = name.partition("/")[2] if kind == "remotes" else name
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            yield tip


def _fixed(repo: Repository, view: View) -> dict[CommitId, str]:
    """Commits that are kept whatever a rule says."""
    found: dict[CommitId, str] = {}
    for ref, tip in view.refs.items():
        kind, _, name = ref.partition("/")
        found[tip] = f"tag {name}" if kind == "tags" else f"tip of {name}"
    if view.head is not None:
        found[view.head] = "current commit"
    state = read_state(repo) if repo.paths.merge.exists() else None
    if state is not None:
        bases = [state.base] if state.base else merge_bases(state.ours, state.theirs, repo.parents_of)
        for commit in (state.ours, state.theirs, *bases, *state.todo):
            found[commit] = f"{state.name} under way"
    return found


def _forks(repo: Repository, view: View, outside: set[CommitId]) -> dict[CommitId, str]:
    """Commits from which more than one line goes on: a merge of these lines needs them as base."""
    children: Counter[CommitId] = Counter()
    for commit in ancestors(view.refs.values(), repo.parents_of, stop=outside):
        children.update(set(repo.parents_of(commit)))
    return {commit: "branches part here" for commit, count in children.items() if count > 1 and commit not in outside}


def _line(repo: Repository, tip: CommitId, outside: set[CommitId]) -> Iterator[CommitId]:
    """The first parents from `tip` back to what is outside of the family, newest first."""
    return takewhile(lambda commit: commit not in outside, first_parents(tip, repo.parents_of))


def _keep(repo: Repository, rule: RetentionSettings, line: list[CommitId]) -> dict[CommitId, str]:
    """What the rule keeps of a line, newest first, and why."""
    reasons: dict[CommitId, str] = {}
    if rule.best is not None:
        scores = [(score, commit) for commit in line if (score := _score(repo, commit, rule.best)) is not None]
        scores.sort(key=lambda item: item[0], reverse=rule.goal == "max")  # stable: of equals the newest comes first
        for score, commit in scores[: rule.best_count]:
            reasons[commit] = f"best {rule.best} ({score:g})"
    if rule.every and line:
        for commit, number in zip(line, range(_depth(repo, line[0]), 0, -1), strict=False):
            if number % rule.every == 0:
                reasons[commit] = f"number {number}"
    for commit in line[: rule.last]:
        reasons[commit] = f"last {rule.last}"
    return reasons


def _is_measured(repo: Repository, metric: str, lines: dict[str, list[CommitId]]) -> bool:
    return any(_score(repo, commit, metric) is not None for line in lines.values() for commit in line)


def _depth(repo: Repository, commit: CommitId) -> int:
    """The number of a commit along its first parents, from the very first one: it never changes, so that what is kept
    for its number today is kept tomorrow, whatever branches come and go."""
    return sum(1 for _ in _line(repo, commit, set()))


def _score(repo: Repository, commit: CommitId, metric: str) -> float | None:
    """The value of a check in the verdicts that let the commit in, by its name or `suite.name`."""
    for record in recorded_verdicts(repo, commit):
        for result in record.results:
            if result.value is not None and metric in (result.name, f"{record.suite}.{result.name}"):
                return result.value
    return None


def _expired(repo: Repository, view: View) -> dict[CommitId, str]:
    """Commits whose training state goes: those with some, counted along every branch."""
    rule = repo.settings.retention.get(TRAINING_STATE)
    if rule is None:
        return {}
    tags = {tip for ref, tip in view.refs.items() if ref.startswith("tags/")}
    kept = tags | ({view.head} if view.head is not None else set())
    dropped: set[CommitId] = set()
    for tip in _branches(view).values():
        line = []
        for commit in _line(repo, tip, set()):
            training = repo.commit_at(commit).training
            if training is not None and repo.store.has(training):
                line.append(commit)
        keep = _keep(repo, rule, line)
        kept |= keep.keys()
        dropped |= set(line) - keep.keys()
    return dict.fromkeys(dropped - kept, TRAINING_STATE)
