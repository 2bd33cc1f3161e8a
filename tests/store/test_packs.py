"""Packs and the lookup over them: round trips, and damage that is noticed and named."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.objects import BlobId, TensorId
from modelgit.store.base import covers
from modelgit.store.metadata import read_metadata
from modelgit.store.packs import FOOTER, HEADER, PACK_NAME, ROW, ROWS, PackWriter, read_index, verify_pack


def write_pack(folder: Path, records: list[tuple[bytes, bytes]]) -> Path:
    writer = PackWriter(folder / "x")
    for payload, header in records:
        half = len(payload) // 2
        writer.append(
            BlobId.of(payload), start=0, stop=len(payload), total=len(payload), header=header,
            payload=(payload[:half], b"", memoryview(payload)[half:]),
        )  # fmt: skip
    name = f"{writer.close()}-{'0' * 16}.pack"
    (folder / "x").rename(folder / name)
    return folder / name


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=40)), max_size=12))
def test_a_pack_gives_back_its_records(tmp_path_factory: pytest.TempPathFactory, records: list) -> None:
    folder = tmp_path_factory.mktemp("pack")
    path = write_pack(folder, records)
    verify_pack(path)
    assert PACK_NAME.match(path.name)
    data = path.read_bytes()
    rows = list(read_index(path))
    assert len(rows) == len(records)
    found = sorted((data[r.offset : r.offset + r.length - r.header], data[r.offset + r.length - r.header : r.offset + r.length]) for r in rows)  # fmt: skip # noqa: E501
    assert found == sorted(records)
    assert [(row.digest, row.kind, row.start) for row in rows] == sorted((r.digest, r.kind, r.start) for r in rows)


def test_a_flip_of_any_byte_of_a_pack_is_noticed(tmp_path: Path) -> None:
    path = write_pack(tmp_path, [(os.urandom(50), b"h"), (b"a" * 400, b"")])
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(IntegrityError, match=path.name[:16]):
            verify_pack(path)
    index_at = FOOTER.unpack(good[-FOOTER.size :])[0]
    for position in range(index_at, len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(IntegrityError, match=path.name[:16]):
            list(read_index(path))


@pytest.mark.parametrize("keep", [0, 7, 16, 64, 100, -1, -64, -65, -200])
def test_a_truncated_pack_is_noticed(tmp_path: Path, keep: int) -> None:
    path = write_pack(tmp_path, [(os.urandom(300), b"h")])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError):
        list(read_index(path))
    with pytest.raises(IntegrityError):
        verify_pack(path)


def forged(path: Path, rows: bytes, *, count: int | None = None, frame: bytes | None = None) -> None:
    """Give the pack another index, with a footer that agrees."""
    data = path.read_bytes()
    offset = FOOTER.unpack(data[-FOOTER.size :])[0]
    index = zstandard.ZstdCompressor().compress(rows) if frame is None else frame
    number = len(rows) // ROW.size if count is None else count
    footer = FOOTER.pack(offset, len(index), number, blake3(index).digest(), b"KCAPTIGM")
    path.write_bytes(data[:offset] + index + footer)


def row(**changes: object) -> bytes:
    values = {
        "digest": b"\1" * 32, "kind": 1, "header": 0, "start": 0, "stop": 10, "total": 10, "offset": len(HEADER),
        "length": 10, "base": b"\0" * 32, "positions": b"\0" * 32, **changes,
    }  # fmt: skip
    return ROW.pack(*values.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 99},
        {"start": 11},
        {"stop": 11},
        {"header": 11},
        {"offset": 0},
        {"offset": 1 << 40},
        {"length": 1 << 40},
        {"offset": (1 << 64) - 1, "length": 10},
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = write_pack(tmp_path, [(b"0123456789", b"")])
    forged(path, row())
    assert len(list(read_index(path))) == 1
    forged(path, row(**changes))
    with pytest.raises(IntegrityError):
        list(read_index(path))


def test_a_compression_bomb_in_an_index_is_refused(tmp_path: Path) -> None:
    path = write_pack(tmp_path, [(b"0123456789", b"")])
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(200 << 20))
    assert len(bomb) < 30_000
    forged(path, b"", count=1, frame=bomb)
    with pytest.raises(IntegrityError, match="wrong size"):
        list(read_index(path))
    honest = zstandard.ZstdCompressor(level=19).compress(bytes(ROW.size * 100_000))
    forged(path, b"", count=100_000, frame=honest)  # its size is as declared, but the pack has no room for the records
    with pytest.raises(IntegrityError, match="damaged footer"):
        list(read_index(path))
    forged(path, b"", count=1 << 40, frame=bomb)
    with pytest.raises(IntegrityError):
        list(read_index(path))
    forged(path, b"", count=1, frame=b"no frame at all")
    with pytest.raises(IntegrityError):
        list(read_index(path))


def test_a_pack_of_a_later_format_is_named_as_such(tmp_path: Path) -> None:
    path = write_pack(tmp_path, [(b"0123456789", b"")])
    data = bytearray(path.read_bytes())
    data[8:10] = struct.pack("<H", 3)
    path.write_bytes(data)
    with pytest.raises(RepositoryError, match="format 3"):
        list(read_index(path))


def test_rows_of_version_1_are_read_and_have_no_positions(tmp_path: Path) -> None:
    path = write_pack(tmp_path, [(b"0123456789", b"")])
    forged(path, row(positions=b"\2" * 32))
    (found,) = read_index(path)
    assert found.positions == b"\2" * 32
    assert found.needs == (("blob", b"\2" * 32),)
    forged(path, row()[: ROWS[1].size], count=1)
    data = bytearray(path.read_bytes())
    data[8:10] = struct.pack("<H", 1)
    path.write_bytes(data)
    (old,) = read_index(path)
    assert old == found._replace(positions=None)


def test_objects_of_different_kinds_with_one_digest_stay_apart(bare) -> None:
    session = bare.session()
    same = BlobId.of(b"x").digest
    for kind, payload in ((BlobId, b"a blob"), (TensorId, b"a tensor")):
        session.append(kind(same), start=0, stop=8, total=8, header=b"", payload=(payload,))
    session.seal()
    for kind, payload in ((BlobId, b"a blob"), (TensorId, b"a tensor")):
        found = bare.store.locate(kind(same))
        assert len(found) == 1
        assert bytes(bare.store.read(found[0])[1]) == payload


def test_what_is_stored_in_part_is_not_there(bare) -> None:
    session = bare.session()
    whole, part, gap = BlobId.of(b"whole"), BlobId.of(b"part"), BlobId.of(b"gap")
    for object_id, spans in ((whole, [(0, 4), (4, 9)]), (part, [(0, 4)]), (gap, [(0, 4), (5, 9)])):
        for start, stop in spans:
            session.append(object_id, start=start, stop=stop, total=9, header=b"", payload=(b"",))
    assert [session.has(object_id) for object_id in (whole, part, gap)] == [True, False, False]
    session.seal()
    assert [bare.store.has(object_id) for object_id in (whole, part, gap)] == [True, False, False]
    assert not covers([])


def test_nothing_is_seen_before_it_is_sealed_and_nothing_stays_of_an_aborted_session(bare) -> None:
    session = bare.session()
    object_id = BlobId.of(b"data")
    session.append(object_id, start=0, stop=4, total=4, header=b"h", payload=(b"data",))
    assert session.has(object_id)
    assert session.read(session.locate(object_id)[0]) == (b"h", b"data")
    assert not bare.again().store.has(object_id)
    session.abort()
    assert not session.has(object_id)
    assert list(bare.store.incoming_path.iterdir()) == []
    assert bare.store.lookup.packs() == set()


def test_a_session_makes_several_packs_when_it_is_large(bare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelgit.store.session.PACK_TARGET_BYTES", 1000)
    contents = [os.urandom(400) for _ in range(10)]
    ids = bare.add(*contents)
    assert len(bare.store.lookup.packs()) == 4
    assert [read_metadata(bare.again().store, object_id) for object_id in ids] == contents


# -- the lookup table


def filled(bare, packs: int) -> dict:
    return {object_id: data for n in range(packs) for data in [b"%d" % n * 30] for object_id in bare.add(data)}


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
        *(
            lambda path, at=at: path.write_bytes(
                (data := path.read_bytes())[: int(at * len(data))]
                + bytes([data[int(at * len(data))] ^ 1])
                + data[int(at * len(data)) + 1 :]
            )
            for at in (0.0, 0.01, 0.1, 0.3, 0.6, 0.9, 0.999)
        ),
    ],
)
def test_the_table_is_only_a_cache(bare, harm: Callable[[Path], object]) -> None:
    known = filled(bare, 20)
    bare.store.lookup.write_cache()
    cache = bare.path / "cache" / "packs"
    sound = bare.again()
    assert {object_id: read_metadata(sound.store, object_id) for object_id in known} == known
    assert not sound.store.lookup.wants_cache
    sound.store.close()
    harm(cache)
    other = bare.again()
    assert {object_id: read_metadata(other.store, object_id) for object_id in known} == known
    assert other.store.lookup.wants_cache
    other.store.lookup.write_cache()
    assert not bare.again().store.lookup.wants_cache


def test_a_table_that_is_behind_is_completed_and_forgets_what_is_gone(bare) -> None:
    known = filled(bare, 20)
    bare.store.lookup.write_cache()
    late = bare.add(b"came after the table")[0]
    other = bare.again()
    assert other.store.has(late)
    gone = next(iter(known))
    for found in other.store.locate(gone):
        bare.store.delete(found.pack)
    third = bare.again()
    assert not third.store.has(gone)
    assert all(third.store.has(object_id) for object_id in [*known, late] if object_id != gone)


def test_a_pack_that_appears_or_goes_is_noticed_by_an_open_store(bare) -> None:
    other = bare.again()
    assert other.store.lookup.packs() == set()
    object_id = bare.add(b"written by another process")[0]
    assert other.store.has(object_id)
    bare.store.delete(bare.store.locate(object_id)[0].pack)
    session = other.session()
    assert not session.has(object_id), "a session relies on a pack that is gone"


def test_a_damaged_index_hides_its_own_pack_only(bare) -> None:
    first, second = bare.add(b"first")[0], bare.add(b"second")[0]
    path = bare.store.packs_path / bare.store.locate(first)[0].pack
    data = bytearray(path.read_bytes())
    data[-70] ^= 1
    path.write_bytes(data)
    other = bare.again()
    assert read_metadata(other.store, second) == b"second"
    with pytest.raises(IntegrityError, match="missing from the store"):
        read_metadata(other.store, first)
    with pytest.raises(IntegrityError, match=path.name[:16]):
        list(other.store.objects())
    other.store.lookup.write_cache()
    assert not (bare.path / "cache" / "packs").exists(), "a table without a damaged pack would hide it for good"


def test_space_is_asked_for_in_advance_and_given_back(bare, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "modelgit.store.packs.reserve", lambda descriptor, path, offset, size: asked.append((offset, size))
    )
    data = os.urandom(24 << 20)
    session = bare.session()
    session.append(BlobId.of(data), start=0, stop=len(data), total=len(data), header=b"", payload=(data,))
    (name,) = session.seal()
    assert asked
    assert asked[0][1] > len(data)
    size = (bare.store.packs_path / name).stat().st_size
    assert len(data) < size < len(data) + 1000
    verify_pack(bare.store.packs_path / name)


def test_a_disk_that_cannot_reserve_may_still_have_room(bare, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("modelgit.store.packs.reserve", full)
    data = os.urandom(20 << 20)
    session = bare.session()
    session.append(BlobId.of(data), start=0, stop=len(data), total=len(data), header=b"", payload=(data,))
    (name,) = session.seal()
    verify_pack(bare.store.packs_path / name)
