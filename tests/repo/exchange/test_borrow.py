"""Borrowing: what lies elsewhere is not stored again, and every byte of it is compared with its digest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import CheckpointFormatError, IntegrityError, LenderError, NothingToDo, RepositoryError, UsageError
from modelgit.objects import TensorId
from modelgit.repo import Repository
from modelgit.repo.exchange.borrow import add, copy, lenders, remove, update
from modelgit.repo.exchange.cloning import clone
from modelgit.repo.exchange.remote import add_remote
from modelgit.repo.exchange.repair import repair
from modelgit.repo.exchange.sync import fetch, push
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect
from modelgit.store.base import is_foreign
from tests.conftest import Files, environment_at

MAKE = Callable[..., Repository]
MODEL = "bot.safetensors"


@pytest.fixture
def weights(files: Files) -> dict[str, np.ndarray]:
    """Three tensors of 128 KiB."""
    return files.floats(5, rows=128, columns=256)


@pytest.fixture
def lender(make_repo: MAKE, files: Files, weights: dict[str, np.ndarray]) -> Repository:
    """A repository of two commits, the second one a change of one tensor."""
    repo = make_repo("lender")
    (repo.worktree / MODEL).write_bytes(files.of_arrays(weights))
    repo.track(MODEL)
    repo.commit("base")
    changed = {name: array.copy() for name, array in weights.items()}
    changed["layers.1.weight"] *= np.float32(1.37)
    (repo.worktree / MODEL).write_bytes(files.of_arrays(changed))
    repo.commit("tuned")
    return repo


@pytest.fixture
def checkpoints(tmp_path: Path, files: Files, weights: dict[str, np.ndarray]) -> Path:
    """A directory with one checkpoint and a file that is no checkpoint."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "base.safetensors").write_bytes(files.of_arrays(weights))
    (folder / "broken.safetensors").write_bytes(b"\xff" * 5000)
    return folder


def clone_of(tmp_path: Path, lender: Repository, name: str = "clone") -> Repository:
    place = environment_at(tmp_path, tmp_path)
    return clone(str(lender.worktree), tmp_path / name, borrow=[str(lender.worktree)], environment=place)


def stored_bytes(repo: Repository) -> int:
    repo.store.lookup.refresh()
    return sum((repo.store.packs_path / name).stat().st_size for name in repo.store.lookup.packs())


def snapshot_of(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file()
    }


