from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import numpy as np
import pytest

from modelgit.errors import IntegrityError
from modelgit.evals.builtin import Side, run_builtin
from modelgit.evals.finite import ValueCounts, count_values
from modelgit.objects import BlobId, EvalRecord, ManifestId, TensorEntry, TensorId, TensorSpec, leaf_digest, tensor_id

NAMES = {np.dtype("float32"): "F32", np.dtype("float16"): "F16", np.dtype("int64"): "I64", np.dtype("float64"): "F64"}


class MemoryReads:
    def __init__(self) -> None:
        self.held: dict[TensorId | BlobId, bytes] = {}
        self.read_ids: list[TensorId | BlobId] = []

    def add(self, name: str, spec: TensorSpec, raw: bytes) -> TensorEntry:
        entry = TensorEntry(name=name, spec=spec, id=tensor_id(spec, [leaf_digest(raw)]))
        self.held[entry.id] = raw
        return entry

    def array(self, name: str, values: object) -> TensorEntry:
        array = np.asarray(values)
        return self.add(name, TensorSpec(dtype=NAMES[array.dtype], shape=array.shape), array.tobytes())

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        if tensor not in self.held:
            raise IntegrityError(f"object {tensor.short} is missing")
        self.read_ids.append(tensor)
        return bytearray(self.held[tensor][start:stop])

    def size(self, tensor: TensorId | BlobId) -> int | None:
        return len(self.held[tensor]) if tensor in self.held else None


def side(label: str, entries: list[TensorEntry], files: Mapping[str, bytes] | None = None) -> Side:
    return Side(
        manifest=ManifestId.of(label.encode()),
        models={"models/bot": {entry.name: entry for entry in entries}},
        files={f"models/bot/{name}": (lambda data=data: data) for name, data in (files or {}).items()},
        weights={"models/bot": ("models/bot/a.safetensors", "models/bot/b.safetensors")},
    )


def lines(record: EvalRecord) -> dict[str, tuple[str, str]]:
    return {result.name: (result.decision, result.detail) for result in record.results}


def test_only_changed_tensors_are_read_and_a_clean_change_passes() -> None:
    reads = MemoryReads()
    kept = reads.array("kept", np.ones(4, np.float32))
    old, new = reads.array("w", np.zeros(4, np.float32)), reads.array("w", np.ones(3 << 20, np.float32))
    new = TensorEntry(name="w", spec=new.spec, id=new.id)
    config = {"config.json": b'{"model_type": "bert"}'}
    record = run_builtin(side("new", [kept, new], config), side("old", [kept, old], config), reads)
    assert set(reads.read_ids) == {new.id}
    assert lines(record)["finite values"][0] == "pass"
    assert lines(record)["names and shapes"] == ("warn", "w F32 [4] → F32 [3145728]")
    assert lines(record)["files"] == ("pass", "")


def test_new_nan_and_infinity_fail_by_name_and_count() -> None:
    reads = MemoryReads()
    old = reads.array("w", np.zeros(6, np.float32))
    new = reads.array("w", np.array([0, np.nan, -np.nan, np.inf, -np.inf, -np.inf], np.float32))
    record = run_builtin(side("new", [new]), side("old", [old]), reads)
    assert record.decision == "fail"
    assert lines(record)["finite values"] == ("fail", "w (2 NaN, 1 Inf, 2 -Inf)")


def test_values_that_were_broken_before_only_warn() -> None:
    reads = MemoryReads()
    old = reads.array("w", np.array([1, np.nan, 2], np.float16))
    new = reads.array("w", np.array([np.nan, 1, 3], np.float16))
    assert lines(run_builtin(side("new", [new]), side("old", [old]), reads))["finite values"][0] == "warn"
    worse = reads.array("w", np.array([np.nan, np.nan, 3], np.float16))
    assert lines(run_builtin(side("new", [worse]), side("old", [old]), reads))["finite values"][0] == "fail"


def test_a_first_commit_may_hold_a_causal_mask_but_no_nan() -> None:
    reads = MemoryReads()
    mask = reads.array("mask", np.triu(np.full((4, 4), -np.inf, np.float32), 1))
    first = run_builtin(side("new", [mask]), None, reads)
    assert lines(first)["finite values"] == ("warn", "as before or by design: mask (6 -Inf)")
    assert lines(first)["names and shapes"][0] == "baseline"
    overflow = reads.array("w", np.array([1.0, -np.inf], np.float32))
    assert run_builtin(side("new", [overflow]), None, reads).decision == "fail"
    fine = reads.array("w", np.arange(5))
    assert run_builtin(side("new", [fine]), None, reads).decision == "baseline"


