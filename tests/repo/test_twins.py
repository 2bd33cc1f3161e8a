"""No commit holds paths that cannot lie beside each other: nobody could clone it."""

from __future__ import annotations

import sys

import pytest

from modelgit.errors import MgitError, RepositoryError
from modelgit.repo import Repository
from modelgit.repo.upkeep.fsck import fsck

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that tells cases apart")


def test_twins_under_two_tracked_paths_are_refused(bot: Repository) -> None:
    for name in ("Read", "read"):
        (bot.worktree / name).write_text(name)
        bot.track(name)
    before = bot.head()
    with pytest.raises(RepositoryError, match="'Read' and 'read' are one name on file systems that ignore case"):
        bot.commit("twins")
    assert bot.head() == before and fsck(bot).is_sound
    (bot.worktree / "read").unlink()
    bot.commit("one of them")


@pytest.mark.parametrize(
    ("ours", "theirs", "problem"),
    [
        ("Read", "read", "'sub/Read' and 'sub/read' are one name"),
        ("new", "new/file", "'sub/new' would be a file and, because of 'sub/new/file', a directory"),
        ("new/file", "new", "'sub/new' would be a file and, because of 'sub/new/file', a directory"),
        ("Dir/a", "dir/b", "'sub/Dir' and 'sub/dir' are one name"),
    ],
)
def test_a_merge_that_would_make_twins_is_refused(bot: Repository, ours: str, theirs: str, problem: str) -> None:
    folder = bot.worktree / "sub"
    folder.mkdir()
    (folder / "first").write_text("first")
    bot.track("sub")
    bot.commit("sub")
    for branch, name in (("theirs", theirs), ("ours", ours)):
        bot.switch("main")
        bot.switch(branch, create=True)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(branch)
        bot.commit(branch)
    before = bot.head()
    with pytest.raises(MgitError, match=problem):
        bot.merge("theirs")
    assert bot.head() == before and bot.status().is_clean
    assert (folder / ours).read_text() == "ours" and fsck(bot).is_sound
