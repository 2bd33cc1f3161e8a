"""Ranges checked against an id by its leaves: what passes, what does not, and how little is read for it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from modelgit.errors import IntegrityError
from modelgit.objects import LEAF_BYTES, BlobId, TensorId, TensorSpec, leaf_digests, preimage
from modelgit.patching.leaves import LeafChecks, VerifiedReads, leaf_table_bytes, read_leaf_table, write_leaf_table
from modelgit.patching.materialise import TensorReader
from modelgit.remotes.base import Needed
from modelgit.remotes.receive import copy_records, verify_objects
from modelgit.remotes.selection import select_records
from modelgit.store.fs import FileSystemStore

MIB = 1 << 20
SIZES = [LEAF_BYTES, LEAF_BYTES + 4, 2 * LEAF_BYTES, 9 * MIB, 21 * MIB + 12]


def raw(size: int, seed: int = 0) -> bytes:
    return (np.random.default_rng(seed).standard_normal(size // 4) * 0.02).astype("<f4").tobytes()


def spec_of(data: bytes) -> TensorSpec:
    return TensorSpec(dtype="F32", shape=(len(data) // 4,))


@pytest.mark.parametrize("size", SIZES)
def test_whatever_has_several_leaves_gets_a_table(shelf, size: int) -> None:
    data = raw(size)
    stored = shelf.put(data)
    spec = spec_of(data)
    found = shelf.leaf_tables(stored.id)
    assert len(found) == (size > LEAF_BYTES)
    assert shelf.get(stored.id) == data and shelf.store.has(stored.id)
    if found:
        assert stored.bytes_written == sum(item.length for item in shelf.store.locate(stored.id))
        table = read_leaf_table(shelf.store, stored.id, spec)
        assert table == preimage(size, spec, leaf_digests(data)) and len(table) == leaf_table_bytes(size, spec)
        assert TensorId.of(table) == stored.id
    shelf.put(data)
    assert len(shelf.leaf_tables(stored.id)) == len(found), "a known object is not written again"


@pytest.mark.parametrize("size", SIZES)
def test_a_verified_range_is_the_range(shelf, size: int) -> None:
    data = raw(size)
    stored, spec = shelf.put(data), spec_of(data)
    reader = TensorReader(shelf.store)
    for start, stop in [(0, size), (0, 0), (size, size), (8, 12), (LEAF_BYTES - 4, min(size, LEAF_BYTES + 4))]:
        assert bytes(reader.verifying({stored.id: spec}).read(stored.id, start, stop)) == data[start:stop]
    for start, stop in [(-4, 4), (4, 0), (0, size + 4)]:
        with pytest.raises(IntegrityError, match="does not have the bytes"):
            reader.verifying({stored.id: spec}).read(stored.id, start, stop)
    with pytest.raises(IntegrityError, match="its shape asks for"):
        reader.verifying({stored.id: TensorSpec(dtype="F32", shape=(7,))}).read(stored.id, 0, 4)


class Lying:
    """Reads in which one byte is another: what a hostile source gives, with good checksums."""

    def __init__(self, reader: TensorReader, position: int) -> None:
        self.reader, self.position = reader, position
        self.ranges: list[tuple[int, int]] = []

    def size(self, tensor: TensorId | BlobId) -> int | None:
        return self.reader.size(tensor)

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        self.ranges.append((start, stop))
        data = self.reader.read(tensor, start, stop)
        if start <= self.position < stop:
            data[self.position - start] ^= 1
        return data


def test_a_changed_leaf_is_refused_and_the_others_are_not_even_read(shelf) -> None:
    data = raw(17 * MIB)
    stored, spec = shelf.put(data), spec_of(data)
    lying = Lying(TensorReader(shelf.store), 6 * MIB)
    reads = VerifiedReads(LeafChecks(shelf.store, lying), {stored.id: spec})
    assert bytes(reads.read(stored.id, 9 * MIB, 9 * MIB + 8)) == data[9 * MIB : 9 * MIB + 8]
    assert lying.ranges == [(8 * MIB, 12 * MIB)]
    with pytest.raises(IntegrityError, match=f"between bytes {4 * MIB} and {8 * MIB}") as caught:
        reads.read(stored.id, 7 * MIB, 7 * MIB + 8)
    assert "fetch --repair" in (caught.value.hint or "")
    with pytest.raises(IntegrityError, match="no file says"):
        reads.read(TensorId.of(b"unknown"), 0, 0)


def test_without_a_table_the_whole_object_is_checked_once(shelf) -> None:
    data = raw(9 * MIB)
    stored, spec = shelf.put(data), spec_of(data)

    class Old:
        """The same store as one that was written before there were leaf tables."""

        def locate(self, object_id):
            return [item for item in shelf.store.locate(object_id) if not item.is_leaf_table]

    lying = Lying(TensorReader(shelf.store), -1)
    reads = VerifiedReads(LeafChecks(Old(), lying), {stored.id: spec})
    for start in (0, 5 * MIB):
        assert bytes(reads.read(stored.id, start, start + 8)) == data[start : start + 8]
    assert lying.ranges == [(0, 4 * MIB), (4 * MIB, 8 * MIB), (8 * MIB, 9 * MIB), (0, 4 * MIB), (4 * MIB, 8 * MIB)]
    lying.position = 8 * MIB + 5
    with pytest.raises(IntegrityError, match="does not match its id"):
        VerifiedReads(LeafChecks(Old(), lying), {stored.id: spec}).read(stored.id, 0, 8)


def add_table(shelf, object_id: TensorId, total: int, payload: bytes) -> None:
    session = shelf.store.session(epoch=0)
    session.append(object_id, start=0, stop=0, total=total, header=b"", payload=(payload,))
    session.seal()


def test_a_wrong_table_is_no_help_to_anybody(tmp_path: Path, shelf) -> None:
    data = raw(9 * MIB)
    stored, spec = shelf.put(data), spec_of(data)
    good = read_leaf_table(shelf.store, stored.id, spec)
    for wrong in (good[:-1] + b"\0", good[:-32], b"", good + good):
        add_table(shelf, stored.id, len(data), wrong)
    reader = TensorReader(shelf.store)
    assert bytes(reader.verifying({stored.id: spec}).read(stored.id, 8, 16)) == data[8:16]
    assert shelf.get(stored.id) == data and reader.record(stored.id)[0].stop == len(data)
    with pytest.raises(IntegrityError, match="leaf table that does not match"):
        reader.verify(stored.id, spec)


def test_tables_travel_and_are_checked_on_arrival(tmp_path: Path, shelf) -> None:
    data = raw(9 * MIB)
    stored, spec = shelf.put(data), spec_of(data)
    other = FileSystemStore(tmp_path / "other", cache=None)
    wanted = [Needed(stored.id, "t", spec, len(data))]

    def locate(ids):
        return {object_id: shelf.store.locate(object_id) for object_id in ids}

    chosen = select_records(locate, wanted, set, where="there", lacking=IntegrityError)
    assert sum(item.is_leaf_table for item in chosen.records) == 1
    session = other.session(epoch=0)
    copy_records(shelf.store.read_part, chosen.records, session, task="copy")
    verify_objects(session, chosen.items, threads=1, where="there")
    session.seal()
    assert read_leaf_table(other, stored.id, spec) == read_leaf_table(shelf.store, stored.id, spec)
    lying = [item for item in chosen.records if not item.is_leaf_table]
    session = other.session(epoch=0)
    copy_records(shelf.store.read_part, lying, session, task="copy")
    session.append(stored.id, start=0, stop=0, total=len(data), header=b"", payload=(bytes(leaf_table_bytes(len(data), spec)),))  # fmt: skip # noqa: E501
    with pytest.raises(IntegrityError, match=r"refuses .* leaf table"):
        verify_objects(session, wanted, threads=1, where="there")
    session.abort()
    other.close()


def test_a_table_alone_is_not_the_object(shelf) -> None:
    data = raw(9 * MIB)
    spec = spec_of(data)
    leaves = leaf_digests(data)
    object_id = TensorId.of(preimage(len(data), spec, leaves))
    session = shelf.store.session(epoch=0)
    assert write_leaf_table(session, object_id, len(data), spec, leaves) == leaf_table_bytes(len(data), spec)
    assert not session.has(object_id) and TensorReader(session).record(object_id) is None
    session.seal()
    assert not shelf.store.has(object_id)
    with pytest.raises(IntegrityError, match="only in part"):
        shelf.get(object_id)
    shelf.put(data)
    assert shelf.get(object_id) == data


def test_a_table_in_a_session_does_not_hide_the_object_in_the_store(shelf) -> None:
    data = raw(9 * MIB)
    stored, spec = shelf.put(data), spec_of(data)
    session = shelf.store.session(epoch=0)
    write_leaf_table(session, stored.id, len(data), spec, leaf_digests(data))
    assert bytes(TensorReader(session).read(stored.id, 0, len(data))) == data
    session.abort()


def test_bases_are_chosen_past_tables(shelf) -> None:
    data = raw(9 * MIB)
    first = shelf.put(data)
    words = np.frombuffer(data, "<u4").copy()
    words[::1000] ^= 1
    second = shelf.put(words.tobytes(), parent=first.id)
    bases = {item.base for item in shelf.records(second.id)}
    assert bases == {first.id.digest}
    assert shelf.get(second.id) == words.tobytes()


def test_the_second_reader_checks_a_leaf(shelf, tmp_path: Path, second_reader: ModuleType) -> None:
    data = np.random.default_rng(0).bytes(9 * MIB)  # stored as it is: that reader is slow
    stored = shelf.put(data)
    (tmp_path / "format").write_text("mgit repository, format 1 (experimental)\n")
    other = second_reader.Repository(tmp_path)
    assert other.leaf("tensor", stored.id.digest, 2) == data[8 * MIB :]
    add_table(shelf, stored.id, len(data), b"\0" * leaf_table_bytes(len(data), spec_of(data)))
    with pytest.raises(second_reader.Damaged, match="leaf table"):
        second_reader.Repository(tmp_path).raw("tensor", stored.id.digest)
