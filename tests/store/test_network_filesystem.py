"""What network file systems do and local ones do not: lost answers, stale files, coarse times, other hosts."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelgit.errors import ConflictError, RepositoryError, RootMoved
from modelgit.objects import BlobId, CommitId, ContentId, Root, View
from modelgit.repo import Repository
from modelgit.repo.upkeep.gc import collect
from modelgit.store.durable import process_space, rename, write_durably
from modelgit.store.index import PackLookup
from modelgit.store.mounts import is_network
from modelgit.store.publish import publish
from modelgit.store.root import FileRoot
from modelgit.worktree.index import StatIndex
from modelgit.worktree.lockfile import LockFile

SECOND = 1_000_000_000


def failing(code: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def _next(root: Root, write_id: str) -> Root:
    return Root(format=1, operation=root.operation, write_id=write_id, recent=(*root.recent, write_id))


# -- locks


def test_nothing_relies_on_file_locks(make_repo: Any, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, failing(errno.ENOLCK))
    repo = make_repo("unlocked")
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    repo.track("bot.safetensors")
    repo.commit("base")
    repo.switch("side", create=True)
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(1)))
    repo.commit("more")
    repo.switch("main")
    collect(repo)
    assert repo.status() is not None and repo.snapshot("side").is_dir()


@pytest.mark.parametrize("pid", [1, 999_999_999])
def test_a_lock_of_another_host_is_never_broken(tmp_path: Path, pid: int) -> None:
    """Its process may run or not: a number says nothing here."""
    path = tmp_path / "lock"
    text = json.dumps({"host": "far", "pid": pid, "started": "1"})
    path.write_text(text)
    old = time.time() - 3600
    os.utime(path, (old, old))
    with (
        pytest.raises(ConflictError, match=f"process {pid} on far") as caught,
        LockFile(path, host="near", patience_s=0.05),
    ):
        pass
    assert f"rm {path}" in (caught.value.hint or "") and path.read_text() == text


def test_one_of_many_gets_a_lock_by_creating_it(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [0], [0]

    def work() -> None:
        with LockFile(path, host="near", patience_s=30):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not path.exists()


# -- lost answers


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ESTALE, errno.EIO, errno.ENOENT])
def test_a_root_whose_answer_was_lost_has_moved(bare: Any, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    link = os.link

    def deaf(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("modelgit.store.root.os.link", deaf)
    seen = bare.roots.read()
    assert bare.roots.swap(seen.version, _next(seen.root, "mine")).version == seen.version + 1
    assert bare.roots.read().root.write_id == "mine"
    calls = []

    def change(view: View) -> View:
        calls.append(view)
        return View(branch="main", refs={"heads/main": CommitId.of(b"c")})

    publish(bare.roots, bare.operations, bare.store, change, description="d", author="a")
    assert len(calls) == 1 and list(bare.operations.read(bare.roots.read().root.operation).view.refs) == ["heads/main"]


def test_a_question_that_goes_stale_is_asked_again(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    link, read_bytes, failures = os.link, Path.read_bytes, [2]

    def deaf(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(errno.ESTALE, "stale")

    def stale(path: Path) -> bytes:
        if path.parent.name == "root" and failures[0]:
            failures[0] -= 1
            raise OSError(errno.ESTALE, "stale")
        return read_bytes(path)

    seen = bare.roots.read()
    monkeypatch.setattr("modelgit.store.root.os.link", deaf)
    monkeypatch.setattr(Path, "read_bytes", stale)
    assert bare.roots.swap(seen.version, _next(seen.root, "mine")).root.write_id == "mine"


@pytest.mark.parametrize(("code", "error"), [(errno.EEXIST, RootMoved), (errno.ESTALE, RepositoryError)])
def test_a_link_that_did_not_happen_is_no_success(
    bare: Any, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    seen = bare.roots.read()
    monkeypatch.setattr("modelgit.store.root.os.link", failing(code))
    with pytest.raises(error):
        bare.roots.swap(seen.version, _next(seen.root, "mine"))
    assert bare.roots.read() == seen
    assert [path.name for path in (bare.path / "root").iterdir()] == [f"{seen.version:012d}"]


def test_a_stale_answer_about_somebody_else_s_root_is_no_success(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = bare.roots.read()
    other = FileRoot(bare.path)

    def beaten(source: Path, target: Path) -> None:
        monkeypatch.undo()
        other.swap(seen.version, _next(seen.root, "theirs"))
        raise OSError(errno.ESTALE, "stale")

    monkeypatch.setattr("modelgit.store.root.os.link", beaten)
    with pytest.raises(RepositoryError):
        bare.roots.swap(seen.version, _next(seen.root, "mine"))
    assert bare.roots.read().root.write_id == "theirs"


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOENT, errno.EIO])
def test_a_rename_whose_answer_was_lost_took_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    replace = os.replace

    def deaf(source: Path, target: Path) -> None:
        replace(source, target)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", deaf)
    write_durably(tmp_path / "file", b"one")
    write_durably(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1


def test_a_rename_that_did_not_take_place_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    monkeypatch.setattr(os, "replace", failing(errno.ESTALE))
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "none", tmp_path / "b")


def test_packs_are_published_though_the_answers_are_lost(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def deaf(source: Path, target: Path) -> None:
        replace(source, target)
        raise OSError(errno.ENOENT, "gone")

    monkeypatch.setattr(os, "replace", deaf)
    (object_id,) = bare.add(b"content")
    assert bare.again().store.has(object_id)


# -- files that other hosts replace or remove


def test_the_table_of_packs_is_not_mapped(bare: Any) -> None:
    """A mapped page of a file that another host replaced is a SIGBUS, which nothing can catch."""
    import modelgit.store.index

    bare.add(*(str(number).encode() for number in range(40)))
    bare.store.lookup.write_cache()
    fresh = bare.again()
    assert fresh.store.has(BlobId.of(b"7"))
    cache = bare.path / "cache" / "packs"
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(cache) not in maps.read_text()
    assert not hasattr(modelgit.store.index, "mmap")


@pytest.mark.parametrize("how", ["stale", "cut"])
def test_a_table_that_goes_away_is_done_without(bare: Any, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ids = bare.add(*(str(number).encode() for number in range(300)))
    bare.store.lookup.write_cache()
    fresh = bare.again()
    assert fresh.store.locate(ids[0])
    if how == "stale":
        real, index = os.pread, os.stat(bare.path / "cache" / "packs").st_ino

        def pread(descriptor: int, length: int, offset: int) -> bytes:
            if os.fstat(descriptor).st_ino == index:
                raise OSError(errno.ESTALE, "stale")
            return real(descriptor, length, offset)

        monkeypatch.setattr(os, "pread", pread)
    else:
        os.truncate(bare.path / "cache" / "packs", 60)
    assert all(fresh.store.has(object_id) for object_id in ids)
    fresh.store.close()


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200, 3000])
def test_every_row_of_a_table_is_found(bare: Any, rows: int) -> None:
    ids = bare.add(*(str(number).encode() for number in range(rows))) if rows else []
    bare.store.lookup.write_cache()
    lookup = PackLookup(bare.path / "packs", bare.path / "cache" / "packs")
    for object_id in ids:
        (found,) = lookup.find(object_id.digest)
        assert found.digest == object_id.digest
    for number in range(200):
        assert lookup.find(BlobId.of(b"absent %d" % number).digest, look_again=False) == []
    for edge in (bytes(32), b"\xff" * 32):
        assert lookup.find(edge, look_again=False) == []
    lookup.close()


def test_many_rows_of_one_digest_are_all_found(bare: Any) -> None:
    """Digests that are not spread evenly, as nobody's are who means well."""
    session = bare.session()
    crowd = [BlobId(bytes([7] * 30) + number.to_bytes(2, "big")) for number in range(1000)]
    for object_id in crowd:
        session.append(object_id, start=0, stop=1, total=1, header=b"", payload=(b"x",))
    for start in range(150):
        session.append(crowd[500], start=start, stop=start + 1, total=150, header=b"", payload=(b"y",))
    session.seal()
    bare.store.lookup.write_cache()
    lookup = PackLookup(bare.path / "packs", bare.path / "cache" / "packs")
    assert len(lookup.find(crowd[500].digest)) == 151
    assert all(len(lookup.find(item.digest)) == 1 for item in crowd if item != crowd[500])
    lookup.close()


