from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from modelgit.errors import ConflictError, IntegrityError, MgitError, RemoteError, UsageError
from modelgit.objects import Commit, CommitId, ContentId, FileContent, Manifest, ManifestId, Root, View
from modelgit.remotes.base import RefUpdate
from modelgit.remotes.directory import DirectoryTransport
from modelgit.remotes.sync import push
from modelgit.store.metadata import read_record, write_record

Weights = dict[str, np.ndarray]
RAW = 4 * 128 * 96 * 4  # bytes of the four tensors


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def state_of(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in sorted(path.rglob("*")) if item.is_file()}


def test_push_then_fetch_gives_the_same_commits_and_weights(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights, tuned: Weights
) -> None:
    first = alice.commit(weights, with_mask=True)
    second = alice.commit(tuned, parents=[first])
    pushed = alice.push(origin)
    assert (pushed.commits, [u.new for u in pushed.updates]) == (2, [second])
    fetched = bob.fetch(origin)
    assert fetched.commits == (first, second)
    assert fetched.objects == pushed.objects
    assert bob.refs["remotes/origin/main"] == second
    assert same(bob.weights(first), weights)
    assert same(bob.weights(second), tuned)
    mask = read_record(bob.store, first, Commit).patch
    assert bob.store.has(mask)


def test_an_incremental_push_and_fetch_move_the_patch_not_the_model(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights, tuned: Weights
) -> None:
    first = alice.commit(weights)
    whole = alice.push(origin)
    bob.fetch(origin)
    second = alice.commit(tuned, parents=[first])
    patch = alice.push(origin)
    assert whole.bytes_sent > 0.5 * RAW
    assert patch.bytes_sent < 3000
    assert patch.objects == 6  # one tensor, content, manifest, two verdicts, commit; the empty patch record was there
    back = bob.fetch(origin)
    assert back.bytes_received == patch.bytes_sent
    assert same(bob.weights(second), tuned)


def test_pushing_again_moves_nothing(alice: Any, origin: DirectoryTransport, weights: Weights, tmp_path: Path) -> None:
    alice.commit(weights)
    alice.push(origin)
    before = state_of(tmp_path / "origin.mgit")
    again = alice.push(origin)
    assert (again.updates, again.objects, again.bytes_sent) == ((), 0, 0)
    assert state_of(tmp_path / "origin.mgit") == before


def test_a_base_that_no_commit_names_any_more_comes_along(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights, tuned: Weights
) -> None:
    """As after an amended commit: the tensor is coded against one that only the old commit has."""
    amended = alice.commit(weights, branch=None)
    alice.commit(tuned, parents=[amended], branch="side")
    record = read_record(alice.store, alice.refs["heads/side"], Commit)
    orphan = alice.store.session(epoch=0)
    from modelgit.store.metadata import write_record

    commit = write_record(
        orphan,
        CommitId,
        Commit(**{f: getattr(record, f) for f in record.__struct_fields__ if f != "parents"}, parents=()),
    )
    orphan.seal()
    alice.set_refs(main=commit)
    alice.push(origin)
    bob.fetch(origin)
    assert not bob.store.has(amended)
    assert same(bob.weights(commit), tuned)


def test_a_push_that_is_not_forward_is_refused_and_changes_nothing(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights, tuned: Weights, tmp_path: Path
) -> None:
    first = alice.commit(weights)
    alice.push(origin)
    bob.fetch(origin)
    theirs = alice.commit(tuned, parents=[first])
    alice.push(origin)
    bob.commit({**weights, "layer.0.weight": weights["layer.0.weight"] * 2}, parents=[first])
    before = state_of(tmp_path / "origin.mgit")
    with pytest.raises(RemoteError) as caught:
        bob.push(origin)
    assert f"origin/main has 1 commit that you do not have ({theirs.short}, " in caught.value.message
    assert caught.value.message.endswith(" ago)")
    assert caught.value.hint == "`mgit pull` merges it; nothing was changed on origin"
    assert state_of(tmp_path / "origin.mgit") == before
    bob.fetch(origin)
    with pytest.raises(RemoteError, match="has 1 commit that main does not have"):
        bob.push(origin)
    merged = bob.commit(tuned, parents=[bob.refs["heads/main"], theirs])
    assert bob.push(origin).updates[0].new == merged


