"""Records whose base is corrected before their units are decoded against it."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
import xxhash

from modelgit.codecs.base import CODECS, Layout, word_dtype
from modelgit.codecs.lowrank import encode_factors
from modelgit.errors import IntegrityError
from modelgit.numerics.lowrank import Factors, predict, rows_of
from modelgit.objects import LEAF_BYTES, TensorId, TensorSpec, leaf_digest, tensor_id
from modelgit.patching.materialise import TensorReader

COLUMNS = 700


def spec_of(dtype: str, raw: bytes) -> TensorSpec:
    return TensorSpec(dtype=dtype, shape=(len(raw) // (4 if dtype == "F32" else 2),))


def id_of(dtype: str, raw: bytes) -> TensorId:
    leaves = [leaf_digest(raw[at : at + LEAF_BYTES]) for at in range(0, len(raw), LEAF_BYTES)]
    return tensor_id(spec_of(dtype, raw), leaves)


def store_corrected(
    shelf, base: TensorId, old: np.ndarray, new: np.ndarray, codec: str, *, cut: int, dtype: str, harm: str = ""
) -> TensorId:
    """Store `new` in two records, cut at byte `cut`, each with a prelude of its own."""
    layout = Layout(new.itemsize, True)
    object_id = id_of(dtype, new.tobytes())
    session = shelf.store.session(epoch=0)
    step = CODECS.get(codec).unit_bytes // new.itemsize
    for start, stop in ((0, cut // new.itemsize), (cut // new.itemsize, new.size)):
        if start == stop:
            continue
        first, rows = rows_of(start, stop - start, COLUMNS)
        rng = np.random.default_rng(start)
        left = rng.integers(-(1 << 20), 1 << 20, (rows, 3)).astype(np.float64)
        right = rng.integers(-(1 << 20), 1 << 20, (COLUMNS, 3)).astype(np.float64)
        factors = Factors(dtype, -48, False, first, left, right)
        prelude = encode_factors(factors)
        known = old[start:stop].copy()
        predict(factors, known, start, known)
        payloads = [
            CODECS.get(codec).encode(new[start:stop][at : at + step], layout, base=known[at : at + step])
            for at in range(0, stop - start, step)
        ]
        table = b"".join(struct.pack("<IQ", len(part), xxhash.xxh3_64_intdigest(part)) for part in payloads)
        fields = [codec, *layout, CODECS.get(codec).unit_bytes, table, len(prelude), xxhash.xxh3_64_intdigest(prelude)]
        if harm == "prelude":
            prelude = prelude[:-1] + bytes([prelude[-1] ^ 1])
        elif harm == "short":
            fields[5] -= 1
        elif harm == "no check":
            del fields[6]
        elif harm == "not a prelude":
            prelude = b"\7" * len(prelude)
            fields[6] = xxhash.xxh3_64_intdigest(prelude)
        session.append(
            object_id,
            start=start * new.itemsize,
            stop=stop * new.itemsize,
            total=new.nbytes,
            header=msgspec.msgpack.encode(fields),
            payload=(prelude, *payloads),
            base=base,
        )
    session.seal()
    return object_id


def matrices(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    count = (12 << 20) // (4 if dtype == "F32" else 2)
    kind = word_dtype(Layout(4 if dtype == "F32" else 2, True))
    old = rng.integers(0, np.iinfo(kind).max, count, kind, endpoint=True)
    return old, old ^ (rng.random(count) < 0.1).astype(kind)


@pytest.mark.parametrize("codec", ["delta", "sparse"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_any_range_reads_back(shelf, codec: str, dtype: str) -> None:
    old, new = matrices(dtype)
    base = shelf.put(old.tobytes(), dtype=dtype).id
    object_id = store_corrected(shelf, base, old, new, codec, cut=8 << 20, dtype=dtype)
    raw = new.tobytes()
    assert shelf.get(object_id) == raw
    reader = TensorReader(shelf.store)
    reader.verify(object_id, spec_of(dtype, raw))
    rng = np.random.default_rng(6)
    for _ in range(25):
        start = int(rng.integers(0, len(raw))) // 4 * 4
        stop = min(len(raw), start + int(rng.choice([4, 1400, 1 << 20])) // 4 * 4)
        assert reader.read(object_id, start, stop) == raw[start:stop]
    assert reader.read(object_id, (8 << 20) - 8, (8 << 20) + 8) == raw[(8 << 20) - 8 : (8 << 20) + 8]


@pytest.mark.parametrize("harm", ["prelude", "short", "no check", "not a prelude"])
def test_damage_is_noticed(shelf, harm: str) -> None:
    old, new = matrices("BF16")
    base = shelf.put(old.tobytes(), dtype="BF16").id
    object_id = store_corrected(shelf, base, old, new, "sparse", cut=0, dtype="BF16", harm=harm)
    with pytest.raises(IntegrityError):
        shelf.get(object_id)


def test_only_what_has_a_base_has_a_prelude(shelf) -> None:
    raw = bytes(range(256))
    prelude = encode_factors(Factors("BF16", 0, False, 0, np.ones((1, 1)), np.ones((128, 1))))
    table = struct.pack("<IQ", len(raw), xxhash.xxh3_64_intdigest(raw))
    for length in (len(prelude), -1, 1 << 40):
        fields = ["raw", 2, True, 512 << 10, table, length, xxhash.xxh3_64_intdigest(prelude)]
        object_id = TensorId(bytes([length & 0x7F]) * 32)
        session = shelf.store.session(epoch=0)
        session.append(
            object_id,
            start=0,
            stop=256,
            total=256,
            header=msgspec.msgpack.encode(fields),
            payload=(prelude, raw),
        )
        session.seal()
        with pytest.raises(IntegrityError, match="prelude"):
            shelf.get(object_id)
