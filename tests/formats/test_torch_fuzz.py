"""Mutants of PyTorch and numpy files: whatever the bytes, only declared errors, and ranges that are the file."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from modelgit.formats.base import CheckpointFormat, ScannedFile
from modelgit.formats.npy import NPY
from modelgit.formats.npz import NPZ
from modelgit.formats.pickle_walker import PickleWindow, Walker
from modelgit.formats.torch_globals import is_allowed
from modelgit.formats.torch_legacy import TORCH_LEGACY
from modelgit.formats.torch_pickle import read_tensors
from modelgit.formats.torch_zip import TORCH_ZIP
from modelgit.formats.zip_members import read_directory
from modelgit.objects import check_view
from modelgit.testing.fuzzing import MemoryFile, fuzz

OPCODES = tuple(
    bytes([op]) for op in b"().0123FIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x93\x94"
)
TOKENS = (
    *OPCODES,
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"K\x00K\x02\x86",
    b"h\x00",
    b"q\x00",
    b"2",
)


def torch_bytes(value: object, *, new: bool, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    return buffer.getvalue()


def small() -> OrderedDict[str, torch.Tensor]:
    weight = torch.ones(2, 3)
    return OrderedDict(w=weight, tied=weight, turned=weight.t(), b=torch.zeros(2).bfloat16())


def check(found: ScannedFile) -> None:
    """What every scan promises: ranges without gaps that hold each tensor once, views inside of their tensors."""
    position = 0
    for item in found.ranges:
        assert item.offset == position and item.length >= 0
        position += item.length
        if item.tensor is not None:
            assert found.tensors[item.tensor].spec.size_bytes == item.length
    assert position == found.size
    assert sorted(i.tensor for i in found.ranges if i.tensor is not None) == list(range(len(found.tensors)))
    for view in found.views:
        check_view(view, found.tensors[view.tensor].spec)


def scan(reader: CheckpointFormat, data: bytes, name: str) -> None:
    check(reader.scan(MemoryFile(data, name=name)))


def walk(data: bytes) -> None:
    walker = Walker(PickleWindow(MemoryFile(data, name="m.pt"), 0, len(data)), is_allowed)
    root, _ = walker.walk()
    read_tensors(root, "m.pt")


def npz_bytes(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_pickles() -> None:
    values = [{"a": [1, 2.5, "x", None, (True, b"y")]}, argparse.Namespace(x={1, 2}, y=2**70), np.float32(3)]
    seeds = [pickle.dumps(value, protocol) for value in values for protocol in (0, 2, 4, 5)]
    for new in (True, False):
        data = torch_bytes(small(), new=new)
        start = data.index(b"ccollections\nOrderedDict") - 2
        seeds.append(data[start : data.index(b"u.", start) + 2])
    outcome = fuzz(walk, seeds, tokens=TOKENS)
    assert 0 < outcome.accepted < outcome.tried


@pytest.mark.parametrize("protocol", [2, 4])
def test_zip_checkpoints(protocol: int) -> None:
    data = torch_bytes({"w": torch.ones(2)}, new=True, protocol=protocol)
    outcome = fuzz(lambda data: scan(TORCH_ZIP, data, "m.pt"), [data], count=50_000, tokens=TOKENS, seed=protocol)
    assert 0 < outcome.accepted < outcome.tried


def archive(**members: bytes) -> bytes:
    """A zip archive of stored members `m/NAME`, with `_` for a slash and `.` for two of them."""
    body, directory = b"", b""
    for key, data in members.items():
        name = b"m/" + key.replace("__", ".").replace("_", "/").encode()
        sizes = (0, len(data), len(data), len(name), 0)
        head = struct.pack("<5H3I2H", 20, 0, 0, 0, 0, *sizes)
        directory += b"PK\1\2" + struct.pack("<H", 20) + head + struct.pack("<3H2I", 0, 0, 0, 0, len(body)) + name
        body += b"PK\3\4" + head + name + data
    count = len(members)
    return body + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)


def test_tensors_of_mutated_pickles() -> None:
    """The archive is well-formed each time, so that what the pickle says about its storages is tried."""

    def parse(data: bytes) -> None:
        whole = archive(data__pkl=data, data_0=bytes(24), data_1=bytes(4))
        scan(TORCH_ZIP, whole, "m.pt")

    seeds = []
    for protocol in (2, 4):
        whole = torch_bytes(small(), new=True, protocol=protocol)
        with zipfile.ZipFile(io.BytesIO(whole)) as opened:
            seeds.append(opened.read("archive/data.pkl"))
    outcome = fuzz(parse, seeds, tokens=TOKENS)
    assert outcome.tried // 50 < outcome.accepted < outcome.tried


def test_legacy_checkpoints() -> None:
    seeds = [torch_bytes(small(), new=False), torch_bytes({"w": torch.ones(2)}, new=False, protocol=4)]
    outcome = fuzz(lambda data: scan(TORCH_LEGACY, data, "m.pt"), seeds, tokens=TOKENS)
    assert 0 < outcome.accepted < outcome.tried


def test_zip_directories() -> None:
    seeds = [npz_bytes(a=np.ones(2)), torch_bytes({}, new=True)]
    outcome = fuzz(
        lambda data: read_directory(MemoryFile(data, name="m.zip")),
        seeds,
        tokens=(b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6"),
    )
    assert 0 < outcome.accepted < outcome.tried


def test_npz() -> None:
    seeds = [npz_bytes(a=np.ones((2, 3)), f=np.asfortranarray(np.ones((2, 3))), t=np.array(["x"])), npz_bytes()]
    outcome = fuzz(lambda data: scan(NPZ, data, "m.npz"), seeds, tokens=(b"PK\3\4", b"'descr': '<f4'", b"(2, 3)"))
    assert 0 < outcome.accepted < outcome.tried


def test_npy() -> None:
    arrays = [np.ones((2, 3), np.float32), np.asfortranarray(np.ones((2, 3))), np.array(3), np.array([None])]
    tokens = (b"'descr': '<f4'", b"(2, 3)", b"True", b"False", b"'|O'", b"9999999999999999999")
    outcome = fuzz(lambda data: scan(NPY, data, "m.npy"), [npy_bytes(array) for array in arrays], tokens=tokens)
    assert 0 < outcome.accepted < outcome.tried
