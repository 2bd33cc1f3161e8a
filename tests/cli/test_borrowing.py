"""`mgit borrow`, `clone --borrow` and `commit --from`, as they are typed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

MODEL = "bot.safetensors"


@pytest.fixture
def lent(mgit: Any, files: Any, tmp_path: Any) -> Any:
    """A repository whose one model lies in `../lent` as well."""
    folder = tmp_path / "lent"
    folder.mkdir()
    (folder / "any.safetensors").write_bytes(files.of_arrays(files.floats()))
    (mgit.directory / MODEL).write_bytes(files.of_arrays(files.floats()))
    mgit("init")
    mgit("track", MODEL)
    return mgit


def test_borrowing_from_a_directory(lent: Any, tmp_path: Any) -> None:
    folder = tmp_path / "lent"
    ran = lent("borrow", "add", "../lent")
    assert ran.err == f"Borrowing from directory {folder}\n  3 objects, 9.0 KiB, need not be stored here\n"
    lent("commit", "-m", "base")
    state = json.loads(lent("borrow", "list", "--json").out)
    assert state["schema"] == "mgit.borrow/1"
    assert state["lenders"] == [{"kind": "files", "target": str(folder), "there": True, "objects": 3, "bytes": 9216}]
    assert "3 objects borrowed" in lent("fsck").err
    assert lent("borrow", "remove", "../lent", code=3).err.endswith("brings them here; `--force` gives them up\n")
    assert json.loads(lent("borrow", "copy", "--json").out)["objects"] == 3
    lent("borrow", "remove", "../lent")
    assert lent("borrow").out == ""
    lent("borrow", "remove", "../lent", code=2)


def test_a_directory_that_went(lent: Any, tmp_path: Any) -> None:
    lent("borrow", "add", "../lent")
    lent("commit", "-m", "base")
    (tmp_path / "lent").rename(tmp_path / "gone")
    assert "not there" in lent("borrow").out
    ran = lent("fsck", code=4)
    assert "is borrowed from" in ran.all and "`mgit borrow list` shows who lends" in ran.err
    (tmp_path / "gone").rename(tmp_path / "lent")
    (tmp_path / "lent" / "more.safetensors").write_bytes(b"\xff" * 5000)
    ran = lent("borrow", "update")
    assert "Looked at directory" in ran.err and "not borrowed: " in ran.err
    lent("fsck")


def test_a_clone_that_borrows_and_tells(lent: Any, tmp_path: Any) -> None:
    lent("commit", "-m", "base")
    lent("clone", "--borrow", "work", "work", "second", cwd=tmp_path)
    assert "repository" in lent("borrow", cwd=tmp_path / "second").out
    lent("borrow", "add", "--tell", "../work", cwd=tmp_path / "second")
    assert len(list((tmp_path / "work" / ".mgit" / "borrowers").iterdir())) == 1
    lent("gc")
    (tmp_path / "second").rename(tmp_path / "third")
    assert "borrows from this repository and is not there" in lent("gc", code=3).err


def test_published_models_that_are_not_here(lent: Any) -> None:
    sha = "4f1c0b6f5d7e3a2b1c9d8e7f6a5b4c3d2e1f0a9b"
    ran = lent("borrow", "add", f"hf:acme/tiny@{sha}", code=4)
    assert ran.err.endswith(f"hint: `hf download acme/tiny --revision {sha}`\n")
    lent("commit", "-m", "base", "--base", "acme/tiny", code=2)
    lent("borrow", "fetch", "hf:acme", code=2)


def test_a_checkpoint_elsewhere(lent: Any, files: Any, tmp_path: Any) -> None:
    lent("commit", "-m", "base")
    weights = files.floats()
    weights["layers.0.weight"][0, :2] += np.float32(1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MODEL).write_bytes(files.of_arrays(weights))
    ran = lent("commit", "-m", "step", "--from", "../run", "--no-worktree")
    assert ran.err.endswith("hint: `mgit restore .` brings it up to date\n")
    ran = lent("status")
    assert "later commits were made without them" in ran.out
    assert json.loads(lent("status", "--json").out)["left_at"].startswith("b3:")
    assert f"{MODEL} is still as it was at" in lent("commit", "-m", "oops", code=3).err
    lent("restore", ".")
    assert lent("status").out == "On branch main\nnothing to commit\n"
    lent("branch", "runs/1")
    (tmp_path / "run" / MODEL).write_bytes(files.of_arrays(files.floats(4)))
    lent("commit", "-m", "step", "--from", "../run", "--no-worktree", "--branch", "runs/1")
    assert lent("status").out == "On branch main\nnothing to commit\n"
    lent("commit", "-m", "here", "--from", f"../run/{MODEL}", "--as", MODEL)
    assert (lent.directory / MODEL).read_bytes() == (tmp_path / "run" / MODEL).read_bytes()