def test_force_needs_to_know_what_it_overwrites(
    alice: Any, origin: DirectoryTransport, weights: Weights, tuned: Weights
) -> None:
    first = alice.commit(weights)
    alice.push(origin)
    other = alice.commit(tuned)
    with pytest.raises(RemoteError, match="not have"):
        alice.push(origin)
    with pytest.raises(RemoteError, match=f"is at {first.short}, you know it as absent"):
        alice.push(origin, force=True)
    with pytest.raises(RemoteError, match="you know it as at"):
        alice.push(origin, force=True, expected=other)
    assert alice.push(origin, force=True, expected=first).updates[0].expected == first
    assert origin.root().view.refs == {"heads/main": other}


def test_all_refs_of_a_push_move_or_none(
    alice: Any, origin: DirectoryTransport, weights: Weights, tuned: Weights
) -> None:
    first = alice.commit(weights)
    alice.push(origin)
    second = alice.commit(tuned, parents=[first])
    unrelated = alice.commit(tuned, branch="side", time_s=9)
    updates = [RefUpdate("heads/new", second), RefUpdate("heads/main", unrelated)]
    with pytest.raises(RemoteError):
        push(alice.store, origin, updates, author="a")
    assert origin.root().view.refs == {"heads/main": first}
    push(alice.store, origin, [RefUpdate("heads/new", second), RefUpdate("tags/v1", first)], author="a")
    assert origin.root().view.refs == {"heads/main": first, "heads/new": second, "tags/v1": first}
    with pytest.raises(RemoteError, match="a tag v1 already"):
        push(alice.store, origin, [RefUpdate("tags/v1", second)], author="a")
    push(alice.store, origin, [RefUpdate("heads/new", None, second)], author="a")
    assert "heads/new" not in origin.root().view.refs


def test_a_checked_out_branch_is_not_pushed_to(alice: Any, weights: Weights, tmp_path: Path) -> None:
    commit = alice.commit(weights)
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(alice.path, work / ".mgit")
    origin = DirectoryTransport(work)
    later = alice.commit(weights, parents=[commit])
    with pytest.raises(RemoteError, match="main is checked out"):
        alice.push(origin)
    push(alice.store, origin, [RefUpdate("heads/topic", later)], author="a")
    assert origin.root().view.refs["heads/topic"] == later
    origin.close()


def test_concurrent_pushes_of_many_branches_lose_nothing(
    make_side: Callable[[str], Any], weights: Weights, tmp_path: Path
) -> None:
    sides = [make_side(f"writer{number}") for number in range(6)]
    expected: dict[str, CommitId] = {}
    for number, side in enumerate(sides):
        changed = {**weights, "layer.0.weight": weights["layer.0.weight"] + np.float32(number)}
        expected[f"heads/b{number}"] = side.commit(changed, branch=f"b{number}")
    start = threading.Barrier(len(sides))
    failures: list[MgitError] = []

    def work(number: int) -> None:
        transport = DirectoryTransport(tmp_path / "origin.mgit")
        try:
            start.wait()
            sides[number].push(transport, f"b{number}")
        except MgitError as error:
            failures.append(error)
        finally:
            transport.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sides))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    origin = DirectoryTransport(tmp_path / "origin.mgit")
    assert origin.root().view.refs == expected
    reader = make_side("reader")
    reader.fetch(origin)
    for number, commit in enumerate(expected.values()):
        assert reader.weights(commit)["layer.0.weight"][0, 0] == weights["layer.0.weight"][0, 0] + np.float32(number)
    origin.close()


