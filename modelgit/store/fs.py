"""A store in a directory: immutable packs, written aside and renamed in."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.objects import BlobId, External, ObjectId, TensorId
from modelgit.store.base import BORROWED, Foreign, Located, covers, is_external, read_external_record
from modelgit.store.borrow import Lenders
from modelgit.store.index import PackLookup
from modelgit.store.packs import read_at
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    pass

__all__ = ["FileSystemStore", "PackGoneError"]

_OPEN_PACKS = 32


class PackGoneError(IntegrityError):
    """A pack vanished between look-up and reading; garbage collection may have put its objects into another one."""

    code = "pack-gone"


class FileSystemStore:
    """Packs under `<path>/packs`.

    `cache` is the file for the lookup table, None for stores that are not ours to write to.  `hub` is a Hugging Face
    cache, in which external objects are looked for; `depth` counts the stores that borrow from this one.
    """

    def __init__(self, path: Path, *, cache: Path | None = None, hub: Path | None = None, depth: int = 0) -> None:
        self.path = path
        self.lenders = Lenders(self, hub=hub, depth=depth)
        self.packs_path = path / "packs"
        self.incoming_path = path / "incoming"
        self.lookup = PackLookup(self.packs_path, cache)
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self.explain: Callable[[ObjectId], IntegrityError | None] | None = None
        """What the repository knows of an object that is missing."""
        self._lock = threading.Lock()

    def locate(self, object_id: ObjectId) -> list[Located]:
        """All records of the object, those of lenders where this store does not hold it."""
        found = self._find(object_id, look_again=True)
        if self.lenders.lines and not covers(item for item in found if not is_external(item)):
            found = [*found, *self.lenders.locate(object_id)]
        return found

    def portable(self, object_id: ObjectId) -> list[Located]:
        """Records that can be copied to another store; those of lenders where this store does not hold the object."""
        found = self._find(object_id, look_again=True)
        return found if covers(found) or not self.lenders.lines else [*found, *self.lenders.portable(object_id)]

    def locate_known(self, object_id: ObjectId) -> list[Located]:
        """Records of the object in packs that have been seen: misses what another process published since."""
        return self._find(object_id, look_again=False)

    def _find(self, object_id: ObjectId, *, look_again: bool) -> list[Located]:
        found = self.lookup.find(object_id.digest, look_again=look_again)
        return [item for item in found if item.kind == object_id.KIND]

    def has(self, object_id: ObjectId) -> bool:
        """Whether the object is here whole."""
        return covers(self.locate(object_id))

    def objects(self) -> Iterator[Located]:
        """Every record, pack by pack."""
        return self.lookup.rows()

    def read(self, located: Located) -> tuple[bytes, memoryview]:
        """(header, payload) of a record."""
        return located.split(self.read_part(located, 0, located.length))

    def read_part(self, located: Located, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a record."""
        if located.pack.startswith(BORROWED):
            return self.lenders.read_part(located, start, stop)
        try:
            if hasattr(os, "pread"):
                return read_at(self._open(located.pack), located.offset + start, stop - start, located.pack)
            with self._lock:
                descriptor = self._open_locked(located.pack)
                return read_at(descriptor, located.offset + start, stop - start, located.pack)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise RepositoryError(f"cannot read pack {located.pack[:16]}: {error.strerror or error}") from error
            # On a network file system an open file does not outlive its name: another host collected it.
            with self._lock:
                self._descriptors.pop(located.pack, None)
            self.lookup.refresh()
            raise PackGoneError(
                f"pack {located.pack[:16]} is missing", hint="`mgit fsck` shows what is affected"
            ) from None

    def foreign(self, located: Located) -> Foreign:
        """How to read a borrowed or external object."""
        if not is_external(located):
            return self.lenders.foreign(located)
        external, object_id = self.external(located)
        return self.lenders.read_external(external, object_id, located.total)

    def external(self, located: Located) -> tuple[External, TensorId | BlobId]:
        """What an external record says, checked against the object's id.  Raises IntegrityError when it lies."""
        return read_external_record(self.read_part(located, 0, located.length), located)

    def absence(self, object_id: ObjectId) -> IntegrityError:
        """Why there are no records of the object."""
        known = None if self.explain is None else self.explain(object_id)
        return known or self.lenders.explain(object_id)

    def session(self, *, epoch: int, condemned: Collection[str] = ()) -> PackSession:
        """Begin to write; nothing is visible before `PackSession.seal`.

        `epoch` is the root's count of garbage collections, read before anything is looked up, and `condemned` its packs
        that may vanish: what only they hold counts as missing.
        """
        # This process may have looked before a collection that another one made: what it took must not be relied on.
        self.lookup.refresh()
        self.lenders.refresh()
        return PackSession(self, epoch, frozenset(condemned))

    def delete(self, pack: str) -> None:
        """Remove a pack that the root has condemned."""
        with self._lock:
            descriptor = self._descriptors.pop(pack, None)
            if descriptor is not None:
                os.close(descriptor)
        try:
            (self.packs_path / pack).unlink(missing_ok=True)
        except OSError as error:
            raise RepositoryError(f"cannot remove pack {pack[:16]}: {error.strerror or error}") from error
        self.lookup.refresh()

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
        self.lookup.close()
        self.lenders.close()

    def _open(self, pack: str) -> int:
        with self._lock:
            return self._open_locked(pack)

    def _open_locked(self, pack: str) -> int:
        descriptor = self._descriptors.get(pack)
        if descriptor is not None:
            self._descriptors.move_to_end(pack)
            return descriptor
        try:
            descriptor = os.open(self.packs_path / pack, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            self.lookup.refresh()
            raise PackGoneError(f"pack {pack[:16]} is missing", hint="`mgit fsck` shows what is affected") from None
        self._descriptors[pack] = descriptor
        # Old descriptors are only closed once they are far behind: another thread may be about to read from one.
        while len(self._descriptors) > 8 * _OPEN_PACKS:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor
