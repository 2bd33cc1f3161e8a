"""Files that replace an earlier version of themselves: what stays the same is copied, never trusted blindly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelgit.objects import (
    BlobId,
    FileContent,
    Literal,
    TensorEntry,
    TensorId,
    TensorRef,
    TensorSpec,
    leaf_digests,
    tensor_id,
)
from modelgit.progress import SILENT
from modelgit.worktree.rebuild import Predecessor, write_content

SIZE = 3 << 20


class Counting:
    """Reads objects from a dictionary, and remembers which."""

    def __init__(self) -> None:
        self.known: dict[TensorId | BlobId, bytes] = {}
        self.read_ids: set[TensorId | BlobId] = set()

    def add(self, name: str, data: bytes) -> TensorEntry:
        spec = TensorSpec(dtype="U8", shape=(len(data),))
        found = tensor_id(spec, leaf_digests(data))
        self.known[found] = data
        return TensorEntry(name=name, spec=spec, id=found)

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        self.read_ids.add(tensor)
        return bytearray(self.known[tensor][start:stop])

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        out[:] = self.read(tensor, start, start + len(out))

    def grain(self, tensor: TensorId | BlobId) -> int:
        return 1 << 20

    def size(self, tensor: TensorId | BlobId) -> int | None:
        return len(self.known[tensor])


def content_for(reads: Counting, head: bytes, *entries: TensorEntry) -> FileContent:
    blob = BlobId.of(head)
    reads.known[blob] = head
    segments = [Literal(blob=blob, length=len(head)), *(TensorRef(index=n) for n in range(len(entries)))]
    return FileContent(format="safetensors", segments=tuple(segments), tensors=entries)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Counting, TensorEntry, TensorEntry, TensorEntry, Path, FileContent, bytes]:
    reads = Counting()
    stays, old, new = (reads.add(name, os.urandom(SIZE)) for name in ("stays", "old", "new"))
    before = content_for(reads, b"0123456789abc", stays, old)
    after = content_for(reads, b"abc", new, stays)
    path = tmp_path / "m"
    path.write_bytes(b"0123456789abc" + reads.known[stays.id] + reads.known[old.id])
    wanted = b"abc" + reads.known[new.id] + reads.known[stays.id]
    return reads, stays, old, new, path, before, after, wanted  # type: ignore[return-value]


def rebuild(reads: Counting, content: FileContent, path: Path, predecessor: Predecessor | None) -> bytes:
    target = path.with_name("target")
    size = sum(len(reads.known[item]) for item in (content.segments[0].blob, *(e.id for e in content.tensors)))  # type: ignore[union-attr]
    write_content(reads, content, size, target, threads=2, progress=SILENT, predecessor=predecessor)
    return target.read_bytes()


def test_what_stays_the_same_is_not_read_from_the_store(two) -> None:
    reads, stays, _, new, path, before, after, wanted = two
    assert rebuild(reads, after, path, Predecessor(path, before, path.stat())) == wanted
    assert new.id in reads.read_ids
    assert stays.id not in reads.read_ids


@pytest.mark.parametrize("how", ["none", "touched", "gone", "shorter", "link"])
def test_a_file_that_is_not_what_it_was_is_not_used(two, tmp_path: Path, how: str) -> None:
    reads, stays, _, _, path, before, after, wanted = two
    predecessor = None if how == "none" else Predecessor(path, before, path.stat())
    if how == "touched":
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    elif how == "gone":
        path.unlink()
    elif how == "shorter":
        before = content_for(reads, b"01", stays)
        predecessor = Predecessor(path, before, path.stat())
    elif how == "link":
        path.rename(tmp_path / "other")
        path.symlink_to(tmp_path / "other")
    assert rebuild(reads, after, path, predecessor) == wanted
    assert stays.id in reads.read_ids


def test_a_file_that_changes_while_it_is_copied_is_replaced_by_the_store(two, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, stays, _, _, path, before, after, wanted = two
    predecessor = Predecessor(path, before, path.stat())
    import modelgit.worktree.rebuild as module

    real = module.copy_range

    def copy(source: int, *rest: int) -> None:
        with path.open("r+b") as file:  # somebody writes it at that moment
            file.seek(13 + SIZE // 2)
            file.write(b"trained")
        os.utime(path, ns=(5, 5))
        real(source, *rest)

    monkeypatch.setattr(module, "copy_range", copy)
    assert rebuild(reads, after, path, predecessor) == wanted
    assert stays.id in reads.read_ids
