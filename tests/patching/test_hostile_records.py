"""Records that a stranger made: refused as damage, never believed, never an exhausted memory."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
import xxhash

from modelgit.errors import IntegrityError
from modelgit.objects import BlobId, TensorId, TensorSpec, leaf_digest, tensor_id
from modelgit.patching.chain import anchor_of, chain_cost
from modelgit.patching.materialise import TensorReader

SPEC = TensorSpec(dtype="F32", shape=(1000,))
RAW = np.arange(1000, dtype="<f4").tobytes()


def header(
    payloads: list[bytes], *, codec: str = "raw", word: int = 4, unit: int = 512 << 10, is_float: object = True
) -> bytes:
    table = b"".join(struct.pack("<IQ", len(part), xxhash.xxh3_64_intdigest(part)) for part in payloads)
    return msgspec.msgpack.encode([codec, word, is_float, unit, table])


def put(shelf, payload: bytes, head: bytes, *, object_id=None, start=0, stop=4000, total=4000, base=None):
    object_id = object_id or tensor_id(SPEC, [leaf_digest(RAW)])
    session = shelf.store.session(epoch=0)
    session.append(object_id, start=start, stop=stop, total=total, header=head, payload=(payload,), base=base)
    session.seal()
    return object_id


def test_the_forger_can_make_a_good_one(shelf) -> None:
    object_id = put(shelf, RAW, header([RAW]))
    assert shelf.get(object_id) == RAW
    TensorReader(shelf.store).verify(object_id, SPEC)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02\x03",
        header([RAW]) + b"x",
        header([RAW], codec="no-such-codec"),
        header([RAW], codec="sparse"),
        header([RAW], codec="delta"),
        header([RAW], word=3),
        header([RAW], word=0),
        header([RAW], unit=0),
        header([RAW], unit=-8),
        header([RAW], unit=1000),
        header([RAW], unit=1 << 40),
        header([RAW], unit=1024),
        header([]),
        header([RAW, b""]),
        header([RAW[:-1]]),
        header([RAW + b"x"]),
        header([b"y" + RAW[1:]]),
        header([RAW], is_float="yes"),
    ],
)
def test_a_header_that_lies(shelf, head: bytes) -> None:
    object_id = put(shelf, RAW, head)
    with pytest.raises(IntegrityError):
        shelf.get(object_id)


@pytest.mark.parametrize("codec", ["raw", "planes"])
@pytest.mark.parametrize("payload", [b"", b"\0", b"\xff" * 40, RAW[:-4], RAW + RAW])
def test_a_payload_that_lies(shelf, codec: str, payload: bytes) -> None:
    if codec == "raw" and payload == RAW + RAW:
        pytest.skip("more words than are asked for are not looked at")
    object_id = put(shelf, payload, header([payload], codec=codec))
    with pytest.raises(IntegrityError):
        shelf.get(object_id)


def test_bases_in_a_circle(shelf) -> None:
    names = [TensorId(bytes([n + 1]) * 32) for n in range(3)]
    payload = b"\x40\x00"
    for n, object_id in enumerate(names):
        put(
            shelf,
            payload,
            header([payload], codec="sparse", unit=8 << 20),
            object_id=object_id,
            base=names[(n + 1) % 3],
        )
    own = TensorId(b"\7" * 32)
    put(shelf, payload, header([payload], codec="delta"), object_id=own, base=own)
    for object_id in (*names, own):
        with pytest.raises(IntegrityError, match=r"chain|circle"):
            shelf.get(object_id)
        assert chain_cost(shelf.store, object_id) == float("inf")
        assert anchor_of(shelf.store, object_id) is None


def test_a_base_that_is_missing_or_of_another_kind_and_one_that_is_shorter(shelf) -> None:
    from modelgit.codecs.base import CODECS, Layout

    words = np.frombuffer(RAW, "<u4")
    payload = CODECS.get("delta").encode(words, Layout(4, True), base=np.zeros(1000, "<u4"))
    base = TensorId(b"\5" * 32)
    object_id = put(shelf, payload, header([payload], codec="delta"), base=base)
    with pytest.raises(IntegrityError, match="missing"):
        shelf.get(object_id)
    put(shelf, bytes(4000), header([bytes(4000)]), object_id=BlobId(base.digest))
    with pytest.raises(IntegrityError, match="missing"):
        shelf.get(object_id)
    zeros = bytes(2000)  # a base goes on with zeros: a vocabulary may have grown
    put(shelf, zeros, header([zeros]), object_id=base, stop=2000, total=2000)
    assert shelf.get(object_id) == RAW
    assert shelf.get(object_id, 1000, 3000) == RAW[1000:3000]
    assert shelf.get(object_id, 2400, 3000) == RAW[2400:3000]


@pytest.mark.parametrize("total", [1 << 40, (1 << 63) - 8])
def test_a_size_beyond_all_memory(shelf, total: int) -> None:
    object_id = put(shelf, RAW, header([RAW]), stop=total, total=total)
    blob = BlobId(object_id.digest)
    put(shelf, RAW, header([RAW]), object_id=blob, stop=total, total=total)
    reader = TensorReader(shelf.store)
    for check in (
        lambda: reader.verify(object_id, SPEC),
        lambda: reader.verify(blob, None),
        lambda: reader.read_blob(blob),
    ):
        with pytest.raises(IntegrityError):
            check()


def test_a_part_that_is_missing_and_ranges_out_of_bounds(shelf) -> None:
    object_id = put(shelf, RAW[:2000], header([RAW[:2000]], unit=1024), stop=2000)
    with pytest.raises(IntegrityError):
        shelf.get(object_id)
    object_id = put(shelf, RAW, header([RAW]), object_id=TensorId(b"\6" * 32))
    reader = TensorReader(shelf.store)
    for start, stop in ((0, 4004), (4000, 4004), (8, 4), (1, 5), (0, 3)):
        with pytest.raises(IntegrityError):
            reader.read(object_id, start, stop)


def test_a_lying_id_is_found_by_verification(shelf) -> None:
    other = np.ones(1000, "<f4").tobytes()
    object_id = put(shelf, other, header([other]))
    with pytest.raises(IntegrityError, match="does not match its id"):
        TensorReader(shelf.store).verify(object_id, SPEC)
    good = put(shelf, RAW, header([RAW]), object_id=tensor_id(SPEC, [leaf_digest(RAW)]))
    with pytest.raises(IntegrityError, match="shape asks"):
        TensorReader(shelf.store).verify(good, TensorSpec(dtype="F32", shape=(999,)))
