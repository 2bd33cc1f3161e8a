"""The root: one writer at a time wins, nothing acknowledged is lost, and damage is named."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from modelgit.errors import ConflictError, IntegrityError, RepositoryError, RootMoved
from modelgit.objects import CommitId, Operation, Root, View, encode
from modelgit.store.base import VersionedRoot
from modelgit.store.oplog import OperationLog
from modelgit.store.publish import initialise, publish
from modelgit.store.root import RECENT_WRITES, FileRoot

_INCREMENTS = """
import sys
from pathlib import Path
from modelgit.objects import CommitId, View
from modelgit.store.fs import FileSystemStore
from modelgit.store.oplog import OperationLog
from modelgit.store.base import VersionedRoot
from modelgit.store.oplog import OperationLog
from modelgit.store.publish import publish
from modelgit.store.root import FileRoot

path, name = Path(sys.argv[1]), sys.argv[2]
store, roots, operations = FileSystemStore(path), FileRoot(path), OperationLog(path)
done = 0
while done < 25:
    def count(view):
        seen = int.from_bytes(view.refs["heads/count"].digest[:8], "big") if "heads/count" in view.refs else 0
        ours = f"heads/{name}"
        mine = int.from_bytes(view.refs[ours].digest[:8], "big") if ours in view.refs else 0
        refs = {**view.refs}
        refs["heads/count"] = CommitId((seen + 1).to_bytes(8, "big") + bytes(24))
        refs[ours] = CommitId((mine + 1).to_bytes(8, "big") + bytes(24))
        return View(refs=refs)
    publish(roots, operations, store, count, description=f"{name} {done}", author="a")
    done += 1
