"""Garbage collection: frees what nothing needs, and takes nothing that somebody is about to need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from modelgit.errors import ConflictError, IntegrityError, MgitError, NothingToDo
from modelgit.formats.safetensors_write import build_header
from modelgit.objects import CommitId, OperationId, TensorSpec, View
from modelgit.patching.encode import TensorWriter, write_blob
from modelgit.patching.jobs import BlobSource, StoreJob
from modelgit.patching.materialise import TensorReader
from modelgit.repo import Repository
from modelgit.repo.branches import create_tag, delete_branch, delete_tag
from modelgit.repo.contents import models_of
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.undo import redo, undo
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect
from modelgit.store.fs import FileSystemStore
from modelgit.store.oplog import OperationLog
from modelgit.store.publish import publish
from modelgit.store.root import FileRoot


def commit_floats(repo: Repository, files, seed: int, message: str) -> CommitId:
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(seed, rows=100)))
    return repo.commit(message).id


def test_what_is_reachable_stays_and_the_rest_goes(bot: Repository, files) -> None:
    bot.switch("doomed", create=True)
    for seed in range(1, 5):
        commit_floats(bot, files, seed, f"doomed {seed}")
    create_tag(bot, "kept", target="HEAD~2")
    bot.switch("main")
    commit_floats(bot, files, 9, "main")
    wanted = files.digests(bot.worktree)
    delete_branch(bot, "doomed", force=True)
    dry = collect(bot, prune_now=True, dry_run=True)
    assert dry.dry_run
    assert len(bot.store.lookup.packs()) == dry.packs_before
    report = collect(bot, prune_now=True)
    assert (report.packs_deleted, report.bytes_freed) == (dry.packs_deleted, dry.bytes_freed)
    assert report.packs_deleted == 2, "the two commits above the tag"
    assert report.bytes_freed > 50_000
    assert fsck(bot).is_sound
    bot.switch("kept", detach=True)
    bot.switch("main")
    assert files.digests(bot.worktree) == wanted
    delete_tag(bot, "kept")
    assert collect(bot, prune_now=True).bytes_freed > 50_000
    again = collect(bot, prune_now=True)
    assert (again.packs_deleted, again.packs_rewritten, again.bytes_freed) == (0, 0, 0)
    assert fsck(bot).is_sound


def test_without_pruning_everything_can_still_be_undone(bot: Repository, files) -> None:
    bot.switch("side", create=True)
    side = commit_floats(bot, files, 1, "side")
    wanted = files.digests(bot.worktree)
    bot.switch("main")
    delete_branch(bot, "side", force=True)
    assert collect(bot).bytes_freed == 0
    assert undo(bot).description == "branch -d: side"
    assert bot.resolve("side") == side
    undo(bot)
    assert files.digests(bot.worktree) == wanted


def test_after_pruning_undo_and_redo_say_that_they_cannot(bot: Repository, files) -> None:
    commit_floats(bot, files, 1, "second")
    undo(bot)
    collect(bot, prune_now=True)
    with pytest.raises(NothingToDo, match="pruned"):
        undo(bot)
    with pytest.raises(NothingToDo, match="pruned"):
        redo(bot)
    commit_floats(bot, files, 2, "another")
    assert undo(bot).description == "commit: another"  # later than the pruning: this one can be taken back
    with pytest.raises(NothingToDo, match="pruned"):
        undo(bot)
    assert redo(bot).description == "commit: another"
    assert fsck(bot).is_sound


def test_what_was_collected_is_stored_again_when_it_is_committed_again(bot: Repository, files) -> None:
    other = Repository.open(bot.worktree, environment=bot.environment)
    second = commit_floats(bot, files, 1, "second")
    assert other.commit_at(second).message == "second"  # this process has seen the packs
    undo(bot)
    assert collect(bot, prune_now=True).packs_deleted == 1
    third = other.commit("the same again").id
    assert fsck(bot).is_sound
    (bot.worktree / "bot.safetensors").unlink()
    restore(bot, ["."], source=third.hex)
    other.close()


def orphaned(bot: Repository, files) -> None:
    """A commit of many tensors, and a work tree with one of them: undone, its pack is mostly dead."""
    arrays = files.floats(3, layers=8, rows=100)
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    bot.commit("eight layers")
    shared = {"layers.0.weight": arrays["layers.0.weight"]}
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(shared))


def test_rewriting_keeps_what_is_shared(bot: Repository, files) -> None:
    orphaned(bot, files)
    undo(bot)
    bot.commit("one layer of them")
    wanted = files.digests(bot.worktree)
    before = sum(path.stat().st_size for path in bot.store.packs_path.iterdir())
    report = collect(bot, prune_now=True)
    assert report.packs_rewritten == 1
    after = sum(path.stat().st_size for path in bot.store.packs_path.iterdir())
    assert before - after > 50_000
    assert fsck(bot).is_sound
    (bot.worktree / "bot.safetensors").unlink()
    restore(bot, ["."])
    assert files.digests(bot.worktree) == wanted


def test_a_reader_that_is_already_open_finds_what_was_rewritten(bot: Repository, files) -> None:
    orphaned(bot, files)
    undo(bot)
    bot.commit("one layer of them")
    other = Repository.open(bot.worktree, environment=bot.environment)
    state = other.load("main")
    before = {name: bytes(state[name].raw()) for name in state}
    other.store.close()
    other.store.lookup.refresh()
    assert collect(bot, prune_now=True).packs_rewritten == 1
    assert {name: bytes(state[name].raw()) for name in state} == before
    other.close()


def test_a_collection_that_died_between_its_steps_is_completed(
    bot: Repository, files, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = commit_floats(bot, files, 1, "second")
    undo(bot)
    with monkeypatch.context() as patch:

        def die(store: FileSystemStore, name: str) -> None:
            raise KeyboardInterrupt

        patch.setattr(FileSystemStore, "delete", die)
        with pytest.raises(KeyboardInterrupt):
            collect(bot, prune_now=True)
    assert bot.roots.read().root.condemned
    # The pack is condemned and still there: what only it holds must be written again, not relied on.
    assert bot.commit("the same again").id != second
    assert fsck(bot).is_sound
    collect(bot, prune_now=True)
    assert not bot.roots.read().root.condemned
    assert fsck(bot).is_sound


def test_a_writer_that_relied_on_what_a_collection_took_is_told(bot: Repository, files) -> None:
    commit_floats(bot, files, 1, "second")
    content = bot.manifest_of(bot.head()).file("bot.safetensors").digest
    undo(bot)
    session = bot.session()
    assert session.has(content)
    assert collect(bot, prune_now=True).packs_deleted == 1
    head = bot.head()
    with pytest.raises((IntegrityError, ConflictError), match="collect") as caught:
        bot.publish(lambda view: View(refs={**view.refs, "heads/x": head}, branch=view.branch), "x", session=session)
    assert caught.value.hint
    assert "heads/x" not in bot.view().refs


def test_what_is_published_and_dropped_again_meanwhile_is_forgotten(
    bot: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its operation would stay, name a commit whose pack is gone, and stop the next collection."""
    side = Side(bot, 0)
    spec = TensorSpec(dtype="F32", shape=(3000,))
    real, calls = OperationLog.listed, []

    def listed(self: OperationLog) -> set[OperationId]:
        found = real(self)
        if not calls:
            calls.append(1)
            side.store_branch("b0-0", [bytes(12_000), b"\1" * 12_000], spec)
            side.drop("b0-0")
        return found

    monkeypatch.setattr(OperationLog, "listed", listed)
    collect(bot, prune_now=True)
    monkeypatch.undo()
    collect(bot)
    assert fsck(Repository.open(bot.worktree, environment=bot.environment)).is_sound
    side.store.close()


