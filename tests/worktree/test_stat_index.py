"""The stat cache vouches only for what nobody can have touched since."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelgit.objects import ContentId
from modelgit.worktree.index import StatIndex

DIGEST = ContentId.of(b"what the file held")
SECOND = 1_000_000_000


def status(*, size: int = 10, mtime_ns: int = 5 * SECOND + 7, ctime_ns: int = 5 * SECOND + 9, inode: int = 3):
    class Status:
        st_size, st_mtime_ns, st_ctime_ns, st_ino = size, mtime_ns, ctime_ns, inode

    return Status()


def test_the_same_stat_is_vouched_for(tmp_path: Path) -> None:
    index = StatIndex(tmp_path / "sub" / "index")
    index.remember("a", status(), DIGEST, seen_ns=6 * SECOND)
    assert index.lookup("a", status()) == DIGEST
    assert index.lookup("b", status()) is None
    for other in (status(size=11), status(mtime_ns=1), status(ctime_ns=1), status(inode=4)):
        assert index.lookup("a", other) is None
    index.forget("a")
    assert index.lookup("a", status()) is None


@pytest.mark.parametrize(("age_ns", "trusted"), [(-5, False), (0, False), (9_000_000, False), (30_000_000, True)])
def test_a_file_that_was_just_written_is_looked_at_again(tmp_path: Path, age_ns: int, trusted: bool) -> None:
    index = StatIndex(tmp_path / "index")
    at = 5 * SECOND + 123
    index.remember("a", status(mtime_ns=at, ctime_ns=at), DIGEST, seen_ns=at + age_ns)
    assert (index.lookup("a", status(mtime_ns=at, ctime_ns=at)) is not None) == trusted
    # The time of the last change of the inode counts, when somebody set the other one back.
    index.remember("a", status(mtime_ns=1, ctime_ns=at), DIGEST, seen_ns=at + age_ns)
    assert (index.lookup("a", status(mtime_ns=1, ctime_ns=at)) is not None) == trusted


@pytest.mark.parametrize(("age_s", "trusted"), [(1, False), (3, True)])
def test_file_systems_that_count_in_seconds_need_longer(tmp_path: Path, age_s: int, trusted: bool) -> None:
    index = StatIndex(tmp_path / "index")
    at = 5 * SECOND
    index.remember("a", status(mtime_ns=at, ctime_ns=at), DIGEST, seen_ns=at + age_s * SECOND)
    assert (index.lookup("a", status(mtime_ns=at, ctime_ns=at)) is not None) == trusted


def test_it_is_kept_and_damage_is_an_empty_cache(tmp_path: Path) -> None:
    path = tmp_path / "index"
    index = StatIndex(path)
    index.remember("a", status(), DIGEST, seen_ns=9 * SECOND)
    index.save()
    assert StatIndex(path).lookup("a", status()) == DIGEST
    assert [item.name for item in tmp_path.iterdir()] == ["index"]
    good = path.read_bytes()
    for data in (b"", good[:-1], good + b"x", os.urandom(len(good)), b"\x81\xa5files\xc0"):
        path.write_bytes(data)
        assert StatIndex(path).lookup("a", status()) is None
    path.unlink()
    path.mkdir()  # cannot be read nor replaced: slow, not broken
    other = StatIndex(path)
    other.remember("a", status(), DIGEST, seen_ns=9 * SECOND)
    other.save()
    assert other.lookup("a", status()) == DIGEST
