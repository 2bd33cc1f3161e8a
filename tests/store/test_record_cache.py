"""Records are decoded once, kept within bounds, and never mistaken for one another."""

from __future__ import annotations

from modelgit.objects import BlobId, ContentId, FileContent, FileEntry, Literal, Manifest, ManifestId
from modelgit.store import record_cache
from modelgit.store.fs import FileSystemStore
from modelgit.store.metadata import write_record
from modelgit.store.record_cache import RecordCache


def test_a_record_is_read_once_and_the_oldest_goes_first(tmp_path, monkeypatch) -> None:
    store = FileSystemStore(tmp_path)
    session = store.session(epoch=0)
    entry = FileEntry(path="a", size=1, digest=ContentId(bytes(32)))
    manifests = [Manifest(files=(entry,) * count) for count in (1, 2, 3)]
    ids = [write_record(session, ManifestId, manifest) for manifest in manifests]
    session.seal()
    asked = []
    real = record_cache.read_record
    monkeypatch.setattr(
        record_cache, "read_record", lambda store, *rest: (asked.append(rest[0]), real(store, *rest))[1]
    )
    cache = RecordCache(max_entries=7)
    for _ in range(2):
        assert cache.read(store, ids[0], Manifest) == manifests[0]
        assert cache.read(store, ids[1], Manifest) == manifests[1]
    assert asked == ids[:2]
    cache.read(store, ids[0], Manifest)
    assert cache.read(store, ids[2], Manifest) == manifests[2]  # 2 + 3 + 4 entries are too many: the second goes
    assert asked == ids
    cache.read(store, ids[0], Manifest)
    assert asked == ids
    cache.read(store, ids[1], Manifest)
    assert asked == [*ids, ids[1]]


def test_ids_of_two_kinds_with_equal_digests_are_two_records(tmp_path) -> None:
    store = FileSystemStore(tmp_path)
    session = store.session(epoch=0)
    manifest, content = Manifest(), FileContent(format="opaque", segments=(Literal(blob=BlobId(bytes(32)), length=1),))
    ids = write_record(session, ManifestId, manifest), write_record(session, ContentId, content)
    session.seal()
    cache = RecordCache()
    assert cache.read(store, ids[0], Manifest) == manifest
    assert cache.read(store, ids[1], FileContent) == content
    assert cache.read(store, ids[0], Manifest) == manifest
    store.close()
