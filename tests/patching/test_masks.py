"""Tensors stored under a mask: extents and ranges, and records that lie about where their positions are."""

from __future__ import annotations

import struct
import tracemalloc

import msgspec
import numpy as np
import pytest
import xxhash

from modelgit.codecs.base import CODECS, Layout
from modelgit.errors import IntegrityError
from modelgit.numerics.sections import BLOCK_ELEMENTS, encode_section
from modelgit.numerics.streams import varint
from modelgit.objects import BlobId, TensorId, TensorSpec
from modelgit.patching.chain import chain_cost
from modelgit.patching.encode import TensorWriter, write_blob
from modelgit.patching.jobs import BlobSource, Stored, StoreJob
from modelgit.patching.materialise import TensorReader
from modelgit.patching.positions import PositionReads, Section
from modelgit.testing.fuzzing import fuzz


def keep(shelf, positions: np.ndarray, n: int, *, before: bytes = b"") -> Section:
    data = encode_section(positions, n)
    session = shelf.store.session(epoch=0)
    blob = write_blob(session, before + data + b"behind", name="positions")
    session.seal()
    return Section(blob, len(before), len(data))


def put(
    shelf, raw: bytes, *, dtype: str, parent: TensorId, masks: tuple[Section, ...] = (), threads: int = 1
) -> Stored:
    spec = TensorSpec(dtype=dtype, shape=(len(raw) * 8 // TensorSpec(dtype=dtype).kind.bits,))
    session = shelf.store.session(epoch=0)
    job = StoreJob("t", BlobSource(raw), spec, len(raw), parent, masks=masks)
    stored = next(TensorWriter(session, threads=threads, verify=True).store([job]))
    session.seal()
    return stored


@pytest.mark.parametrize(("dtype", "count"), [("F32", 40_000), ("F32", 19 << 20), ("BF16", 9 << 20), ("U8", 70 << 20)])
def test_any_size_and_any_range(shelf, dtype: str, count: int) -> None:
    """Small ones, several units, and (76 MiB) several extents; ranges across the borders of all of these."""
    random = np.random.default_rng(3)
    width = TensorSpec(dtype=dtype).kind.bits // 8
    base = random.integers(0, 250, count, np.uint8).astype(f"<u{width}")
    first = shelf.put(base.tobytes(), dtype=dtype)
    positions = np.flatnonzero(random.random(count) < 0.003)
    mask = keep(shelf, positions, count, before=b"another section")
    states, ids = [base], [first.id]
    for step in range(2):
        words = states[-1].copy()
        words[positions] += np.dtype(f"<u{width}").type(step + 1)
        stored = put(shelf, words.tobytes(), dtype=dtype, parent=ids[-1], masks=() if step else (mask,), threads=2)
        assert stored.codec == "masked"
        assert stored.values_changed == positions.size
        states.append(words)
        ids.append(stored.id)
    size = count * width
    for object_id, words in zip(ids, states, strict=True):
        raw = words.tobytes()
        TensorReader(shelf.store).verify(object_id, TensorSpec(dtype=dtype, shape=(count,)))
        for border in (0, 8 << 20, BLOCK_ELEMENTS * width, 64 << 20, size):
            for start, stop in ((border - 4096, border + 4096), (border - 8, border), (border, border + 8)):
                low, high = max(0, min(start, size)), max(0, min(stop, size))
                assert shelf.get(object_id, low, high) == raw[low:high]
    assert all(item.positions == mask.blob.digest for item in shelf.records(ids[-1]))
    assert chain_cost(shelf.store, ids[-1]) < 1.3


def test_a_mask_that_does_not_explain_the_change_is_no_harm(shelf) -> None:
    random = np.random.default_rng(3)
    base = random.standard_normal(200_000).astype("<f4")
    first = shelf.put(base.tobytes())
    mask = keep(shelf, np.arange(0, 200_000, 300), 200_000)
    short = Section(mask.blob, mask.offset, mask.length - 3)
    words = base.copy()
    words[random.choice(200_000, 500, replace=False)] *= 2
    assert put(shelf, words.tobytes(), dtype="F32", parent=first.id, masks=(mask,)).codec == "sparse"
    trained = base.copy()
    trained[::300] *= 2
    under = put(shelf, trained.tobytes(), dtype="F32", parent=first.id, masks=(mask,))
    assert under.codec == "masked"
    grown = put(shelf, trained.tobytes() + bytes(400), dtype="F32", parent=under.id)
    assert grown.codec == "sparse"  # its parent's mask is one of another size
    missing = Section(BlobId(b"\1" * 32), 0, 5)
    words[5] = 7
    assert put(shelf, words.tobytes(), dtype="F32", parent=first.id, masks=(missing,)).codec == "sparse"
    words[6] = 7
    with pytest.raises(IntegrityError):  # a mask that is stored and damaged is not passed over in silence
        put(shelf, words.tobytes(), dtype="F32", parent=first.id, masks=(short,))


# -- records that lie

COUNT = 1000
POSITIONS = np.arange(0, COUNT, 10)
LAYOUT = Layout(4, True)


class Forger:
    def __init__(self, shelf) -> None:
        self.shelf = shelf
        self.base = shelf.put(np.arange(COUNT, dtype="<f4").tobytes()).id
        self.section = keep(shelf, POSITIONS, COUNT)
        old = np.arange(COUNT, dtype="<f4").view("<u4")
        self.words = old.copy()
        self.words[POSITIONS] += np.uint32(5)
        self.payload = CODECS.get("masked").under(POSITIONS.astype(np.uint32)).encode(self.words, LAYOUT, base=old)
        self.number = 0

    def header(self, *fields: object, codec: str = "masked", unit: int = 8 << 20, word: int = 4) -> bytes:
        table = struct.pack("<IQ", len(self.payload), xxhash.xxh3_64_intdigest(self.payload))
        return msgspec.msgpack.encode([codec, word, True, unit, table, *fields])

    def put(self, header: bytes, *, blob: BlobId | None, total: int = 4 * COUNT, kind: type = TensorId, base="own"):
        self.number += 1
        object_id = kind(bytes([self.number]) * 32)
        session = self.shelf.store.session(epoch=0)
        session.append(
            object_id,
            start=0,
            stop=total,
            total=total,
            header=header,
            payload=(self.payload,),
            base=(self.base if kind is TensorId else BlobId(self.base.digest)) if base == "own" else base,
            positions=blob,
        )
        session.seal()
        return object_id


@pytest.fixture
def forger(shelf) -> Forger:
    return Forger(shelf)


def test_the_forger_can_make_a_good_one(forger: Forger, shelf) -> None:
    _, offset, length = forger.section
    object_id = forger.put(forger.header(0, 0, offset, length), blob=forger.section.blob)
    assert shelf.get(object_id) == forger.words.tobytes()


def test_headers_and_rows_that_contradict_each_other(forger: Forger, shelf) -> None:
    blob, offset, length = forger.section
    good = (0, 0, offset, length)
    for header, named in (
        (forger.header(*good), None),
        (forger.header(), blob),
        (forger.header(0, 0, 0, 0), blob),
        (forger.header(0, 0, -1, length), blob),
        (forger.header(0, 0, offset, -length), blob),
        (forger.header(5, 9, offset, length), blob),
        (forger.header(*good, codec="sparse"), blob),
        (forger.header(codec="sparse"), blob),
        (forger.header(*good, 0), blob),
        (forger.header(0, 0, "a", length), blob),
    ):
        object_id = forger.put(header, blob=named)
        with pytest.raises(IntegrityError):
            shelf.get(object_id)
    with pytest.raises(IntegrityError, match="without a base"):
        shelf.get(forger.put(forger.header(*good), blob=blob, base=None))
    with pytest.raises(IntegrityError, match="under a mask"):
        shelf.get(forger.put(forger.header(*good, word=1), blob=blob, kind=BlobId))


def test_a_blob_that_is_missing_or_short_or_something_else(forger: Forger, shelf) -> None:
    blob, offset, length = forger.section
    header = forger.header(0, 0, offset, length)
    with pytest.raises(IntegrityError, match="missing"):
        shelf.get(forger.put(header, blob=BlobId(b"\7" * 32)))
    with pytest.raises(IntegrityError, match="missing"):  # a tensor of that digest is no blob
        shelf.get(forger.put(header, blob=BlobId(forger.base.digest)))
    with pytest.raises(IntegrityError, match="too short"):
        shelf.get(forger.put(forger.header(0, 0, offset, length + 1000), blob=blob))
    for at, size in ((offset + 1, length - 1), (offset, length - 1), (offset, length + 1), (1 << 60, 5)):
        with pytest.raises(IntegrityError):
            shelf.get(forger.put(forger.header(0, 0, at, size), blob=blob))


def test_another_mask_of_another_count_and_positions_out_of_range(forger: Forger, shelf) -> None:
    for positions in (POSITIONS[:-1], np.arange(0, COUNT, 5)):
        other = keep(shelf, positions, COUNT)
        object_id = forger.put(forger.header(0, 0, other.offset, other.length), blob=other.blob)
        with pytest.raises(IntegrityError, match="positions of a mask"):
            shelf.get(object_id)
    beyond = keep(shelf, POSITIONS + 50, COUNT + 100)
    with pytest.raises(IntegrityError, match="beyond"):
        shelf.get(forger.put(forger.header(0, 0, beyond.offset, beyond.length), blob=beyond.blob))
    # As many as there should be, elsewhere: only the id can tell.
    moved = keep(shelf, POSITIONS + 1, COUNT)
    object_id = forger.put(forger.header(0, 0, moved.offset, moved.length), blob=moved.blob)
    with pytest.raises(IntegrityError, match="does not match its id"):
        TensorReader(shelf.store).verify(object_id, TensorSpec(dtype="F32", shape=(COUNT,)))


def test_positions_in_a_circle(forger: Forger, shelf) -> None:
    """A blob cannot be coded under a mask, so that the only circles are those of bases, which end."""
    header = forger.header(0, 0, 0, 10, word=1)
    blob = BlobId(bytes([forger.number + 1]) * 32)
    assert forger.put(header, blob=blob, kind=BlobId, base=blob) == blob
    object_id = forger.put(forger.header(0, 0, 0, 10), blob=blob)
    with pytest.raises(IntegrityError):
        shelf.get(object_id)


@pytest.mark.parametrize("total", [1 << 43, (1 << 63) - 8])
def test_a_tensor_beyond_all_memory(forger: Forger, shelf, total: int) -> None:
    """A declared size of terabytes costs what is asked for, and a list of all its positions nothing like it."""
    blob, offset, length = forger.section
    object_id = forger.put(forger.header(0, 0, offset, length, unit=8 << 20), blob=blob, total=total)
    with pytest.raises(IntegrityError):
        shelf.get(object_id, 0, 4096)


def test_dense_blocks_are_bounded_by_the_range(forger: Forger, shelf) -> None:
    """Constant bitmaps: a few bytes that say that every element of a tensor of 2^30 is a position."""
    blocks = 512
    block = b"\5" + varint(BLOCK_ELEMENTS - 1) + b"\1\xff"
    data = b"".join([*(varint(len(block)) for _ in range(blocks - 1)), *[block] * blocks])
    session = shelf.store.session(epoch=0)
    blob = write_blob(session, data, name="bomb")
    session.seal()
    total = 4 * blocks * BLOCK_ELEMENTS
    units = -(-total // (8 << 20))
    forger.payload = bytes((1,)) + varint(BLOCK_ELEMENTS) + b"\0" + bytes((0b01010101,)) + b"\0" * 4
    one = struct.pack("<IQ", len(forger.payload), xxhash.xxh3_64_intdigest(forger.payload))
    forger.payload = forger.payload * units
    header = msgspec.msgpack.encode(["masked", 4, True, 8 << 20, one * units, 0, 0, 0, len(data)])
    object_id = forger.put(header, blob=blob, total=total)
    tracemalloc.start()
    try:
        assert shelf.get(object_id, 0, 4096) == np.arange(COUNT, dtype="<f4").tobytes() + bytes(96)
        assert shelf.get(object_id, total - 4096, total) == bytes(4096)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_mutants_of_the_header(forger: Forger, shelf) -> None:
    blob, offset, length = forger.section
    good = forger.header(0, 0, offset, length)
    located, _ = TensorReader(shelf.store).record(forger.put(good, blob=blob))
    body = located.length - located.header

    class Fake:
        """The shelf's store with another header."""

        def __init__(self, header: bytes) -> None:
            self.header = header

        def __getattr__(self, name: str) -> object:
            return getattr(shelf.store, name)

        def locate(self, object_id):
            if object_id.digest == located.digest:
                return [located._replace(header=len(self.header), length=body + len(self.header))]
            return shelf.store.locate(object_id)

        def read_part(self, item, start: int, stop: int) -> bytes:
            if item.digest == located.digest:
                return (forger.payload + self.header)[start:stop]
            return shelf.store.read_part(item, start, stop)

    def read(header: bytes) -> None:
        TensorReader(Fake(header)).read(TensorId(located.digest), 0, 4 * COUNT)

    fuzz(read, [good], count=15_000)


def test_mutants_of_the_positions() -> None:
    n = BLOCK_ELEMENTS + 5000
    data = encode_section(np.array([4, 77, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 4999]), n)
    blob = BlobId(bytes(32))

    class Fake:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def size(self, _: BlobId) -> int:
            return len(self.data)

        def read(self, _: BlobId, start: int, stop: int) -> bytearray:
            return bytearray(self.data[start:stop])

    def read(mutant: bytes) -> None:
        found = PositionReads(Fake(mutant)).places(Section(blob, 0, len(data)), n, BLOCK_ELEMENTS - 100, n)
        assert not found.size or found[-1] < 5100

    assert fuzz(read, [data, data + b"behind"], count=30_000).accepted
