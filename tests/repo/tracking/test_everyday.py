"""The everyday loop, bit for bit: what was committed is what comes back."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from modelgit.errors import NothingToDo, RepositoryError, UnknownRevision, UsageError
from modelgit.objects import DTYPES
from modelgit.repo import Repository
from modelgit.repo.branches import (
    branches,
    create_branch,
    create_tag,
    delete_branch,
    delete_tag,
    rename_branch,
    tags,
)
from modelgit.repo.history.log import log
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.undo import operation_log, redo, undo

_SPECIAL = {
    "F16": [0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E01, 0x7DFF, 0xFE55, 0x0001, 0x8001, 0x3C00],
    "BF16": [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0x7F81, 0xFFC5, 0x0001, 0x8001, 0x3F80],
    "F32": [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 0xFFC12345, 1, 0x80000001, 0x3F800000],
    "F64": [0, 1 << 63, 0x7FF << 52, 0xFFF << 52, (0x7FF8 << 48) + 7, (0x7FF << 52) + 1, (0xFFF8 << 48) + 99, 1],
}


def special_values(dtype: str) -> bytes:
    """Signed zeros, infinities, NaNs with payloads, subnormals; every byte value for what is not a wide float."""
    if dtype in _SPECIAL:
        width = DTYPES[dtype].bits // 8
        return b"".join(value.to_bytes(width, "little") for value in _SPECIAL[dtype])
    if dtype == "C64":
        return b"".join(struct.pack("<II", a, b) for a in _SPECIAL["F32"] for b in _SPECIAL["F32"])
    if dtype == "BOOL":
        return bytes([0, 1, 1, 0])
    return bytes(range(256)) * 3  # 768 bytes: whole for elements of 4, 6, 8, ... 64 bits


def all_dtypes(order: list[str]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    tensors = {}
    for dtype in order:
        raw = special_values(dtype)
        tensors[f"{dtype}.special"] = (dtype, (len(raw) * 8 // DTYPES[dtype].bits,), raw)
        tensors[f"{dtype}.none"] = (dtype, (0,), b"")
        tensors[f"{dtype}.flat"] = (dtype, (0, 5), b"")
        if DTYPES[dtype].bits >= 8:
            tensors[f"{dtype}.scalar"] = (dtype, (), raw[: DTYPES[dtype].bits // 8])
    return tensors


def write_floats(repo: Repository, files: object, arrays: dict[str, np.ndarray], **options: object) -> None:
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays, **options))


@pytest.mark.parametrize("reverse", [False, True])
def test_every_dtype_comes_back_with_header_order_and_metadata(repo: Repository, files, reverse: bool) -> None:
    order = sorted(DTYPES, reverse=reverse)
    target = repo.worktree / "zoo.safetensors"
    data = files.safetensors(all_dtypes(order), metadata={"z": "ü", "a": "\\u0000 \n"}, padding=24)
    target.write_bytes(data)
    repo.track("zoo.safetensors")
    first = repo.commit("zoo", gate="warn")
    assert first.raw_bytes == len(data) + (repo.worktree / "mgit.toml").stat().st_size
    # A change in every tensor, so that every dtype is also coded against its base.
    changed = {
        name: (dtype, shape, bytes([raw[0] ^ 1]) + raw[1:] if raw else raw)
        for name, (dtype, shape, raw) in all_dtypes(order).items()
    }
    after = files.safetensors(changed, metadata={"z": "changed"})
    target.write_bytes(after)
    repo.commit("bits", gate="warn")
    for revision, wanted in (("HEAD~1", data), ("HEAD", after)):
        target.unlink()
        restore(repo, ["zoo.safetensors"], source=revision)
        assert target.read_bytes() == wanted
    state = repo.load("HEAD~1")
    assert {name: bytes(state[name].raw()) for name in state} == {
        n: raw for n, (_, _, raw) in all_dtypes(order).items()
    }


def test_switch_brings_the_committed_bytes_of_each_branch(bot: Repository, files) -> None:
    wanted = {"main": files.digests(bot.worktree)}
    for name in ("warm", "cold"):
        bot.switch(name, create=True, start="main")
        arrays = files.floats()
        arrays["layers.1.weight"][3, :7] *= np.float32(1.5 if name == "warm" else 0.5)
        write_floats(bot, files, arrays, metadata={"branch": name})
        (bot.worktree / "notes.txt").write_text(name)
        bot.track("notes.txt")
        bot.commit(name)
        wanted[name] = files.digests(bot.worktree)
    for name in ("main", "warm", "cold", "warm", "main", "cold"):
        assert bot.switch(name).branch == name
        assert files.digests(bot.worktree) == wanted[name]
        assert bot.status().is_clean
    bot.switch("main")
    assert not (bot.worktree / "notes.txt").exists()


def test_untouched_files_are_not_written_by_a_switch(bot: Repository, files) -> None:
    (bot.worktree / "other.bin").write_bytes(b"same on both branches")
    bot.track("other.bin")
    bot.commit("other")
    before = (bot.worktree / "other.bin").stat()
    bot.switch("side", create=True)
    write_floats(bot, files, files.floats(1))
    bot.commit("side")
    bot.switch("main")
    after = (bot.worktree / "other.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_restore_brings_back_deleted_and_changed_files_and_keeps_a_copy(bot: Repository, files) -> None:
    wanted = files.digests(bot.worktree)
    target = bot.worktree / "bot.safetensors"
    edited = files.of_arrays(files.floats(5))
    target.write_bytes(edited)
    assert restore(bot, ["."]) == ["bot.safetensors"]
    assert files.digests(bot.worktree) == wanted
    kept = [path for path in bot.paths.rescue.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [edited]
    target.unlink()
    assert restore(bot, ["*.safetensors"]) == ["bot.safetensors"]
    assert files.digests(bot.worktree) == wanted
    assert restore(bot, ["bot.safetensors"]) == []
    with pytest.raises(UsageError, match="nothing in"):
        restore(bot, ["no-such-file"])


def test_two_rescues_in_one_second_keep_both_copies(bot: Repository, files) -> None:
    target = bot.worktree / "bot.safetensors"
    edits = [files.of_arrays(files.floats(seed)) for seed in (5, 6, 7)]
    for edited in edits:
        target.write_bytes(edited)
        restore(bot, ["bot.safetensors"])
    kept = {path.read_bytes() for path in bot.paths.rescue.rglob("*") if path.is_file()}
    assert kept == set(edits)


def test_undo_and_redo_walk_the_whole_log(bot: Repository, files) -> None:
    target = bot.worktree / "bot.safetensors"
    base = target.read_bytes()
    bot.switch("side", create=True)
    write_floats(bot, files, files.floats(1))
    side = target.read_bytes()
    commit = bot.commit("side").id
    bot.switch("main")
    assert undo(bot).description == "switch: to main"
    assert bot.view().branch == "side"
    assert target.read_bytes() == side
    assert undo(bot).description == "commit: side"
    # What a commit recorded stays in the work tree, as a change.
    assert target.read_bytes() == side
    assert bot.head() != commit
    assert [model.path for model in bot.status().models] == ["bot.safetensors"]
    assert redo(bot).description == "commit: side"
    assert bot.head() == commit
    assert bot.status().is_clean
    assert redo(bot).description == "switch: to main"
    assert target.read_bytes() == base
    with pytest.raises(NothingToDo, match="nothing to redo"):
        redo(bot)
    for _ in range(4):  # switch, commit, switch -c, first commit
        if bot.status().is_clean:
            undo(bot)
        else:
            restore(bot, ["."])
            undo(bot)
    assert bot.head() is None
    with pytest.raises(NothingToDo, match="nothing to undo"):
        undo(bot)
    assert [operation.description.split(":")[0] for _, operation in operation_log(bot)].count("undo") == 6


def test_undo_refuses_to_overwrite_edits(bot: Repository, files) -> None:
    bot.switch("side", create=True)
    write_floats(bot, files, files.floats(1))
    bot.commit("side")
    bot.switch("main")
    write_floats(bot, files, files.floats(2))
    before = files.digests(bot.worktree)
    view = bot.view()
    with pytest.raises(RepositoryError, match="has changes that undoing would overwrite") as caught:
        undo(bot)
    assert caught.value.hint
    assert files.digests(bot.worktree) == before
    assert bot.view() == view


def test_branches_and_tags(bot: Repository, files) -> None:
    first = bot.head()
    create_branch(bot, "side")
    create_tag(bot, "v1")
    write_floats(bot, files, files.floats(1))
    second = bot.commit("second").id
    assert branches(bot) == {"main": second, "side": first}
    assert tags(bot) == {"v1": first}
    for revision, wanted in (
        ("HEAD", second), ("main~1", first), ("v1", first), ("@^", first), (second.short, second), ("side", first),
    ):  # fmt: skip
        assert bot.resolve(revision) == wanted
    with pytest.raises(RepositoryError, match="branch side exists already"):
        create_branch(bot, "side")
    with pytest.raises(RepositoryError, match="tag v1 exists already"):
        create_tag(bot, "v1")
    create_tag(bot, "v1", force=True)
    assert tags(bot) == {"v1": second}
    with pytest.raises(RepositoryError, match="current branch"):
        delete_branch(bot, "main")
    rename_branch(bot, "main", "trunk")
    assert bot.view().branch == "trunk"
    bot.switch("side")
    delete_tag(bot, "v1")
    with pytest.raises(RepositoryError, match="commits that nothing else reaches"):
        delete_branch(bot, "trunk")
    delete_branch(bot, "trunk", force=True)
    with pytest.raises(UnknownRevision, match="no branch, tag or commit `trunk`"):
        bot.resolve("trunk")
    assert [entry.id for entry in log(bot)] == [first]


def test_a_tag_takes_no_name_from_a_remote_branch_or_a_commit(bot: Repository, files) -> None:
    first = bot.head()
    assert first is not None
    write_floats(bot, files, files.floats(1))
    second = bot.commit("second").id
    bot.publish(
        lambda view: msgspec.structs.replace(view, refs={**view.refs, "remotes/origin/main": first}), "as a fetch does"
    )
    assert bot.resolve("origin/main") == first
    for name in ("origin/main", "remotes/origin/main", first.short, first.hex):
        create_tag(bot, name, target=second.hex)
    assert bot.resolve("remotes/origin/main") == bot.resolve(first.hex) == first
    for name in ("origin/main", first.short):
        with pytest.raises(UnknownRevision, match=f"`{name}` could be tags/{name} or ") as refused:
            bot.resolve(name)
        assert f"say `tags/{name}`" in (refused.value.hint or "")
        assert bot.resolve(f"tags/{name}") == second
    create_tag(bot, "origin/main", target=first.hex, force=True)
    with pytest.raises(UnknownRevision):  # the policies of a branch are not those of a tag
        bot.resolve("origin/main")


def test_a_detached_head_takes_commits(bot: Repository, files) -> None:
    first = bot.head()
    assert first is not None
    bot.switch(first.short, detach=True)
    write_floats(bot, files, files.floats(4))
    made = bot.commit("apart").id
    assert bot.view().detached == made
    assert bot.view().refs == {"heads/main": first}
    bot.switch("main")
    with pytest.raises(RepositoryError, match="is not a branch") as caught:
        bot.switch(made.short)
    assert "--detach" in (caught.value.hint or "")


@pytest.mark.parametrize("amount", [1e-10, "bit"])
def test_the_smallest_changes_are_noticed(repo: Repository, files, amount: object) -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype("<f8" if amount != "bit" else "<f4")
    code = "F64" if amount != "bit" else "F32"
    target = repo.worktree / "w.safetensors"
    target.write_bytes(files.safetensors({"w": (code, values.shape, values.tobytes())}))
    repo.track("w.safetensors")
    repo.commit("ones")
    if amount == "bit":
        raw = bytearray(values.tobytes())
        raw[4 * 1234] ^= 1
    else:
        values[1234] += amount
        raw = bytearray(values.tobytes())
    target.write_bytes(files.safetensors({"w": (code, values.shape, bytes(raw))}))
    assert repo.status().models[0].tensors == ("w",)
    result = repo.commit("smallest")
    assert result.patch.tensors[0].values_changed == 1
    assert result.encodings == {"sparse": 1}
    assert bytes(repo.load()["w"].raw()) == bytes(raw)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_change_beside_nan_and_infinity_is_noticed(repo: Repository, files, dtype: str) -> None:
    width = DTYPES[dtype].bits // 8
    raw = bytearray(special_values(dtype) * 400)
    shape = (len(raw) // width,)
    target = repo.worktree / "w.safetensors"
    target.write_bytes(files.safetensors({"w": (dtype, shape, bytes(raw))}))
    repo.track("w.safetensors")
    repo.commit("not finite", gate="warn")
    raw[-1] ^= 0x04
    target.write_bytes(files.safetensors({"w": (dtype, shape, bytes(raw))}))
    assert repo.status().models[0].tensors == ("w",)
    assert repo.commit("elsewhere", gate="warn").patch.tensors[0].values_changed == 1
    target.unlink()
    restore(repo, ["."])
    assert target.read_bytes().endswith(bytes(raw))


def test_a_grown_a_renamed_and_a_retyped_tensor(repo: Repository, files) -> None:
    random = np.random.default_rng(3)
    rows = random.standard_normal((200, 64)).astype("<f4")
    fixed = random.standard_normal((100, 64)).astype("<f4")
    tensors = {"embed": ("F32", (200, 64), rows.tobytes()), "head": ("F32", (100, 64), fixed.tobytes())}
    target = repo.worktree / "w.safetensors"
    target.write_bytes(files.safetensors(tensors))
    repo.track("w.safetensors")
    repo.commit("base")
    grown = np.concatenate([rows, random.standard_normal((8, 64)).astype("<f4")])
    half = fixed.astype("<f2")
    wte = {"wte": ("F32", (208, 64), grown.tobytes())}
    steps = (
        ({"embed": wte["wte"], "head": tensors["head"]}, {("embed", "respecified")}),
        ({**wte, "head": tensors["head"]}, {("wte", "added"), ("embed", "removed")}),
        ({**wte, "head": ("F16", (100, 64), half.tobytes())}, {("head", "respecified")}),
    )
    for number, (changed, kinds) in enumerate(steps):
        data = files.safetensors(changed)
        target.write_bytes(data)
        result = repo.commit(f"step {number}", gate="warn")
        assert {(item.name, item.kind) for item in result.patch.tensors} == kinds
        if number == 1:
            assert result.encodings == {}  # renaming stores no tensor again
            assert result.bytes_added < 3000
        target.unlink()
        restore(repo, ["."])
        assert target.read_bytes() == data


def test_sharding_again_stores_no_tensor_and_keeps_bases(repo: Repository, files) -> None:
    arrays = files.floats(layers=8, rows=64, columns=64)
    tensors = {name: ("F32", array.shape, array.tobytes()) for name, array in arrays.items()}
    folder = repo.worktree / "models" / "bot"
    files.sharded(folder, tensors, 1)
    repo.track("models/bot")
    repo.commit("one shard")
    files.sharded(folder, tensors, 3)
    result = repo.commit("three shards")
    assert result.encodings == {}
    assert result.patch.tensors == ()
    assert result.bytes_added < 8000
    assert [model.weights for model in result.manifest.models] == [
        tuple(f"models/bot/model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3))
    ]
    # Sharded anew and changed a little at once: every changed tensor still finds its base.
    for array in arrays.values():
        array[0, 0] += np.float32(1)
    tensors = {name: ("F32", array.shape, array.tobytes()) for name, array in arrays.items()}
    files.sharded(folder, tensors, 2)
    result = repo.commit("two shards, tuned")
    assert result.encodings == {"sparse": 8}
    assert {item.values_changed for item in result.patch.tensors} == {1}
    before = files.digests(repo.worktree)
    repo.switch("HEAD~2", detach=True)
    assert [path.name for path in sorted(folder.iterdir())] == ["config.json", "model.safetensors"]
    repo.switch("main")
    assert files.digests(repo.worktree) == before


def test_only_takes_part_of_what_changed(bot: Repository, files) -> None:
    for name in ("a.txt", "b.txt"):
        (bot.worktree / name).write_text("one")
        bot.track(name)
    bot.commit("texts")
    for name in ("a.txt", "b.txt"):
        (bot.worktree / name).write_text("two")
    result = bot.commit("a alone", only=["a.*"])
    assert [change.path for change in result.patch.files] == ["a.txt"]
    assert [item.path for item in bot.status().files] == ["b.txt"]
    with pytest.raises(UsageError, match="no tracked file matches c"):
        bot.commit("nothing", only=["c"])
    with pytest.raises(NothingToDo, match="nothing changed"):
        bot.commit("a again", only=["a.txt"])
    (bot.worktree / "b.txt").unlink()
    bot.commit("b gone", only=["b.txt"])
    assert bot.status().is_clean
    bot.switch("HEAD~1", detach=True)
    assert (bot.worktree / "b.txt").read_text() == "one"


@pytest.mark.skipif(os.name != "posix", reason="there are no mode bits")
def test_the_executable_bit_is_a_change_and_comes_back(bot: Repository) -> None:
    script = bot.worktree / "run.sh"
    script.write_text("#!/bin/sh\n")
    bot.track("run.sh")
    bot.commit("script")
    script.chmod(0o755)
    assert [item.path for item in bot.status().files] == ["run.sh"]
    result = bot.commit("may run")
    assert [change.path for change in result.patch.files] == ["run.sh"]
    assert bot.status().is_clean
    bot.switch("HEAD~1", detach=True)
    assert not script.stat().st_mode & 0o100
    bot.switch("main")
    assert script.stat().st_mode & 0o100
    assert bot.status().is_clean


def test_nothing_to_commit(bot: Repository, make_repo: Callable[..., Repository]) -> None:
    with pytest.raises(NothingToDo, match="nothing changed"):
        bot.commit("again")
    assert bot.commit("empty", allow_empty=True).patch.tensors == ()
    with pytest.raises(UsageError, match="message is empty"):
        bot.commit("  \n")
    with pytest.raises(NothingToDo, match="nothing is tracked") as caught:
        make_repo("other").commit("first")
    assert "mgit track" in (caught.value.hint or "")


def test_a_gate_that_refuses_records_nothing(bot: Repository, files) -> None:
    from modelgit.errors import GateRefused

    head, packs = bot.head(), set(bot.store.lookup.packs())
    arrays = files.floats()
    arrays["layers.0.weight"][0, 0] = np.nan
    write_floats(bot, files, arrays)
    with pytest.raises(GateRefused, match="nothing was recorded"):
        bot.commit("broken")
    assert bot.head() == head
    assert set(bot.store.lookup.packs()) == packs
    assert not list(bot.store.incoming_path.iterdir())
    assert bot.status().models[0].tensors == ("layers.0.weight",)


def test_the_plain_form_of_an_operation_log_names_every_step(bot: Repository) -> None:
    from modelgit.objects import to_builtins

    assert [to_builtins(operation)["description"] for _, operation in operation_log(bot)] == [
        "commit: base",
        "initialise",
    ]
    assert time.time() * 1000 - next(operation_log(bot))[1].time_ms < 60_000