def test_a_pack_that_is_renamed_while_packs_are_listed_is_not_missed(
    bare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that is under way may meet neither the old name nor the new one."""
    (first,) = bare.add(b"first")
    (second,) = bare.add(b"second")
    reader = bare.again()
    assert reader.store.has(first)
    (name,) = {item.pack for item in reader.store.locate(second)}
    real, calls = os.scandir, []

    def scandir(path: Any) -> list[Any]:
        found = list(real(path))
        if not calls and Path(path).name == "packs":
            calls.append(path)
            (bare.path / "packs" / name).rename(bare.path / "packs" / f"{name[:64]}-{'1' * 16}.pack")
            return [entry for entry in found if entry.name != name]
        return found

    monkeypatch.setattr(os, "scandir", scandir)
    reader.store.lookup.refresh()
    assert calls and reader.store.locate_known(second) != []


def test_a_pack_that_was_never_seen_and_is_renamed_while_packs_are_listed_is_found(
    bare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader does not know that there is anything to miss: an object that it cannot find is worth a second look."""
    (first,) = bare.add(b"first")
    reader = bare.again()
    assert reader.store.has(first)
    (second,) = bare.add(b"second")
    (name,) = {item.pack for item in bare.store.locate(second)}
    real, calls = os.scandir, []

    def scandir(path: Any) -> list[Any]:
        found = list(real(path))
        if not calls and Path(path).name == "packs":
            calls.append(path)
            (bare.path / "packs" / name).rename(bare.path / "packs" / f"{name[:64]}-{'1' * 16}.pack")
            return [entry for entry in found if entry.name != name]
        return found

    monkeypatch.setattr(os, "scandir", scandir)
    assert reader.store.locate(second) != []
    assert calls


def test_a_pack_that_another_host_collected_is_looked_for_again(
    bot: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open file goes stale; the records are in another pack by then."""
    tensor = next(iter(bot.load().values()))
    expected = bytes(tensor.raw())
    (located,) = [item for item in bot.store.locate(tensor.entry.id) if not item.is_leaf_table]
    pack = bot.store.packs_path / located.pack
    real, inode = os.pread, pack.stat().st_ino
    fresh = f"{located.pack[:64]}-{'0' * 16}.pack"

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if os.fstat(descriptor).st_ino == inode and pack.exists():
            pack.rename(pack.with_name(fresh))
            raise OSError(errno.ESTALE, "stale")
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert bytes(tensor.raw()) == expected
    monkeypatch.setattr(os, "pread", failing(errno.EIO))
    with pytest.raises(RepositoryError, match="cannot read pack"):
        tensor.raw()


def test_what_another_host_writes_is_left_alone(bot: Repository) -> None:
    """Its process ids mean nothing here: only age tells that a folder is abandoned."""
    incoming = bot.store.incoming_path
    hour, month = time.time() - 3600, time.time() - 30 * 86400
    ages = {
        f"tmp-999999999-0123456789ab-{process_space()}": hour,
        "tmp-999999999-0123456789ab-feedbeef": hour,
        "tmp-999999999-0123456789ac-feedbeef": month,
        f"tmp-{os.getpid()}-0123456789ab-{process_space()}": hour,
    }
    for name, age in ages.items():
        (incoming / name).mkdir(parents=True)
        os.utime(incoming / name, (age, age))
    collect(bot)
    assert sorted(path.name for path in incoming.iterdir()) == sorted([list(ages)[1], list(ages)[3]])


# -- times and numbers of files


DIGEST = ContentId.of(b"what the file held")


def status(*, mtime_ns: int, ctime_ns: int | None = None, inode: int = 3) -> Any:
    class Status:
        st_size, st_mtime_ns, st_ino = 10, mtime_ns, inode
        st_ctime_ns = mtime_ns if ctime_ns is None else ctime_ns

    return Status()


@pytest.mark.parametrize(("age_s", "trusted"), [(1, False), (59, False), (61, True)])
def test_attributes_may_be_as_old_as_a_client_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: int, trusted: bool
) -> None:
    monkeypatch.setattr("modelgit.worktree.index.is_network", lambda path: True)
    index = StatIndex(tmp_path / "index")
    at = 5 * SECOND + 123
    index.remember("a", status(mtime_ns=at), DIGEST, seen_ns=at + age_s * SECOND)
    assert (index.lookup("a", status(mtime_ns=at)) is not None) == trusted


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_the_clock_that_stamps_files_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int) -> None:
    """A file was written a moment ago by a server's clock that is an hour off: it looks old, or from the future."""
    monkeypatch.setattr("modelgit.worktree.index.is_network", lambda path: True)
    index = StatIndex(tmp_path / "index")
    now = time.time_ns()
    stamp = now + ahead_s * SECOND
    real = Path.stat

    def stat(path: Path, **more: Any) -> Any:
        found = real(path, **more)
        return status(mtime_ns=time.time_ns() + ahead_s * SECOND) if path.parent == tmp_path else found

    monkeypatch.setattr(Path, "stat", stat)
    index.remember("a", status(mtime_ns=stamp), DIGEST, seen_ns=now)
    assert index.lookup("a", status(mtime_ns=stamp)) is None, "just written"
    index.remember("a", status(mtime_ns=stamp - 100 * SECOND), DIGEST, seen_ns=now)
    assert index.lookup("a", status(mtime_ns=stamp - 100 * SECOND)) == DIGEST


def test_whole_seconds_and_numbers_that_change_cost_a_look(tmp_path: Path) -> None:
    index = StatIndex(tmp_path / "index")
    at = 5 * SECOND
    index.remember("a", status(mtime_ns=at), DIGEST, seen_ns=at + SECOND)
    assert index.lookup("a", status(mtime_ns=at)) is None
    index.remember("a", status(mtime_ns=at), DIGEST, seen_ns=at + 3 * SECOND)
    assert index.lookup("a", status(mtime_ns=at)) == DIGEST
    assert index.lookup("a", status(mtime_ns=at, inode=4)) is None, "numbered anew with every mount"
    assert index.lookup("a", status(mtime_ns=at, ctime_ns=at + SECOND)) is None


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /data rw - nfs4 server:/data rw
31 22 0:41 / /data/local rw - xfs /dev/vdb rw
32 22 0:42 / /with\\040space rw - fuse.sshfs host: rw
33 22 0:43 / /usb rw - fuseblk /dev/sda1 rw
34 22 0:44 / /twice rw - nfs server:/x rw
35 22 0:45 / /twice rw - tmpfs tmpfs rw
a line of nonsense
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me", False),
        ("/data", True),
        ("/data/models/bot", True),
        ("/data/local/x", False),
        ("/database", False),
        ("/with space/x", True),
        ("/usb/x", False),
        ("/twice/x", False),
    ],
)
def test_network_file_systems_are_known_by_the_table_of_mounts(path: str, expected: bool) -> None:
    assert is_network(Path(path), mounts=MOUNTS) == expected


def test_this_machine_s_table_can_be_read(tmp_path: Path) -> None:
    assert is_network(tmp_path) in (True, False)
