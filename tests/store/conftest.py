"""Stores below the level of repositories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelgit.objects import BlobId, ObjectId, Signature, View
from modelgit.store.fs import FileSystemStore
from modelgit.store.metadata import write_metadata
from modelgit.store.oplog import OperationLog
from modelgit.store.publish import initialise
from modelgit.store.root import FileRoot
from modelgit.store.session import PackSession

WHO = str(Signature(name="Ada", mail="ada@example.org", time_s=0))


class Bare:
    """Packs, root and operations in one directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = FileSystemStore(path, cache=path / "cache" / "packs")
        self.roots = FileRoot(path)
        self.operations = OperationLog(path)

    def start(self) -> Bare:
        initialise(self.roots, self.operations, view=View(branch="main"), author=WHO)
        return self

    def session(self) -> PackSession:
        root = self.roots.read().root
        return self.store.session(epoch=root.epoch, condemned=root.condemned)

    def add(self, *contents: bytes) -> list[ObjectId]:
        """Store small objects in one pack."""
        session = self.session()
        ids: list[ObjectId] = []
        for data in contents:
            ids.append(BlobId.of(data))
            write_metadata(session, ids[-1], data)
        session.seal()
        return ids

    def again(self) -> Bare:
        """The same directory, as another process sees it."""
        return Bare(self.path)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    """An empty store with its first root."""
    made = Bare(tmp_path / "bare").start()
    yield made
    made.store.close()