def tamper(path: Path, offset: int, *, quietly: bool = True) -> None:
    """Flip a byte and, quietly, set the times back."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    if quietly:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_clone_that_borrows_copies_metadata_only(tmp_path: Path, lender: Repository) -> None:
    before = snapshot_of(lender.paths.directory)
    with clone_of(tmp_path, lender) as repo:
        assert (repo.worktree / MODEL).read_bytes() == (lender.worktree / MODEL).read_bytes()
        assert stored_bytes(repo) < 12_000 < stored_bytes(lender)
        report = fsck(repo)
        assert report.is_sound and report.borrowed == 4
        assert repo.status().is_clean
    assert snapshot_of(lender.paths.directory) == before


def test_a_borrower_commits_deltas_against_what_it_borrows(
    tmp_path: Path, lender: Repository, files: Files, weights: dict[str, np.ndarray]
) -> None:
    with clone_of(tmp_path, lender) as repo:
        changed = {name: array.copy() for name, array in weights.items()}
        changed["layers.2.weight"][7, :9] *= np.float32(1.5)
        data = files.of_arrays(changed)
        (repo.worktree / MODEL).write_bytes(data)
        result = repo.commit("mine")
        assert result.encodings.get("sparse") == 1
        assert result.bytes_added < 4000
        (repo.worktree / MODEL).unlink()
        from modelgit.repo.tracking.switch import restore

        restore(repo, [MODEL])
        assert (repo.worktree / MODEL).read_bytes() == data
        assert fsck(repo).is_sound


def test_push_from_a_borrower_gives_the_remote_everything(tmp_path: Path, lender: Repository) -> None:
    with clone_of(tmp_path, lender) as repo:
        add_remote(repo, "other", str(tmp_path / "other.mgit"))
        push(repo, "other")
    shutil.rmtree(lender.worktree)
    place = environment_at(tmp_path, tmp_path)
    with clone(str(tmp_path / "other.mgit"), tmp_path / "again", environment=place) as again:
        assert fsck(again).is_sound
        assert fsck(again).borrowed == 0


def test_a_clone_of_a_borrower_is_whole(tmp_path: Path, lender: Repository) -> None:
    clone_of(tmp_path, lender).close()
    place = environment_at(tmp_path, tmp_path)
    with clone(str(tmp_path / "clone"), tmp_path / "second", environment=place) as second:
        shutil.rmtree(lender.worktree)
        report = fsck(second)
        assert report.is_sound and report.borrowed == 0


def test_a_borrower_of_a_borrower_reads_through(tmp_path: Path, lender: Repository) -> None:
    first = clone_of(tmp_path, lender)
    with first, clone_of(tmp_path, first, "second") as second:
        assert fsck(second).borrowed == 4
        assert (second.worktree / MODEL).read_bytes() == (lender.worktree / MODEL).read_bytes()


def test_a_lender_that_is_gone_is_named(tmp_path: Path, lender: Repository) -> None:
    with clone_of(tmp_path, lender) as repo:
        pass
    lender.worktree.rename(tmp_path / "elsewhere")
    with Repository.open(tmp_path / "clone", environment=environment_at(tmp_path, tmp_path)) as repo:
        assert [item.there for item in lenders(repo)] == [False]
        assert repo.status().is_clean  # nothing of this needs the lender
        report = fsck(repo)
        assert len(report.findings) == 4
        assert f"is borrowed from {lender.paths.directory}, which is not there" in report.findings[0].problem
        collect(repo)
        with pytest.raises(LenderError, match=r"is borrowed from .*, which is not there"):
            repo.load()["layers.0.weight"].raw()
        (tmp_path / "elsewhere").rename(lender.worktree)
        assert fsck(repo).is_sound


def test_what_a_lender_collects_is_named_and_comes_back_from_a_remote(
    tmp_path: Path, lender: Repository, files: Files
) -> None:
    add_remote(lender, "origin", str(tmp_path / "hub.mgit"))
    push(lender)
    place = environment_at(tmp_path, tmp_path)
    with clone(
        str(tmp_path / "hub.mgit"), tmp_path / "clone", borrow=[str(lender.worktree)], environment=place
    ) as repo:
        lender.publish(lambda view: type(view)(refs={}, branch="main"), "forget")
        collect(lender, prune_now=True)
        repo.store.lenders.close()
        report = fsck(repo)
        assert any("which does not have it any more" in finding.problem for finding in report.findings)
        assert repair(repo, "origin").fetched >= 3
        assert fsck(repo).is_sound


def test_a_lender_that_was_told_spares_what_is_borrowed(tmp_path: Path, lender: Repository) -> None:
    from modelgit.repo.upkeep.repack import repack

    with clone_of(tmp_path, lender) as repo:
        add(repo, str(lender.worktree), tell=True)
        assert len(repo.store.lenders.lines) == 1
        lender.publish(lambda view: type(view)(refs={}, branch="main"), "forget")
        collect(lender, prune_now=True)
        repack(lender, prune_now=True)
        assert fsck(repo).is_sound and fsck(repo).borrowed == 4
        (tmp_path / "clone").rename(tmp_path / "away")
        with pytest.raises(RepositoryError, match="borrows from this repository and is not there"):
            collect(lender, prune_now=True)
        (tmp_path / "away").rename(tmp_path / "clone")
        copy(repo)
        remove(repo, str(lender.worktree))
        assert collect(lender, prune_now=True).bytes_freed > 100_000
        assert fsck(repo).is_sound
        with pytest.raises(UsageError, match="no repository that could be told"):
            add(repo, str(tmp_path), tell=True)


def test_copying_makes_a_borrower_self_contained(tmp_path: Path, lender: Repository) -> None:
    with clone_of(tmp_path, lender) as repo:
        with pytest.raises(RepositoryError, match="4 objects of this repository can only be read from"):
            remove(repo, str(lender.worktree))
        report = copy(repo)
        assert report.objects == 4
        remove(repo, str(lender.worktree))
        shutil.rmtree(lender.worktree)
        assert fsck(repo).is_sound
        assert not repo.store.lenders.lines
        assert not list((repo.paths.directory / "borrow").glob("*.table"))
        with pytest.raises(NothingToDo):
            copy(repo)


def test_gc_of_a_borrower_keeps_what_it_has_and_never_touches_the_lender(
    tmp_path: Path, lender: Repository, files: Files, weights: dict[str, np.ndarray]
) -> None:
    with clone_of(tmp_path, lender) as repo:
        for step in range(3):
            changed = {name: array + np.float32(step + 1) for name, array in weights.items()}
            (repo.worktree / MODEL).write_bytes(files.of_arrays(changed))
            repo.commit(f"step {step}")
        tip = repo.head()
        repo.publish(lambda view: view.with_head(repo.resolve("HEAD~3")), "back")
        before = snapshot_of(lender.paths.directory)
        assert collect(repo, prune_now=True).bytes_freed > 10_000
        assert fsck(repo).is_sound
        assert tip is not None and not repo.store.has(tip)
        assert snapshot_of(lender.paths.directory) == before


def test_a_lender_whose_pack_changed_quietly_is_found_out(tmp_path: Path, lender: Repository) -> None:
    """Bytes and checksums that agree with each other, but not with the id: as a hostile lender would have them."""
    with clone_of(tmp_path, lender) as repo:
        pass
    other = {name: array + np.float32(1) for name, array in floats_of(lender).items()}
    forge(lender, other)
    with Repository.open(tmp_path / "clone", environment=environment_at(tmp_path, tmp_path)) as repo:
        with pytest.raises(LenderError, match=r"has changed in .*, from which it is borrowed"):
            repo.load()["layers.0.weight"].raw()
        report = fsck(repo)
        assert any("has changed in" in finding.problem for finding in report.findings)


def floats_of(repo: Repository) -> dict[str, np.ndarray]:
    state = repo.load("HEAD~1")
    return {name: np.array(state[name].numpy()) for name in state}


def forge(lender: Repository, weights: dict[str, np.ndarray]) -> None:
    """Replace the lender's packs by one in which its ids name other bytes."""
    from modelgit.patching.encode import TensorWriter
    from modelgit.patching.jobs import BlobSource, StoreJob

    ids = {name: entry.id for name, entry in lender.load("HEAD~1").entries.items()}
    session = lender.session()
    own = lender.store.session(epoch=session.epoch)
    kinds = [item for item in lender.store.objects() if item.kind != "tensor"]
    for item in kinds:
        header, payload = lender.store.read(item)
        from modelgit.objects import id_class

        kind = id_class(item.kind)
        own.append(
            kind(item.digest), start=item.start, stop=item.stop, total=item.total, header=header, payload=(payload,),
            base=None if item.base is None else kind(item.base),
        )  # fmt: skip
    for name, array in weights.items():
        data = array.astype("<f4").tobytes()
        spec = lender.load("HEAD~1").entries[name].spec
        list(TensorWriter(session, threads=1).store([StoreJob(name, BlobSource(data), spec, len(data))]))
    for rows in list(session._own.values()):
        for _, item in rows:
            where = session.locate(TensorId(item.digest))[0]
            header, payload = session.read(where)
            for name, array in weights.items():
                from modelgit.objects import leaf_digests, tensor_id

                spec = lender.load("HEAD~1").entries[name].spec
                if tensor_id(spec, leaf_digests(array.astype("<f4").tobytes())).digest == item.digest:
                    own.append(ids[name], start=0, stop=item.stop, total=item.total, header=header, payload=(payload,))
    session.abort()
    old = lender.store.lookup.packs()
    own.seal()
    for name in old:
        lender.store.delete(name)


