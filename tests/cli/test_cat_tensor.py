"""`mgit cat-tensor` and `mgit snapshot` as they are typed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from modelgit.numerics.summary import TensorSummary, summarise

WEIGHT = np.arange(40 * 12, dtype="<f4").reshape(40, 12) / 8


@pytest.fixture
def bot(mgit: Any, files: Any) -> Any:
    tensors = {
        "w": ("F32", WEIGHT.shape, WEIGHT.tobytes()),
        "half": ("BF16", (4,), (np.array([1, -2, 0.5, 3], "<f4").view("<u4") >> 16).astype("<u2").tobytes()),
        "odd": ("F32", (4,), np.array([np.nan, np.inf, 0, 2], "<f4").tobytes()),
        "deep": ("I32", (2, 3, 9, 2), np.arange(108, dtype="<i4").tobytes()),
        "scalar": ("I64", (), (7).to_bytes(8, "little")),
        "nothing": ("F32", (0, 3), b""),
        "packed": ("F4", (2, 4), b"\x12\x34\x56\x78"),
        "text": ("U8", (5,), b"hello"),
    }
    (mgit.directory / "bot.safetensors").write_bytes(files.safetensors(tensors))
    mgit("init")
    mgit("track", "bot.safetensors")
    mgit("commit", "-m", "base", "--gate", "warn")
    return mgit


def test_a_preview_shows_both_ends(bot: Any) -> None:
    lines = bot("cat-tensor", "main", "w").out.splitlines()
    assert lines[0] == "w  F32 [40, 12]  1.9 KiB  bot.safetensors"
    assert [line.split() for line in lines[1:3]] == [
        ["0", "0", "0.125", "0.25", "...", "1.125", "1.25", "1.375"],
        ["1", "1.5", "1.625", "1.75", "...", "2.625", "2.75", "2.875"],
    ]
    assert lines[4].split() == ["..."] and lines[7].split()[0] == "39" and len(lines) == 8
    assert bot("cat-tensor", "main", "bot.safetensors:w").out.splitlines() == lines
    assert [line.split() for line in bot("cat-tensor", "main", "w", "--rows", "38:").out.splitlines()[1:]] == [
        ["38", "57", "57.125", "57.25", "...", "58.125", "58.25", "58.375"],
        ["39", "58.5", "58.625", "58.75", "...", "59.625", "59.75", "59.875"],
    ]
    assert bot("cat-tensor", "main", "half").out.splitlines()[1].split() == ["1", "-2", "0.5", "3"]
    assert bot("cat-tensor", "main", "scalar").out.splitlines()[1].split() == ["7"]
    assert "no elements" in bot("cat-tensor", "main", "nothing").out
    assert bot("cat-tensor", "main", "packed").out.splitlines()[1].split() == ["12", "34", "56", "78"]
    deep = bot("cat-tensor", "main", "deep").out.splitlines()
    assert (
        deep[1].strip() == "[0, 0, :, :]"
        and deep[2].split() == ["0", "0", "1"]
        and deep[-1].split() == ["8", "16", "17"]
    )


def test_statistics(bot: Any) -> None:
    rows = dict(line.split() for line in bot("cat-tensor", "main", "w", "--stats", "--verify").out.splitlines()[1:])
    assert rows["values"] == "480" and rows["zeros"] == "1" and rows["min"] == "0" and rows["max"] == "59.875"
    assert math.isclose(float(rows["std"]), WEIGHT.std(), rel_tol=1e-5)
    assert math.isclose(float(rows["norm"]), np.linalg.norm(WEIGHT), rel_tol=1e-5)
    document = json.loads(bot("cat-tensor", "main", "odd", "--stats", "--json").out)
    assert document["schema"] == "mgit.cat-tensor/1"
    assert document["stats"] == {
        "values": 4, "zeros": 1, "nans": 1, "infinities": 1,
        "min": 0.0, "max": 2.0, "mean": 1.0, "std": 1.0, "norm": 2.0,
    }  # fmt: skip
    assert document["values"] == [None, None, 0.0, 2.0]
    assert json.loads(bot("cat-tensor", "main", "w", "--rows=-1:", "--json").out)["shape"] == [1, 12]
    assert json.loads(bot("cat-tensor", "main", "packed", "--stats", "--json").out)["stats"] is None


def test_without_a_name_the_tensors_are_listed(bot: Any) -> None:
    lines = [line.split() for line in bot("cat-tensor", "main").out.splitlines()]
    assert ["w", "F32", "[40,", "12]", "1.9", "KiB"] in lines and len(lines) == 8
    document = json.loads(bot("cat-tensor", "main", "--json").out)
    assert {item["name"] for item in document["tensors"]} >= {"w", "deep", "packed"}


def test_it_is_written_to_files(bot: Any) -> None:
    def write(name: str, *more: str) -> Path:
        bot("cat-tensor", "main", *more, "-o", name)
        return bot.directory / name

    np.testing.assert_array_equal(np.load(write("w.npy", "w")), WEIGHT)
    np.testing.assert_array_equal(np.load(write("w.npy", "w", "--rows", "3:5")), WEIGHT[3:5])
    np.testing.assert_array_equal(load_file(write("w.safetensors", "w"))["w"], WEIGHT)
    assert np.load(write("s.npy", "scalar")) == 7
    assert write("p.bin", "packed", "--verify").read_bytes() == b"\x12\x34\x56\x78"
    assert bot("cat-tensor", "main", "text", "-o", "-").out == "hello"
    assert "lacks" not in bot("cat-tensor", "main", "half", "-o", "h.safetensors").err
    assert "no BF16" in bot("cat-tensor", "main", "half", "-o", "h.npy", code=2).err
    assert "no suffix" in bot("cat-tensor", "main", "half", "-o", "h.txt", code=2).err
    assert "cannot write" in bot("cat-tensor", "main", "w", "-o", "no/w.npy", code=3).err
    assert sorted(path.name for path in bot.directory.iterdir() if path.name.startswith(("tmp", "h"))) == [
        "h.safetensors"
    ]


def test_what_is_not_there_is_named(bot: Any, files: Any) -> None:
    assert "no tensor `wieght`" in bot("cat-tensor", "main", "wieght", code=2).err
    ran = bot("cat-tensor", "main", "scalr", code=2)
    assert "did you mean `scalar`?" in ran.err and "`mgit cat-tensor main`" in ran.err
    assert "hint: `mgit cat-tensor HEAD scalar`" in bot("cat-tensor", "scalar", code=2).err
    assert "no branch, tag or commit `absent`" in bot("cat-tensor", "absent", code=3).err
    for rows, what in [
        ("1:x", "no range"),
        ("39:41", "w has 40 rows, and rows 39:41 are asked for"),
        ("5:3", "w has 40 rows"),
        ("-41", "w has 40 rows"),
        ("40", "w has 40 rows, and row 40 is asked for"),
    ]:
        assert what in bot("cat-tensor", "main", "w", f"--rows={rows}", code=2).err
    assert "scalar" in bot("cat-tensor", "main", "scalar", "--rows", "0", code=2).err
    (bot.directory / "other.safetensors").write_bytes(files.of_arrays({"w": WEIGHT}))
    bot("track", "other.safetensors")
    bot("commit", "-m", "two", "--gate", "warn")
    ran = bot("cat-tensor", "main", "w", code=2)
    assert "2 models have a tensor `w`: bot.safetensors, other.safetensors" in ran.err and "--model" in ran.err
    assert "other.safetensors" in bot("cat-tensor", "main", "w", "--model", "other.safetensors").out
    ran = bot("cat-tensor", "main", "scalar", "--model", "other.safetensors", code=2)
    assert "no tensor `scalar` in other.safetensors of main" in ran.err
    assert "`mgit cat-tensor main --model other.safetensors`" in ran.err


def test_snapshot_prints_a_path(bot: Any) -> None:
    path = Path(bot("snapshot").out.strip())
    assert (path / "bot.safetensors").read_bytes() == (bot.directory / "bot.safetensors").read_bytes()
    assert json.loads(bot("snapshot", "main", "--model", "bot.safetensors", "--json").out) == {
        "schema": "mgit.snapshot/1",
        "path": str(path),
    }


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "<i2", "<u8", "?"])
def test_summaries_add_up(dtype: str) -> None:
    random = np.random.default_rng(2)
    values = (random.standard_normal(700_000) * 50 + 1000).astype(dtype)
    name = {"<f4": "F32", "<f8": "F64", "<f2": "F16", "<i2": "I16", "<u8": "U64", "?": "BOOL"}[dtype]
    total = TensorSummary()
    for start in range(0, values.size, 100_003):
        total = total.merge(summarise(values[start : start + 100_003].tobytes(), name))
    wide = values.astype(np.float64)
    assert total.values == values.size and total.zeros == np.count_nonzero(values == 0)
    assert (total.minimum, total.maximum) == (values.min(), values.max())
    np.testing.assert_allclose(
        [total.mean, total.std, total.norm], [wide.mean(), wide.std(), np.linalg.norm(wide)], rtol=1e-9
    )


def test_the_extremes_of_integers_are_exact() -> None:
    total = summarise(np.array([2**63 - 1, -(2**63), 5], "<i8").tobytes(), "I64")
    assert (total.minimum, total.maximum) == (-(2**63), 2**63 - 1)
    empty = summarise(b"", "F32")
    assert (empty.mean, empty.std, empty.minimum, empty.norm) == (None, None, None, 0.0)