def test_of_concurrent_pushes_to_one_branch_one_wins_and_the_others_are_told(
    make_side: Callable[[str], Any], alice: Any, origin: DirectoryTransport, weights: Weights, tmp_path: Path
) -> None:
    base = alice.commit(weights)
    alice.push(origin)
    sides = [make_side(f"writer{number}") for number in range(4)]
    for number, side in enumerate(sides):
        side.fetch(origin)
        side.commit({**weights, "extra": np.full((8,), number, np.float32)}, parents=[base])
    start = threading.Barrier(len(sides))
    outcome: dict[int, str] = {}

    def work(number: int) -> None:
        transport = DirectoryTransport(tmp_path / "origin.mgit")
        start.wait()
        try:
            sides[number].push(transport)
            outcome[number] = "won"
        except RemoteError as error:
            outcome[number] = error.message
        finally:
            transport.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sides))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number, text in outcome.items() if text == "won"]
    assert len(winners) == 1 and len(outcome) == 4
    assert origin.root().view.refs["heads/main"] == sides[winners[0]].refs["heads/main"]
    assert all("has 1 commit that you do not have" in text for text in outcome.values() if text != "won")


class Faulty(DirectoryTransport):
    """Does something at the moment of the swap."""

    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None

    def swap(self, updates: Iterable[RefUpdate], **options: Any) -> View:
        before, self.before = self.before, None
        if before is not None:
            before()
        view = super().swap(updates, **options)
        if self.after is not None:
            self.after()
        return view


def cut() -> None:
    raise RemoteError("the connection was cut")


def test_a_lost_answer_is_recognised_as_success(alice: Any, weights: Weights, tmp_path: Path) -> None:
    transport = Faulty(tmp_path / "origin.mgit")
    commit = alice.commit(weights)
    transport.after = cut
    result = alice.push(transport)
    assert [update.new for update in result.updates] == [commit]
    operations = transport._side().operations
    history = [item for _, item in operations.history(transport.root().root.root.operation)]
    assert [item.description for item in history] == ["push", "initialise"]  # once, not twice
    transport.close()


def test_a_lost_answer_is_recognised_when_somebody_pushed_on_top(
    alice: Any, bob: Any, weights: Weights, tuned: Weights, tmp_path: Path
) -> None:
    transport = Faulty(tmp_path / "origin.mgit")
    commit = alice.commit(weights)

    def push_on_top_and_cut() -> None:
        other = DirectoryTransport(tmp_path / "origin.mgit")
        bob.fetch(other)
        bob.commit(tuned, parents=[commit])
        bob.push(other)
        other.close()
        cut()

    transport.after = push_on_top_and_cut
    assert [update.new for update in alice.push(transport).updates] == [commit]
    assert transport.root().view.refs == {"heads/main": bob.refs["heads/main"]}
    transport.close()


def test_a_collection_while_reading_is_told_as_such(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights
) -> None:
    alice.commit(weights)
    alice.push(origin)
    origin.root()
    store = origin._side().store
    items = list(store.objects())
    for name in store.lookup.packs():
        store.delete(name)
    with pytest.raises(RemoteError, match="garbage collection ran"):
        origin.fetch(items[0], 0, items[0].length)


def test_a_push_that_is_cut_before_the_root_moves_leaves_the_old_view_and_can_go_on(
    alice: Any, weights: Weights, tuned: Weights, tmp_path: Path
) -> None:
    transport = Faulty(tmp_path / "origin.mgit")
    first = alice.commit(weights)
    alice.push(transport)
    second = alice.commit(tuned, parents=[first])
    transport.before = cut
    with pytest.raises(RemoteError, match="cut"):
        alice.push(transport)
    assert transport.root().view.refs == {"heads/main": first}
    again = alice.push(transport)
    assert again.bytes_sent == 0  # the packs were durable; nothing travels twice
    assert transport.root().view.refs == {"heads/main": second}
    transport.close()