@pytest.mark.parametrize("writers", [3])
def test_collections_against_writers_lose_no_acknowledged_commit(bot: Repository, files, writers: int) -> None:
    """Writers publish and drop branches and share tensors, while packs are collected all the time."""
    deadline = time.monotonic() + 90
    stop = threading.Event()
    random = np.random.default_rng(0)
    pool = [random.standard_normal(3000).astype("<f4").tobytes() for _ in range(6)]
    spec = TensorSpec(dtype="F32", shape=(3000,))
    acknowledged: list[int] = []
    failures: list[str] = []
    rounds = 0

    def record(side: Side, number: int) -> None:
        """A branch whose commit holds two of the shared tensors; then an older branch goes."""
        chosen = [pool[number % 6], pool[(number * 5 + 1) % 6]]
        ids = side.store_branch(f"b{side.number}-{number % 3}", chosen, spec)
        acknowledged.append(number)
        reader = TensorReader(side.store)
        for object_id, raw in zip(ids, chosen, strict=True):
            if bytes(reader.read(object_id, 0, len(raw))) != raw:
                failures.append(f"{object_id} reads as something else")

    def work(number: int) -> None:
        side = Side(bot, number)
        count = 0
        while not stop.is_set() and not failures:
            count += 1
            time.sleep(0.02)  # a collection needs a moment in which nobody moves the root
            try:
                record(side, count)
                if count % 2:
                    side.drop(f"b{number}-{(count + 1) % 3}")
            except ConflictError:
                continue  # told to try again: nothing was acknowledged
            except IntegrityError as error:
                if "run" not in (error.hint or ""):
                    failures.append(f"{error.message}")
            except MgitError as error:
                failures.append(repr(error))
        side.store.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    while (rounds < 30 or len(acknowledged) < 60) and time.monotonic() < deadline and not failures:
        try:
            collect(bot, prune_now=rounds % 2 == 0)
            rounds += 1
        except ConflictError:
            continue
        for commit in set(bot.view().refs.values()):
            try:
                check = Repository.open(bot.worktree, environment=bot.environment)
                if commit in set(check.view().refs.values()):
                    models_of(check, check.manifest_of(commit))
                check.close()
            except MgitError as error:
                if commit in set(bot.view().refs.values()):
                    failures.append(f"{commit.short}: {error.message}")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[:5]
    report = fsck(Repository.open(bot.worktree, environment=bot.environment))
    assert report.is_sound, report.findings[:5]
    assert rounds >= 30
    assert len(acknowledged) >= 60


