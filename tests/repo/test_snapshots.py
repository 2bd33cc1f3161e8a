"""Snapshots: what is in them, what they share, how little a second one costs, and what happens to damaged ones."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import modelgit
from modelgit.errors import IntegrityError, RemoteError, RepositoryError, UnknownRevision, UsageError
from modelgit.repo import Repository
from modelgit.repo.exchange.sync import push
from modelgit.repo.snapshots import split_revision
from modelgit.repo.upkeep.gc import collect
from modelgit.store.fs import FileSystemStore
from modelgit.worktree.snapshots import SnapshotCache

MIB = 1 << 20


@pytest.fixture
def model(repo: Repository, files: Any) -> Repository:
    """Two commits of a sharded model in `models/bot`; the second changes one shard."""
    folder = repo.worktree / "models" / "bot"
    tensors = {f"layers.{n}": ("F32", (8, 1024), np.full(8192, n, "<f4").tobytes()) for n in range(4)}
    files.sharded(folder, tensors, 2)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    repo.track("models/bot")
    repo.commit("first")
    time.sleep(0.05)
    files.sharded(folder, {**tensors, "layers.3": ("F32", (8, 1024), np.full(8192, 7, "<f4").tobytes())}, 2)
    repo.commit("second")
    return repo


def digests(root: Path) -> dict[str, str]:
    """sha256 of the files below `root`, but for a repository's own."""
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and path.relative_to(root).parts[0] != ".mgit"]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def store_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = FileSystemStore.read_part

    def read_part(self: FileSystemStore, located: Any, start: int, stop: int) -> bytes:
        seen.append(located.kind)
        return real(self, located, start, stop)

    monkeypatch.setattr(FileSystemStore, "read_part", read_part)
    return seen


def test_it_holds_the_model_s_files_read_only(model: Repository, files: Any) -> None:
    path = model.snapshot()
    assert path.name == "bot" and path.is_relative_to(model.paths.snapshots)
    assert digests(path) == digests(model.worktree / "models" / "bot")
    for folder, _, names in os.walk(path):
        assert not Path(folder).stat().st_mode & 0o222
        assert not any(Path(folder, name).stat().st_mode & 0o222 for name in names)
    assert (path / "run.sh").stat().st_mode & 0o111 and not (path / "config.json").stat().st_mode & 0o111
    weights = {name: array for shard in path.glob("*.safetensors") for name, array in load_file(shard).items()}
    assert sorted(weights) == [f"layers.{n}" for n in range(4)] and weights["layers.3"][0, 0] == 7
    assert (path / "run.sh").read_text() == "#!/bin/sh\n"


