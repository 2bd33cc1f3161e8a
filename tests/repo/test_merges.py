"""Merges that ask first, and decisions that can be taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelgit.errors import MergeConflicts, RepositoryError
from modelgit.objects.merges import Resolution
from modelgit.repo import Repository
from modelgit.repo.merge import continue_merge, merge, resolve_conflicts
from modelgit.repo.sync import add_remote, fetch, push


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