class Side:
    """A writer that does not hold the work tree's lock, as a push into this repository does not."""

    def __init__(self, repo: Repository, number: int) -> None:
        self.repo = repo
        self.number = number
        self.store = FileSystemStore(repo.paths.directory, cache=None)
        self.roots = FileRoot(repo.paths.directory)
        self.operations = OperationLog(repo.paths.directory)

    def store_branch(self, name: str, tensors: list[bytes], spec: TensorSpec) -> list:
        from modelgit.objects import (
            Commit,
            ContentId,
            FileContent,
            FileEntry,
            Literal,
            Manifest,
            ManifestId,
            ModelEntry,
            Patch,
            PatchId,
            Signature,
            TensorEntry,
            TensorRef,
        )
        from modelgit.store.metadata import write_record

        root = self.roots.read().root
        session = self.store.session(epoch=root.epoch, condemned=root.condemned)
        jobs = [StoreJob(f"t{n}", BlobSource(raw), spec, len(raw)) for n, raw in enumerate(tensors)]
        stored = list(TensorWriter(session, threads=1).store(jobs))
        header = build_header([(job.name, spec) for job in jobs], None)
        literal = Literal(blob=write_blob(session, header, name="header"), length=len(header))
        content = FileContent(
            format="safetensors",
            segments=(literal, *(TensorRef(index=n) for n in range(len(jobs)))),
            tensors=tuple(TensorEntry(name=item.name, spec=spec, id=item.id) for item in stored),
        )
        digest = write_record(session, ContentId, content)
        size = len(header) + sum(map(len, tensors))
        manifest = Manifest(
            files=(FileEntry(path="m", size=size, digest=digest),),
            models=(ModelEntry(path="m", layout="file", weights=("m",)),),
        )
        who = Signature(name="Ada", mail="a@example.org", time_s=0)
        commit = write_record(
            session,
            CommitId,
            Commit(
                parents=(),
                manifest=write_record(session, ManifestId, manifest),
                patch=write_record(session, PatchId, Patch(base=None)),
                author=who,
                committer=who,
                message=f"{name} {time.monotonic_ns()}",
            ),
        )
        session.seal()
        self._publish(lambda view: {**view.refs, f"heads/{name}": commit}, session)
        return [item.id for item in stored]

    def drop(self, name: str) -> None:
        self._publish(lambda view: {ref: at for ref, at in view.refs.items() if ref != f"heads/{name}"}, None)

    def _publish(self, refs: Callable[[View], dict], session) -> None:
        publish(
            self.roots, self.operations, self.store,
            lambda view: View(refs=refs(view), branch=view.branch, detached=view.detached),
            description="side", author="b", session=session,
        )  # fmt: skip