def test_the_second_one_reads_nothing_and_shares_what_is_equal(
    model: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = model.snapshot()
    before = model.snapshot("HEAD~1")
    assert before != now
    shards = sorted(path.name for path in now.glob("*.safetensors"))
    assert [(now / name).samefile(before / name) for name in shards] == [True, False]
    assert (now / "config.json").samefile(before / "config.json")
    seen = store_reads(monkeypatch)
    assert (model.snapshot(), model.snapshot("HEAD~1", model="models/bot")) == (now, before)
    assert not {"tensor", "blob", "content"} & set(seen)


def test_unchanged_files_of_the_work_tree_are_copied_never_linked(
    model: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(0.05)
    model.status()
    seen = store_reads(monkeypatch)
    path = model.snapshot()
    assert not {"tensor", "blob"} & set(seen)
    for file in path.iterdir():
        assert not file.samefile(model.worktree / "models" / "bot" / file.name)
    (model.worktree / "models" / "bot" / "config.json").write_text("edited")
    assert (path / "config.json").read_text() == '{"model_type": "none"}'
    assert model.snapshot() == path


def test_a_changed_work_tree_is_not_copied(model: Repository, files: Any) -> None:
    shard = next((model.worktree / "models" / "bot").glob("*-00001-*"))
    recorded = shard.read_bytes()
    shard.write_bytes(bytes(len(recorded)))
    path = model.snapshot()
    assert (path / shard.name).read_bytes() == recorded


@pytest.mark.parametrize("how", ["cut", "written", "gone", "more", "record"])
def test_a_damaged_one_is_made_again(model: Repository, files: Any, how: str) -> None:
    path = model.snapshot()
    expected = digests(path)
    other = model.snapshot("HEAD~1")
    path.chmod(0o755)
    config = path / "config.json"
    if how in ("cut", "written"):
        config.chmod(0o644)
        config.write_text("{}" if how == "cut" else config.read_text().replace("none", "evil"))
    elif how == "gone":
        config.unlink()
    elif how == "more":
        (path / "extra").write_text("x")
    else:
        (path.parent / "record").write_bytes(b"nonsense")
    assert model.snapshot() == path
    assert digests(path) == expected
    assert (model.snapshot("HEAD~1") / "config.json").read_text() == '{"model_type": "none"}'
    assert other.exists()
    assert not [item for item in model.paths.snapshots.iterdir() if item.name.startswith("tmp-")]


def test_many_builders_at_once_agree(model: Repository, files: Any, make_repo: Callable[..., Repository]) -> None:
    found: list[Path] = []
    errors: list[Exception] = []

    def build() -> None:
        try:
            with modelgit.open(model.worktree, environment=model.environment) as repo:
                found.append(repo.snapshot())
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(set(found)) == 1
    assert digests(found[0]) == digests(model.worktree / "models" / "bot")
    assert len(list(model.paths.snapshots.iterdir())) == 1


def test_a_failure_leaves_nothing(model: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modelgit.worktree.snapshots.write_content", full)
        patch.setattr("modelgit.repo.snapshots.copy_file", full)
        with pytest.raises(RepositoryError, match="No space left"):
            model.snapshot()
    assert list(model.paths.snapshots.iterdir()) == []
    assert model.snapshot().is_dir()


def test_gc_removes_what_nobody_asks_for(model: Repository) -> None:
    now, before = model.snapshot(), model.snapshot("HEAD~1")
    shared = (now / "config.json").read_text()
    long_ago = time.time() - 31 * 86400
    os.utime(before.parent / "record", (long_ago, long_ago))
    leftover = model.paths.snapshots / "tmp-1-0123456789ab"
    leftover.mkdir()
    os.utime(leftover, (long_ago, long_ago))
    collect(model)
    assert now.is_dir() and not before.exists() and not leftover.exists()
    assert (now / "config.json").read_text() == shared
    assert not (now / "config.json").stat().st_mode & stat.S_IWUSR


def test_too_much_goes_oldest_first_but_not_what_was_just_used(model: Repository) -> None:
    now, before = model.snapshot(), model.snapshot("HEAD~1")
    cache = SnapshotCache(model.paths.snapshots)
    assert cache.tidy(max_bytes=1) == 0
    days = time.time() - 3 * 86400
    os.utime(before.parent / "record", (days, days))
    assert cache.tidy(max_bytes=1 << 30) == 0
    assert cache.tidy(max_bytes=1) == 1
    assert now.exists() and not before.exists()
    assert model.snapshot("HEAD~1") == before


def test_a_single_file_and_questions(bot: Repository, files: Any) -> None:
    path = bot.snapshot()
    assert [item.name for item in path.iterdir()] == ["bot.safetensors"]
    assert digests(path) == {"bot.safetensors": digests(bot.worktree)["bot.safetensors"]}
    with pytest.raises(UsageError, match="no model `nope`"):
        bot.snapshot(model="nope")
    with pytest.raises(UnknownRevision):
        bot.snapshot("nope")
    (bot.worktree / "other.safetensors").write_bytes(files.of_arrays(files.floats(3)))
    bot.track("other.safetensors")
    bot.commit("two models")
    with pytest.raises(UsageError, match="which model"):
        bot.snapshot()
    assert bot.snapshot(model="bot.safetensors") != bot.snapshot(model="other.safetensors")


# -- by a place and a revision


@pytest.fixture
def remote(model: Repository, tmp_path: Path) -> Path:
    path = tmp_path / "bare"
    model.paths.config.write_text(f'[remote.origin]\nurl = "{path}"\n')
    model.forget_settings()
    push(model, "origin")
    return path


def test_a_local_repository_and_a_remote(model: Repository, remote: Path, files: Any) -> None:
    expected = digests(model.worktree / "models" / "bot")
    local = modelgit.snapshot(f"{model.worktree}@main", model="models/bot", environment=model.environment)
    assert local == model.snapshot()
    for text in (f"{remote}@main", str(remote), f"file://{remote}@main"):
        far = modelgit.snapshot(text, model="models/bot", environment=model.environment)
        assert far.is_relative_to(model.environment.cache_directory) and digests(far) == expected
    first = modelgit.snapshot(f"{remote}@main~1", environment=model.environment)
    assert (first / "config.json").samefile(far / "config.json")
    with pytest.raises(UnknownRevision, match="did you mean `main`"):
        modelgit.snapshot(f"{remote}@mian", environment=model.environment)
    with pytest.raises(RemoteError, match="does not exist"):
        modelgit.snapshot(f"{remote}x@main", environment=model.environment)


def test_a_remote_s_bytes_are_checked(
    model: Repository, remote: Path, monkeypatch: pytest.MonkeyPatch, files: Any
) -> None:
    """A remote that gives other weights, with checksums that fit."""
    from modelgit.patching.materialise import TensorReader

    real = TensorReader.read

    def read(self: TensorReader, tensor: Any, start: int, stop: int) -> bytearray:
        data = real(self, tensor, start, stop)
        if tensor.KIND == "tensor":
            data[0] ^= 1
        return data

    monkeypatch.setattr(TensorReader, "read", read)
    with pytest.raises(IntegrityError, match="does not match its id"):
        modelgit.snapshot(f"{remote}@main", environment=model.environment)
    assert list((model.environment.cache_directory / "snapshots").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://team/bot@v1.2", ("s3://team/bot", "v1.2")),
        ("ssh://git@host/bot", ("ssh://git@host/bot", "HEAD")),
        ("ssh://git@host/bot@feature/x", ("ssh://git@host/bot", "feature/x")),
        ("bot@main~1", ("bot", "main~1")),
        ("bot@", ("bot", "HEAD")),
        ("@scope/bot", ("@scope/bot", "HEAD")),
        ("here@there", ("here@there", "HEAD")),
        ("here@there@v1", ("here@there", "v1")),
    ],
)
def test_places_and_revisions(tmp_path: Path, text: str, expected: tuple[str, str]) -> None:
    (tmp_path / "here@there").mkdir()
    assert split_revision(text, tmp_path) == expected


def test_shards_are_found_by_their_index(model: Repository) -> None:
    """What a loader does: the index names files beside it, which hold what it says."""
    path = model.snapshot()
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == [f"layers.{n}" for n in range(4)]
    for name, shard in index["weight_map"].items():
        assert name in load_file(path / shard)
