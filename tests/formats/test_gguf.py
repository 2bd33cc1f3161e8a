"""GGUF: files of the reference writer are read alike, survive a commit bit for bit, and crafted headers are refused."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import scan_file
from modelgit.formats.gguf import _TYPES, GGUF
from modelgit.objects import BLOCK_DTYPES, TensorSpec, dtype_named
from modelgit.testing.fuzzing import MemoryFile, fuzz

ARRAY, STRING, U32 = 9, 8, 4


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, extents: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)


def pack(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    many = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, *many) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def scan(data: bytes) -> ScannedFile:
    return GGUF.scan(MemoryFile(data, name="model.gguf"))


def refusal(data: bytes) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        scan(data)
    assert caught.value.message.startswith("model.gguf ")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


KEYS = (
    key("general.architecture", STRING, text("llama")),
    key("general.alignment", U32, struct.pack("<I", 32)),
    key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b")),
    key("scores", ARRAY, struct.pack("<IQ", 6, 2) + struct.pack("<ff", 0.5, 1)),
    key("nested", ARRAY, struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQ", U32, 1) + struct.pack("<I", 7)),
)
SMALL = pack(
    KEYS, [tensor("a", (32, 2), 2, 0), tensor("b", (3,), 0, 64)], bytes(range(36)) + bytes(28) + bytes(12) + bytes(20)
)


def test_a_small_file_by_hand() -> None:
    found = scan(SMALL)
    assert [(t.name, t.spec) for t in found.tensors] == [
        ("a", TensorSpec(dtype="Q4_0", shape=(2, 32))),
        ("b", TensorSpec(dtype="F32", shape=(3,))),
    ]
    data = len(SMALL) - 96
    assert [tuple(item) for item in found.ranges] == [
        (0, data, None),
        (data, 36, 0),
        (data + 36, 28, None),
        (data + 64, 12, 1),
        (data + 76, 20, None),
    ]


def test_ranges_cover_files_whose_tensors_lie_in_another_order_than_their_entries() -> None:
    found = scan(
        pack([], [tensor("late", (4,), 0, 32), tensor("none", (0,), 0, 32), tensor("early", (8,), 0, 0)], bytes(48))
    )
    assert sum(item.length for item in found.ranges) == found.size
    assert [found.tensors[item.tensor].name for item in found.ranges if item.tensor is not None] == [
        "early",
        "none",
        "late",
    ]


def test_version_2_and_files_without_tensors() -> None:
    assert scan(pack(KEYS, version=2)).tensors == ()
    assert scan(b"GGUF" + struct.pack("<IQQ", 3, 0, 0)).ranges[0].length == 24


@pytest.mark.parametrize("name", sorted(BLOCK_DTYPES))
def test_every_block_type(name: str) -> None:
    number = next(number for number, kind in _TYPES.items() if kind == name)
    kind = dtype_named(name)
    rows = bytes(3 * 2 * kind.block_bytes)
    found = scan(pack([], [tensor("w", (2 * kind.block_elements, 3), number, 0)], rows))
    assert found.ranges[-1].length == len(rows) == found.tensors[0].spec.size_bytes
    assert "does not fill whole blocks" in refusal(
        pack([], [tensor("w", (kind.block_elements - 1, 3), number, 0)], rows)
    )
    assert "does not fill whole blocks" in refusal(pack([], [tensor("w", (), number, 0)], rows))


def test_block_sizes_are_those_of_the_reference() -> None:
    constants = pytest.importorskip("gguf.constants")
    for number, size in constants.GGML_QUANT_SIZES.items():
        if number.name in BLOCK_DTYPES:
            assert (dtype_named(number.name).block_elements, dtype_named(number.name).block_bytes) == size
            assert _TYPES[int(number)] == number.name
    assert set(_TYPES.values()) >= set(BLOCK_DTYPES)


def test_files_of_the_reference_writer(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "reference.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(3000)])
    values = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    for name in ("Q4_0", "Q8_0", "BF16", "F16", "TQ1_0"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name.lower(), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("plain", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = scan_file(path, shown="reference.gguf")
    places = {found.tensors[item.tensor].name: item for item in found.ranges if item.tensor is not None}
    for item in gguf.GGUFReader(path).tensors:
        assert (places[item.name].offset, places[item.name].length) == (item.data_offset, item.n_bytes)
        spec = found.tensors[places[item.name].tensor or 0].spec
        assert list(spec.shape) == list(reversed(item.shape.tolist()))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GGML" + bytes(100), "does not begin with `GGUF`"),
        (b"GGUF", "0 are left"),
        (pack(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 3 in big-endian"),
        (pack(counts=(1 << 40, 0)), "claims"),
        (pack(counts=(1000, 1000)), "needs"),
        (pack([KEYS[0], KEYS[0]]), "duplicate key"),
        (pack([key("k", 13, b"")]), "unknown type 13"),
        (pack([key("k", STRING, struct.pack("<Q", 1 << 62))]), "needs"),
        (pack([key("k", ARRAY, struct.pack("<IQ", STRING, 1 << 62))]), "needs"),
        (pack([key("k", ARRAY, struct.pack("<IQ", 0, (1 << 64) - 1))]), "needs"),
        (pack([key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 20 + struct.pack("<IQ", 0, 0))]), "deeper than 8"),
        (pack([key("general.alignment", U32, struct.pack("<I", 0))]), "alignment of 0"),
        (pack([key("general.alignment", U32, struct.pack("<I", 24))]), "alignment of 24"),
        (pack([key("general.alignment", STRING, text("32"))]), "not an unsigned integer"),
        (pack([text("k" * 70000) + bytes(4)]), "a key of 70000 bytes"),
        (pack([], [tensor("a", (4,), 0, 0)] * 2, bytes(64)), "duplicate tensor"),
        (pack([], [tensor("", (4,), 0, 0)], bytes(64)), "empty name"),
        (pack([], [tensor("a\n", (4,), 0, 0)], bytes(64)), "control characters"),
        (pack([], [tensor(b"\xff\xfe", (4,), 0, 0)], bytes(64)), "not UTF-8"),
        (pack([], [tensor("a", (4,) * 9, 0, 0)], bytes(64)), "9 dimensions"),
        (pack([], [tensor("a", (4,), 5, 0)], bytes(64)), "type 5, which this mgit does not know"),
        (pack([], [tensor("a", (4,), 0, 8)], bytes(64)), "no multiple of 32"),
        (pack([], [tensor("a", (1 << 62, 1 << 62), 0, 0)], bytes(64)), "a tensor of"),
        (pack([], [tensor("a", (16,), 0, 0), tensor("b", (4,), 0, 32)], bytes(96)), "overlap"),
        (pack([], [tensor("a", (16,), 0, 0)], bytes(60)), "truncated"),
        (pack([], [tensor("a", (4,), 0, 1 << 63)], bytes(60)), "truncated"),
    ],
)
def test_refusals(data: bytes, says: str) -> None:
    assert says in refusal(data)


def test_fuzz() -> None:
    outcome = fuzz(scan, [SMALL, pack(KEYS, version=2)], tokens=(KEYS[2], KEYS[4], b"general.alignment"))
    assert 0 < outcome.accepted < outcome.tried