def test_a_lender_that_lies_when_it_is_first_relied_on_is_refused(
    tmp_path: Path, make_repo: MAKE, lender: Repository, files: Files, weights: dict[str, np.ndarray]
) -> None:
    forge(lender, {name: array + np.float32(1) for name, array in weights.items()})
    repo = make_repo("work")
    add(repo, str(lender.worktree))
    (repo.worktree / MODEL).write_bytes(files.of_arrays(weights))
    repo.track(MODEL)
    with pytest.raises(LenderError, match=r"does not hold tensor b3:.* \(layers\.\d\.weight\) as it should"):
        repo.commit("base")
    assert repo.head() is None


def test_a_commit_does_not_store_what_a_lending_repository_has(
    make_repo: MAKE, lender: Repository, files: Files, weights: dict[str, np.ndarray]
) -> None:
    repo = make_repo("work")
    add(repo, str(lender.worktree))
    (repo.worktree / MODEL).write_bytes(files.of_arrays(weights))
    repo.track(MODEL)
    assert repo.commit("base").bytes_added < 3000
    assert fsck(repo).borrowed == 3


def test_a_damaged_table_is_made_again(tmp_path: Path, lender: Repository) -> None:
    with clone_of(tmp_path, lender) as repo:
        for table in (repo.paths.directory / "borrow").glob("*.table"):
            tamper(table, 40)
        repo.store.lenders.reload()
        assert not fsck(repo).is_sound
        update(repo)
        assert fsck(repo).is_sound


