"""Scanning safetensors: what the reference writer makes is read alike, and every crafted header is refused by name."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import numpy as reference

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import FORMATS, ScannedFile
from modelgit.formats.detect import scan_file
from modelgit.formats.safetensors import MAX_HEADER_BYTES, SAFETENSORS


def pack(header: bytes | str | Mapping[str, object], data: bytes = b"", *, length: int | None = None) -> bytes:
    if isinstance(header, Mapping):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class Memory:
    """A file in memory."""

    def __init__(self, data: bytes, name: str = "model.safetensors") -> None:
        self.data = data
        self.path = Path(name)
        self.shown = f"models/{name}"
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        part = self.data[offset : offset + length]
        if len(part) != length:
            raise CheckpointFormatError(f"{self.shown} ends early")
        return part


def scan(data: bytes, name: str = "model.safetensors") -> ScannedFile:
    return SAFETENSORS.scan(Memory(data, name))


def refusal(data: bytes) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        scan(data)
    message = caught.value.message
    assert message.startswith("models/model.safetensors ")
    assert message.isascii() and message.isprintable() and len(message) < 300
    assert caught.value.hint
    return message


def rebuild(data: bytes, scanned: ScannedFile) -> bytes:
    position = 0
    for piece in scanned.ranges:
        assert piece.offset == position
        position += piece.length
    return b"".join(data[r.offset : r.offset + r.length] for r in scanned.ranges)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20).filter(
            lambda name: name != "__metadata__"
        ),
        st.sampled_from(["<f4", "<f2", "<i8", "|u1", "|b1"]).flatmap(
            lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        ),
        min_size=1,  # the reference writer makes broken JSON of metadata without tensors
        max_size=6,
    ),
    st.none() | st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3),
)
def test_reads_what_the_reference_writes(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None) -> None:
    data = reference.save(tensors, metadata)
    scanned = scan(data)
    assert rebuild(data, scanned) == data
    assert {t.name for t in scanned.tensors} == set(tensors)
    for piece in scanned.ranges[1:]:
        assert piece.tensor is not None
        name, spec = scanned.tensors[piece.tensor]
        assert spec.shape == tensors[name].shape
        assert data[piece.offset : piece.offset + piece.length] == tensors[name].tobytes()


def test_tensors_come_in_data_order_and_padding_belongs_to_the_header() -> None:
    header = json.dumps({"b": entry(offsets=(4, 8)), "none": entry(shape=(0, 3), offsets=(4, 4)), "a": entry()}) + "   "
    scanned = scan(pack(header, bytes(range(8))))
    assert [t.name for t in scanned.tensors] == ["a", "none", "b"]
    assert scanned.ranges[0] == (0, 8 + len(header), None)
    assert [r.length for r in scanned.ranges[1:]] == [4, 0, 4]


@pytest.mark.parametrize("header", ["{}", '{"__metadata__":{}}', '{"__metadata__": {"format": "pt"} }  \n'])
def test_a_file_without_tensors(header: str) -> None:
    assert scan(pack(header)).tensors == ()


def test_every_dtype_including_packed_ones() -> None:
    header = {
        "a": entry("F4", (2, 3), (0, 3)),
        "b": entry("F6_E2M3", (4,), (3, 6)),
        "c": entry("F8_E8M0", (2,), (6, 8)),
    }
    assert [t.spec.size_bytes for t in scan(pack(header, bytes(8))).tensors] == [3, 3, 2]


@pytest.mark.parametrize("length", [640, 0x0580])
def test_a_header_length_that_looks_like_a_pickle(length: int) -> None:
    header = json.dumps({"a": entry()}).ljust(length)
    assert scan(pack(header, bytes(4))).size == 8 + length + 4


ATTACKS = {
    "duplicate key": (
        '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}',
        "duplicate key 'a'",
    ),
    "duplicate key, one escaped": (
        '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"\\u0061":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}',
        "duplicate key 'a'",
    ),
    "duplicate key within an entry": (
        '{"a":{"dtype":"F32","dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        "duplicate",
    ),
    "duplicate metadata": ('{"__metadata__":{},"__metadata__":{}}', "duplicate key '__metadata__'"),
    "duplicate key in metadata": ('{"__metadata__":{"k":"1","k":"2"}}', "duplicate key 'k'"),
    "metadata with a number": ('{"__metadata__":{"k":1}}', "strings to strings"),
    "metadata with an object": ('{"__metadata__":{"k":{}}}', "not a JSON object"),
    "metadata without comma": ('{"__metadata__":{"k":"1" "l":"2"}}', "strings to strings"),
    "metadata with a trailing comma": ('{"__metadata__":{"k":"1",}}', "strings to strings"),
    "metadata is a list": ('{"__metadata__":["k"]}', "not a JSON object"),
    "overlap": ({"a": entry(), "b": entry(offsets=(2, 6))}, "tensors 'a' and 'b' overlap"),
    "same range twice": ({"a": entry(), "b": entry()}, "overlap"),
    "hole": ({"a": entry(shape=(2,), offsets=(0, 2)), "b": entry(shape=(1,), offsets=(3, 4))}, "a hole of 1 bytes"),
    "hole at the start": ({"a": entry(shape=(2,), offsets=(2, 4))}, "a hole of 2 bytes"),
    "trailing bytes": ({"a": entry(shape=(3,), offsets=(0, 3))}, "1 trailing bytes"),
    "trailing bytes, no tensors": ({}, "4 trailing bytes"),
    "size and shape disagree": ({"a": entry("F32", (2,), (0, 4))}, "needs 8 bytes and its offsets [0, 4] span 4"),
    "offsets run backwards": ({"a": entry(shape=(0,), offsets=(4, 0))}, "span -4"),
    "overflow to the right size": ({"a": entry("U8", (1 << 62, 4, 1 << 62), (0, 0))}, "far too many"),
    "overflow of one dimension": ({"a": entry(shape=(1 << 64,), offsets=(0, 0))}, "tensor 'a'"),
    "overflow of an offset": ({"a": entry(offsets=(0, 1 << 64))}, "tensor 'a'"),
    "negative dimension": ({"a": entry(shape=(-4,))}, "tensor 'a'"),
    "two negative dimensions": ({"a": entry(shape=(-2, -2))}, "tensor 'a'"),
    "negative offset": ({"a": entry(offsets=(-4, 0))}, "tensor 'a'"),
    "fraction in shape": ({"a": entry(shape=(4.0,))}, "got `float`"),
    "boolean in shape": ({"a": entry(shape=(True, 4))}, "got `bool`"),
    "text in shape": ({"a": entry(shape=("4",))}, "got `str`"),
    "shape is null": ({"a": entry(shape=None)}, "tensor 'a'"),
    "100,000 dimensions": ({"a": entry(shape=[1] * 100_000)}, "300,0"),
    "65 dimensions": ({"a": entry(shape=[1] * 65)}, "length <= 64"),
    "three offsets": ({"a": entry(offsets=(0, 4, 4))}, "tensor 'a'"),
    "unknown dtype": ({"a": entry("F7")}, "unknown dtype 'F7'"),
    "lower-case dtype": ({"a": entry("u8")}, "unknown dtype 'u8'"),
    "odd sub-byte tensor": ({"a": entry("F4", (3,), (0, 1))}, "whole bytes"),
    "missing key": ({"a": {"dtype": "U8", "shape": [4]}}, "data_offsets"),
    "unknown key": ({"a": {**entry(), "code": "x"}}, "unknown field"),
    "unknown key with an escape sequence": ({"a": {**entry(), "\x1b[2J": "x"}}, "unknown field `\\x1b[2J`"),
    "long unknown key": ({"a": {**entry(), "k" * 3000: "x"}}, "unknown field `kkk"),
    "entry is a number": ({"a": 1}, "not a JSON object of tensors at byte 9"),
    "entry is a list": ({"a": []}, "not a JSON object"),
    "nested objects": ('{"a":' * 10_000, "not a JSON object"),
    "nested arrays": ('{"a":' + "[" * 100_000, "not a JSON object"),
    "nested arrays in a shape": ('{"a":{"dtype":"U8","shape":' + "[" * 3000 + "]" * 3000, "not a JSON object"),
    "empty name": ({"": entry()}, "empty name"),
    "NUL in a name": ({"a\0b": entry()}, "control characters in the tensor name 'a\\x00b'"),
    "escape sequence in a name": ({"\x1b[2J": entry()}, "'\\x1b[2J'"),
    "raw newline in a name": ('{"a\nb":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', "not a JSON string"),
    "long name": ({"a" * 4097: entry()}, "4,097 bytes"),
    "long name in UTF-8": ({"\u00e9" * 2049: entry()}, "4,098 bytes"),
    "lone surrogate": ('{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', "not a JSON string"),
    "invalid UTF-8 in a name": (b'{"\xff":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', "not a JSON string"),
    "invalid UTF-8 in an entry": (b'{"a":{"dtype":"\xff","shape":[4],"data_offsets":[0,4]}}', "tensor 'a'"),
    "overlong UTF-8": (b'{"\xc0\xaf":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', "not a JSON string"),
    "byte order mark": (b'\xef\xbb\xbf{"a":{}}', "does not begin"),
    "array": ("[]", "does not begin"),
    "leading space": (" {}", "does not begin"),
    "two objects": ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}{}', "not a JSON object"),
    "unclosed": ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}', "not a JSON object"),
    "trailing comma": ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},}', "not a JSON object"),
    "NUL padding": (b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}\0\0', "not a JSON object"),
    "comment": ('{/**/"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', "not a JSON object"),
    "single quotes": ("{'a':{'dtype':'U8','shape':[4],'data_offsets':[0,4]}}", "not a JSON object"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_refuses(attack: str) -> None:
    header, reason = ATTACKS[attack]
    assert reason in refusal(pack(header, bytes(4)))


def test_truncation_says_how_much_is_missing() -> None:
    whole = pack({"a": entry("F32", (8,), (0, 32))}, bytes(32))
    assert "is truncated: its header promises 32 bytes of tensors, the file holds 31" in refusal(whole[:-1])
    assert "is truncated: its header alone is" in refusal(whole[:20])
    assert "is truncated" in refusal(whole[:8])
    assert "is truncated" in refusal(whole[:5])
    assert "is empty" in refusal(b"")


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 1 << 63, (1 << 64) - 1])
def test_an_absurd_header_length_is_refused_without_reading_it(length: int) -> None:
    assert f"{length} bytes" in refusal(pack("{}", length=length))


@pytest.mark.parametrize("length", [0, 1])
def test_a_header_too_short_for_an_object(length: int) -> None:
    assert "does not begin" in refusal(pack("{}", length=length))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345678\n",
            "Git LFS pointer",
        ),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page or an XML answer"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page or an XML answer"),
        (b'{"error":"Repository not found"}', "JSON text"),
        (b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n", "a pickle"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl", "a zip archive"),
        (b"GGUF\x03\x00\x00\x00\x00\x00", "a GGUF file"),
    ],
)
def test_says_what_the_file_is_instead(data: bytes, what: str) -> None:
    assert what in refusal(data)


def test_a_git_lfs_pointer_is_explained() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 987654321\n"
    with pytest.raises(CheckpointFormatError) as caught:
        scan(pointer)
    assert caught.value.message == f"models/model.safetensors is a Git LFS pointer ({len(pointer)} bytes), not weights"
    assert caught.value.hint == "`git lfs pull` fetches the file, then track again"


def test_sixty_thousand_tensors_scan_in_seconds(tmp_path: Path) -> None:
    header = {
        f"model.layers.{i // 500}.mlp.experts.{i % 500}.down_proj.weight": entry("BF16", (2, 4), (16 * i, 16 * i + 16))
        for i in range(60_000)
    }
    path = tmp_path / "moe.safetensors"
    path.write_bytes(pack(header, bytes(16 * 60_000)))
    start = time.process_time()
    scanned = scan_file(path, shown="moe.safetensors")
    assert len(scanned.tensors) == 60_000
    assert time.process_time() - start < 5  # 0.5 s when nothing else runs


def test_bombs_are_refused_before_they_are_built() -> None:
    start = time.process_time()
    assert "at most" not in refusal(pack(b"{" + b'"a":{' * 4_000_000))
    assert "not a JSON object" in refusal(pack(b"{" + b",".join([b'"a":[]'] * 2_000_000) + b"}"))
    assert "not a JSON object" in refusal(pack(b'{"' + b"a\\" * 4_000_000))
    assert "100,000 entries" in refusal(
        pack(b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(150_000)) + b"}}")
    )
    assert time.process_time() - start < 10


def mutate(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(data)) if data else 0
        match rng.randrange(6):
            case 0 if data:
                data[position] = rng.randrange(256)
            case 1 if data:
                data[position] ^= 1 << rng.randrange(8)
            case 2:
                data[position:position] = rng.choice(
                    [b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"\\", b"9" * 30, b"\0"]
                )
            case 3:
                del data[position : position + rng.randint(1, 9)]
            case 4:
                end = position + rng.randint(1, 60)
                data[position:position] = data[position:end]
            case _:
                digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
                if digits:
                    data[rng.choice(digits)] = rng.choice(b"0123456789-.e")
    return bytes(data)


def test_mutated_files_scan_or_are_refused_and_nothing_else() -> None:
    rng = random.Random(20)
    header = json.dumps(
        {
            "__metadata__": {"format": "pt", "note": 'a "quoted" } brace'},
            "w": entry("BF16", (2, 3), (0, 12)),
            "b": entry("F32", (), (12, 16)),
            "e": entry("I64", (0, 7), (16, 16)),
        }
    )
    whole = pack(header, bytes(range(16)))
    assert len(scan(whole).tensors) == 3
    refused = 0
    for _ in range(6_000):
        mutant = bytearray(header.encode())
        data = mutate(mutant, rng) if rng.random() < 0.8 else mutate(bytearray(whole), rng)
        if data[8:9] != b"{" or rng.random() < 0.9:
            data = pack(data, bytes(range(16)))
        try:
            scanned = scan(data)
        except CheckpointFormatError as error:
            refused += 1
            assert error.message.startswith("models/model.safetensors ")
        else:
            assert rebuild(data, scanned) == data
            assert len({t.name for t in scanned.tensors}) == len(scanned.tensors)
    assert 3_000 < refused < 6_000


def test_whatever_we_accept_the_reference_reads_alike() -> None:
    """The check is stricter than the reference, never laxer."""
    rng = random.Random(21)
    header = json.dumps({"w": entry("U8", (2, 2), (0, 4)), "b": entry("F32", (1,), (4, 8))}).encode()
    accepted = 0
    for _ in range(4_000):
        mutant = bytearray(header)
        mutant[rng.randrange(len(mutant))] = rng.choice(b'abU8I0124,: "{}[]\\')
        data = pack(bytes(mutant), bytes(range(8)))
        try:
            scanned = scan(data)
        except CheckpointFormatError:
            continue
        accepted += 1
        loaded = {name: (value["dtype"], value["shape"]) for name, value in reference.deserialize(data)}
        assert {t.name: (t.spec.dtype, list(t.spec.shape)) for t in scanned.tensors} == loaded
    assert accepted > 100


def test_registered() -> None:
    assert FORMATS.get("safetensors") is SAFETENSORS
