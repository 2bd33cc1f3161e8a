"""Bad input from the command line on: one clear sentence, exit code 4 or 7, and nothing half-written.

Files that lie are refused before anything is recorded (7).  Stored records that lie, as a hostile remote or a failing
disk would have them, are refused before a byte of the work tree is touched (4).
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
import zstandard

from modelgit.codecs.base import CODECS, Layout
from modelgit.environment import Environment
from modelgit.numerics.streams import varint
from modelgit.objects import TensorId, id_class
from modelgit.repo import Repository
from modelgit.repo.contents import tensors_of
from modelgit.store.packs import read_index

NAME = "layers.0.weight"


def safetensors(table: dict[str, object] | str, data: bytes = b"", *, length: int | None = None) -> bytes:
    header = (table if isinstance(table, str) else json.dumps(table)).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(offsets: list[int], shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def gguf(tensors: int, body: bytes, data: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, 0) + body
    return head + bytes(-len(head) % 32) + data


def gguf_tensor(name: str, extent: int, kind: int, offset: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQIQ", 1, extent, kind, offset)


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


PAIR = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
FILES: dict[str, tuple[str, bytes, str]] = {
    "overlap": (
        "m.safetensors",
        safetensors({"a": entry([0, 8], [2]), "b": entry([4, 12], [2])}, bytes(12)),
        "overlap",
    ),
    "duplicate": ("m.safetensors", safetensors(PAIR, bytes(4)), "duplicate key 'a'"),
    "lying size": ("m.safetensors", safetensors({"a": entry([0, 8], [3])}, bytes(8)), "needs 12 bytes"),
    "hole": ("m.safetensors", safetensors({"a": entry([4, 8], [1])}, bytes(8)), "a hole of 4 bytes"),
    "truncated": ("m.safetensors", safetensors({"a": entry([0, 8], [2])}, bytes(4)), "truncated"),
    "trailing": ("m.safetensors", safetensors({"a": entry([0, 4], [1])}, bytes(5)), "1 trailing bytes"),
    "header bomb": ("m.safetensors", safetensors("{}", length=1 << 60), "its length is given as"),
    "shape bomb": ("m.safetensors", safetensors({"a": entry([0, 8], [1 << 62] * 9)}, bytes(8)), "far too many"),
    "gguf overlap": (
        "m.gguf",
        gguf(2, gguf_tensor("a", 16, 0, 0) + gguf_tensor("b", 4, 0, 32), bytes(96)),
        "tensors 'a' and 'b' overlap",
    ),
    "gguf duplicate": ("m.gguf", gguf(2, gguf_tensor("a", 4, 0, 0) * 2, bytes(64)), "duplicate tensor 'a'"),
    "gguf lying counts": ("m.gguf", gguf(1 << 50, b""), "claims"),
    "gguf truncated": ("m.gguf", gguf(1, gguf_tensor("a", 1 << 40, 2, 0), bytes(64)), "truncated"),
    "gguf partial block": ("m.gguf", gguf(1, gguf_tensor("a", 31, 2, 0), bytes(64)), "whole blocks of 32"),
    "onnx truncated": ("m.onnx", b"\x08\x08\x3a\xff\xff\x03", "needs 65535 bytes"),
    "distcp truncated": ("m.distcp", b"PK\3\4" + bytes(50), "truncated"),
    "zip truncated": ("m.pt", zipped(("archive/data.pkl", b"\x80\x02N."))[:-4], "truncated"),
    "pickle": ("m.pt", zipped(("archive/data.pkl", b"cos\nsystem\n(S'true'\ntR.")), "os.system"),
}


def assert_refused(ran: Any, says: str) -> None:
    lines = ran.err.splitlines()
    assert lines[0].startswith("error: "), ran.err
    assert says in lines[0]
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2, "one sentence and what to do"
    assert not ran.out


def state(mgit: Any) -> dict[str, bytes]:
    """Everything that must stay as it is: packs, roots and settings, and the files beside the bad one."""
    root = mgit.directory
    places = (path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in places
        if not {"cache", "worktree"} & set(path.relative_to(root).parts)
    }


@pytest.mark.parametrize("case", sorted(FILES))
def test_a_file_that_lies_is_not_tracked(mgit: Any, case: str) -> None:
    name, data, says = FILES[case]
    mgit("init")
    (mgit.directory / name).write_bytes(data)
    before = state(mgit)
    assert_refused(mgit("track", name, code=7), says)
    assert state(mgit) == before


@pytest.mark.parametrize("case", sorted(FILES))
def test_a_file_that_went_bad_is_not_committed(mgit: Any, files: Any, case: str) -> None:
    name, data, says = FILES[case]
    good = files.of_arrays(files.floats())
    folder = mgit.directory / "model"
    folder.mkdir()
    (folder / "good.safetensors").write_bytes(good)
    mgit("init")
    mgit("track", "model")
    mgit("commit", "-m", "good")
    (folder / name).write_bytes(data)
    before = state(mgit)
    for command in (["commit", "-m", "bad"], ["status"], ["diff"]):
        assert_refused(mgit(*command, code=7), says)
        assert state(mgit) == before
    (folder / name).unlink()
    assert mgit("status").out.endswith("nothing to commit\n")
    mgit("fsck")


def header(payloads: list[bytes], *, codec: str, unit: int | None = None) -> bytes:
    table = b"".join(struct.pack("<IQ", len(part), xxhash.xxh3_64_intdigest(part)) for part in payloads)
    return msgspec.msgpack.encode([codec, 4, True, unit or CODECS.get(codec).unit_bytes, table])


Forgery = Callable[["Forger"], None]


class Forger:
    """Replaces the records of one tensor of a repository; everything else is copied as it is."""

    def __init__(self, mgit: Any) -> None:
        environment = Environment.capture(mgit.values)
        self.repo = Repository.open(mgit.directory, environment=environment)
        [model] = self.repo.manifest_of(self.repo.head()).models
        tensors = tensors_of(self.repo, self.repo.manifest_of(self.repo.head()), model)
        self.id: TensorId = tensors[NAME].id
        self.other: TensorId = tensors["layers.1.weight"].id
        self.size = tensors[NAME].spec.size_bytes
        self.raw = bytes(self.repo.reader().read(self.id, 0, self.size))
        self.session = self.repo.session()

    def put(
        self,
        payload: bytes,
        codec: str,
        *,
        base: TensorId | None = None,
        size: int | None = None,
        object_id: TensorId | None = None,
        head: bytes | None = None,
    ) -> None:
        total = self.size if size is None else size
        self.session.append(
            object_id or self.id,
            start=0,
            stop=total,
            total=total,
            header=header([payload], codec=codec) if head is None else head,
            payload=(payload,),
            base=base,
        )

    def replace(self, forge: Forgery, *, also: tuple[TensorId, ...] = ()) -> None:
        """Seal packs in which `forge` has written the records of the tensor, and delete the old ones."""
        packs = sorted(self.repo.store.packs_path.iterdir())
        left_out = {item.digest for item in (self.id, *also)}
        for pack in packs:
            for item in read_index(pack):
                if item.digest in left_out:
                    continue
                found, payload = self.repo.store.read(item)
                kind = id_class(item.kind)
                self.session.append(
                    kind(item.digest),
                    start=item.start,
                    stop=item.stop,
                    total=item.total,
                    header=found,
                    payload=(payload,),
                    base=None if item.base is None else kind(item.base),
                )
        forge(self)
        self.session.seal()
        self.repo.close()
        for pack in packs:
            pack.unlink()
        shutil.rmtree(self.repo.paths.directory / "cache", ignore_errors=True)


def truncated_block(forger: Forger) -> None:
    payload = CODECS.get("planes").encode(np.frombuffer(forger.raw, "<u4"), Layout(4, True))
    forger.put(payload[: len(payload) // 2], "planes")


def lying_checksum(forger: Forger) -> None:
    head = header([forger.raw], codec="raw")
    forger.put(forger.raw[:-1] + b"\1", "raw", head=head)


def lying_size(forger: Forger) -> None:
    forger.put(forger.raw[:-4], "raw", size=forger.size - 4)


def absurd_size(forger: Forger) -> None:
    forger.put(forger.raw, "raw", size=1 << 50)


def bomb(forger: Forger) -> None:
    frame = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 28))
    # Form 0: four byte planes, each a stream of kind 2, "a frame", with its length.
    forger.put(b"\0\xaa" + (varint(len(frame)) + frame) * 4, "planes")


def indices_out_of_range(forger: Forger) -> None:
    words = np.zeros(forger.size // 4 * 8, "<u4")
    changed = words.copy()
    changed[-3:] = 7
    payload = CODECS.get("sparse").encode(changed, Layout(4, True), base=words)
    forger.put(payload, "sparse", base=forger.other)


def cycle(forger: Forger) -> None:
    zeros = np.zeros(forger.size // 4, "<u4")
    payload = CODECS.get("delta").encode(zeros, Layout(4, True), base=zeros)
    forger.put(payload, "delta", base=forger.other)
    forger.put(payload, "delta", base=forger.id, object_id=forger.other)


def deep_chain(forger: Forger) -> None:
    zeros = np.zeros(forger.size // 4, "<u4")
    payload = CODECS.get("delta").encode(zeros, Layout(4, True), base=zeros)
    names = [forger.id, *(TensorId(struct.pack("<I28x", number + 1)) for number in range(3000))]
    for name, base in zip(names, [*names[1:], None], strict=True):
        if base is None:
            forger.put(forger.raw, "raw", object_id=name)
        else:
            forger.put(payload, "delta", base=base, object_id=name)


def missing(forger: Forger) -> None:
    del forger


def another_tensor(forger: Forger) -> None:
    forger.put(bytes(forger.size), "raw")


FORGERIES: list[Forgery] = [
    truncated_block,
    lying_checksum,
    lying_size,
    absurd_size,
    bomb,
    indices_out_of_range,
    cycle,
    deep_chain,
    missing,
]


@pytest.fixture
def forged(mgit: Any, files: Any, request: pytest.FixtureRequest) -> Any:
    """A repository of one model, one tensor of which is stored in a way that `request.param` made up."""
    forge: Forgery = request.param
    (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats(rows=400)))
    mgit("init")
    mgit("track", "bot.safetensors")
    mgit("commit", "-m", "base")
    forger = Forger(mgit)
    forger.replace(forge, also=(forger.other,) if forge is cycle else ())
    return mgit


@pytest.mark.parametrize("forged", [*FORGERIES, another_tensor], indirect=True, ids=lambda forge: forge.__name__)
def test_a_record_that_lies_is_found(forged: Any) -> None:
    ran = forged("fsck", code=4)
    lines = ran.err.splitlines()
    assert any(line.startswith("error: ") for line in lines)
    assert "damaged" in ran.out


# Positions behind the end are what a read of a part of a tensor passes over: nothing is written there, and only a check
# against the id, as above and on every transfer, can tell.
UNREADABLE = [forge for forge in FORGERIES if forge is not indices_out_of_range]


@pytest.mark.parametrize("forged", UNREADABLE, indirect=True, ids=lambda forge: forge.__name__)
def test_a_record_that_lies_brings_back_no_file(forged: Any) -> None:
    (forged.directory / "bot.safetensors").unlink()
    ran = forged("restore", "bot.safetensors", code=4)
    assert ran.err.splitlines()[0].startswith("error: ")
    assert [path.name for path in forged.directory.iterdir()] == [".mgit"] or sorted(
        path.name for path in forged.directory.iterdir()
    ) == [".mgit", "mgit.toml"]


@pytest.mark.parametrize("forged", [*FORGERIES, another_tensor], indirect=True, ids=lambda forge: forge.__name__)
def test_a_record_that_lies_is_not_cloned(forged: Any) -> None:
    target = forged.directory.parent / "copy"
    ran = forged("clone", str(forged.directory), str(target), code=None, cwd=forged.directory.parent)
    # What is not there at all is the remote's failure (5), what is wrong is damage (4).
    assert ran.code in (4, 5), ran.err
    assert ran.err.splitlines()[0].startswith("error: ")
    assert not target.exists()