def test_a_push_that_fails_while_sending_leaves_no_file_behind(
    alice: Any, origin: DirectoryTransport, weights: Weights, tuned: Weights, tmp_path: Path, monkeypatch: Any
) -> None:
    first = alice.commit(weights)
    alice.push(origin)
    before = state_of(tmp_path / "origin.mgit")
    alice.commit({name: array + 1 for name, array in weights.items()}, parents=[first])
    read_part = alice.store.read_part
    calls = iter(range(100))

    def failing(*args: Any) -> bytes:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return read_part(*args)

    monkeypatch.setattr(alice.store, "read_part", failing)
    with pytest.raises(KeyboardInterrupt):
        alice.push(origin)
    assert state_of(tmp_path / "origin.mgit") == before


def collect(transport: DirectoryTransport, *, condemn: Iterable[str] = ()) -> None:
    """What a garbage collection does to a root."""
    side = transport._side()
    version, root = side.roots.read()
    side.roots.swap(
        version, Root(format=root.format, operation=root.operation, epoch=root.epoch + 1, condemned=tuple(condemn))
    )


def test_a_collection_during_a_push_makes_it_look_again(
    alice: Any, bob: Any, weights: Weights, tuned: Weights, tmp_path: Path
) -> None:
    transport = Faulty(tmp_path / "origin.mgit")
    first = alice.commit(weights)
    alice.push(transport)
    second = alice.commit(tuned, parents=[first])
    packs = tmp_path / "origin.mgit" / "packs"
    old = set(packs.iterdir())

    def condemn_the_new_pack() -> None:
        fresh = [path.name for path in packs.iterdir() if path not in old]
        assert len(fresh) == 1
        collect(transport, condemn=fresh)

    transport.before = condemn_the_new_pack
    alice.push(transport)
    condemned = transport._side().roots.read().root.condemned
    for name in condemned:
        transport._side().store.delete(name)
    assert bob.fetch(transport).commits == (first, second)
    assert same(bob.weights(second), tuned)
    transport.close()


def test_condemned_packs_are_not_relied_on(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights, tmp_path: Path
) -> None:
    commit = alice.commit(weights)
    alice.push(origin)
    push(alice.store, origin, [RefUpdate("heads/main", None, commit)], author="a")
    names = [path.name for path in (tmp_path / "origin.mgit" / "packs").iterdir()]
    collect(origin, condemn=names)
    assert alice.push(origin).objects > 5
    for name in names:
        origin._side().store.delete(name)
    bob.fetch(origin)
    assert same(bob.weights(commit), weights)


def damage(path: Path, kind: str) -> str:
    """Turn one bit in the middle of the last record of `kind`, without which the file reads on."""
    from modelgit.store.packs import read_index

    for pack in path.glob("packs/*.pack"):
        for item in read_index(pack):
            if item.kind == kind:
                data = bytearray(pack.read_bytes())
                data[item.offset + (item.length - item.header) // 2] ^= 1
                pack.chmod(0o644)
                pack.write_bytes(data)
                return item.digest.hex()
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["tensor", "blob", "content", "manifest", "patch", "commit", "eval", "mask"])
def test_a_damaged_object_is_refused_and_named(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights, tmp_path: Path, kind: str
) -> None:
    alice.commit(weights, with_mask=True)
    alice.push(origin)
    digest = damage(tmp_path / "origin.mgit", kind)
    before = state_of(bob.path)
    with pytest.raises(IntegrityError) as caught:
        bob.fetch(origin)
    assert digest in caught.value.message
    assert "origin" in caught.value.message
    assert caught.value.hint is not None and "nothing was recorded" in caught.value.hint
    assert state_of(bob.path) == before


