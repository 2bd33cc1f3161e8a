"""Copies are exact, whichever of the faster ways is refused, and half-way too."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelgit.errors import RepositoryError
from modelgit.worktree.copying import copy_file, copy_range

DATA = os.urandom(3 << 20) + b"the end"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def refuse(code: int) -> Callable[..., int]:
    def call(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def copied(source: Path, start: int, offset: int, length: int) -> bytes:
    target = source.with_name("target")
    target.write_bytes(b"x" * (offset + 10))
    with source.open("rb") as reading, target.open("r+b") as writing:
        copy_range(reading.fileno(), start, writing.fileno(), offset, length)
    return target.read_bytes()


@pytest.mark.parametrize(
    ("start", "offset", "length"), [(0, 0, len(DATA)), (5, 3, 0), (4096, 8192, 1 << 20), (7, 11, 1001)]
)
def test_a_range_is_copied_to_its_place(source: Path, start: int, offset: int, length: int) -> None:
    result = copied(source, start, offset, length)
    assert result[offset : offset + length] == DATA[start : start + length]
    assert result[:offset] == b"x" * offset


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="there is nothing to refuse")
@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM])
def test_what_the_kernel_refuses_is_read_and_written(source: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "copy_file_range", refuse(code))
    assert copied(source, 9, 2, 2 << 20)[2 : 2 + (2 << 20)] == DATA[9 : 9 + (2 << 20)]


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="there is nothing to refuse")
def test_a_refusal_half_way_goes_on_from_there(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.copy_file_range, []

    def once(reading: int, writing: int, length: int, **offsets: int) -> int:
        calls.append(length)
        if len(calls) == 1:
            return real(reading, writing, min(length, 1000), **offsets)
        raise OSError(errno.EIO if len(calls) > 2 else errno.EXDEV, "no")

    monkeypatch.setattr(os, "copy_file_range", once)
    assert copied(source, 1, 1, 5000)[1:5001] == DATA[1:5001]
    assert calls == [5000, 4000]


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="there is nothing to refuse")
def test_a_kernel_that_copies_nothing_is_not_believed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_, **__: 0)
    assert copied(source, 0, 0, len(DATA))[: len(DATA)] == DATA


def test_a_full_disk_is_no_reason_to_try_another_way(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match="No space"):
        copied(source, 0, 0, 100)


def test_a_source_that_ends_too_early_is_named(source: Path) -> None:
    with pytest.raises(RepositoryError, match="ends 93 bytes before"):
        copied(source, len(DATA) - 7, 0, 100)


def test_a_whole_file_is_copied_with_its_own_mode(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy_file(source, target, mode=0o444)
    assert target.read_bytes() == DATA
    assert not target.stat().st_mode & 0o222
    with pytest.raises(FileExistsError):
        copy_file(source, target)


@pytest.mark.skipif(sys.platform != "linux", reason="reflinks are asked for on Linux")
def test_a_reflink_is_taken_where_there_is_one(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system of the tests may have none: what is asked for is looked at."""
    import fcntl

    asked = []

    def ioctl(target: int, request: int, argument: int) -> int:
        asked.append(request)
        os.pwrite(target, os.pread(argument, len(DATA), 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EIO))
    copy_file(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA and asked == [0x40049409]


@pytest.mark.skipif(sys.platform != "linux", reason="reflinks are asked for on Linux")
def test_what_was_begun_is_removed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "ioctl", refuse(errno.EOPNOTSUPP))
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        copy_file(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
