"""What is refused, in which words, and that nothing is lost by it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import modelgit
from modelgit.errors import CheckpointFormatError, ConflictError, RepositoryError, UnknownRevision, UsageError
from modelgit.formats.detect import FileReader
from modelgit.patching.jobs import SourceChangedError
from modelgit.repo import Repository
from modelgit.repo.tracking.switch import restore
from modelgit.repo.upkeep.fsck import fsck


def side_branch(bot: Repository, files) -> None:
    bot.switch("side", create=True)
    arrays = files.floats()
    for name in ("layers.0.weight", "layers.1.weight"):
        arrays[name][0] += np.float32(1)
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    bot.commit("side")


def test_a_dirty_work_tree_is_not_overwritten(bot: Repository, files) -> None:
    side_branch(bot, files)
    arrays = files.floats(8)
    arrays["layers.2.weight"] = files.floats()["layers.2.weight"]
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    before, view = files.digests(bot.worktree), bot.view()
    with pytest.raises(RepositoryError) as caught:
        bot.switch("main")
    assert caught.value.message == "bot.safetensors has changes that switching would overwrite (2 tensors)"
    assert caught.value.hint == "`mgit commit -m …`, or `mgit switch main --discard` (kept 7 days in .mgit/rescue)"
    assert (files.digests(bot.worktree), bot.view()) == (before, view)
    assert not bot.journal.pending
    edited = (bot.worktree / "bot.safetensors").read_bytes()
    bot.switch("main", discard=True)
    assert bot.status().is_clean
    assert [path.read_bytes() for path in bot.paths.rescue.rglob("*") if path.is_file()] == [edited]


def test_files_that_nobody_tracks_are_not_overwritten_either(bot: Repository, files) -> None:
    bot.switch("side", create=True)
    (bot.worktree / "sub").mkdir()
    (bot.worktree / "sub" / "notes.txt").write_text("recorded on side")
    bot.track("sub")
    bot.commit("side")
    bot.switch("main")
    assert not (bot.worktree / "sub").exists()
    (bot.worktree / "sub").mkdir()
    (bot.worktree / "sub" / "notes.txt").write_text("precious and recorded nowhere")
    with pytest.raises(RepositoryError, match=r"sub/notes.txt has changes that switching would overwrite"):
        bot.switch("side")
    assert (bot.worktree / "sub" / "notes.txt").read_text() == "precious and recorded nowhere"
    bot.switch("side", discard=True)
    assert (bot.worktree / "sub" / "notes.txt").read_text() == "recorded on side"
    kept = [path.read_text() for path in bot.paths.rescue.rglob("notes.txt")]
    assert kept == ["precious and recorded nowhere"]


def test_edits_that_are_in_nobodys_way_come_along(bot: Repository, files) -> None:
    (bot.worktree / "notes.txt").write_text("one")
    bot.track("notes.txt")
    bot.commit("notes")
    side_branch(bot, files)
    (bot.worktree / "notes.txt").write_text("edited")
    bot.switch("main")
    assert (bot.worktree / "notes.txt").read_text() == "edited"
    assert [(item.path, item.change) for item in bot.status().files] == [("notes.txt", "modified")]
    (bot.worktree / "notes.txt").unlink()
    bot.switch("side")
    assert [(item.path, item.change) for item in bot.status().files] == [("notes.txt", "deleted")]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights elsewhere")
def test_a_directory_that_became_a_link_is_not_written_through(bot: Repository, files, tmp_path: Path) -> None:
    bot.switch("side", create=True)
    (bot.worktree / "sub").mkdir()
    (bot.worktree / "sub" / "notes.txt").write_text("recorded on side")
    bot.track("sub")
    bot.commit("side")
    bot.switch("main")
    outside = tmp_path / "outside"
    outside.mkdir()
    (bot.worktree / "sub").symlink_to(outside)
    with pytest.raises((RepositoryError, CheckpointFormatError), match="symbolic link"):
        bot.switch("side")
    assert list(outside.iterdir()) == []
    (bot.worktree / "sub").unlink()
    again = Repository.open(bot.worktree, environment=bot.environment)
    again.switch("side")
    assert (bot.worktree / "sub" / "notes.txt").read_text() == "recorded on side"
    again.close()


def test_same_size_and_time_do_not_hide_a_change(bot: Repository, files) -> None:
    target = bot.worktree / "bot.safetensors"
    for seed in range(1, 6):
        status = target.stat()
        target.write_bytes(files.of_arrays(files.floats(seed)))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert target.stat().st_size == status.st_size
        assert not bot.status().is_clean
        bot.commit(f"seed {seed}")
        target.unlink()
        restore(bot, ["."])
        assert target.read_bytes() == files.of_arrays(files.floats(seed))


@pytest.mark.parametrize("how", ["rewrite", "grow", "shrink"])
@pytest.mark.parametrize("large", [False, True])
def test_a_file_that_changes_while_it_is_committed_is_refused_by_name(
    bot: Repository, files, monkeypatch: pytest.MonkeyPatch, how: str, large: bool
) -> None:
    target = bot.worktree / "bot.safetensors"
    rows = 80_000 if large else 200  # 9.8 MiB: read twice
    first = files.of_arrays(files.floats(1, layers=2, rows=rows))
    other = {
        "rewrite": files.of_arrays(files.floats(2, layers=2, rows=rows)),
        "grow": first + b"x",
        "shrink": first[:99],
    }
    target.write_bytes(first)
    head, packs = bot.head(), bot.store.lookup.packs()
    reads = []
    read = FileReader.read

    def meddling(self: FileReader, offset: int, length: int) -> bytes:
        data = read(self, offset, length)
        if self.shown == "bot.safetensors" and length > 1000:
            reads.append(offset)
            if len(reads) == (3 if large else 1):
                target.write_bytes(other[how])
        return data

    with monkeypatch.context() as patch:
        patch.setattr(FileReader, "read", meddling)
        with pytest.raises((SourceChangedError, CheckpointFormatError), match=r"bot.safetensors|layers") as caught:
            bot.commit("while it changes")
    assert "chang" in caught.value.message
    assert caught.value.hint
    assert (bot.head(), bot.store.lookup.packs()) == (head, packs)
    assert not list(bot.store.incoming_path.iterdir())
    target.write_bytes(first)
    bot.commit("when it is still")
    assert fsck(bot).is_sound


def test_caches_can_be_deleted_at_any_time(bot: Repository, files) -> None:
    wanted = {}
    for name in ("one", "two"):
        bot.switch(name, create=True, start="main")
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(len(name))))
        bot.commit(name)
        wanted[name] = files.digests(bot.worktree)
        bot.store.lookup.write_cache()
    for name in ("one", "two", "one"):
        shutil.rmtree(bot.paths.cache)
        bot.paths.stat_index.unlink(missing_ok=True)
        other = Repository.open(bot.worktree, environment=bot.environment)
        other.switch(name)
        assert files.digests(bot.worktree) == wanted[name]
        assert other.status().is_clean
        bot.paths.stat_index.write_bytes(os.urandom(100))
        other.close()
        assert Repository.open(bot.worktree, environment=bot.environment).status().is_clean
        bot.paths.cache.mkdir(exist_ok=True)


def test_outside_of_a_repository(tmp_path: Path, bot: Repository) -> None:
    environment = dataclasses.replace(bot.environment, cwd=tmp_path)
    with pytest.raises(RepositoryError, match="not inside an mgit repository") as caught:
        modelgit.open(".", environment=environment)
    assert caught.value.hint == "`mgit init` makes one here, `mgit clone URL` copies one"
    deep = bot.worktree / "a" / "b"
    deep.mkdir(parents=True)
    assert modelgit.open(deep, environment=environment).worktree == bot.worktree
    with pytest.raises(RepositoryError, match="is an mgit repository already"):
        modelgit.init(bot.worktree, environment=environment)


def test_a_later_format_is_refused(bot: Repository) -> None:
    bot.paths.format.write_text("mgit repository, format 99\n")
    with pytest.raises(RepositoryError, match="format 99") as caught:
        Repository.open(bot.worktree, environment=bot.environment)
    assert "upgrade" in (caught.value.hint or "")


def test_lfs_pointers_and_names_that_are_nothing(bot: Repository) -> None:
    (bot.worktree / "llama.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    )
    with pytest.raises(
        CheckpointFormatError, match=r"llama.safetensors is a Git LFS pointer \(1\d\d bytes\)"
    ) as caught:
        bot.track("llama.safetensors")
    assert "git lfs pull" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="nothing at nowhere"):
        bot.track("nowhere")
    with pytest.raises(UsageError, match="outside of the repository"):
        bot.track("../elsewhere")
    with pytest.raises(UnknownRevision, match="did you mean `main`"):
        bot.resolve("mian")
    with pytest.raises(UnknownRevision, match="no branch") as missing:
        bot.switch("mian")
    assert missing.value.hint == "`mgit switch -c mian` makes it"


def test_a_work_tree_in_use_says_by_whom(bot: Repository, make_repo: Callable[..., Repository]) -> None:
    from modelgit.worktree.lockfile import LockFile

    other = Repository.open(bot.worktree, environment=bot.environment)
    other.lock = LockFile(other.paths.lock, host="testhost", patience_s=0.2)
    with bot.writing(), pytest.raises(ConflictError, match=f"in use by process {os.getpid()} on testhost") as caught:
        other.commit("at the same time")
    assert "rm " in (caught.value.hint or "")
    other.close()
