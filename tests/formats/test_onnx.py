"""ONNX: initialisers of models of the reference library are found, and crafted messages are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import scan_file
from modelgit.formats.onnx import ONNX, ONNX_DATA
from modelgit.objects import TensorSpec
from modelgit.testing.fuzzing import MemoryFile, fuzz


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, body: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(body)) + body


def tensor(name: str = "w", dims: tuple[int, ...] = (2,), kind: int = 1, raw: bytes | None = bytes(8)) -> bytes:
    body = b"".join(number(1, extent) for extent in dims) + number(2, kind) + message(8, name.encode())
    return body if raw is None else body + message(9, raw)


def model(*tensors: bytes) -> bytes:
    return number(1, 8) + message(7, b"".join(message(5, item) for item in tensors))


def scan(data: bytes, name: str = "model.onnx") -> ScannedFile:
    return ONNX.scan(MemoryFile(data, name=name))


def refusal(data: bytes) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        scan(data)
    assert caught.value.message.startswith("model.onnx ")
    assert "\n" not in caught.value.message
    return caught.value.message


def reference(external: Path | None = None) -> bytes:
    onnx = pytest.importorskip("onnx")  # for reference only: the library does not need it
    from onnx import TensorProto, helper, numpy_helper

    arrays = {
        "dense": np.arange(12, dtype=np.float32).reshape(3, 4),
        "ids": np.arange(5, dtype=np.int64),
        "scalar": np.float16(2.5).reshape(()),
        "empty": np.zeros((0, 4), np.float32),
    }
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    initializers.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0]))
    initializers.append(helper.make_tensor("halves", TensorProto.BFLOAT16, [2], b"\0\1\2\3", raw=True))
    initializers.append(helper.make_tensor("nibbles", TensorProto.INT4, [3], b"\x21\x03", raw=True))
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3, np.float32), "inner"))
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("c", 1, [3])], initializers)
    made = helper.make_model(graph)
    if external is not None:
        onnx.save_model(
            made,
            external,
            save_as_external_data=True,
            location="model.onnx_data",
            size_threshold=0,
            all_tensors_to_one_file=True,
        )
        return external.read_bytes()
    return made.SerializeToString()


def test_models_of_the_reference_library() -> None:
    data = reference()
    found = scan(data)
    assert [(t.name, t.spec.dtype, t.spec.shape) for t in found.tensors] == [
        ("dense", "F32", (3, 4)),
        ("ids", "I64", (5,)),
        ("scalar", "F16", ()),
        ("empty", "F32", (0, 4)),
        ("halves", "BF16", (2,)),
        ("nibbles", "U8", (2,)),
    ]
    assert sum(item.length for item in found.ranges) == len(data)
    places = {found.tensors[item.tensor].name: item for item in found.ranges if item.tensor is not None}
    raw = {name: data[item.offset : item.offset + item.length] for name, item in places.items()}
    assert raw["dense"] == np.arange(12, dtype=np.float32).tobytes()
    assert raw["nibbles"] == b"\x21\x03"


def test_external_data_is_one_tensor_of_words(tmp_path: Path) -> None:
    reference(tmp_path / "model.onnx")
    assert not scan_file(tmp_path / "model.onnx", shown="model.onnx").tensors
    found = scan_file(tmp_path / "model.onnx_data", shown="model.onnx_data")
    size = (tmp_path / "model.onnx_data").stat().st_size
    assert found.format == "onnx-data"
    assert found.tensors[0].spec == TensorSpec(dtype="U32", shape=(size // 4,))
    assert sum(item.length for item in found.ranges) == size


@pytest.mark.parametrize("size", [0, 3, 4, 4099])
def test_external_data_of_any_size(size: int) -> None:
    found = ONNX_DATA.scan(MemoryFile(bytes(size), name="m.onnx.data"))
    assert sum(item.length for item in found.ranges) == size
    assert len(found.tensors) == (size >= 4)


@pytest.mark.parametrize(
    ("name", "is_data"),
    [
        ("m.onnx_data", True),
        ("m.onnx.data", True),
        ("m.onnx_data_1", True),
        ("m.onnx", False),
        ("m.data", False),
        (".onnx_data", False),
    ],
)
def test_names_of_external_data(name: str, is_data: bool) -> None:
    assert ONNX_DATA.detect(b"", name) is is_data


def test_packed_extents_are_read_like_single_ones() -> None:
    packed = message(1, varint(2) + varint(300)) + number(2, 2) + message(8, b"w") + message(9, bytes(600))
    assert scan(model(packed)).tensors[0].spec == TensorSpec(dtype="U8", shape=(2, 300))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no graph"),
        (number(1, 8), "no graph"),
        (b"not a model at all", "model"),
        (model(tensor())[:-3], "needs"),
        (model() + model(), "two graphs"),
        (model(tensor(), tensor()), "duplicate tensor"),
        (model(tensor(name="")), "empty name"),
        (model(tensor(name="a\x07")), "control characters"),
        (model(tensor(dims=(3,))), "needs 12 bytes and has 8"),
        (model(tensor(dims=(1 << 62, 1 << 62))), "a tensor of"),
        (model(tensor(dims=((1 << 64) - 1,))), "a tensor with shape"),
        (model(tensor(dims=(1,) * 65)), "more than 64 dimensions"),
        (model(tensor(dims=(1 << 63,) * 9, kind=15)), "far too many"),
        (model(tensor(kind=8)), "of type 8"),
        (model(tensor(kind=99)), "of type 99"),
        (model(tensor() + message(9, bytes(8))), "comes twice"),
        (model(tensor() + message(4, bytes(8))), "holds its values twice"),
        (model(tensor() + number(14, 1)), "holds its values twice"),
        (model(tensor() + message(13, b"")), "holds its values twice"),
        (model(tensor() + number(8, 1)), "comes twice or in another form"),
        (number(1, 8) + varint(7 << 3 | 3), "unknown wire type 3"),
        (number(1, 8) + varint(7), "number 0"),
        (number(1, 8) + b"\x80" * 11, "more than 64 bits"),
        (message(7, message(5, tensor()) + varint(5 << 3 | 2) + varint(1 << 40)), "its message has"),
        (message(7, varint(1 << 3)) + number(1, 300), "past the end of its message"),
    ],
)
def test_refusals(data: bytes, says: str) -> None:
    assert says in refusal(data)


def test_fuzz() -> None:
    small = model(tensor("a"), tensor("b", (3,), 2, b"abc"), tensor("c", (), 1, None) + message(4, bytes(4)))
    outcome = fuzz(scan, [small, model()], tokens=(tensor(), message(1, b"\1\2")))
    assert 0 < outcome.accepted < outcome.tried
