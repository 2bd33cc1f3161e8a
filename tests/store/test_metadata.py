"""Small objects: chains of them, and everything that a stranger's record may claim."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable

import pytest
import zstandard

from modelgit.errors import IntegrityError
from modelgit.objects import BlobId, Commit, CommitId, Manifest, ManifestId, ObjectId, View, encode
from modelgit.store.metadata import read_metadata, read_record, write_metadata, write_record


def put(bare, object_id: ObjectId, payload: Iterable[bytes], *, total: int, base: ObjectId | None = None) -> None:
    session = bare.session()
    session.append(object_id, start=0, stop=total, total=total, header=b"", payload=payload, base=base)
    session.seal()


def frame(data: bytes, dictionary: bytes | None = None) -> bytes:
    chosen = None
    if dictionary is not None:
        chosen = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=chosen).compress(data)


@pytest.mark.parametrize("size", [0, 1, 64, 65, 5000, 300_000])
def test_what_is_written_is_read(bare, size: int) -> None:
    for data in (os.urandom(size), b"abc" * (size // 3)):
        object_id = ManifestId.of(data)
        session = bare.session()
        write_metadata(session, object_id, data)
        assert read_metadata(session, object_id) == data
        session.seal()
        assert read_metadata(bare.again().store, object_id) == data


def test_a_version_costs_what_changed(bare) -> None:
    names = [f"model.layers.{n}.weight {os.urandom(16).hex()}" for n in range(500)]
    before = None
    for step in range(10):
        names[step] = f"changed {step}"
        data = "\n".join(names).encode()
        object_id = ManifestId.of(data)
        session = bare.session()
        write_metadata(session, object_id, data, base=before)
        if before is not None:
            assert session.bytes_written < 200
        session.seal()
        assert read_metadata(bare.store, object_id) == data
        before = (object_id, data)


def test_any_number_of_versions_can_be_read(bare) -> None:
    names = [f"model.layers.{n}.weight {os.urandom(16).hex()}" for n in range(100)]
    versions: list[tuple[ObjectId, bytes]] = []
    sizes = []
    for step in range(150):
        names[step % 100] = f"changed {step}"
        data = "\n".join(names).encode()
        session = bare.session()
        write_metadata(session, ManifestId.of(data), data, base=versions[-1] if versions else None)
        sizes.append(session.bytes_written)
        session.seal()
        versions.append((ManifestId.of(data), data))
    store = bare.again().store
    assert all(read_metadata(store, object_id) == data for object_id, data in versions)
    assert sum(size > 500 for size in sizes) <= 10  # written whole now and then, not as a rule


def test_a_base_that_is_not_here_is_not_used(bare) -> None:
    old, new = b"a" * 1000 + os.urandom(500), b"b" + b"a" * 1000
    session = bare.session()
    write_metadata(session, ManifestId.of(new), new, base=(ManifestId.of(old), old))
    assert read_metadata(session, ManifestId.of(new)) == new
    session.abort()


def test_a_chain_too_deep_or_in_a_circle_is_refused(bare) -> None:
    contents = [b"%d" % n * 100 for n in range(70)]
    ids = [ManifestId.of(data) for data in contents]
    put(bare, ids[0], (b"\0", contents[0]), total=len(contents[0]))
    for n in range(1, 70):
        put(bare, ids[n], (b"\2", frame(contents[n], contents[n - 1])), total=len(contents[n]), base=ids[n - 1])
    assert read_metadata(bare.store, ids[60]) == contents[60]
    with pytest.raises(IntegrityError, match="chain deeper"):
        read_metadata(bare.store, ids[69])
    one, two = ManifestId.of(b"one"), ManifestId.of(b"two")
    put(bare, one, (b"\2", frame(b"one", b"two")), total=3, base=two)
    put(bare, two, (b"\2", frame(b"two", b"one")), total=3, base=one)
    for object_id in (one, two):
        with pytest.raises(IntegrityError):
            read_metadata(bare.store, object_id)
    own = ManifestId.of(b"own")
    put(bare, own, (b"\2", frame(b"own", b"own")), total=3, base=own)
    with pytest.raises(IntegrityError):
        read_metadata(bare.store, own)


BOMB = frame(bytes(300 << 20))


@pytest.mark.parametrize(
    ("payload", "total"),
    [
        ((), 10),
        ((b"\0",), 10),
        ((b"\0", b"x" * 11), 10),
        ((b"\1", frame(b"x" * 9)), 10),
        ((b"\1", frame(b"y" * 10)), 10),
        ((b"\1", frame(b"x" * 10)[:-1]), 10),
        ((b"\1", b"no frame"), 10),
        ((b"\1",), 10),
        ((b"\1", zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 10)), 10),
        ((b"\1", BOMB), 10),
        ((b"\1", BOMB), 300 << 20),
        ((b"\1", BOMB), 1 << 62),
        ((b"\2", frame(b"x" * 10)), 10),
        ((b"\3", b"x" * 10), 10),
        ((b"\xff",), 0),
    ],
)
def test_a_record_that_lies_is_an_integrity_error_and_nothing_else(bare, payload: tuple, total: int) -> None:
    object_id = ManifestId.of(b"x" * 10)
    put(bare, object_id, payload, total=total)
    with pytest.raises(IntegrityError, match=object_id.hex):
        read_metadata(bare.store, object_id)


def test_a_base_that_is_missing_or_of_another_kind(bare) -> None:
    object_id = ManifestId.of(b"x" * 100)
    put(bare, object_id, (b"\2", frame(b"x" * 100, b"base")), total=100, base=ManifestId.of(b"base"))
    with pytest.raises(IntegrityError, match="missing"):
        read_metadata(bare.store, object_id)
    put(bare, CommitId(ManifestId.of(b"base").digest), (b"\0", b"base"), total=4)
    with pytest.raises(IntegrityError, match="missing"):
        read_metadata(bare.store, object_id)
    put(bare, ManifestId.of(b"base"), (b"\0", b"base"), total=4)
    assert read_metadata(bare.store, object_id) == b"x" * 100


def test_a_good_record_is_found_behind_bad_ones(bare) -> None:
    object_id = ManifestId.of(b"x" * 100)
    put(bare, object_id, (b"\0", b"y" * 100), total=100)
    put(bare, object_id, (b"\1", b"damaged"), total=100)
    put(bare, object_id, (b"\0", b"x" * 100), total=100)
    put(bare, object_id, (b"\7",), total=100)
    assert read_metadata(bare.store, object_id) == b"x" * 100


def test_records_are_validated_and_canonical(bare) -> None:
    session = bare.session()
    empty = write_record(session, ManifestId, Manifest())
    session.seal()
    assert read_record(bare.store, empty, Manifest) == Manifest()
    with pytest.raises(IntegrityError, match="does not read as a Commit"):
        read_record(bare.store, empty, Commit)
    strange = b"\x81\xa6strange\x01" + encode(View())
    bare.add(strange)
    put(bare, ManifestId.of(strange), (b"\0", strange), total=len(strange))
    with pytest.raises(IntegrityError):
        read_record(bare.store, ManifestId.of(strange), Manifest)
    loose = b"\xde\x00\x00"  # an empty map, written longer than it need be
    put(bare, ManifestId.of(loose), (b"\0", loose), total=len(loose))
    with pytest.raises(IntegrityError, match="canonical"):
        read_record(bare.store, ManifestId.of(loose), Manifest)


def test_a_table_of_a_mixture_of_experts_costs_what_changed(bare) -> None:
    """60,000 ids of 32 random bytes: none of them compresses, all but one are those of the version before."""
    source = random.Random(0)
    rows = [f"layers.{n // 768}.experts.{n % 768}.weight".encode() + source.randbytes(32) for n in range(60_000)]
    old = b"".join(rows)
    rows[12_345] = rows[12_345][:-32] + source.randbytes(32)
    new = b"".join(rows)
    for data, base in ((old, None), (new, (BlobId.of(old), old))):
        session = bare.session()
        write_metadata(session, BlobId.of(data), data, base=base)
        session.seal()
    assert bare.store.locate(BlobId.of(new))[0].length < 4000
    assert read_metadata(bare.store, BlobId.of(new)) == new
