"""Many sides at once: one base, one strategy, one commit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from modelgit.errors import NothingToDo, RepositoryError
from modelgit.repo import Repository
from modelgit.repo.history.log import log
from modelgit.repo.merges.merge import merge
from modelgit.repo.merges.octopus import merge_many
from modelgit.repo.merges.replay import replay

FILE = "bot.safetensors"


def weights(repo: Repository, revision: str = "HEAD") -> dict[str, np.ndarray]:
    state = repo.load(revision)
    return {name: np.array(state[name].numpy()) for name in state}


@pytest.fixture
def many(bot: Repository, files) -> Repository:
    """Branches a, b and c: each changes layer 0 densely, and a layer (or another file) of its own."""
    start = weights(bot)
    config = bot.worktree / "config.json"
    config.write_text(json.dumps({"a": 0, "b": 0, "c": 0}, indent=1))
    bot.track("config.json")
    bot.commit("config")
    for number, name in enumerate("abc"):
        bot.switch(name, create=True, start="main")
        arrays = {key: array.copy() for key, array in start.items()}
        rng = np.random.default_rng(number)
        arrays["layers.0.weight"] += (0.01 * rng.standard_normal(arrays["layers.0.weight"].shape)).astype(np.float32)
        if number:
            arrays[f"layers.{number}.weight"] += np.float32(0.5)
        (bot.worktree / FILE).write_bytes(files.of_arrays(arrays))
        config.write_text(json.dumps({**json.loads(config.read_text()), name: 1}, indent=1))
        bot.commit(f"branch {name}")
    bot.switch("main")
    return bot


def test_all_sides_are_merged_at_once(many: Repository) -> None:
    before = many.head()
    done = merge_many(many, ["a", "b", "c"], strategy="task-arithmetic")
    base, (a, b, c), now = weights(many, "main~1"), [weights(many, name) for name in "abc"], weights(many)
    wide = base["layers.0.weight"].astype(np.float64)
    expected = wide + sum(side["layers.0.weight"] - wide for side in (a, b, c))
    assert np.allclose(now["layers.0.weight"], expected, rtol=1e-6)
    assert np.array_equal(now["layers.1.weight"], b["layers.1.weight"])
    assert np.array_equal(now["layers.2.weight"], c["layers.2.weight"])
    assert json.loads((many.worktree / "config.json").read_text()) == {"a": 1, "b": 1, "c": 1}
    assert many.parents_of(many.head()) == (before, *(many.resolve(name) for name in "abc"))
    assert (done.combined, done.commit.commit.recipe.strategy) == (1, "task-arithmetic")
    assert many.status().is_clean
    with pytest.raises(NothingToDo):
        merge_many(many, ["a", "b"])


def test_the_order_of_the_branches_means_nothing(many: Repository) -> None:
    merge_many(many, ["a", "b", "c"], strategy="ties")
    tree = many.commit_at(many.head()).manifest
    many.switch("again", create=True, start="main~1")
    merge_many(many, ["c", "a", "b"], strategy="ties")
    assert many.commit_at(many.head()).manifest == tree


def test_what_needs_a_decision_is_refused_with_nothing_changed(many: Repository, files) -> None:
    many.switch("d", create=True, start="main")
    (many.worktree / "config.json").write_text(json.dumps({"a": 2, "b": 0, "c": 0}, indent=1))
    many.commit("branch d")
    many.switch("main")
    before, digests = many.head(), files.digests(many.worktree)
    with pytest.raises(RepositoryError, match="these branches conflict") as refused:
        merge_many(many, ["a", "d"], strategy="average")
    assert "one after the other" in str(refused.value.hint)
    assert (many.head(), files.digests(many.worktree)) == (before, digests)


def test_two_at_once_are_what_one_merge_is(many: Repository) -> None:
    many.switch("one", create=True, start="a")
    merge(many, "b", strategy="average")
    pair = weights(many)
    many.switch("two", create=True, start="a")
    merge_many(many, ["b"], strategy="average")
    assert all(np.array_equal(array, pair[name]) for name, array in weights(many).items())


@pytest.mark.parametrize("strategy", ["ties", "dare"])
def test_a_merge_of_many_is_made_again_bit_for_bit(many: Repository, strategy: str) -> None:
    done = merge_many(many, ["a", "b", "c"], strategy=strategy)
    assert len(done.overlaps) == 1 and done.overlaps[0].values > 700
    packs = sorted(path.name for path in many.store.packs_path.iterdir())
    found = replay(many, "HEAD")
    assert found.is_same and found.differing == ()
    assert sorted(path.name for path in many.store.packs_path.iterdir()) == packs


def test_rules_decide_conflicts_of_tensors(many: Repository, files) -> None:
    """All branches write a table of integers: only who names a side may merge them at once."""
    for number, name in enumerate(("a", "b", "c", "main")):
        many.switch(name)
        arrays = {key: ("F32", array.shape, array.tobytes()) for key, array in weights(many).items()}
        table = ("I64", (4,), np.full(4, number, np.int64).tobytes())
        (many.worktree / FILE).write_bytes(files.safetensors({**arrays, "steps": table}))
        many.commit("table")
    with pytest.raises(RepositoryError, match="these branches conflict") as refused:
        merge_many(many, ["a", "b", "c"], strategy="average")
    assert "`--strategy 'steps=ours'`" in str(refused.value.hint)
    for side, value in (("ours", 3), ("theirs", 2)):
        many.switch(side, create=True, start="main")
        done = merge_many(many, ["a", "b", "c"], strategy="average", rules={"steps": side})
        assert weights(many)["steps"].tolist() == [value] * 4
        assert done.commit.commit.recipe.resolutions == {f"{FILE}:steps": f"take {side}"}
        assert replay(many, "HEAD").is_same


def test_the_log_of_several_is_that_of_all_of_them(many: Repository) -> None:
    subjects = [entry.commit.subject for entry in log(many, "a", "b")]
    assert sorted(subjects[:2]) == ["branch a", "branch b"] and subjects[2:] == [e.commit.subject for e in log(many)]
    assert [entry.commit.subject for entry in log(many, "a..b")] == ["branch b"]
    assert {entry.commit.subject for entry in log(many, "..b", "..c")} == {"branch b", "branch c"}
    assert list(log(many, "b..main")) == []
