"""Writing files into a work tree: whole or not at all, and never outside of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.objects import BlobId, ContentId, FileContent, FileEntry, Literal, TensorRef
from modelgit.worktree.checkout import remove_file, resolve_path, write_files
from modelgit.worktree.index import StatIndex


class Blobs:
    """Reads blobs from a dictionary."""

    def __init__(self, *contents: bytes) -> None:
        self.known = {BlobId.of(data): data for data in contents}

    def read(self, tensor: BlobId, start: int, stop: int) -> bytearray:
        if tensor not in self.known:
            raise IntegrityError(f"blob {tensor} is missing from the store")
        return bytearray(self.known[tensor][start:stop])

    def read_into(self, tensor: BlobId, start: int, out: memoryview) -> None:
        out[:] = self.read(tensor, start, start + len(out))

    def grain(self, tensor: BlobId) -> int:
        return 1 << 20


def put(root: Path, files: dict[str, bytes], *, reads: Blobs | None = None, **entry: object) -> StatIndex:
    contents = {
        path: FileContent(format="opaque", segments=(Literal(blob=BlobId.of(data), length=len(data)),))
        for path, data in files.items()
    }
    entries = [
        FileEntry(**{"path": path, "size": len(data), "digest": ContentId.of(path.encode()), **entry})
        for path, data in files.items()
    ]
    index = StatIndex(root / ".index")
    write_files(root, entries, lambda e: contents[e.path], reads or Blobs(*files.values()), index, threads=2)
    return index


def test_files_come_with_their_directories_and_mode(tmp_path: Path) -> None:
    put(tmp_path, {"a": b"one", "b/c/d": b"two" * 9_000_000, "e": b""})
    assert (tmp_path / "a").read_bytes() == b"one"
    assert (tmp_path / "b/c/d").read_bytes() == b"two" * 9_000_000
    assert (tmp_path / "e").read_bytes() == b""
    put(tmp_path, {"a": b"may run"}, executable=True)
    if os.name == "posix":
        assert (tmp_path / "a").stat().st_mode & 0o111
    index = StatIndex(tmp_path / ".index")
    for path in ("a", "b/c/d"):
        remove_file(tmp_path, path, index)
        remove_file(tmp_path, path, index)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]


@pytest.mark.parametrize("size", [2, 4])
def test_a_size_that_lies_leaves_the_old_file(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(IntegrityError, match="the manifest promises"):
        put(tmp_path, {"a": b"new"}, size=size)
    with pytest.raises(IntegrityError, match="missing"):
        put(tmp_path, {"a": b"new"}, reads=Blobs())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_segment_that_names_no_tensor(tmp_path: Path) -> None:
    for index in (0, -1, 5):
        content = FileContent(format="opaque", segments=(TensorRef(index=index),))
        entry = FileEntry(path="a", size=3, digest=ContentId.of(b"a"))
        with pytest.raises(IntegrityError, match="names tensor"):
            write_files(tmp_path, [entry], lambda e, c=content: c, Blobs(), StatIndex(tmp_path / "i"), threads=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../a", "/a", ".mgit/config.toml", "a/../../b", ".GIT/hooks/x", "a\\b", "", "nul"])
def test_paths_that_leave_the_tree(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(IntegrityError, match="refuses path"):
        put(root, {"good": b"x", path: b"evil"})
    assert list(root.iterdir()) == []
    assert [item.name for item in tmp_path.iterdir()] == ["root"]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights elsewhere")
def test_links_are_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "file").write_bytes(b"precious")
    (root / "folder").symlink_to(outside)
    (root / "link").symlink_to(outside / "file")
    for path in ("folder/file", "link"):
        with pytest.raises(RepositoryError, match="symbolic link"):
            resolve_path(root, path)
        with pytest.raises(RepositoryError, match="symbolic link") as caught:
            put(root, {path: b"evil"})
        assert "mv " in (caught.value.hint or "")
    assert (outside / "file").read_bytes() == b"precious"


def test_what_a_killed_process_left_beside_a_target_goes(tmp_path: Path) -> None:
    names = {
        ".a.bin.tmp-123-0123456789ab": False,
        ".a.bin.tmp-99999-ffffffffffff": False,
        ".other.bin.tmp-123-0123456789ab": True,
        ".a.bin.tmp-mine": True,
        "a.bin.tmp-123-0123456789ab": True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    put(tmp_path, {"a.bin": b"whole"})
    assert {name: (tmp_path / name).exists() for name in names} == names
