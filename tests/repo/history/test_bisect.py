"""bisect: the first bad commit of any history is found, with about log2 of its commits asked about."""

from __future__ import annotations

import math
import random

import pytest

from modelgit.errors import RepositoryError, UsageError
from modelgit.objects.graph import ancestors
from modelgit.repo import Repository
from modelgit.repo.history.bisect import current_bisection, mark, reset_bisection, start_bisection


@pytest.fixture
def history(repo: Repository) -> list:
    """Twenty commits of a small file, and a branch that was merged in the middle of it."""
    (repo.worktree / "notes").mkdir()
    repo.track("notes")
    commits = []
    for number in range(20):
        (repo.worktree / "notes" / "n.txt").write_text(f"{number}\n")
        commits.append(repo.commit(f"change {number}").id)
    return commits


@pytest.mark.parametrize("culprit", [1, 7, 13, 19])
def test_the_first_bad_commit_is_found_with_few_questions(repo: Repository, history: list, culprit: int) -> None:
    step = start_bisection(repo, "HEAD", [str(history[0])])
    asked = 0
    while step.next is not None:
        assert repo.head() == step.next
        assert (repo.worktree / "notes" / "n.txt").read_text() == f"{history.index(step.next)}\n"
        step = mark(repo, "bad" if history.index(step.next) >= culprit else "good")
        asked += 1
    assert step.found == history[culprit]
    assert asked <= math.ceil(math.log2(19)) + 1
    assert reset_bisection(repo) == "main"
    assert repo.view().branch == "main" and repo.head() == history[-1]
    assert current_bisection(repo) is None


def test_skipped_commits_leave_suspects(repo: Repository, history: list) -> None:
    step = start_bisection(repo, str(history[6]), [str(history[3])], checkout=False)
    head = repo.head()
    while step.next is not None:
        step = mark(repo, "skip")
    assert step.found is None and set(step.suspects) == {history[4], history[5], history[6]}
    assert repo.head() == head, "the work tree was to be left alone"


def test_answers_that_contradict_each_other_change_nothing(repo: Repository, history: list) -> None:
    with pytest.raises(UsageError, match="does not lead to"):
        start_bisection(repo, str(history[3]), [str(history[5])])
    assert current_bisection(repo) is None
    start_bisection(repo, "HEAD", [str(history[0])])
    with pytest.raises(RepositoryError, match="under way"):
        start_bisection(repo)
    before = current_bisection(repo)
    with pytest.raises(UsageError, match="cannot be both good and bad"):
        mark(repo, "good", [str(history[-1])])
    with pytest.raises(UsageError, match="one commit is the bad one"):
        mark(repo, "bad", [str(history[3]), str(history[4])])
    assert current_bisection(repo) == before


def test_a_random_graph_with_merges(repo: Repository, history: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parents drawn at random: the answer is the one bad commit all of whose parents are good."""
    from modelgit.repo.history import bisect as module

    draw = random.Random(4)
    graph = {history[0]: ()}
    for number in range(1, 20):
        count = draw.choice((1, 1, 2))
        earlier = history[max(0, number - 5) : number]
        graph[history[number]] = tuple(draw.sample(earlier, min(count, len(earlier))))
    monkeypatch.setattr(type(repo), "parents_of", lambda self, commit: graph[commit])
    reach = {commit: set(ancestors((commit,), graph.__getitem__)) for commit in history}
    for culprit in reach[history[-1]] - {history[0]}:
        step = module.start_bisection(repo, str(history[-1]), [str(history[0])], checkout=False)
        while step.next is not None:
            step = module.mark(repo, "bad" if culprit in reach[step.next] else "good")
        assert step.found == culprit
        repo.paths.bisect.unlink()
