"""Checkpoints that are archives, merged: tied tensors stay tied, and the archive agrees with itself again."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import modelgit as mg
from modelgit.formats.zip_checksums import stale_checksums
from modelgit.repo.merges.merge import merge
from modelgit.testing.fuzzing import MemoryFile


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save_torch(path: Path, values: dict[str, np.ndarray]) -> None:
    tensors = {name: torch.from_numpy(value.copy()) for name, value in values.items()}
    tensors["tied"] = tensors["a"]
    tensors["turned"] = tensors["b"].t()
    torch.save(tensors, path)


def save_legacy(path: Path, values: dict[str, np.ndarray]) -> None:
    torch.save(
        {name: torch.from_numpy(value.copy()) for name, value in values.items()},
        path,
        _use_new_zipfile_serialization=False,
    )


def save_npz(path: Path, values: dict[str, np.ndarray]) -> None:
    np.savez(path, **values)


def read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as opened:  # checks the checksums
            return dict(opened)
    return {name: value.numpy() for name, value in torch.load(path, weights_only=True).items()}


@pytest.mark.parametrize(("name", "save"), [("m.pt", save_torch), ("m.pth", save_legacy), ("m.npz", save_npz)])
def test_a_merge_of_archives(tmp_path: Path, name: str, save: object) -> None:
    repo = mg.init(tmp_path)
    path = tmp_path / name
    random = np.random.default_rng(0)
    base = {key: random.standard_normal((30, 20)).astype(np.float32) for key in ("a", "b", "c")}
    ours = {**base, "a": base["a"] + 1}
    theirs = {**base, "b": base["b"] * 2}
    save(path, base)  # type: ignore[operator]
    repo.track(name)
    repo.commit("base")
    repo.switch("side", create=True)
    save(path, theirs)  # type: ignore[operator]
    repo.commit("theirs")
    repo.switch("main")
    save(path, ours)  # type: ignore[operator]
    repo.commit("ours")
    assert merge(repo, "side", strategy="average").kind == "merged"
    found = read(path)
    assert np.array_equal(found["a"], ours["a"]) and np.array_equal(found["b"], theirs["b"])
    assert np.array_equal(found["c"], base["c"])
    if name != "m.pth":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    if name == "m.pt":
        assert np.array_equal(found["tied"], ours["a"]) and np.array_equal(found["turned"], theirs["b"].T)
    assert repo.status().is_clean


def test_only_changed_members_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.zeros(4), b=np.zeros(4))
    data = bytearray((tmp_path / "m.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        start = archive.getinfo("b.npy").header_offset
    data[start + 200] ^= 1
    file = MemoryFile(bytes(data), name="m.npz")
    assert list(stale_checksums(file, [(0, 1)])) == []
    for at, value in list(stale_checksums(file, [(start + 200, start + 201)])):
        data[at : at + 4] = value
    (tmp_path / "n.npz").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "n.npz") as archive:
        assert archive.testzip() is None
