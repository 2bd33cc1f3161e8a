"""cherry-pick, revert and rebase: exact where changes do not overlap, one rounding where they do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from modelgit.errors import MergeConflicts, NothingToDo, RepositoryError, UsageError
from modelgit.objects.merges import Resolution
from modelgit.repo import Repository
from modelgit.repo.merges.merge import abort_merge, merge, resolve_conflicts
from modelgit.repo.merges.picks import cherry_pick, continue_picks, rebase, revert
from modelgit.repo.tracking.undo import undo
from modelgit.repo.upkeep.gc import collect

FILE = "bot.safetensors"


def weights(repo: Repository) -> dict[str, np.ndarray]:
    state = repo.load()
    return {name: np.array(state[name].numpy()) for name in state}


class Bot:
    """A repository whose model is changed by hand."""

    def __init__(self, repo: Repository, files) -> None:
        self.repo, self.files = repo, files

    def change(self, message: str, **steps) -> object:
        """Add to values: `layer0=(row, amount)` moves a row of layers.0.weight, `layer0=amount` all of it."""
        arrays = weights(self.repo)
        for key, step in steps.items():
            array = arrays[f"layers.{key[-1]}.weight"]
            if isinstance(step, tuple):
                array[step[0]] += np.float32(step[1])
            else:
                rng = np.random.default_rng(int(1e6 * step))
                array += (step * rng.standard_normal(array.shape)).astype(np.float32)
        (self.repo.worktree / FILE).write_bytes(self.files.of_arrays(arrays))
        return self.repo.commit(message).id

    def tree(self) -> object:
        return self.repo.commit_at(self.repo.head()).manifest


@pytest.fixture
def world(bot: Repository, files) -> Bot:
    return Bot(bot, files)


def test_reverting_the_last_commit_gives_the_very_bytes_back(world: Bot) -> None:
    before, digests = world.tree(), world.files.digests(world.repo.worktree)
    world.change("noise", layer0=0.01, layer1=0.02, layer2=0.5)
    done = revert(world.repo, ["HEAD"])
    assert world.tree() == before
    assert world.files.digests(world.repo.worktree) == digests
    commit = done.results[0].commit.commit
    assert commit.subject == 'Revert "noise"'
    assert list(commit.trailers) == ["revert"]
    # And the revert of the revert is the change.
    again = revert(world.repo, ["HEAD"])
    assert again.results[0].commit.commit.subject == 'Revert "Revert "noise""'


@pytest.mark.parametrize("same", [True, False])
def test_the_first_of_two_changes_is_taken_out_from_under_the_second(world: Bot, same: bool) -> None:
    base = weights(world.repo)
    first = world.change("first", layer0=0.01)
    after_first = weights(world.repo)
    world.change("second", **({"layer0": 0.3} if same else {"layer1": 0.3}))
    both = weights(world.repo)
    revert(world.repo, [str(first)])
    now = weights(world.repo)
    for name, array in now.items():
        wide = [side[name].astype(np.float64) for side in (both, base, after_first)]
        assert np.array_equal(array, (wide[0] + (wide[1] - wide[2])).astype(np.float32))
    if not same:
        assert np.array_equal(now["layers.0.weight"], base["layers.0.weight"])


def test_a_change_is_picked_onto_another_branch(world: Bot) -> None:
    repo = world.repo
    repo.switch("tone", create=True)
    picked = world.change("tone: softer", layer0=(3, 0.25), layer1=0.01)
    world.change("tone: more", layer2=0.1)
    repo.switch("main")
    world.change("main moves", layer0=(7, 0.5))
    before = weights(repo)
    done = cherry_pick(repo, [str(picked)])
    now = weights(repo)
    base, side = repo.load(f"{picked}~1"), repo.load(str(picked))
    expected = before["layers.0.weight"].copy()
    expected[3] = np.array(side["layers.0.weight"].numpy())[3]
    assert np.array_equal(now["layers.0.weight"], expected)  # sparse: row by row, exactly
    assert np.array_equal(now["layers.1.weight"], np.array(side["layers.1.weight"].numpy()))
    assert np.array_equal(now["layers.2.weight"], np.array(base["layers.2.weight"].numpy()))
    commit = done.results[0].commit.commit
    assert (commit.message, dict(commit.trailers)) == ("tone: softer", {"cherry-pick": str(picked)})
    assert commit.parents == (done.before,)
    with pytest.raises(NothingToDo, match="has all of it"):
        cherry_pick(repo, [str(picked)])
    assert repo.head() == done.after


def test_a_range_is_picked_oldest_first_and_moves_the_branch_once(world: Bot) -> None:
    repo = world.repo
    repo.switch("tone", create=True)
    for number in range(3):
        world.change(f"step {number}", layer0=(number, 0.5))
    repo.switch("main")
    world.change("main", layer1=0.1)
    operations = len(list(repo.operations.history(repo.roots.read().root.operation)))
    done = cherry_pick(repo, ["tone~3..tone"])
    assert [item.commit.commit.message for item in done.results] == ["step 0", "step 1", "step 2"]
    assert len(list(repo.operations.history(repo.roots.read().root.operation))) == operations + 1
    assert np.array_equal(weights(repo)["layers.0.weight"], np.array(repo.load("tone")["layers.0.weight"].numpy()))
    undo(repo)
    assert repo.head() == done.before


def test_a_branch_is_rebased_and_the_old_one_can_be_had_back(world: Bot) -> None:
    repo = world.repo
    repo.switch("tone", create=True)
    world.change("a", layer0=(1, 0.5))
    world.change("b", layer1=0.01)
    old = repo.head()
    repo.switch("main")
    world.change("main moves", layer1=0.1, layer2=0.1)
    repo.switch("tone")
    base, theirs = repo.load("tone~2"), weights(repo)
    done = rebase(repo, "main")
    assert [item.commit.commit.message for item in done.results] == ["a", "b"]
    assert repo.parents_of(done.results[0].commit.id) == (repo.resolve("main"),)
    assert repo.view().branch == "tone"
    main = repo.load("main")
    wide = [np.array(x, np.float64) for x in (main["layers.1.weight"], theirs["layers.1.weight"])]
    wide.append(np.array(base["layers.1.weight"].numpy(), np.float64))
    now = weights(repo)
    assert np.array_equal(now["layers.1.weight"], (wide[0] + (wide[1] - wide[2])).astype(np.float32))
    assert np.array_equal(now["layers.2.weight"], np.array(main["layers.2.weight"].numpy()))
    assert rebase(repo, "main").results == ()
    undo(repo)
    assert repo.head() == old


def test_rebase_leaves_out_what_is_upstream_already_and_goes_forward(world: Bot) -> None:
    repo = world.repo
    repo.switch("tone", create=True)
    shared = world.change("shared", layer0=(1, 0.5))
    own = world.change("own", layer0=(2, 0.5))
    repo.switch("main")
    world.change("main moves", layer2=0.1)
    cherry_pick(repo, [str(shared)])
    repo.switch("tone")
    done = rebase(repo, "main")
    assert [item.commit.commit.trailers["rebase"] for item in done.results] == [str(own)]
    assert done.skipped == (shared,)
    repo.switch("behind", create=True, start="main~1")
    assert rebase(repo, "main").after == repo.resolve("main")


def conflicting(world: Bot) -> tuple[Repository, object]:
    """On `side` three commits: one that conflicts with main between two that do not."""
    repo = world.repo
    config = repo.worktree / "config.json"
    config.write_text(json.dumps({"t": 0}))
    repo.track("config.json")
    repo.commit("config")
    repo.switch("side", create=True)
    world.change("one", layer0=(1, 0.5))
    config.write_text(json.dumps({"t": 1}))
    world.change("two", layer0=(2, 0.5))
    world.change("three", layer0=(3, 0.5))
    repo.switch("main")
    config.write_text(json.dumps({"t": 2}))
    repo.commit("other")
    return repo, config


def test_conflicts_stop_with_nothing_moved_and_go_on_after_a_collection(world: Bot) -> None:
    repo, config = conflicting(world)
    before, digests = repo.head(), world.files.digests(repo.worktree)
    with pytest.raises(MergeConflicts, match="cherry-pick stopped") as stopped:
        cherry_pick(repo, ["side~3..side"])
    assert "`mgit cherry-pick --continue`" in str(stopped.value.hint)
    assert (repo.head(), world.files.digests(repo.worktree)) == (before, digests)
    with pytest.raises(RepositoryError, match="a cherry-pick is under way"):
        repo.commit("x")
    with pytest.raises(RepositoryError, match="a cherry-pick is under way, not a rebase"):
        continue_picks(repo, "rebase")
    assert repo.status().verb == "cherry-pick"
    collect(repo, prune_now=True)
    resolve_conflicts(repo, "t", Resolution.parse("take theirs"))
    done = continue_picks(repo, "cherry-pick")
    assert [repo.commit_at(commit).message for commit in log(repo, before)] == ["three", "two", "one"]
    assert [item.commit.commit.message for item in done.results] == ["two", "three"]
    assert json.loads(config.read_text()) == {"t": 1}
    rows = weights(repo)["layers.0.weight"]
    assert np.array_equal(rows, np.array(repo.load("side")["layers.0.weight"].numpy()))


def log(repo: Repository, stop) -> list:
    found, commit = [], repo.head()
    while commit != stop:
        found.append(commit)
        (commit,) = repo.parents_of(commit)
    return found


def test_a_conflict_can_be_skipped_or_given_up(world: Bot) -> None:
    repo, config = conflicting(world)
    before = repo.head()
    with pytest.raises(MergeConflicts):
        cherry_pick(repo, ["side~3..side"])
    abort_merge(repo, verb="cherry-pick")
    assert repo.head() == before and repo.status().merging is None
    with pytest.raises(NothingToDo):
        continue_picks(repo, "cherry-pick")
    with pytest.raises(MergeConflicts):
        cherry_pick(repo, ["side~3..side"])
    continue_picks(repo, "cherry-pick", skip=True)
    assert [repo.commit_at(commit).message for commit in log(repo, before)] == ["three", "one"]
    assert json.loads(config.read_text()) == {"t": 2}


def test_what_cannot_be_picked_is_said(world: Bot) -> None:
    repo = world.repo
    with pytest.raises(RepositoryError, match="first commit"):
        revert(repo, ["HEAD"])
    repo.switch("side", create=True)
    world.change("side", layer0=(1, 0.5))
    repo.switch("main")
    world.change("main", layer0=(2, 0.5))
    merge(repo, "side", strategy="average")
    with pytest.raises(UsageError, match="is a merge") as refused:
        revert(repo, ["HEAD"])
    assert "--mainline 1" in str(refused.value.hint)
    revert(repo, ["HEAD"], mainline=1)
    assert repo.commit_at(repo.head()).manifest == repo.commit_at(repo.resolve("HEAD~2")).manifest
    with pytest.raises(NothingToDo, match="no commit in"):
        cherry_pick(repo, ["HEAD..HEAD"])
    edited = world.files.of_arrays(world.files.floats(9))
    (repo.worktree / FILE).write_bytes(edited)
    with pytest.raises(RepositoryError):
        revert(repo, ["HEAD"])
    assert (repo.worktree / FILE).read_bytes() == edited
