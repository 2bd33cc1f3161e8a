"""What lies in the way of a switch or a restore: nothing recorded nowhere is lost, and nobody gets stuck."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelgit.errors import CheckpointFormatError, RepositoryError
from modelgit.repo import Repository
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.track import untrack
from modelgit.repo.tracking.undo import redo, undo
from modelgit.repo.tracking.update import finish_pending
from modelgit.repo.upkeep.fsck import fsck

posix = pytest.mark.skipif(os.name != "posix", reason="symbolic links and FIFOs need rights elsewhere")


def text(path: Path, value: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(value)


def rescued(repo: Repository) -> list[str]:
    return sorted(path.read_text() for path in repo.paths.rescue.rglob("*") if path.is_file())


@pytest.fixture
def shapes(bot: Repository) -> Repository:
    """`data` is a file on main and a directory with `data/x` on side, which is current."""
    text(bot.worktree / "data", "a file")
    bot.track("data")
    bot.commit("file")
    bot.switch("side", create=True)
    (bot.worktree / "data").unlink()
    text(bot.worktree / "data" / "x", "in a directory")
    bot.commit("directory")
    return bot


def test_a_directory_takes_the_place_of_a_file_and_back(shapes: Repository) -> None:
    data = shapes.worktree / "data"
    for _ in range(2):
        shapes.switch("main")
        assert data.read_text() == "a file" and shapes.status().is_clean
        shapes.switch("side")
        assert (data / "x").read_text() == "in a directory" and shapes.status().is_clean
    undo(shapes)
    assert data.read_text() == "a file"
    redo(shapes)
    assert (data / "x").read_text() == "in a directory"
    restore(shapes, ["data/x"])
    assert fsck(shapes).is_sound


@pytest.mark.parametrize("target", ["main", "side"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_switch_between_file_and_directory_that_is_killed_is_finished(
    shapes: Repository, monkeypatch: pytest.MonkeyPatch, target: str, steps: int
) -> None:
    shapes.switch("side" if target == "main" else "main")

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        if steps == 0:
            patched.setattr("modelgit.repo.tracking.update.remove_file", die)
        elif steps == 1:
            patched.setattr("modelgit.repo.tracking.update.write_files", die)
        else:
            patched.setattr(Repository, "publish", die)
        with pytest.raises(Killed):
            shapes.switch(target)
    finish_pending(shapes)
    assert shapes.view().branch == target and shapes.status().is_clean
    assert not rescued(shapes)


def test_strangers_in_a_directory_that_must_go_are_kept(shapes: Repository) -> None:
    text(shapes.worktree / "data" / "optimizer.pt", "ignored and precious")
    (shapes.worktree / "data" / "empty").mkdir()
    with pytest.raises(RepositoryError, match=r"data/empty/ and 1 more has changes that switching would overwrite"):
        shapes.switch("main")
    assert (shapes.worktree / "data" / "x").exists() and not shapes.journal.pending
    shapes.switch("main", discard=True)
    assert (shapes.worktree / "data").read_text() == "a file"
    assert rescued(shapes) == ["ignored and precious"]


def test_a_stranger_where_a_directory_must_go_is_kept(shapes: Repository) -> None:
    shapes.switch("main")
    untrack(shapes, "data")
    shapes.commit("data is left alone")
    assert shapes.manifest_of(shapes.head()).file("data") is None
    with pytest.raises(RepositoryError, match="data has changes that switching would overwrite"):
        shapes.switch("side")
    shapes.switch("side", discard=True)
    assert (shapes.worktree / "data" / "x").read_text() == "in a directory"
    assert rescued(shapes) == ["a file"]


def test_edits_of_a_file_that_is_no_longer_tracked_are_kept(bot: Repository) -> None:
    text(bot.worktree / "notes" / "a", "a")
    bot.track("notes")
    bot.commit("a")
    bot.switch("side", create=True)
    text(bot.worktree / "notes" / "b", "b")
    bot.commit("b")
    untrack(bot, "notes")
    text(bot.worktree / "notes" / "b", "precious")
    with pytest.raises(RepositoryError, match="notes/b has changes that switching would overwrite"):
        bot.switch("main")
    assert (bot.worktree / "notes" / "b").read_text() == "precious"


def test_half_a_model_is_replaced_by_the_recorded_one(bot: Repository, files) -> None:
    target = bot.worktree / "bot.safetensors"
    recorded = target.read_bytes()
    for broken in (recorded[:-5], recorded[:4], b"", b"not a model"):
        target.write_bytes(broken)
        with pytest.raises(CheckpointFormatError):
            bot.commit("broken")
        assert restore(bot, ["bot.safetensors"]) == ["bot.safetensors"]
        assert target.read_bytes() == recorded and bot.status().is_clean
        target.write_bytes(broken)
        bot.switch("main", discard=True)
        assert target.read_bytes() == recorded
    kept = [path.read_bytes() for path in bot.paths.rescue.rglob("*") if path.is_file()]
    assert sorted(kept) == sorted([recorded[:-5], recorded[:4], b"", b"not a model"] * 2)


@posix
@pytest.mark.parametrize("what", ["link to a directory", "dangling link", "pipe"])
@pytest.mark.parametrize("discard", [False, True])
def test_links_and_pipes_in_the_way_are_refused_before_anything_moves(
    bot: Repository, files, tmp_path: Path, what: str, discard: bool
) -> None:
    bot.switch("side", create=True)
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(3)))
    text(bot.worktree / "sub" / "x", "recorded on side")
    bot.track("sub")
    bot.commit("side")
    bot.switch("main")
    place = bot.worktree / "sub"
    if what == "link to a directory":
        place.symlink_to(tmp_path)
    else:
        place.mkdir()
        place /= "x"
        place.symlink_to("nowhere") if what == "dangling link" else os.mkfifo(place)
    before, view = files.digests(bot.worktree), bot.view()
    with pytest.raises(RepositoryError, match=r"sub(/x)? is (a symbolic link|not a regular file)") as caught:
        bot.switch("side", discard=discard)
    assert "mv " in str(caught.value.hint)
    assert not bot.journal.pending
    assert (files.digests(bot.worktree), bot.view()) == (before, view)
    assert bot.status().is_clean
    place.unlink()
    bot.switch("side")
    assert bot.status().is_clean