@pytest.mark.parametrize(
    ("dtype", "raw", "expected"),
    [
        ("BF16", struct.pack("<5H", 0x7F80, 0xFF80, 0x7FC0, 0x3F80, 0x7F7F), ValueCounts(1, 1, 1)),
        ("F16", struct.pack("<5H", 0x7C00, 0xFC00, 0xFE01, 0x3C00, 0x7BFF), ValueCounts(1, 1, 1)),
        ("F64", struct.pack("<3d", float("inf"), float("nan"), 1.0), ValueCounts(1, 1, 0)),
        ("C64", struct.pack("<4f", 1.0, float("nan"), float("-inf"), 2.0), ValueCounts(1, 0, 1)),
        ("F8_E5M2", bytes([0x7C, 0xFC, 0x7D, 0x7B]), ValueCounts(1, 1, 1)),
        ("F8_E4M3", bytes([0x7F, 0xFF, 0x7E, 0x80]), ValueCounts(2, 0, 0)),
        ("F8_E4M3FNUZ", bytes([0x7F, 0xFF, 0x7E, 0x80]), ValueCounts(1, 0, 0)),
        ("I8", bytes([0x7F, 0xFF, 0x80]), ValueCounts(0, 0, 0)),
    ],
)
def test_every_floating_point_type_is_understood(dtype: str, raw: bytes, expected: ValueCounts) -> None:
    reads = MemoryReads()
    bits = {"BF16": 16, "F16": 16, "F64": 64, "C64": 64}.get(dtype, 8)
    entry = reads.add("w", TensorSpec(dtype=dtype, shape=(len(raw) * 8 // bits,)), raw)
    assert count_values(reads, entry) == expected


def test_added_and_removed_tensors_are_named() -> None:
    reads = MemoryReads()
    one, two = reads.array("one", np.ones(1, np.float32)), reads.array("two", np.ones(2, np.float32))
    record = run_builtin(side("new", [two]), side("old", [one]), reads)
    assert lines(record)["names and shapes"] == ("warn", "one removed; two added")
    assert record.decision == "warn"


def test_files_that_do_not_parse_fail_and_notes_only_warn() -> None:
    reads = MemoryReads()
    weights = [reads.array("w", np.ones(1, np.float32))]
    broken = run_builtin(side("new", weights, {"config.json": b'{"a": '}), None, reads)
    assert broken.decision == "fail"
    assert "models/bot/config.json is not JSON" in lines(broken)["files"][1]
    deep = run_builtin(side("new", weights, {"config.json": b"[" * 100_000}), None, reads)
    assert deep.decision == "fail"
    listing = run_builtin(side("new", weights, {"config.json": b"[]"}), None, reads)
    assert lines(listing)["files"] == ("fail", "models/bot/config.json is not a JSON object")
    assert lines(run_builtin(side("new", weights, {"notes.json": b"\xff"}), None, reads))["files"][0] == "warn"


def test_the_shard_index_must_agree_with_the_tensors() -> None:
    reads = MemoryReads()
    weights = [reads.array("one", np.ones(1, np.float32)), reads.array("two", np.ones(2, np.float32))]

    def files(weight_map: object) -> tuple[str, str]:
        index = {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}
        return lines(run_builtin(side("new", weights, index), None, reads))["files"]

    assert files({"one": "a.safetensors", "two": "b.safetensors"}) == ("pass", "")
    index = "models/bot/model.safetensors.index.json"
    assert files({"one": "a.safetensors"}) == ("fail", f"{index} does not name two")
    assert files({"one": "a.safetensors", "two": "b.safetensors", "x": "a.safetensors"}) == (
        "fail",
        f"{index} names x, which no file holds",
    )
    assert (
        "names models/bot/c.safetensors, which is not there"
        in files({"one": "c.safetensors", "two": "b.safetensors"})[1]
    )
    assert files(None)[0] == "fail"


def test_what_cannot_be_read_is_an_error() -> None:
    reads = MemoryReads()
    entry = reads.array("w", np.ones(1, np.float32))
    reads.held.clear()
    assert run_builtin(side("new", [entry]), None, reads).decision == "error"
