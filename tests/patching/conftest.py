"""A store of tensors, without files or commits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelgit.objects import BlobId, TensorId, TensorSpec
from modelgit.patching.encode import TensorWriter
from modelgit.patching.jobs import BlobSource, Stored, StoreJob
from modelgit.patching.materialise import TensorReader
from modelgit.store.fs import FileSystemStore


class Shelf:
    """Stores one tensor at a time, each in a pack of its own."""

    def __init__(self, path: Path) -> None:
        self.store = FileSystemStore(path, cache=None)

    def put(
        self, raw: bytes, *, dtype: str = "F32", parent: TensorId | BlobId | None = None, threads: int = 1
    ) -> Stored:
        spec = TensorSpec(dtype=dtype, shape=(len(raw) * 8 // TensorSpec(dtype=dtype).kind.bits,))
        session = self.store.session(epoch=0)
        stored = next(
            TensorWriter(session, threads=threads).store([StoreJob("t", BlobSource(raw), spec, len(raw), parent)])
        )
        session.seal()
        return stored

    def get(self, object_id: TensorId | BlobId, start: int = 0, stop: int | None = None) -> bytes:
        reader = TensorReader(self.store)
        size = reader.size(object_id)
        assert size is not None
        return bytes(reader.read(object_id, start, size if stop is None else stop))

    def records(self, object_id: TensorId | BlobId) -> list:
        ranges = [item for item in self.store.locate(object_id) if not item.is_leaf_table]
        return sorted(ranges, key=lambda item: item.start)

    def leaf_tables(self, object_id: TensorId | BlobId) -> list:
        return [item for item in self.store.locate(object_id) if item.is_leaf_table]


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    yield made
    made.store.close()
