"""`import` and `export`: what is written is what torch and safetensors read, to the bit."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model

import modelgit as mg
from modelgit.errors import CheckpointFormatError, UsageError
from modelgit.formats.torch_write import central_directory, local_header, plan_archive
from modelgit.formats.zip_members import read_directory
from modelgit.repo.convert import Written, export_model, import_file


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def state() -> OrderedDict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32)
    found = OrderedDict(
        w=torch.randn(3, 4),
        bf=torch.randn(5).bfloat16(),
        f8=torch.randn(3).to(torch.float8_e4m3fn),
        f8b=torch.randn(8).to(torch.float8_e5m2),
        u32=torch.tensor([1, 2**31 + 5], dtype=torch.uint32),
        flag=torch.tensor([True, False]),
        c64=torch.randn(2, dtype=torch.complex64),
        scalar=torch.tensor(3.5, dtype=torch.float64),
        empty=torch.zeros(0, 3),
        turned=base.view(4, 6).t(),
        part=base[3:9],
        odd=torch.arange(9, dtype=torch.int8)[1:8],
    )
    found["tied"] = found["w"]
    return found


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    def bits(t: torch.Tensor) -> torch.Tensor:
        return t.detach().contiguous().clone().view(-1).view(torch.uint8)

    return x.dtype == y.dtype and x.shape == y.shape and torch.equal(bits(x), bits(y))


def convert(source: Path, target: Path, **more: object) -> Written:
    return import_file(source, target, shown=source.name, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("new", [True, False])
def test_from_torch_to_both(tmp_path: Path, new: bool) -> None:
    tensors = state()
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    written = convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert (written.tensors, written.tied) == (len(tensors), {"tied": "w"})
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)
    assert set(loaded) == set(tensors)
    assert all(same(loaded[name], tensors[name]) for name in tensors)
    assert loaded["tied"].data_ptr() == loaded["w"].data_ptr()
    mapped = torch.load(tmp_path / "b.pt", weights_only=True, mmap=True)
    assert all(same(mapped[name], tensors[name]) for name in tensors)
    convert(tmp_path / "b.pt", tmp_path / "c.safetensors")
    read = load_file(tmp_path / "c.safetensors")
    assert set(read) == set(tensors) - {"tied"}
    assert all(same(read[name], tensors[name]) for name in read)
    with safe_open(tmp_path / "c.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "tied": "w"}
    convert(tmp_path / "b.pt", tmp_path / "d.safetensors", untie=True)
    assert set(load_file(tmp_path / "d.safetensors")) == set(tensors)
    convert(tmp_path / "c.safetensors", tmp_path / "e.pt")
    again = torch.load(tmp_path / "e.pt", weights_only=True)
    assert again["tied"].data_ptr() == again["w"].data_ptr()


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_models_of_safetensors(tmp_path: Path) -> None:
    """Files are like those of `save_model`, and are read like them."""
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    loaded = Tied()
    load_model(loaded, tmp_path / "m.safetensors")
    assert torch.equal(loaded.head.weight, model.head.weight)
    save_model(model, str(tmp_path / "theirs.safetensors"))
    convert(tmp_path / "theirs.safetensors", tmp_path / "back.pt")
    loaded.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))
    assert torch.equal(loaded.embed.weight, model.embed.weight)


def test_only_a_part_by_prefix(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": model.state_dict()}, tmp_path / "last.ckpt")
    written = convert(tmp_path / "last.ckpt", tmp_path / "m.safetensors", under="state_dict")
    assert written.tensors == 2
    model.load_state_dict(load_file(tmp_path / "m.safetensors"))
    with pytest.raises(UsageError, match="no tensors under `nothing`") as caught:
        convert(tmp_path / "last.ckpt", tmp_path / "n.safetensors", under="nothing")
    assert caught.value.hint == "there are: state_dict, state_dict_ema"


def test_from_numpy(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3))}
    np.savez(tmp_path / "a.npz", **arrays)
    convert(tmp_path / "a.npz", tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(np.array_equal(loaded[name].numpy(), array) for name, array in arrays.items())


def test_export_of_shards_views_and_ties(tmp_path: Path) -> None:
    repo = mg.init(tmp_path)
    (tmp_path / "m").mkdir()
    tensors = state()
    torch.save(tensors, tmp_path / "m" / "pytorch_model-00001-of-00002.bin")
    save_file({"other": torch.ones(2, 2).half()}, tmp_path / "m" / "part2.safetensors")
    repo.track("m")
    repo.commit("first")
    for target in (tmp_path / "out.pt", tmp_path / "out.safetensors"):
        written = export_model(repo, "HEAD", target, model="m")
        assert written.tensors == len(tensors) + 1
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    assert loaded["tied"].data_ptr() == loaded["w"].data_ptr()
    read = load_file(tmp_path / "out.safetensors")
    assert all(same(read[name], tensors[name]) for name in tensors if name != "tied")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 50)
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "out.pt").write_bytes(b"mine")
    for source, target, error in (
        ("broken.safetensors", "x.pt", CheckpointFormatError),
        ("a.pt", "x.onnx", UsageError),
        ("a.pt", "out.pt", UsageError),
    ):
        with pytest.raises(error):
            convert(tmp_path / source, tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "broken.safetensors", "out.pt"]
    assert (tmp_path / "out.pt").read_bytes() == b"mine"
    convert(tmp_path / "a.pt", tmp_path / "out.pt", overwrite=True)
    assert torch.load(tmp_path / "out.pt", weights_only=True)["a"].sum() == 2


class Sparse:
    """A file of which only some ranges are there: gigabytes of tensors cost nothing."""

    def __init__(self, size: int, pieces: dict[int, bytes]) -> None:
        self.size, self.pieces = size, pieces
        self.path, self.shown = Path("big.pt"), "big.pt"

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray(length)
        for start, data in self.pieces.items():
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                out[low - offset : high - offset] = data[low - start : high - start]
        return bytes(out)


def test_sizes_beyond_four_gibibytes() -> None:
    """Headers with 64-bit sizes and offsets are written as the strict reader, too, reads them."""
    sizes = [5 << 30, (1 << 32) - 1, 3 << 30, 16]
    plan = plan_archive(b"\x80\x02}.", sizes)
    pieces = {member.header: local_header(member) for member in plan.members}
    pieces[plan.central] = central_directory(plan, {member.name: 0 for member in plan.members})
    found = read_directory(Sparse(plan.central + len(pieces[plan.central]), pieces))
    assert [member.size for member in found.members[3:]] == sizes
    assert all(member.start % 64 == 0 for member in found.members)
