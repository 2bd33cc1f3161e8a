"""Merges that ask first, and decisions that can be taken back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import MergeConflicts, RepositoryError, UsageError
from modelgit.objects.graph import merge_bases
from modelgit.objects.merges import Overlap, Resolution
from modelgit.repo import Repository
from modelgit.repo.exchange.remote import add_remote
from modelgit.repo.exchange.sync import fetch, push
from modelgit.repo.merges.merge import continue_merge, merge, plan_merge, resolve_conflicts
from modelgit.repo.merges.picks import revert
from modelgit.repo.merges.replay import replay


def test_histories_without_a_common_commit_are_not_averaged_in_silence(make_repo, files, tmp_path: Path) -> None:
    repos = []
    for seed, name in enumerate(("one", "two")):
        repo: Repository = make_repo(name)
        (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(seed)))
        repo.track("bot.safetensors")
        repo.commit("base")
        add_remote(repo, "origin", str(tmp_path / f"{name}.mgit"))
        repos.append(repo)
    one, two = repos
    push(two)
    add_remote(one, "other", str(tmp_path / "two.mgit"))
    fetch(one, "other")
    before, state = one.head(), files.digests(one.worktree)
    with pytest.raises(RepositoryError, match="no commit in common") as refused:
        merge(one, "other/main", strategy="average")
    assert "--allow-unrelated" in str(refused.value.hint)
    assert (one.head(), files.digests(one.worktree)) == (before, state)
    assert merge(one, "other/main", strategy="average", unrelated=True).kind == "merged"


def test_a_resolution_can_be_changed(bot: Repository) -> None:
    config = bot.worktree / "config.json"
    for branch, value in (("main", 1), ("side", 2), ("main", 3)):
        if branch == "side":
            bot.switch("side", create=True)
        elif value == 3:
            bot.switch("main")
        config.write_text(json.dumps({"t": value}))
        if value == 1:
            bot.track("config.json")
        bot.commit(f"t is {value}")
    with pytest.raises(MergeConflicts):
        merge(bot, "side", strategy="average")
    assert resolve_conflicts(bot, "t", Resolution.parse("take ours")) == []
    assert resolve_conflicts(bot, "t", Resolution.parse("take theirs")) == []
    continue_merge(bot)
    assert json.loads(config.read_text()) == {"t": 2}


def test_histories_that_merged_each_other_meet_at_what_these_merges_made(bot: Repository, files) -> None:
    """A criss-cross has two merge bases; against either of them one change would count twice."""

    def change(seed: int, *names: str) -> None:
        state = bot.load()
        arrays = {name: np.array(state[name].numpy()) for name in state}
        for name in names:
            step = 0.01 * np.random.default_rng(seed).standard_normal(arrays[name].shape)
            arrays[name] += step.astype(np.float32)
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
        bot.commit(f"change {seed}")

    first, second = "layers.0.weight", "layers.1.weight"
    bot.switch("side", create=True)
    change(1, first)
    side = bot.head()
    bot.switch("main")
    change(2, first)
    main = bot.head()
    merge(bot, str(side), strategy="average")
    bot.switch("side")
    merge(bot, str(main), strategy="average")
    change(3, second)
    bot.switch("main")
    change(4, first, second)
    assert sorted(merge_bases(bot.head(), bot.resolve("side"), bot.parents_of)) == sorted([main, side])
    ours, theirs = (
        {name: np.array(bot.load(rev)[name].numpy()) for name in (first, second)} for rev in ("main", "side")
    )
    merge(bot, "side", strategy="average")
    merged = bot.load()
    assert np.array_equal(np.array(merged[first].numpy()), ours[first])  # side changed it no more than main knows
    mean = (ours[second].astype(np.float64) + theirs[second]) / 2
    assert np.array_equal(np.array(merged[second].numpy()), mean.astype(np.float32))


def test_the_settings_name_the_strategy_and_a_dry_run_keeps_nothing(bot: Repository, files) -> None:
    def change(seed: int) -> None:
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(seed)))
        bot.commit(f"seed {seed}")

    bot.switch("side", create=True)
    change(1)
    bot.switch("main")
    change(2)
    text = '[merge]\nstrategy = "task-arithmetic scale=0.5"\nrules = ["layers.2.*=theirs"]\n'
    project = bot.worktree / "mgit.toml"
    project.write_text(project.read_text() + text)
    bot.forget_settings()
    bot.commit("how we merge")
    before, digests = bot.head(), files.digests(bot.worktree)
    tried = merge(bot, "side", dry_run=True)
    assert (tried.kind, tried.strategy) == ("dry-run", "task-arithmetic")
    assert (bot.head(), files.digests(bot.worktree), bot.status().merging) == (before, digests, None)
    done = merge(bot, "side", rules={"layers.1.*": "ours"})
    recipe = done.commit.commit.recipe
    assert recipe.options["scale"] == 0.5
    assert recipe.rules == {"layers.1.*": "ours", "layers.2.*": "theirs"}
    base, one, two, now = (
        {name: np.array(state[name].numpy()) for name in state}
        for state in (bot.load("main~2"), bot.load("side"), bot.load("main~1"), bot.load())
    )
    wide = base["layers.0.weight"].astype(np.float64)
    wide = wide + 0.5 * ((two["layers.0.weight"] - wide) + (one["layers.0.weight"] - wide))
    assert np.allclose(now["layers.0.weight"], wide, rtol=1e-6)
    assert np.array_equal(now["layers.1.weight"], two["layers.1.weight"])
    assert np.array_equal(now["layers.2.weight"], one["layers.2.weight"])


@pytest.mark.parametrize("strategy", ["ties", "dare", "average", "fisher-task"])
def test_a_recorded_merge_is_made_again_bit_for_bit(bot: Repository, files, strategy: str) -> None:
    bot.switch("side", create=True)
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(1)))
    bot.commit("one")
    bot.switch("main")
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(2)))
    bot.commit("two")
    merge(bot, "side", strategy=strategy)
    packs = sorted(path.name for path in bot.store.packs_path.iterdir())
    found = replay(bot, "HEAD")
    assert found.is_same and found.differing == ()
    assert sorted(path.name for path in bot.store.packs_path.iterdir()) == packs
    revert(bot, ["HEAD"], mainline=1)
    assert replay(bot, "HEAD").is_same
    with pytest.raises(UsageError, match="no recipe"):
        replay(bot, "side")


def test_a_rule_that_picks_a_side_decides_what_has_no_mean(bot: Repository, files) -> None:
    """Both sides changed a table of integers: a conflict, unless a rule names a side."""

    def write(value: int) -> None:
        table = np.full(4, value, np.int64).tobytes()
        weights = {name: ("F32", array.shape, array.tobytes()) for name, array in files.floats(value).items()}
        (bot.worktree / "bot.safetensors").write_bytes(files.safetensors({**weights, "steps": ("I64", (4,), table)}))
        bot.commit(f"table {value}")

    write(1)
    bot.switch("side", create=True)
    write(2)
    bot.switch("main")
    write(3)
    with pytest.raises(MergeConflicts):
        merge(bot, "side", strategy="average", dry_run=True)
    done = merge(bot, "side", strategy="average", rules={"step*": "theirs"})
    assert np.array(bot.load()["steps"].numpy()).tolist() == [2] * 4
    assert done.resolved == 0 and list(done.commit.commit.recipe.resolutions.values()) == ["take theirs"]
    assert replay(bot, "HEAD").is_same


def test_rows_are_recorded_and_made_again(bot: Repository, files) -> None:
    """A table that both sides resized in different ways: each row from where somebody says."""

    def write(rows: int, value: int) -> np.ndarray:
        table = np.random.default_rng(value).standard_normal((rows, 4)).astype(np.float32)
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays({**files.floats(0), "embed": table}))
        bot.commit(f"{rows} rows")
        return table

    base = write(6, 0)
    bot.switch("side", create=True)
    theirs = write(9, 1)
    bot.switch("main")
    ours = write(8, 2)
    with pytest.raises(MergeConflicts):
        merge(bot, "side", strategy="average")
    with pytest.raises(UsageError, match="base has 6 rows"):
        resolve_conflicts(bot, "embed", Resolution.parse("rows 0:7=combine,7:=ours"))
    resolve_conflicts(bot, "embed", Resolution.parse("rows 6:8=ours,0:1=base,1:6=combine,8:=theirs"))
    done = continue_merge(bot)
    mean = (ours.astype(np.float64) + theirs[:8]) / 2
    expected = np.vstack([base[:1], mean[1:6].astype(np.float32), ours[6:], theirs[8:]])
    assert np.array_equal(np.array(bot.load()["embed"].numpy()), expected)
    recipe = done.commit.commit.recipe
    assert recipe.resolutions == {"bot.safetensors:embed": "rows 0:1=base,1:6=combine,6:8=ours,8:=theirs"}
    assert replay(bot, "HEAD").is_same


def test_tensors_that_the_sides_move_apart_are_named_and_block_on_request(bot: Repository, files) -> None:
    """Three layers that both sides changed: one alike, one at random, one in opposite directions."""
    start = {name: np.array(bot.load()[name].numpy()) for name in bot.load()}
    random = np.random.default_rng(1)
    steps = [random.standard_normal(start["layers.0.weight"].shape).astype(np.float32) for _ in range(4)]

    def write(*changes: np.ndarray) -> None:
        arrays = {f"layers.{n}.weight": start[f"layers.{n}.weight"] + step for n, step in enumerate(changes)}
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
        bot.commit("change")

    bot.switch("side", create=True)
    write(steps[0], steps[1], steps[2])
    bot.switch("main")
    write(2 * steps[0], steps[3], -steps[2])
    planned = plan_merge(bot, "side")
    assert [(item.name, item.values, item.opposed) for item in planned.signs] == [("layers.2.weight", 768, 768)]
    by_name = {item.name: item for item in planned.overlaps}
    assert by_name["layers.0.weight"].share == 0 and 0.4 < by_name["layers.1.weight"].share < 0.6
    assert plan_merge(bot, "side", sign_limit=1).signs == ()
    assert [item.name for item in plan_merge(bot, "side", sign_limit=0.2).signs] == [
        "layers.2.weight",
        "layers.1.weight",
    ]
    tried = merge(bot, "side", strategy="average", dry_run=True)
    assert tried.signs == planned.signs and tried.overlaps == planned.overlaps
    assert merge(bot, "side", strategy="average", rules={"*.2.*": "ours"}, dry_run=True, block_signs=True).signs == ()
    with pytest.raises(MergeConflicts) as stopped:
        merge(bot, "side", strategy="average", sign_limit=0.2, block_signs=True)
    found = {(c.item, c.kind, c.ours) for c in stopped.value.conflicts}
    assert ("layers.2.weight", "signs", "768 of 768 values") in found and len(found) == 2
    assert "--with combine" in str(stopped.value.hint)
    assert len(resolve_conflicts(bot, "layers.2.weight", Resolution.parse("take theirs"))) == 1
    with pytest.raises(MergeConflicts):
        continue_merge(bot)
    assert resolve_conflicts(bot, "layers.1.weight", Resolution.parse("with combine")) == []
    continue_merge(bot)
    sides = [bot.load(rev) for rev in ("main~1", "side")]
    now = {name: np.array(bot.load()[name].numpy()) for name in start}
    assert np.array_equal(now["layers.2.weight"], np.array(sides[1]["layers.2.weight"].numpy()))
    mean = sum(np.array(side["layers.1.weight"].numpy()).astype(np.float64) for side in sides) / 2
    assert np.array_equal(now["layers.1.weight"], mean.astype(np.float32))
    assert replay(bot, "HEAD").is_same


def test_few_values_that_disagree_by_chance_are_no_conflict() -> None:
    few, many = (Overlap(model="m", name="t", values=n, opposed=7 * n // 10) for n in (10, 1000))
    assert not few.exceeds(0.6) and many.exceeds(0.6)
    assert Overlap(model="m", name="t", values=1, opposed=1).exceeds(0)
    assert not Overlap(model="m", name="t", values=0, opposed=0).exceeds(0)