"""


def number(view: View, name: str) -> int:
    return int.from_bytes(view.refs[f"heads/{name}"].digest[:8], "big")


def current(bare) -> View:
    return bare.operations.read(bare.roots.read().root.operation).view


def test_four_processes_lose_no_increment(bare) -> None:
    names = ["a", "b", "c", "d"]
    running = [subprocess.Popen([sys.executable, "-c", _INCREMENTS, str(bare.path), name]) for name in names]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0, 0]
    view = current(bare)
    assert number(view, "count") == 100
    assert [number(view, name) for name in names] == [25] * 4
    history = list(bare.operations.history(bare.roots.read().root.operation))
    assert len(history) == 101
    assert [number(operation.view, "count") for _, operation in history[:-1]] == list(range(100, 0, -1))


def test_threads_lose_no_increment(bare) -> None:
    def work(name: str) -> None:
        other = bare.again()
        for _ in range(20):

            def change(view: View) -> View:
                seen = number(view, "count") if "heads/count" in view.refs else 0
                return View(refs={**view.refs, "heads/count": CommitId((seen + 1).to_bytes(8, "big") + bytes(24))})

            publish(other.roots, other.operations, other.store, change, description=name, author="a")

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number(current(bare), "count") == 80


def test_only_one_of_two_swaps_from_one_version_wins(bare) -> None:
    seen = bare.roots.read()
    won = bare.roots.swap(seen.version, _next(seen.root, "one"))
    with pytest.raises(RootMoved):
        bare.roots.swap(seen.version, _next(seen.root, "two"))
    assert bare.roots.read() == won
    assert not [path for path in (bare.path / "root").iterdir() if path.name.startswith("tmp")]


def _next(root: Root, write_id: str) -> Root:
    return Root(format=1, operation=root.operation, write_id=write_id, recent=(*root.recent, write_id))


def test_a_swap_whose_answer_was_lost_is_known_as_ones_own(bare, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def deaf(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError  # what a network file system says when it repeats a request that had landed

    monkeypatch.setattr("modelgit.store.root.os.link", deaf)
    seen = bare.roots.read()
    assert bare.roots.swap(seen.version, _next(seen.root, "mine")).version == seen.version + 1


def test_publish_finds_out_that_it_had_landed(bare) -> None:
    """The answer is lost, and others have moved on before we look again."""

    class Deaf(FileRoot):
        lost = 1

        def swap(self, expected: int, new: Root):
            done = super().swap(expected, new)
            if self.lost:
                self.lost -= 1
                publish(bare.roots, bare.operations, bare.store, add("other"), description="other", author="b")
                raise RootMoved("lost")
            return done

    calls = []

    def add(name: str) -> Callable[[View], View]:
        def change(view: View) -> View:
            calls.append(name)
            assert f"heads/{name}" not in view.refs, "applied twice"
            return View(refs={**view.refs, f"heads/{name}": CommitId.of(name.encode())})

        return change

    publish(Deaf(bare.path), bare.operations, bare.store, add("mine"), description="mine", author="a")
    assert set(current(bare).refs) == {"heads/mine", "heads/other"}
    assert calls == ["mine", "other"]


def test_publish_tries_again_until_it_is_its_turn(bare) -> None:
    class Unlucky(FileRoot):
        losses = 5

        def swap(self, expected: int, new: Root):
            if self.losses:
                self.losses -= 1
                other = f"heads/other{self.losses}"
                publish(
                    bare.roots, bare.operations, bare.store,
                    lambda view: View(refs={**view.refs, other: CommitId.of(b"x")}), description="o", author="b",
                )  # fmt: skip
            return super().swap(expected, new)

    roots = Unlucky(bare.path)
    publish(
        roots, bare.operations, bare.store,
        lambda view: View(refs={**view.refs, "heads/mine": CommitId.of(b"m")}), description="m", author="a",
    )  # fmt: skip
    assert len(current(bare).refs) == 6
    roots.losses = 1000
    with pytest.raises(ConflictError, match="too often") as caught:
        publish(roots, bare.operations, bare.store, lambda view: View(branch="z", refs=view.refs), description="m", author="a")  # fmt: skip # noqa: E501
    assert caught.value.hint


def test_a_change_that_changes_nothing_publishes_nothing(bare) -> None:
    version = bare.roots.read().version
    publish(bare.roots, bare.operations, bare.store, lambda view: view, description="none", author="a")
    assert bare.roots.read().version == version


def test_old_versions_are_tidied_away_and_a_sleeper_cannot_use_their_number(bare) -> None:
    slept = bare.roots.read()
    for step in range(70):
        seen = bare.roots.read()
        bare.roots.swap(seen.version, _next(seen.root, f"w{step}"))
    assert len(list((bare.path / "root").iterdir())) == 64
    with pytest.raises(RootMoved):
        bare.roots.swap(slept.version, _next(slept.root, "sleeper"))
    assert bare.roots.read().version == slept.version + 70
    assert RECENT_WRITES >= 64, "a writer must find itself among as many as are kept"


@pytest.mark.parametrize("position", [0, 1, 10, 40, -40, -1])
def test_a_damaged_root_is_named(bare, position: int) -> None:
    version = bare.roots.read().version
    path = bare.path / "root" / f"{version:012d}"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"root version {version} is damaged"):
        bare.roots.read()
    path.write_bytes(b"")
    with pytest.raises(IntegrityError, match="damaged"):
        bare.roots.read()


def test_a_later_format_and_no_root_at_all(bare, tmp_path: Path) -> None:
    from blake3 import blake3

    seen = bare.roots.read()
    body = encode(Root(format=9, operation=seen.root.operation))
    (bare.path / "root" / f"{seen.version + 1:012d}").write_bytes(body + blake3(body).digest())
    with pytest.raises(RepositoryError, match="format 9") as caught:
        bare.roots.read()
    assert "upgrade" in (caught.value.hint or "")
    with pytest.raises(RepositoryError, match="no root"):
        FileRoot(tmp_path / "nowhere").read()


def test_an_operation_that_is_damaged_or_gone_is_named(bare) -> None:
    first = bare.roots.read().root.operation
    publish(bare.roots, bare.operations, bare.store, lambda view: View(branch="b"), description="x", author="a")
    path = bare.path / "operations" / first.hex
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError, match=first.short):
        bare.operations.read(first)
    path.unlink()
    with pytest.raises(IntegrityError, match=f"operation {first.short} is missing"):
        bare.operations.read(first)
    assert len(list(bare.operations.history(bare.roots.read().root.operation))) == 1


def test_a_second_initialisation_loses(bare) -> None:
    with pytest.raises(RootMoved):
        initialise(bare.roots, bare.operations, view=View(branch="other"), author="b")
    assert current(bare).branch == "main"


def test_a_root_that_moves_while_its_operation_is_deleted_is_read_again(tmp_path: Path) -> None:
    roots, operations = FileRoot(tmp_path), OperationLog(tmp_path)
    initialise(roots, operations, view=View(branch="main"), author="a")
    stale = roots.read()
    first = stale.root.operation
    second = operations.write(Operation(view=View(branch="other"), parent=None, description="x", author="a", time_ms=1))
    operations.remove([first])

    class Moving:
        """Gives the old root once, as a reader sees it that is overtaken."""

        def __init__(self, answers: list[VersionedRoot]) -> None:
            self._answers = answers

        def read(self) -> VersionedRoot:
            return self._answers.pop(0)

        def swap(self, expected: int, new: Root) -> VersionedRoot:
            raise NotImplementedError

    moved = stale._replace(version=stale.version + 1, root=replace(stale.root, operation=second))
    root, operation = operations.current(Moving([stale, moved]))
    assert (root, operation.view.branch) == (moved, "other")
    with pytest.raises(IntegrityError, match="is missing"):
        operations.current(Moving([stale, stale]))
