"""`fsck` finds every flipped byte, and says which tensor of how many commits it hit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable

import numpy as np
import zstandard

from modelgit.errors import MgitError
from modelgit.objects import EvalRecordId, FileContent, TensorId, id_class
from modelgit.repo import Repository
from modelgit.repo.upkeep.fsck import FsckReport, fsck


def history(repo: Repository, files, **shape: int) -> None:
    """Two more commits: a sparse patch and a delta on weights stored whole; beside them a text."""
    rng = np.random.default_rng(0)
    arrays = files.floats(**shape)
    (repo.worktree / "notes.txt").write_text("some words " * 40)
    repo.track("notes.txt")
    for step in range(2):
        if step == 0:
            arrays["layers.0.weight"][3, :5] += np.float32(1)
        else:
            arrays["layers.1.weight"] += (1e-4 * rng.standard_normal(arrays["layers.1.weight"].shape)).astype("<f4")
        (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
        repo.commit(f"step {step}")


def check(repo: Repository) -> FsckReport | MgitError:
    other = None
    try:
        other = Repository.open(repo.worktree, environment=repo.environment)
        return fsck(other)
    except MgitError as error:
        return error
    finally:
        if other is not None:
            other.store.close()


def test_every_flipped_byte_is_found(repo: Repository, files) -> None:
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(layers=2, rows=40)))
    repo.track("bot.safetensors")
    repo.commit("base")
    history(repo, files, layers=2, rows=40)
    sound = check(repo)
    assert isinstance(sound, FsckReport)
    assert sound.is_sound
    assert (sound.packs, sound.commits) == (3, 3)
    directory = repo.paths.directory
    shutil.rmtree(repo.paths.cache, ignore_errors=True)
    newest = max((directory / "root").iterdir())
    watched = [*directory.glob("packs/*"), *directory.glob("operations/*"), newest]
    places = [(path, position) for path in watched for position in range(path.stat().st_size)]
    chosen = random.Random(1).sample(places, 300)
    missed = []
    for path, position in chosen:
        good = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(good[:position] + bytes([good[position] ^ (1 << position % 8)]) + good[position + 1 :])
        report = check(repo)
        path.write_bytes(good)
        if isinstance(report, MgitError):
            # Without a root or its operation there is no repository to report on; the error says which is damaged.
            named = path.name[:12] in report.message or "root" in report.message or "operation" in report.message
            if path.parent.name == "packs" or not named:
                missed.append((path.name[:16], position, report.message))
        elif report.is_sound:
            missed.append((path.name[:16], position, "not noticed"))
        elif path.parent.name == "packs" and f"pack {path.name[:16]}" not in {item.subject for item in report.findings}:
            missed.append((path.name[:16], position, f"not named: {report.findings}"))
    assert not missed, f"{len(missed)} of {len(chosen)}: {missed[:5]}"
    assert check(repo) == sound


def flip_record(repo: Repository, pick: Callable) -> tuple[TensorId, str]:
    """Damage the stored bytes of the first tensor that `pick` likes; returns its id and name."""
    for item in repo.store.objects():
        if item.kind == "tensor" and pick(item):
            path = repo.store.packs_path / item.pack
            data = bytearray(path.read_bytes())
            data[item.offset + (item.length - item.header) // 2] ^= 4
            path.chmod(0o600)
            path.write_bytes(data)
            return TensorId(item.digest), path.name
    raise AssertionError("no such record")


def test_the_tensor_and_its_commits_are_named(bot: Repository, files) -> None:
    history(bot, files)
    base = bot.content_at(bot.manifest_of(bot.resolve("HEAD~2")).file("bot.safetensors").digest)
    assert isinstance(base, FileContent)
    shared = next(tensor for tensor in base.tensors if tensor.name == "layers.2.weight")
    first = next(tensor for tensor in base.tensors if tensor.name == "layers.0.weight")
    # Stored whole, and what layers.0.weight of the two later commits is coded against.
    flip_record(bot, lambda item: item.digest == first.id.digest)
    report = check(bot)
    assert isinstance(report, FsckReport)
    found = {item.used_by: item for item in report.findings if item.subject.startswith("b3:")}
    assert set(found) == {"layers.0.weight"}
    damaged = [item for item in report.findings if item.subject.startswith("b3:")]
    assert {item.subject for item in damaged} >= {str(first.id)}
    assert len(damaged) == 2, "the damaged tensor, and the one that is coded against it"
    counts = {item.subject: item.commits for item in damaged}
    assert counts[str(first.id)] == 1
    assert sum(counts.values()) == 3
    assert str(shared.id) not in counts


def test_quick_finds_what_is_missing(bot: Repository, files) -> None:
    history(bot, files)
    assert fsck(bot, quick=True).is_sound
    pack = next(item.pack for item in bot.store.objects() if item.kind == "tensor" and item.base is not None)
    (bot.store.packs_path / pack).unlink()
    other = Repository.open(bot.worktree, environment=bot.environment)
    report = fsck(other, quick=True)
    other.close()
    assert not report.is_sound
    assert all("missing" in item.problem for item in report.findings)


def test_a_verdict_that_is_not_what_its_id_says_is_found(bot: Repository) -> None:
    """The pack is as its name and its index promise: whoever wrote it wrote another verdict."""
    records, old = list(bot.store.objects()), sorted(bot.store.lookup.packs())
    assert [item.kind for item in records].count("eval") == 1
    session = bot.session()
    for item in records:
        kind, cut = id_class(item.kind), item.length - item.header
        header = bot.store.read_part(item, cut, item.length)
        payload = bot.store.read_part(item, 0, cut)
        if item.kind == "eval":
            record = zstandard.decompress(payload[1:]).replace(b"builtin", b"Builtin")
            payload = payload[:1] + zstandard.compress(record)
        session.append(
            kind(item.digest),
            start=item.start,
            stop=item.stop,
            total=item.total,
            header=header,
            payload=[payload],
            base=None if item.base is None else kind(item.base),
        )
    session.seal()
    for name in old:
        bot.store.delete(name)
    [finding] = fsck(bot).findings
    assert finding.subject == str(next(EvalRecordId(item.digest) for item in records if item.kind == "eval"))
    assert "does not match its bytes" in finding.problem
