"""docs/test-vectors.json against modelgit and against a reader that shares no code with it."""

import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from blake3 import blake3

from modelgit import objects
from modelgit.codecs.base import CODECS, Codec, Layout, word_dtype
from modelgit.codecs.lowrank import decode_factors, encode_factors
from modelgit.codecs.masked import MaskedCodec
from modelgit.numerics.logquant import decode as decode_codes
from modelgit.numerics.lowrank import predict
from modelgit.numerics.sections import decode_section, encode_section
from modelgit.numerics.sparse import decode_positions
from modelgit.objects import LEAF_BYTES, TensorSpec, blob_id, id_class, leaf_digest, tensor_id
from modelgit.patching.positions import Section
from modelgit.patching.records import UnitChecks, encode_header

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[2] / "docs" / "test-vectors.json").read_text(encoding="utf-8")
)
RECORDS = {
    "content": objects.FileContent,
    "manifest": objects.Manifest,
    "patch": objects.Patch,
    "commit": objects.Commit,
    "mask": objects.Mask,
    "fisher": objects.FisherEstimate,
    "eval": objects.EvalRecord,
    "note": objects.Note,
    "operation": objects.Operation,
    "statistics": objects.Statistics,
}


def data_of(vector: dict[str, Any]) -> bytes:
    if "bytes" in vector:
        return bytes.fromhex(vector["bytes"])
    piece = bytes.fromhex(vector["repeat"])
    return (piece * (vector["size"] // len(piece) + 1))[: vector["size"]]


def leaves_of(data: bytes) -> list[bytes]:
    return [leaf_digest(data[at : at + LEAF_BYTES]) for at in range(0, len(data), LEAF_BYTES) or (0,)]


def from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"]) if set(value) == {"hex"} else {k: from_json(v) for k, v in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("vector", VECTORS["tensors"], ids=lambda v: f"{v['dtype']}{v['shape']}")
def test_tensor_ids(vector: dict[str, Any], second_reader: ModuleType) -> None:
    data = data_of(vector)
    leaves = leaves_of(data)
    assert [leaf.hex() for leaf in leaves] == vector["leaves"]
    assert tensor_id(TensorSpec(dtype=vector["dtype"], shape=tuple(vector["shape"])), leaves).hex == vector["id"]
    assert second_reader.tensor_id(vector["dtype"], vector["shape"], data).hex() == vector["id"]


def test_shape_and_dtype_are_part_of_an_id() -> None:
    assert len({vector["id"] for vector in VECTORS["tensors"]}) == len(VECTORS["tensors"])


def test_an_id_by_hand() -> None:
    """The first vector, a float32 scalar of 1.0, without a line of anybody's code."""
    vector = VECTORS["tensors"][0]
    leaf = blake3(b"mgit:leaf:v1\0" + struct.pack("<f", 1.0)).digest()
    content = b"\x03F32" + struct.pack("<I", 0) + leaf
    assert blake3(b"mgit:tensor:v1\0" + content).hexdigest() == vector["id"]


@pytest.mark.parametrize("vector", VECTORS["blobs"], ids=lambda v: f"{len(v['bytes']) // 2} bytes")
def test_blob_ids(vector: dict[str, Any], second_reader: ModuleType) -> None:
    data = data_of(vector)
    assert blob_id(len(data), leaves_of(data)).hex == vector["id"]
    assert second_reader.blob_id(data).hex() == vector["id"]


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda v: v["kind"])
def test_records(vector: dict[str, Any], second_reader: ModuleType) -> None:
    canonical = bytes.fromhex(vector["canonical"])
    fields = from_json(vector["fields"])
    assert second_reader.pack(fields) == canonical
    assert second_reader.unpack(canonical) == fields == msgspec.msgpack.decode(canonical)
    assert second_reader.record_id(vector["kind"], canonical).hex() == vector["id"]
    record = objects.decode(RECORDS[vector["kind"]], canonical)
    assert objects.encode(record) == canonical
    assert id_class(vector["kind"]).of(canonical).hex == vector["id"]


def test_there_is_a_vector_for_every_kind_of_record() -> None:
    assert {vector["kind"] for vector in VECTORS["records"]} == set(RECORDS)


def codec_of(vector: dict[str, Any]) -> Codec:
    codec = CODECS.get(vector["codec"])
    return codec.under(np.array(vector["places"], np.uint32)) if isinstance(codec, MaskedCodec) else codec


@pytest.mark.parametrize("number", range(len(VECTORS["payloads"])))
def test_payloads(number: int, second_reader: ModuleType) -> None:
    vector = VECTORS["payloads"][number]
    raw, payload = bytes.fromhex(vector["raw"]), bytes.fromhex(vector["payload"])
    base = None if vector["base"] is None else bytes.fromhex(vector["base"])
    word_bytes, is_float = vector["word_bytes"], vector["is_float"]
    places = vector.get("places", [])
    assert second_reader.decode_unit(vector["codec"], payload, word_bytes, is_float, len(raw), base, places) == raw
    kind = word_dtype(Layout(word_bytes, is_float))
    out = np.zeros(len(raw) // word_bytes, kind)
    old = None if base is None else np.frombuffer(base, kind)
    codec_of(vector).decode(payload, Layout(word_bytes, is_float), out, base=old)
    assert out.tobytes() == raw


@pytest.mark.parametrize("number", range(len(VECTORS["payloads"])))
def test_what_is_encoded_now_is_what_the_documents_say(number: int, second_reader: ModuleType) -> None:
    vector = VECTORS["payloads"][number]
    layout = Layout(vector["word_bytes"], vector["is_float"])
    raw = bytes.fromhex(vector["raw"])
    base = None if vector["base"] is None else bytes.fromhex(vector["base"])
    old = None if base is None else np.frombuffer(base, word_dtype(layout))
    payload = codec_of(vector).encode(np.frombuffer(raw, word_dtype(layout)), layout, base=old)
    places = vector.get("places", [])
    assert second_reader.decode_unit(vector["codec"], payload, *layout, len(raw), base, places) == raw


def test_payloads_show_every_codec_and_every_kind_of_stream() -> None:
    assert {vector["codec"] for vector in VECTORS["payloads"]} == set(CODECS)
    frames = [vector for vector in VECTORS["payloads"] if "28b52ffd" in vector["payload"]]
    assert len(frames) >= 2  # a zstd frame begins with these four bytes
    masked = {(item["codec"], item["payload"][:2]) for item in VECTORS["payloads"] if item["codec"].startswith("mask")}
    assert masked >= {("masked", "00"), ("masked", "01"), ("masked", "02"), ("masked-context", "00")}
    assert ("masked-context", "03") in masked


@pytest.mark.parametrize("vector", VECTORS["positions"], ids=lambda v: f"{len(v['positions'])} of {v['span']}")
def test_positions(vector: dict[str, Any], second_reader: ModuleType) -> None:
    data = bytes.fromhex(vector["bytes"])
    assert decode_positions(data, vector["span"]).tolist() == vector["positions"]
    cursor, found = second_reader.Cursor(data), []
    for start in range(0, vector["span"], 1 << 32):
        block = second_reader.read_positions(cursor, min(vector["span"] - start, 1 << 32))
        found += [start + position for position in block]
    assert cursor.at == len(data)
    assert found == vector["positions"]


@pytest.mark.parametrize("vector", VECTORS["sections"], ids=lambda v: f"{len(v['positions'])} of {v['elements']}")
def test_sections(vector: dict[str, Any], second_reader: ModuleType) -> None:
    data, n = bytes.fromhex(vector["bytes"]), vector["elements"]
    assert decode_section(data, n, max_count=len(vector["positions"])).tolist() == vector["positions"]
    assert encode_section(np.array(vector["positions"], np.int64), n) == data
    assert second_reader.read_section(data, n) == vector["positions"]


@pytest.mark.parametrize("vector", VECTORS["log_codes"], ids=lambda v: f"scale {v['scale']}")
def test_codes_of_statistics(vector: dict[str, Any], second_reader: ModuleType) -> None:
    codes, values = bytes.fromhex(vector["codes"]), np.frombuffer(bytes.fromhex(vector["values"]), "<f4")
    assert np.array_equal(decode_codes(np.frombuffer(codes, np.uint8), vector["scale"]), values)
    assert [second_reader.log_value(code, vector["scale"]) for code in codes] == values.tolist()


@pytest.mark.parametrize("vector", VECTORS["headers"], ids=lambda v: v["codec"])
def test_record_headers(vector: dict[str, Any], second_reader: ModuleType) -> None:
    payloads = [bytes.fromhex(payload) for payload in vector["payloads"]]
    data = bytes.fromhex(vector["bytes"])
    layout = Layout(vector["word_bytes"], vector["is_float"])
    place = vector.get("section")
    section = None if place is None else Section(objects.BlobId(bytes(32)), *place)
    codec = CODECS.get(vector["codec"])
    assert encode_header(codec, layout, UnitChecks.of(payloads), section=section) == data
    units = b"".join(struct.pack("<IQ", len(part), xxhash.xxh3_64_intdigest(part)) for part in payloads)
    more = [] if place is None else [0, 0, *place]
    assert second_reader.unpack(data) == [vector["codec"], *layout, codec.unit_bytes, units, *more]


@pytest.mark.parametrize("vector", VECTORS["corrections"], ids=lambda v: v["dtype"])
def test_corrections_of_a_base(vector: dict[str, Any], second_reader: ModuleType) -> None:
    prelude, base, first = bytes.fromhex(vector["prelude"]), bytes.fromhex(vector["base"]), vector["first_word"]
    predicted = bytes.fromhex(vector["predicted"])
    assert second_reader.correct_base(prelude, base, first) == predicted
    layout = Layout(4 if vector["dtype"] == "F32" else 2, True)
    words = np.frombuffer(bytearray(base), word_dtype(layout))
    factors = decode_factors(prelude, layout, first, words.size)
    again = decode_factors(encode_factors(factors), layout, first, words.size)
    assert np.array_equal(again.left, factors.left)
    assert np.array_equal(again.right, factors.right)
    assert again[:4] == factors[:4]
    for start, stop in ((0, words.size), (1, words.size - 1), (words.size // 2, words.size // 2 + 1)):
        out = np.empty(stop - start, words.dtype)
        predict(factors, words[start:stop], first + start, out)
        assert out.tobytes() == predicted[start * layout.word_bytes : stop * layout.word_bytes]
    predict(factors, words, first, words)
    assert words.tobytes() == predicted