def test_nobody_borrows_from_himself(bot: Repository) -> None:
    with pytest.raises(UsageError, match="cannot borrow from itself"):
        add(bot, ".")
    (bot.worktree / "models").mkdir()
    with pytest.raises(UsageError, match="own work tree"):
        add(bot, "models")
    with pytest.raises(RepositoryError, match="there is no directory"):
        add(bot, "/nowhere/at/all")


# -- directories


def with_directory(repo: Repository, folder: Path, data: bytes) -> int:
    add(repo, str(folder))
    (repo.worktree / MODEL).write_bytes(data)
    repo.track(MODEL)
    return repo.commit("base").bytes_added


def test_what_lies_in_a_directory_is_not_stored(
    repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    before = snapshot_of(checkpoints)
    added = add(repo, str(checkpoints))
    assert added.state.objects == 3
    assert len(added.skipped) == 1 and "broken.safetensors" in added.skipped[0]
    data = files.of_arrays(weights, metadata={"another": "header"})
    assert with_directory(repo, checkpoints, data) < 3000
    (repo.worktree / MODEL).unlink()
    from modelgit.repo.tracking.switch import restore

    restore(repo, [MODEL])
    assert (repo.worktree / MODEL).read_bytes() == data
    assert fsck(repo).borrowed == 3
    assert snapshot_of(checkpoints) == before


def test_a_directory_that_changes_quietly_is_found_out(
    repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    with_directory(repo, checkpoints, files.of_arrays(weights))
    size = (checkpoints / "base.safetensors").stat().st_size
    tamper(checkpoints / "base.safetensors", size - 9)
    with pytest.raises(LenderError, match=r"tensor b3:.* has changed in .*base.safetensors, from which it is borrowed"):
        repo.load()["layers.2.weight"].raw()
    assert len(repo.load()["layers.0.weight"].raw()) == 128 * 256 * 4
    report = fsck(repo)
    assert [finding.used_by for finding in report.findings] == ["layers.2.weight"]


def test_a_changed_file_is_not_relied_on(
    repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    """Stat says that the file changed: what it holds is hashed again, and what is not as it was is stored here."""
    add(repo, str(checkpoints))
    size = (checkpoints / "base.safetensors").stat().st_size
    tamper(checkpoints / "base.safetensors", size - 9, quietly=False)
    os.utime(checkpoints / "base.safetensors", ns=(1, 1))
    (repo.worktree / MODEL).write_bytes(files.of_arrays(weights))
    repo.track(MODEL)
    added = repo.commit("base").bytes_added
    assert 60_000 < added < 150_000  # one of three tensors
    assert fsck(repo).is_sound
    assert fsck(repo).borrowed == 2


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
@pytest.mark.parametrize("change", ["removed", "truncated", "a link out", "a pipe"])
def test_a_file_that_is_gone_is_named(
    tmp_path: Path, repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray], change: str
) -> None:
    with_directory(repo, checkpoints, files.of_arrays(weights))
    file = checkpoints / "base.safetensors"
    data = file.read_bytes()
    file.unlink()
    if change == "truncated":
        file.write_bytes(data[:-100])
    elif change == "a link out":
        (tmp_path / "outside").write_bytes(data)
        file.symlink_to(tmp_path / "outside")
    elif change == "a pipe":
        os.mkfifo(file)
    repo.store.lenders.close()
    with pytest.raises(LenderError, match=r"is borrowed from .*base.safetensors, which has changed or is gone"):
        repo.load()["layers.0.weight"].raw()
    assert len(fsck(repo).findings) == 3
    collect(repo)
    file.unlink(missing_ok=True)
    file.write_bytes(data)
    assert fsck(repo).is_sound  # other times, the same bytes


def test_a_switch_that_cannot_be_finished_is_not_begun(
    make_repo: MAKE, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    repo = make_repo("work")
    add(repo, str(checkpoints))
    before = files.of_arrays({name: array + np.float32(1) for name, array in weights.items()})
    (repo.worktree / MODEL).write_bytes(before)
    repo.track(MODEL)
    repo.commit("mine")
    repo.switch("theirs", create=True)
    (repo.worktree / MODEL).write_bytes(files.of_arrays(weights))
    repo.commit("theirs")
    changed = {name: array.copy() for name, array in weights.items()}
    changed["layers.0.weight"][0, :9] += np.float32(1)
    (repo.worktree / MODEL).write_bytes(files.of_arrays(changed))
    repo.commit("coded against what is borrowed")
    repo.switch("main")
    shutil.rmtree(checkpoints)
    repo.close()
    for branch in ("theirs", "theirs~1"):
        with pytest.raises(LenderError, match="is borrowed from"):
            repo.switch(branch, detach=True)
        assert not repo.journal.pending
        assert repo.status().is_clean and repo.view().branch == "main"
    assert (repo.worktree / MODEL).read_bytes() == before


def test_a_file_that_goes_while_it_is_used_is_named(
    repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    with_directory(repo, checkpoints, files.of_arrays(weights))
    assert repo.load()["layers.0.weight"].raw()
    repo.store.lenders.files.close()
    (checkpoints / "base.safetensors").unlink()
    with pytest.raises(LenderError, match=r"tensor b3:.* cannot be borrowed: .*base.safetensors cannot be read"):
        repo.load()["layers.1.weight"].raw()


def test_update_hashes_what_came_and_what_changed(repo: Repository, tmp_path: Path, files: Files) -> None:
    folder = tmp_path / "lent"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(files.of_arrays(files.floats(1)))
    os.utime(folder / "a.safetensors", ns=(10**18, 10**18))
    assert add(repo, str(folder)).state.objects == 3
    (folder / "b.safetensors").write_bytes(files.of_arrays(files.floats(2)))
    read: list[int] = []

    class Watching:
        def start(self, task: str, total: int, *, unit: str = "bytes") -> None:
            read.append(total)

        def advance(self, task: str, amount: int) -> None: ...

        def finish(self, task: str) -> None: ...

        def check(self) -> None: ...

    assert update(repo, str(folder), progress=Watching())[0].state.objects == 6
    assert read == [(folder / "b.safetensors").stat().st_size]
    (folder / "a.safetensors").write_bytes(files.of_arrays(files.floats(3)))
    update(repo)
    (repo.worktree / MODEL).write_bytes(files.of_arrays({**files.floats(3)}))
    repo.track(MODEL)
    repo.commit("base")
    assert fsck(repo).borrowed == 3


def test_repacking_leaves_what_is_borrowed_alone(
    tmp_path: Path, lender: Repository, files: Files, weights: dict[str, np.ndarray]
) -> None:
    from modelgit.repo.upkeep.repack import repack

    with clone_of(tmp_path, lender) as repo:
        for step in range(3):
            changed = {name: array.copy() for name, array in weights.items()}
            changed["layers.0.weight"][step] += np.float32(1)
            (repo.worktree / MODEL).write_bytes(files.of_arrays(changed))
            repo.commit(f"step {step}")
        repack(repo, effort="tight")
        assert fsck(repo).is_sound
        repack(repo, effort="tight", prune_now=True)
        report = fsck(repo)
        assert report.is_sound and report.borrowed == 4


def test_push_sends_what_lies_in_a_directory(
    tmp_path: Path, repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    with_directory(repo, checkpoints, files.of_arrays(weights))
    add_remote(repo, "origin", str(tmp_path / "hub.mgit"))
    push(repo)
    shutil.rmtree(checkpoints)
    place = environment_at(tmp_path, tmp_path)
    with clone(str(tmp_path / "hub.mgit"), tmp_path / "again", environment=place) as again:
        assert (again.worktree / MODEL).read_bytes() == (repo.worktree / MODEL).read_bytes()
        assert fsck(again).is_sound


def test_push_refuses_a_directory_that_changed(
    tmp_path: Path, repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    with_directory(repo, checkpoints, files.of_arrays(weights))
    tamper(checkpoints / "base.safetensors", 5000)
    add_remote(repo, "origin", str(tmp_path / "hub.mgit"))
    with pytest.raises(IntegrityError):
        push(repo)


def test_what_was_borrowed_from_a_directory_can_be_copied(
    repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    with_directory(repo, checkpoints, files.of_arrays(weights))
    assert copy(repo).objects == 3
    remove(repo, str(checkpoints))
    shutil.rmtree(checkpoints)
    assert fsck(repo).is_sound
    assert fsck(repo).borrowed == 0


def test_fetch_repair_replaces_what_a_directory_lost(
    tmp_path: Path, repo: Repository, checkpoints: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    with_directory(repo, checkpoints, files.of_arrays(weights))
    add_remote(repo, "origin", str(tmp_path / "hub.mgit"))
    push(repo)
    shutil.rmtree(checkpoints)
    repo.store.lenders.close()
    repair(repo, "origin")
    assert fsck(repo).is_sound


def test_a_large_tensor_is_read_leaf_by_leaf(repo: Repository, tmp_path: Path, files: Files) -> None:
    weights = {"big": np.arange(3 * 1024 * 1024 + 77, dtype="<f4")}
    folder = tmp_path / "lent"
    folder.mkdir()
    (folder / "big.safetensors").write_bytes(files.of_arrays(weights))
    with_directory(repo, folder, files.of_arrays(weights))
    entry = repo.load().entries["big"]
    rows = repo.store.locate(entry.id)
    assert len(rows) == 1 and is_foreign(rows[0])
    reader = repo.reader()
    raw = weights["big"].tobytes()
    for start, stop in ((0, 4), (4 << 20, (4 << 20) + 8), ((4 << 20) - 8, (4 << 20) + 8), (len(raw) - 4, len(raw))):
        assert bytes(reader.read(entry.id, start, stop)) == raw[start:stop]
    tamper(folder / "big.safetensors", (folder / "big.safetensors").stat().st_size - 2)
    fresh = repo.reader()
    assert bytes(fresh.read(entry.id, 0, 64)) == raw[:64]
    with pytest.raises(LenderError):
        fresh.read(entry.id, len(raw) - 4, len(raw))


def test_work_trees_inside_of_a_directory_are_passed_over(
    repo: Repository, lender: Repository, tmp_path: Path, files: Files
) -> None:
    assert add(repo, str(tmp_path)).state.objects == 0


def test_a_broken_checkpoint_in_the_work_tree_is_still_an_error(repo: Repository, checkpoints: Path) -> None:
    add(repo, str(checkpoints))
    (repo.worktree / "broken.safetensors").write_bytes(b"\xff" * 5000)
    with pytest.raises(CheckpointFormatError):
        repo.track("broken.safetensors")


def test_a_fetch_does_not_bring_what_a_lender_has(
    tmp_path: Path, lender: Repository, make_repo: MAKE, checkpoints: Path
) -> None:
    repo = make_repo("work")
    add(repo, str(checkpoints))
    add_remote(repo, "origin", str(lender.worktree))
    fetched = fetch(repo)
    assert fetched.bytes_received < 120_000  # the tensor that the directory does not have; three would be 350,000


def test_a_switch_that_cannot_be_finished_blocks_the_work_tree_only(
    tmp_path: Path, lender: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, and the lender goes away before the next command: what could mend it must still run."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    base = lender.resolve("main~1")
    with clone_of(tmp_path, lender) as repo:
        place, worktree = repo.environment, repo.worktree
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("modelgit.repo.tracking.update.write_files", killed)
            repo.switch(base.hex, detach=True)
    away = lender.worktree.with_name("away")
    lender.worktree.rename(away)
    with Repository.open(worktree, environment=place) as repo:
        assert repo.journal.pending
        repo.status()
        assert not fsck(repo).is_sound
        with pytest.raises(IntegrityError):
            repo.switch("main")
    away.rename(lender.worktree)
    with Repository.open(worktree, environment=place) as repo:
        assert not repo.journal.pending
        assert repo.head() == base
        assert fsck(repo).is_sound
