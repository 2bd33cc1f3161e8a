"""Shards of torch.distributed.checkpoint: read from their end, restored to the bit, and small from save to save."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import scan_file
from modelgit.formats.distcp import DISTCP
from modelgit.repo import Repository
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.track import track_training
from modelgit.testing.fuzzing import MemoryFile, fuzz

pytestmark = pytest.mark.filterwarnings("ignore")


def save(folder: Path, *, steps: int = 2, size: int = 64) -> Path:
    """A checkpoint of a small model and its optimizer after `steps` steps; returns its shard."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.Linear(size, size // 2)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, size).bfloat16()).float().pow(2).mean().backward()
        optimizer.step()
    state = {"model": model.state_dict(), "optim": optimizer.state_dict(), "step": steps, "odd": torch.arange(10)[::2]}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    [shard] = folder.glob("*.distcp")
    return shard


def scan(data: bytes) -> ScannedFile:
    return DISTCP.scan(MemoryFile(data, name="__0_0.distcp"))


def refusal(data: bytes) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        scan(data)
    assert caught.value.message.startswith("__0_0.distcp ")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_every_tensor_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    shard = save(tmp_path / "ckpt")
    found = scan_file(shard, shown="shard")
    assert found.format == "distcp"
    data = shard.read_bytes()
    assert sum(item.length for item in found.ranges) == len(data)
    assert all(left.tensor is not None or right.tensor is not None for left, right in pairwise(found.ranges))
    loaded = {"model": torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 32)).bfloat16().state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path / "ckpt", no_dist=True)
    held = {data[item.offset : item.offset + item.length] for item in found.ranges if item.tensor is not None}
    for tensor in loaded["model"].values():
        assert tensor.contiguous().view(torch.uint8).numpy().tobytes() in held
    specs = {(tensor.spec.dtype, tensor.spec.shape) for tensor in found.tensors}
    assert {("BF16", (64, 64)), ("BF16", (32,)), ("F32", ())} <= specs
    names = [tensor.name for tensor in found.tensors]
    assert len(set(names)) == len(names)


def test_a_second_save_costs_what_changed(bot: Repository, files) -> None:
    folder = bot.worktree / "state"
    save(folder, steps=2, size=256)
    track_training(bot, str(folder))
    first = bot.commit("first")
    before = files.digests(bot.worktree)
    save(folder, steps=3, size=256)
    second = bot.commit("second")
    after = files.digests(bot.worktree)
    size = (folder / "__0_0.distcp").stat().st_size
    assert second.bytes_added < size / 2 < first.bytes_added
    (folder / "__0_0.distcp").unlink()
    restore(bot, ["."])
    assert files.digests(bot.worktree) == after
    bot.switch("HEAD~1", detach=True)
    assert files.digests(bot.worktree) == before
    restored = {"step": 0}
    dcp.load(restored, checkpoint_id=folder, no_dist=True)
    assert restored == {"step": 2}


def test_refusals(tmp_path: Path) -> None:
    data = save(tmp_path / "ckpt", steps=1, size=8).read_bytes()
    assert scan(b"").ranges == ()
    assert "truncated" in refusal(data[:-1])
    assert "truncated" in refusal(data[100:-22])
    assert "truncated" in refusal(b"PK\3\4" + bytes(100))
    assert "truncated" in refusal(data[:5000] + data[-1000:])
    assert "truncated" in refusal(data + b"\0" * 30)
    lying = bytearray(data)
    lying[-10:-6] = struct.pack("<I", 1 << 31)
    assert "its two ends disagree" in refusal(bytes(lying))
    lying = bytearray(data)
    lying[-58:-50] = struct.pack("<Q", 1 << 62)
    assert "claims" in refusal(bytes(lying))
    for end in range(22, len(data), 997):
        refusal(data[:end] if data[end - 22 : end - 18] != b"PK\5\6" else data[: end - 1])


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    import io
    import os

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    good = save(tmp_path / "ckpt", steps=1, size=8).read_bytes()
    assert "system" in refusal(good + buffer.getvalue())


def test_fuzz(tmp_path: Path) -> None:
    import io

    parts = []
    for value in (torch.arange(3), 7):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        parts.append(buffer.getvalue())
    outcome = fuzz(scan, [b"".join(parts)], tokens=(b"PK\5\6", b"PK\6\6", b"PK\6\7", parts[1]))
    assert 0 < outcome.accepted < outcome.tried
