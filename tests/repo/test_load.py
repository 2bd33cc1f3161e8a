"""Lazy tensors: their dtypes, their rows, and how little is read for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from modelgit.codecs.base import CODECS
from modelgit.errors import IntegrityError, UsageError
from modelgit.objects import DTYPES, TensorSpec
from modelgit.repo import Repository
from modelgit.repo.load import ModelState
from modelgit.store.fs import FileSystemStore

KIB, MIB = 1 << 10, 1 << 20
UNIT = 512 * KIB
NATIVE = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "U16": np.uint16, "F16": np.float16,
    "I32": np.int32, "U32": np.uint32, "F32": np.float32, "C64": np.complex64, "I64": np.int64, "U64": np.uint64,
    "F64": np.float64, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
TORCH = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "F16": torch.float16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64,
    "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
PACKED = ["F4", "F6_E2M3", "F6_E3M2"]


def raw_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> bytes:
    spec = TensorSpec(dtype=dtype, shape=shape)
    data = np.random.default_rng(seed).integers(0, 256, spec.size_bytes, np.uint8)
    return (data & 1).tobytes() if dtype == "BOOL" else data.tobytes()


@pytest.fixture
def load(repo: Repository, files: Any) -> Callable[..., Any]:
    """Commits tensors (dtype, shape, raw) and loads them back."""

    def commit(**tensors: tuple[str, tuple[int, ...], bytes]) -> Any:
        (repo.worktree / "t.safetensors").write_bytes(files.safetensors(tensors))
        repo.track("t.safetensors")
        repo.commit("tensors", gate="warn")
        return repo.load()

    return commit


@pytest.mark.parametrize("dtype", sorted(NATIVE))
def test_every_dtype_comes_back_as_itself(load: Callable[..., Any], dtype: str) -> None:
    shapes = {"matrix": (6, 8), "scalar": (), "empty": (0, 3), "flat": (5,)}
    raws = {name: raw_of(dtype, shape) for name, shape in shapes.items()}
    state = load(**{name: (dtype, shape, raws[name]) for name, shape in shapes.items()})
    for name, shape in shapes.items():
        array, tensor = state[name].numpy(), state[name].torch()
        assert array.dtype == NATIVE[dtype] and array.shape == shape and array.tobytes() == raws[name]
        assert tensor.dtype == TORCH[dtype] and tuple(tensor.shape) == shape
        if tensor.numel():
            assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == raws[name]
        assert bytes(state[name].raw()) == raws[name]
        array[...] = array  # both are the caller's own
    assert np.asarray(state["matrix"]).tobytes() == raws["matrix"]


@pytest.mark.parametrize("dtype", [name for name in sorted(NATIVE) if name != "C64"])
def test_widening_is_asked_for(load: Callable[..., Any], dtype: str) -> None:
    raw = raw_of(dtype, (4, 6))
    wide = load(t=(dtype, (4, 6), raw))["t"].float32()
    with np.errstate(invalid="ignore", over="ignore"):
        expected = np.frombuffer(raw, NATIVE[dtype]).reshape(4, 6).astype(np.float32)
    np.testing.assert_array_equal(wide, expected)
    assert wide.dtype == np.float32 and wide.shape == (4, 6)


def test_models_still_get_what_they_compute_with(load: Callable[..., Any]) -> None:
    state = load(b=("BF16", (3,), raw_of("BF16", (3,))), h=("F16", (3,), raw_of("F16", (3,))))
    assert state.arrays()["b"].dtype == np.float32 and state.arrays()["h"].dtype == np.float16


@pytest.mark.parametrize("dtype", PACKED)
def test_packed_types_are_raw_bytes_only(load: Callable[..., Any], dtype: str) -> None:
    raw = raw_of(dtype, (4, 8))
    tensor = load(t=(dtype, (4, 8), raw))["t"]
    for convert in (tensor.numpy, tensor.torch, tensor.float32):
        with pytest.raises(UsageError, match=rf"holds {dtype} elements of {DTYPES[dtype].bits} bits") as caught:
            convert()
        assert "raw" in (caught.value.hint or "")
    width = 8 * DTYPES[dtype].bits // 8
    assert bytes(tensor[1:3].raw()) == raw[width : 3 * width]
    assert bytes(tensor.raw(1, 5)) == raw[1:5]
    with pytest.raises(UsageError, match="no whole bytes"):
        tensor[0][1]


def test_blocks_are_raw_bytes_only(repo: Repository) -> None:
    from modelgit.objects import TensorEntry, TensorId

    entry = TensorEntry(name="q", spec=TensorSpec(dtype="Q4_0", shape=(4, 64)), id=TensorId.of(b""))
    tensor = ModelState("m", {"q": entry}, repo.reader())["q"]
    with pytest.raises(UsageError, match="Q4_0 blocks, which are not taken apart"):
        tensor.numpy()
    assert tensor[1:3].size_bytes == 72


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_those_of_numpy(repo: Repository, load: Callable[..., Any], threads: int) -> None:
    raw = raw_of("I32", (300, 10, 700))
    state = load(t=("I32", (300, 10, 700), raw))
    whole = np.frombuffer(raw, np.int32).reshape(300, 10, 700)
    tensor = ModelState("m", state.entries, repo.reader(), threads=threads)["t"]
    keys: list[Any] = [
        0, -1, 299, slice(None), slice(3, 7), slice(-4, None), slice(7, 3), slice(None, None, 2), slice(None, None, -3),
        slice(250, 10, -50), (2, 3), (2, slice(1, 9, 2)), (5, -1, 4), ..., (), slice(1000, 2000), (4, ...),
    ]  # fmt: skip
    for key in keys:
        np.testing.assert_array_equal(tensor[key].numpy(), whole[key], strict=True)
        assert tensor[key].shape == whole[key].shape
        assert bytes(tensor[key].verified().raw()) == whole[key].tobytes()
    np.testing.assert_array_equal(tensor[10:200][::-7][3:9][1].numpy(), whole[10:200][::-7][3:9][1])
    np.testing.assert_array_equal(tensor.rows(20, 23).torch().numpy(), whole[20:23])
    part = whole[10:200:3]
    for start, stop in [(0, 5), (3, 3), (27_999, 28_001), (100_000, 100_007), (part.nbytes - 3, part.nbytes)]:
        assert bytes(tensor[10:200:3].raw(start, stop)) == part.tobytes()[start:stop]
        assert bytes(tensor.raw(start, stop)) == raw[start:stop]
    assert b"".join(tensor.chunks()) == raw and b"".join(tensor[::2].chunks()) == whole[::2].tobytes()
    assert len(tensor) == 300 and len(list(tensor[:3])) == 3


def test_shown_in_a_notebook(load: Callable[..., Any]) -> None:
    state = load(t=("F32", (3, 2), bytes(24)))
    assert repr(state).startswith("ModelState(") and repr(state).endswith(", 1 tensors)")
    assert repr(state["t"][:2]) == "LazyTensor(t, F32 [2, 2])"
    assert (state["t"].dtype, state["t"][0].shape) == ("F32", (2,))
    with pytest.raises(UsageError) as caught:
        state["t"][0:2, 1]
    assert caught.value.__notes__ == [f"hint: {caught.value.hint}"]


def test_what_is_not_there_is_named(load: Callable[..., Any]) -> None:
    state = load(t=("F32", (3, 2), bytes(24)), s=("F32", (), bytes(4)))
    for key in (3, -4):
        with pytest.raises(IndexError, match="t has 3 rows"):
            state["t"][key]
    for start, stop in [(0, 4), (-1, 2), (2, 1)]:
        with pytest.raises(UsageError, match="t has 3 rows, and rows"):
            state["t"].rows(start, stop)
    with pytest.raises(UsageError, match="s is a scalar"):
        state["s"][0]
    with pytest.raises(UsageError, match="only the first dimension"):
        state["t"][0:2, 1]
    with pytest.raises(UsageError, match="t has 24 bytes"):
        state["t"].raw(0, 25)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(state["t"], copy=False)


class Counting:
    """Counts what a store reads from packs and what is decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        self.units: list[int] = []
        self.objects: set[bytes] = set()
        read_part = FileSystemStore.read_part

        def counted(store: FileSystemStore, located: Any, start: int, stop: int) -> bytes:
            if stop <= located.length - located.header:  # headers say where units lie, and are read once
                self.bytes += stop - start
            self.objects.add(located.digest)
            return read_part(store, located, start, stop)

        monkeypatch.setattr(FileSystemStore, "read_part", counted)
        for name in CODECS.names():
            codec = CODECS.get(name)

            def decode(payload: Any, layout: Any, out: Any, *, codec: Any = codec, real: Any = codec.decode, **more: Any) -> None:  # fmt: skip # noqa: E501
                self.units.append(out.nbytes)
                real(payload, layout, out, **more)

            monkeypatch.setattr(codec, "decode", decode)


