"""blame: each tensor and each row stays with the commit that last changed it, merges included."""

from __future__ import annotations

import numpy as np
import pytest

from modelgit.errors import UsageError
from modelgit.repo import Repository
from modelgit.repo.history.blame import BlamedRows, blame_rows, blame_tensors
from modelgit.repo.merges.merge import merge
from modelgit.repo.tracking.switch import switch

FILE = "bot.safetensors"
NAME = "layers.0.weight"


def change(repo: Repository, files, message: str, **rows: tuple[int, int]):
    """Commit with rows of `layerN` moved."""
    state = repo.load()
    arrays = {name: np.array(state[name].numpy()) for name in state}
    for key, (start, stop) in rows.items():
        arrays[f"layers.{key[-1]}.weight"][start:stop] += np.float32(0.5)
    (repo.worktree / FILE).write_bytes(files.of_arrays(arrays))
    return repo.commit(message).id


def owners(repo: Repository, revision: str = "HEAD") -> dict[str, object]:
    return {line.name: line.commit for line in blame_tensors(repo, revision)}


def test_a_tensor_stays_with_the_newest_commit_that_changed_it(bot: Repository, files) -> None:
    base = bot.head()
    first = change(bot, files, "first", layer0=(0, 2))
    second = change(bot, files, "second", layer0=(3, 4), layer1=(0, 24))
    assert owners(bot) == {NAME: second, "layers.1.weight": second, "layers.2.weight": base}
    assert owners(bot, "HEAD~1") == {NAME: first, "layers.1.weight": base, "layers.2.weight": base}


def test_rows_are_told_apart_and_a_change_that_was_taken_back_leaves_no_trace(bot: Repository, files) -> None:
    base = bot.head()
    first = change(bot, files, "first", layer0=(2, 6))
    second = change(bot, files, "second", layer0=(5, 8))
    assert blame_rows(bot, NAME) == [
        BlamedRows(0, 2, base),
        BlamedRows(2, 5, first),
        BlamedRows(5, 8, second),
        BlamedRows(8, 24, base),
    ]
    assert blame_rows(bot, NAME, rows=(4, 9)) == [
        BlamedRows(4, 5, first),
        BlamedRows(5, 8, second),
        BlamedRows(8, 9, base),
    ]
    # Other rows in between, and these as they were: no commit agrees about the tensor, all about the rows.
    assert blame_rows(bot, NAME, "HEAD~1", rows=(6, 8)) == [BlamedRows(6, 8, base)]


def test_what_a_merge_took_from_a_side_belongs_to_that_side(bot: Repository, files) -> None:
    base = bot.head()
    switch(bot, "side", create=True)
    side = change(bot, files, "side", layer0=(0, 4), layer1=(0, 24))
    switch(bot, "main")
    main = change(bot, files, "main", layer0=(10, 12))
    merged = merge(bot, "side", strategy="task-arithmetic").commit
    assert owners(bot)["layers.1.weight"] == side and owners(bot)["layers.2.weight"] == base
    assert owners(bot)[NAME] == merged.id
    assert {line.commit for line in blame_rows(bot, NAME, rows=(10, 12))} == {main}
    assert {line.commit for line in blame_rows(bot, NAME, rows=(0, 4))} == {side}
    assert {line.commit for line in blame_rows(bot, NAME, rows=(12, 24))} == {base}


def test_a_model_that_was_moved_is_followed(bot: Repository, files) -> None:
    base = bot.head()
    first = change(bot, files, "first", layer0=(2, 6))
    # Moved, and in the same commit one tensor is another.
    state = bot.load()
    arrays = {name: np.array(state[name].numpy()) for name in state}
    arrays["layers.1.weight"][0:3] += np.float32(0.5)
    (bot.worktree / FILE).unlink()
    (bot.worktree / "new").mkdir()
    (bot.worktree / "new" / FILE).write_bytes(files.of_arrays(arrays))
    bot.track(f"new/{FILE}")
    moved = bot.commit("moved").id
    assert owners(bot) == {NAME: first, "layers.1.weight": moved, "layers.2.weight": base}
    assert blame_rows(bot, NAME) == [BlamedRows(0, 2, base), BlamedRows(2, 6, first), BlamedRows(6, 24, base)]
    assert blame_rows(bot, "layers.1.weight") == [BlamedRows(0, 3, moved), BlamedRows(3, 24, base)]
    # What lies beside the model that it is like was copied, and not moved.
    (bot.worktree / "copy.safetensors").write_bytes(files.of_arrays(arrays))
    bot.track("copy.safetensors")
    copied = bot.commit("copied").id
    assert {line.commit for line in blame_tensors(bot, model="copy.safetensors")} == {copied}


def test_rows_of_a_grown_tensor_and_bad_ranges(bot: Repository, files) -> None:
    base = bot.head()
    state = bot.load()
    arrays = {name: np.array(state[name].numpy()) for name in state}
    arrays[NAME] = np.concatenate([arrays[NAME], np.ones((2, 32), np.float32)])
    (bot.worktree / FILE).write_bytes(files.of_arrays(arrays))
    grown = bot.commit("grown").id
    assert blame_rows(bot, NAME) == [BlamedRows(0, 24, base), BlamedRows(24, 26, grown)]
    with pytest.raises(UsageError, match="not within the 26 rows"):
        blame_rows(bot, NAME, rows=(20, 27))
    with pytest.raises(UsageError, match="did you mean"):
        blame_rows(bot, "layers.0.weigth")
