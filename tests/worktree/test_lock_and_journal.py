"""One writer at a time, whoever died before; and the intent that outlives a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modelgit.errors import ConflictError, IntegrityError
from modelgit.objects import CommitId, ManifestId
from modelgit.worktree.journal import Intent, Journal
from modelgit.worktree.lockfile import LockFile


def lock(path: Path, **options: float) -> LockFile:
    return LockFile(path / "lock", host="here", **options)


def test_it_is_reentrant_and_gone_afterwards(tmp_path: Path) -> None:
    held = lock(tmp_path)
    with held, held:
        assert json.loads((tmp_path / "lock").read_bytes())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_the_second_waits_and_is_told_who_holds_it(tmp_path: Path) -> None:
    with lock(tmp_path):
        with (
            pytest.raises(ConflictError, match=f"in use by process {os.getpid()} on here"),
            lock(tmp_path, patience_s=0.1),
        ):
            raise AssertionError("two hold it")
        threading.Timer(0.2, (tmp_path / "lock").unlink).start()
        with lock(tmp_path, patience_s=5):
            pass


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("started", [None, "1"])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, started: str | None) -> None:
    if started is not None and sys.platform != "linux":
        pytest.skip("start times are read from /proc")
    # Another process that has the number of the dead one by now is told apart by its start.
    pid = os.getpid() if started else dead_process()
    (tmp_path / "lock").write_text(json.dumps({"host": "here", "pid": pid, "started": started}))
    before = time.monotonic()
    with lock(tmp_path):
        assert time.monotonic() - before < 1
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_another_host_is_never_broken(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": dead_process()}))
    with pytest.raises(ConflictError, match="on elsewhere") as caught, lock(tmp_path, patience_s=0.1):
        pass
    assert "rm " in (caught.value.hint or "")
    assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_lock_that_says_nothing_is_taken_over_once_it_is_old(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock"
    path.write_bytes(content)
    old = time.time() - 100
    os.utime(path, (old, old))
    with lock(tmp_path, patience_s=2):
        pass
    assert not path.exists()


def test_many_threads_take_turns(tmp_path: Path) -> None:
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(5):
            with lock(tmp_path, patience_s=30):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 25)


def test_threads_that_share_one_lock_take_turns_too(tmp_path: Path) -> None:
    shared = lock(tmp_path, patience_s=0.05)
    told: list[str] = []

    def enter() -> None:
        try:
            with shared:
                told.append("held")
        except ConflictError as error:
            told.append(error.message)

    with shared, shared:
        other = threading.Thread(target=enter)
        other.start()
        other.join()
    assert told == ["the work tree is in use by another thread"]
    other = threading.Thread(target=enter)
    other.start()
    other.join()
    assert told[1:] == ["held"]
    assert not (tmp_path / "lock").exists()


def test_the_journal_keeps_an_intent_until_it_is_cleared(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "sub" / "journal")
    assert journal.read() is None
    assert not journal.pending
    intent = Intent(
        source=None,
        target=ManifestId.of(b"t"),
        description="switch: to x",
        author="Ada <a@example.org>",
        branch="x",
        refs={"heads/x": CommitId.of(b"c"), "heads/y": None},
        paths=("a", "b"),
    )
    journal.write(intent)
    assert journal.pending
    assert Journal(tmp_path / "sub" / "journal").read() == intent
    journal.clear()
    journal.clear()
    assert journal.read() is None
    (tmp_path / "sub" / "journal").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="journal"):
        journal.read()