@pytest.mark.parametrize("coded", ["planes", "delta", "raw"])
def test_a_few_rows_cost_a_unit_more_on_each_side(
    repo: Repository, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, coded: str
) -> None:
    rows, width = 4000, 1024  # 16 MiB of 4 KiB rows
    random = np.random.default_rng(1)
    first = (random.standard_normal((rows, width)) * 0.02).astype("<f4")
    if coded == "raw":
        first = random.integers(0, 1 << 32, (rows, width), np.uint32).view("<f4")
    other = raw_of("F32", (1 << 20,))
    state = load(t=("F32", (rows, width), first.tobytes()), other=("F32", (1 << 20,), other))
    weights, depth = first, 1
    if coded == "delta":
        weights = first + np.float32(1e-5) * random.standard_normal(first.shape).astype("<f4")
        state = load(t=("F32", (rows, width), weights.tobytes()), other=("F32", (1 << 20,), other))
        depth = 2
    reader = repo.reader()
    record = reader.record(state.entries["t"].id)
    assert record is not None
    assert record[1].codec.needs_base if coded == "delta" else record[1].codec.name == coded
    state["t"][0].numpy()
    seen = Counting(monkeypatch)
    for start, stop in [(0, 1), (1000, 1010), (1279, 1281), (rows - 1, rows), (100, 900)]:
        seen.bytes, seen.units = 0, []
        np.testing.assert_array_equal(state["t"].rows(start, stop).numpy(), weights[start:stop])
        needed = (stop - start) * 4 * width
        assert sum(seen.units) <= depth * (needed + 2 * UNIT)
        assert seen.bytes <= depth * (needed + 2 * UNIT) * 1.01
        assert len(seen.units) <= depth * (needed // UNIT + 2)
    seen.bytes = 0
    assert bytes(state["t"].rows(2000, 2001).verified().raw()) == weights[2000:2001].tobytes()
    assert seen.bytes <= depth * (4 * MIB + 2 * UNIT) * 1.01, "a leaf, not the tensor"
    assert state.entries["other"].id.digest not in seen.objects


def test_damage_in_a_row_is_found_when_that_row_is_read(repo: Repository, load: Callable[..., Any]) -> None:
    raw = raw_of("U8", (9, MIB))
    state = load(t=("U8", (9, MIB), raw))
    located = next(item for item in repo.store.locate(state.entries["t"].id) if not item.is_leaf_table)
    pack = repo.store.packs_path / located.pack
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(located.offset + 5 * MIB + 77)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert bytes(state["t"][4].raw()) == raw[4 * MIB : 5 * MIB]
    with pytest.raises(IntegrityError, match="damaged on disk"):
        state["t"][5].numpy()
