"""Opening and recognising files: positional reads, what is refused, and which format takes what."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.errors import CheckpointFormatError
from modelgit.formats.detect import FileReader, scan_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def test_reads_at_any_position_from_many_threads(tmp_path: Path) -> None:
    data = os.urandom(200_000)
    path = tmp_path / "x"
    path.write_bytes(data)
    with FileReader(path, shown="x") as file, ThreadPoolExecutor(4) as pool:
        spans = [(offset, min(1 + offset % 5000, len(data) - offset)) for offset in range(0, len(data), 997)]
        for (offset, length), part in zip(spans, pool.map(lambda span: file.read(*span), spans), strict=True):
            assert part == data[offset : offset + length]
        assert file.read(len(data), 0) == b""
        assert file.size == file.stat.st_size == len(data)


def test_reads_by_seeking_where_there_is_no_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(50_000)
    path = tmp_path / "x"
    path.write_bytes(data)
    monkeypatch.delattr(os, "pread")
    with FileReader(path, shown="x") as file, ThreadPoolExecutor(4) as pool:
        offsets = range(0, 49_000, 101)
        for offset, part in zip(offsets, pool.map(lambda offset: file.read(offset, 900), offsets), strict=True):
            assert part == data[offset : offset + 900]


def test_short_reads_of_the_system_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(1000)
    path = tmp_path / "x"
    path.write_bytes(data)
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: whole(descriptor, min(length, 7), offset))
    with FileReader(path, shown="x") as file:
        assert file.read(3, 990) == data[3:993]


def test_a_file_that_shrinks_or_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    with FileReader(path, shown="models/x") as file:
        assert file.is_unchanged()
        os.truncate(path, 4)
        with pytest.raises(CheckpointFormatError, match="models/x ends at byte 4, 6 bytes early"):
            file.read(0, 10)
        assert not file.is_unchanged()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="no O_NOFOLLOW here")
def test_links_fifos_directories_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name, reason in {
        "link": "is a symbolic link",
        "fifo": "is not a regular file",
        "directory": "is not a regular file",
        "absent": "cannot be read: No such file",
    }.items():
        with pytest.raises(CheckpointFormatError, match=f"models/{name} {reason}"):
            FileReader(tmp_path / name, shown=f"models/{name}")


def test_closing_twice_closes_no_stranger(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    file = FileReader(tmp_path / "x", shown="x")
    file.close()
    with FileReader(tmp_path / "x", shown="x") as other:
        file.close()
        assert other.read(0, 1) == b"x"


def test_content_decides_where_the_name_says_nothing(tmp_path: Path) -> None:
    save_file({"w": np.zeros(4, np.float32)}, tmp_path / "weights")
    assert scan_file(tmp_path / "weights", shown="weights").format == "safetensors"
    (tmp_path / "notes.txt").write_bytes(b"{ not weights }")
    assert scan_file(tmp_path / "notes.txt", shown="notes.txt").format == "opaque"


class Gadget:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


def test_foreign_pickles_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 5):
        data = pickle.dumps(Gadget(), protocol)
        for name in ("a.pt", "pytorch_model.bin", "b.pth", "c.ckpt"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(CheckpointFormatError, match=rf"{name} asks for the Python global posix.mkdir at byte"):
                scan_file(tmp_path / name, shown=name)
    (tmp_path / "d.pkl").write_bytes(data)
    assert scan_file(tmp_path / "d.pkl", shown="d.pkl")[:3] == ("opaque", len(data), ((0, len(data), None),))
    (tmp_path / "renamed.safetensors").write_bytes(data)
    with pytest.raises(CheckpointFormatError, match=r"renamed.safetensors is a pickle, .* nothing was unpickled"):
        scan_file(tmp_path / "renamed.safetensors", shown="renamed.safetensors")
    assert not (tmp_path / "pwned").exists()


def test_an_empty_file_has_no_ranges(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert scan_file(tmp_path / "empty.txt", shown="empty.txt").ranges == ()


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.GGUF", "a.safetensors"])
def test_pointers_are_refused_where_weights_are_expected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CheckpointFormatError, match=rf"m/{name} is a Git LFS pointer \(\d+ bytes\), not weights"):
        scan_file(tmp_path / name, shown=f"m/{name}")


def test_text_that_quotes_a_pointer_is_only_text(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_bytes(POINTER)
    (tmp_path / "long.bin").write_bytes(POINTER.ljust(2000))
    assert scan_file(tmp_path / "notes.md", shown="notes.md").format == "opaque"
    assert scan_file(tmp_path / "long.bin", shown="long.bin").format == "opaque"


def test_a_malformed_safetensors_is_never_quietly_opaque(tmp_path: Path) -> None:
    (tmp_path / "a.SafeTensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointFormatError, match="is truncated"):
        scan_file(tmp_path / "a.SafeTensors", shown="a.SafeTensors")