def test_damage_here_is_not_spread_by_a_push(alice: Any, origin: DirectoryTransport, weights: Weights) -> None:
    alice.commit(weights)
    origin.create(branch="main", author="a")
    digest = damage(alice.path, "tensor")
    alice.store.close()
    with pytest.raises(IntegrityError, match=digest):
        alice.push(origin)
    assert origin.root().view.refs == {}
    assert not list(origin._side().store.packs_path.glob("*.pack"))


def test_a_remote_that_lacks_an_object_is_told(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights, tmp_path: Path
) -> None:
    commit = alice.commit(weights)
    origin.create(branch="main", author="a")
    origin.swap([RefUpdate("heads/main", commit)], upload=None, description="lie", author="mallory")
    with pytest.raises(RemoteError, match=f"origin does not hold commit {commit}"):
        bob.fetch(origin)


@pytest.mark.parametrize("name", ["heads/../../etc", "heads/-x", "heads/a\x1b[31m", "oddity", "heads/a\nb"])
def test_absurd_ref_names_are_refused_both_ways(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights, name: str
) -> None:
    commit = alice.commit(weights)
    with pytest.raises(UsageError, match="invalid ref name"):
        push(alice.store, origin, [RefUpdate(name, commit)], author="a")
    origin.swap([RefUpdate(name, commit)], upload=None, description="lie", author="mallory")
    with pytest.raises(RemoteError, match="origin shows a ref that mgit does not take") as caught:
        bob.fetch(origin)
    assert caught.value.message.isprintable()


def test_hostile_paths_in_a_manifest_are_refused(
    alice: Any, bob: Any, origin: DirectoryTransport, weights: Weights
) -> None:
    alice.commit(weights, path="../../.ssh/authorized_keys")
    with pytest.raises(IntegrityError, match="refuses path"):
        alice.push(origin)
    with pytest.raises(IntegrityError, match="refuses path"):
        bob.fetch(DirectoryTransport(alice.path))


def test_a_swap_needs_the_expected_commit(alice: Any, origin: DirectoryTransport, weights: Weights) -> None:
    commit = alice.commit(weights)
    alice.push(origin)
    before = origin.root()
    with pytest.raises(ConflictError, match="heads/main moved"):
        origin.swap([RefUpdate("heads/main", commit, None)], upload=None, description="x", author="a")
    assert origin.root() == before


@pytest.mark.parametrize("lie", ["names", "order", "format", "opaque"])
def test_a_tensor_table_that_the_header_contradicts_is_refused(
    alice: Any, bob: Any, weights: Weights, lie: str
) -> None:
    """Gate and diff go by the table, loaders by the header: they must not be shown different models."""
    near, far = bob, alice
    commit = far.commit(weights)
    record = read_record(far.store, commit, Commit)
    manifest = read_record(far.store, record.manifest, Manifest)
    content = read_record(far.store, manifest.files[0].digest, FileContent)
    if lie == "names":
        tensors = tuple(msgspec.structs.replace(entry, name=f"x{entry.name}") for entry in content.tensors)
        content = msgspec.structs.replace(content, tensors=tensors)
    elif lie == "order":
        header, *rest = content.segments
        content = msgspec.structs.replace(content, segments=(header, *reversed(rest)))
    else:
        content = msgspec.structs.replace(content, format="opaque" if lie == "opaque" else "nobody-knows")
    session = far.store.session(epoch=0)
    digest = write_record(session, ContentId, content)
    files = (msgspec.structs.replace(manifest.files[0], digest=digest),)
    lying = write_record(session, ManifestId, msgspec.structs.replace(manifest, files=files))
    hostile = write_record(session, CommitId, msgspec.structs.replace(record, manifest=lying))
    session.seal()
    far.set_refs(main=hostile)
    with pytest.raises(IntegrityError, match="does not hold the tensors that it claims"):
        near.fetch(DirectoryTransport(far.path))
    assert not near.store.has(hostile)
