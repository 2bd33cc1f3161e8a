"""Real files of the installed torch: tensors found as torch finds them, files of both layouts restored to the bit."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch

import modelgit as mg
from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import scan_file
from modelgit.objects import TensorSpec
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.track import track

LAYOUTS = {"zip": True, "legacy": False}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(value: object, path: Path, layout: str = "zip", **more: object) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=LAYOUTS[layout], **more)
    return path


def scan(path: Path) -> ScannedFile:
    return scan_file(path, shown=path.name)


def state() -> OrderedDict[str, torch.Tensor]:
    """Every dtype that has a name, scalars, nothing, views, ties and parameters."""
    generator = torch.Generator().manual_seed(0)
    base = torch.arange(24, dtype=torch.float32)
    found = OrderedDict(
        w=torch.randn(3, 4, generator=generator),
        bf=torch.randn(5, generator=generator).bfloat16(),
        half=torch.randn(2, 2, generator=generator).half(),
        f8=torch.randn(8, generator=generator).to(torch.float8_e4m3fn),
        f8b=torch.randn(8, generator=generator).to(torch.float8_e5m2),
        u16=torch.tensor([1, 2, 3], dtype=torch.uint16),
        i64=torch.arange(3),
        flag=torch.tensor([True, False]),
        c64=torch.randn(2, generator=generator, dtype=torch.complex64),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2, 3)),
        turned=base.view(4, 6).t(),
        part=base[3:9],
        wide=torch.tensor([7.0]).expand(4, 5),
    )
    found["tied"] = found["w"]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_and_views(tmp_path: Path, layout: str) -> None:
    found = scan(save(state(), tmp_path / "a.pt", layout))
    assert (found.format, found.note) == (f"torch-{layout}", "")
    assert [item.offset for item in found.ranges] == [0, *accumulate(item.length for item in found.ranges[:-1])]
    assert sum(item.length for item in found.ranges) == found.size
    named = {tensor.name: tensor.spec for tensor in found.tensors}
    assert named["w"] == TensorSpec(dtype="F32", shape=(3, 4))
    assert named["bf"] == TensorSpec(dtype="BF16", shape=(5,))
    assert named["f8"] == TensorSpec(dtype="F8_E4M3", shape=(8,))
    assert named["u16"] == TensorSpec(dtype="U16", shape=(3,))
    assert named["c64"] == TensorSpec(dtype="C64", shape=(2,))
    assert (named["scalar"].shape, named["empty"].shape, named["parameter"].shape) == ((), (0, 3), (2, 3))
    assert named["turned (storage)"] == TensorSpec(dtype="F32", shape=(24,))
    assert named["wide (storage)"] == TensorSpec(dtype="F32", shape=(1,))
    views = {view.name: (found.tensors[view.tensor].name, view.spec, view.offset, view.strides) for view in found.views}
    assert views == {
        "tied": ("w", None, 0, ()),
        "turned": ("turned (storage)", TensorSpec(dtype="F32", shape=(6, 4)), 0, (1, 6)),
        "part": ("turned (storage)", TensorSpec(dtype="F32", shape=(6,)), 12, ()),
        "wide": ("wide (storage)", TensorSpec(dtype="F32", shape=(4, 5)), 0, (0, 0)),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bit_exact_through_a_repository(tmp_path: Path, layout: str) -> None:
    """The file comes back to the bit, and every tensor reads as torch has it."""
    repo = mg.init(tmp_path)
    path = tmp_path / "model.pt"
    tensors = state()
    save(tensors, path, layout)
    first = hashlib.sha256(path.read_bytes()).digest()
    repo.track("model.pt")
    repo.commit("first")
    with torch.no_grad():
        tensors["w"][0, 0] += 1
    save(tensors, path, layout)
    second = hashlib.sha256(path.read_bytes()).digest()
    repo.commit("second")
    loaded = repo.load()
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        have = loaded[name].torch()
        assert (have.dtype, have.shape) == (tensor.dtype, tensor.shape), name
        width = tensor.element_size()
        assert torch.equal(have.contiguous().view(-1).view(torch.uint8), bits(tensor)), (name, width)
    for revision, digest in (("HEAD~1", first), ("HEAD", second)):
        path.unlink()
        restore(repo, ["model.pt"], source=revision)
        assert hashlib.sha256(path.read_bytes()).digest() == digest


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().clone().view(-1).view(torch.uint8)


def test_the_same_tensor_has_one_id_in_every_format(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    repo = mg.init(tmp_path)
    weight = torch.randn(40, 30)
    save({"w": weight}, tmp_path / "a.pt")
    save({"w": weight}, tmp_path / "b.pth", "legacy")
    save_file({"w": weight}, tmp_path / "c.safetensors")
    np.savez(tmp_path / "d.npz", w=weight.numpy())
    np.save(tmp_path / "w.npy", weight.numpy())
    names = ("a.pt", "b.pth", "c.safetensors", "d.npz", "w.npy")
    for name in names:
        repo.track(name)
    repo.commit("five copies")
    assert len({repo.load(model=name)["w"].entry.id for name in names}) == 1


def test_names_of_nested_states(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": [torch.get_rng_state(), np.random.get_state()],
        "args": argparse.Namespace(lr=1e-3, extra=torch.ones(2)),
        "epoch": 3,
        "loss": np.float64(0.5),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        7: {"x": torch.zeros(1)},
    }
    for layout in LAYOUTS:
        found = scan(save(value, tmp_path / f"{layout}.ckpt", layout))
        assert {tensor.name for tensor in found.tensors} == {
            "model.weight", "model.bias", "rng.0", "args.extra", "7.x",
            *(f"optimizer.state.{i}.{key}" for i in (0, 1) for key in ("step", "exp_avg", "exp_avg_sq")),
        }  # fmt: skip


def test_what_has_no_dtype_here_keeps_its_bytes(tmp_path: Path) -> None:
    value = {"c": torch.ones(2, dtype=torch.complex128), "s": torch.ones(3).to_sparse()}
    found = scan(save(value, tmp_path / "a.pt"))
    assert {tensor.name for tensor in found.tensors} == {"0 (storage)", "s.1.0", "s.1.1"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol(tmp_path: Path, protocol: int) -> None:
    for layout in LAYOUTS:
        found = scan(save(state(), tmp_path / f"{layout}.pt", layout, pickle_protocol=protocol))
        assert len(found.tensors) == 14


class Gadget:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("value", "name"), [(Gadget(), "posix.system"), (print, ".print"), (torch.nn.Linear(1, 1), "Linear")]
)
def test_foreign_globals_are_refused_by_name_file_and_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, value: object, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save({"w": torch.ones(2), "x": value}, tmp_path / "m.pt", layout, pickle_protocol=2)
    with pytest.raises(CheckpointFormatError) as caught:
        scan(path)
    message = caught.value.message
    assert message.startswith("m.pt asks for the Python global ") and name in message
    assert "nothing was executed" in message
    assert caught.value.hint is not None and "`mgit track --opaque m.pt`" in caught.value.hint
    offset = int(message.partition(" at byte ")[2].partition(",")[0])
    assert path.read_bytes()[offset : offset + 1] == b"c"
    assert not (tmp_path / "pwned").exists()


def test_a_foreign_file_is_recorded_on_request(tmp_path: Path) -> None:
    repo = mg.init(tmp_path)
    (tmp_path / "m").mkdir()
    path = save({"x": Gadget(), "w": torch.ones(2)}, tmp_path / "m" / "m.pt")
    data = path.read_bytes()
    with pytest.raises(CheckpointFormatError):
        repo.track("m")
    found = track(repo, "m/m.pt", opaque=True)
    assert (found.tensors, found.opaque) == (0, ("m/m.pt",))
    repo.commit("as it is")
    assert repo.status().is_clean
    path.unlink()
    restore(repo, ["m/m.pt"])
    assert path.read_bytes() == data


def test_recorded_whole_with_a_reason(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "script.pt")
    save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old:
        contents = {item.filename: old.read(item) for item in old.infolist()}
    rezip(tmp_path / "packed.pt", contents, zipfile.ZIP_DEFLATED)
    rezip(tmp_path / "big.pt", {**contents, "plain/byteorder": b"big"})
    rezip(tmp_path / "other.bin", {"readme.txt": b"x"})
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"a": 1}))
    for name, note in {
        "script.pt": "TorchScript",
        "packed.pt": "compressed",
        "big.pt": "big-endian",
        "other.bin": "no PyTorch checkpoint",
        "plain.bin": "no PyTorch checkpoint",
    }.items():
        found = scan(tmp_path / name)
        assert (found.format, len(found.ranges), found.tensors) == ("opaque", 1, ()), name
        assert note in found.note


def rezip(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in contents.items():
            new.writestr(name, data)


def parts(value: object) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as old:
        return {item.filename: old.read(item) for item in old.infolist()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.pop("archive/data/0"), "has no such member"),
        (lambda p: p.update({"archive/data/0": bytes(12)}), "describes storage '0' of 16 bytes, and holds 12"),
        (lambda p: p.update({"archive/data.pkl": p["archive/data.pkl"] + b"."}), "something follows its end"),
        (lambda p: p.update({"archive/data.pkl": p["archive/data.pkl"][:-5]}), "malformed pickle"),
        (lambda p: p.update({"archive/data.pkl": p["archive/data.pkl"].replace(b"K\x02K\x02\x86", b"K\x02K\x09\x86")}),
         "reaches to byte 44 of a storage of 16"),
        (lambda p: p.update({"archive/data.pkl": p["archive/data.pkl"].replace(b"QK\x00", b"QK\x01")}), "reaches to"),
        (lambda p: p.update({"archive/data.pkl": p["archive/data.pkl"].replace(b"QK\x00", b"QJ\xff\xff\xff\xff")}),
         "begins nowhere"),
    ],
)  # fmt: skip
def test_lying_archives(tmp_path: Path, change: object, says: str) -> None:
    contents = parts({"w": torch.ones(2, 2)})
    change(contents)  # type: ignore[operator]
    rezip(tmp_path / "m.pt", contents)
    with pytest.raises(CheckpointFormatError, match=says):
        scan(tmp_path / "m.pt")


def test_truncated_files(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        data = save(state(), tmp_path / "a.pt", layout).read_bytes()
        for cut in (1, 7, 40):
            (tmp_path / "a.pt").write_bytes(data[:-cut])
            with pytest.raises(CheckpointFormatError):
                scan(tmp_path / "a.pt")
