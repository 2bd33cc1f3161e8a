"""Writing objects: records in packs that only their writer sees before they are sealed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from typing import Literal as OneOf

from modelgit.errors import BugError, IntegrityError, RepositoryError
from modelgit.objects import BlobId, External, ObjectId, encode
from modelgit.store.base import Foreign, Located, covers, is_external, read_external_record
from modelgit.store.durable import process_space, rename, sync_directory, temporary_name
from modelgit.store.packs import PackMark, PackWriter

if TYPE_CHECKING:
    from types import TracebackType

    from modelgit.store.borrow import Lenders
    from modelgit.store.fs import FileSystemStore

__all__ = ["PACK_TARGET_BYTES", "PackSession", "StagedRecords"]

PACK_TARGET_BYTES = 64 << 20


class PackSession:
    """Writes records into as many packs as they need, and shows them to its own reader before they are sealed.

    As a context manager it is aborted when an error goes through; sealing is up to the caller.

    `relied_on` collects the ids of objects that were found present and not written again: before the root moves the
    publisher must make sure that no garbage collection took them.

    `borrows` says which objects of lenders count as present: "checked" ones; with "any" also those of a lending
    repository that were never compared with their id, which are then in `unchecked` until the caller has done that
    (see `patching.foreign.settle`); or "none".  What a declared base holds is recorded as external when asked for.
    """

    def __init__(self, store: FileSystemStore, epoch: int, condemned: frozenset[str]) -> None:
        self._store = store
        self._condemned = condemned
        self._folder = store.incoming_path / f"{temporary_name()}-{process_space()}"
        self.writers: list[PackWriter] = []
        self._own: dict[tuple[str, bytes], list[tuple[PackWriter, Located]]] = {}
        self._lock = threading.RLock()
        self._own_lock = threading.Lock()  # never held while something is written: encoders ask what is known
        self.sealed: list[str] = []
        self.epoch = epoch
        self.relied_on: set[ObjectId] = set()
        self.borrows: OneOf["checked", "any", "none"] = "checked"
        self.unchecked: set[ObjectId] = set()
        self._places: dict[ObjectId, tuple[External, int]] = {}
        self._is_staging = False
        self.bytes_written = 0

    def __enter__(self) -> PackSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the session's packs, and say in one sentence what the disk refuses."""
        with self._lock:
            try:
                yield
            except OSError as error:
                raise RepositoryError(
                    f"cannot write to {self._folder.parent}: {error.strerror or error}",
                    hint="free some space, then run the command again; nothing was recorded",
                ) from error

    def append(
        self,
        object_id: ObjectId,
        *,
        start: int,
        stop: int,
        total: int,
        header: bytes,
        payload: Iterable[bytes | bytearray | memoryview],
        base: ObjectId | None = None,
        positions: BlobId | None = None,
    ) -> None:
        """Write one record; thread-safe."""
        with self.writing():
            writer = self.writer()
            located = writer.append(
                object_id,
                start=start,
                stop=stop,
                total=total,
                header=header,
                payload=payload,
                base=base,
                positions=positions,
            )
            self.bytes_written += located.length
            with self._own_lock:
                self._own.setdefault((object_id.KIND, object_id.digest), []).append((writer, located))
            self.relied_on.update(needed for needed in (base, positions) if needed is not None)

    def adopt(self, object_id: ObjectId, records: Iterable[tuple[PackWriter, Located]]) -> None:
        """Show staged records as those of an object."""
        with self._lock:
            added = []
            for writer, item in records:
                added.append((writer, writer.add(item._replace(kind=object_id.KIND, digest=object_id.digest))))
                self.bytes_written += item.length
            with self._own_lock:
                self._own.setdefault((object_id.KIND, object_id.digest), []).extend(added)
            self._is_staging = False
            self._record_places()

    def cut(self, packs: int, mark: PackMark | None) -> None:
        """Remove all packs but the first `packs`, and what the last of these got after `mark`."""
        with self.writing():
            for writer in self.writers[packs:]:
                writer.abort()
            del self.writers[packs:]
            if mark is not None:
                self.writers[-1].rollback(mark)
            self._is_staging = False
            self._record_places()

    @property
    def is_first(self) -> bool:
        """Whether the store has no packs, and nobody who lends: then hardly any object is known already."""
        return not self._store.lookup.packs() and not self._store.lenders.lines

    def stage(self) -> StagedRecords:
        """Begin an object whose id comes last."""
        with self._lock:
            self._is_staging = True
            return StagedRecords(self)

    def writer(self) -> PackWriter:
        """The pack that the next record goes into."""
        if not self.writers or self.writers[-1].size >= PACK_TARGET_BYTES:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.writers.append(PackWriter(self._folder / f"{len(self.writers)}.pack"))
        return self.writers[-1]

    def locate(self, object_id: ObjectId) -> list[Located]:
        """Records in this session (pack name `+` and the number of the writer) and in the store."""
        own = [item._replace(pack=f"+{self.writers.index(writer)}") for writer, item in self._written(object_id)]
        # What is being written may be a part, or only the leaf table, of an object that is here already.
        return own if own and covers(own) else [*own, *self._safe(self._store.locate(object_id))]

    def _written(self, object_id: ObjectId) -> list[tuple[PackWriter, Located]]:
        """The records of an object in this session, each with the pack that it is in."""
        with self._own_lock:
            return list(self._own.get((object_id.KIND, object_id.digest), ()))

    def _safe(self, records: list[Located]) -> list[Located]:
        return [item for item in records if item.pack not in self._condemned]

    def has(self, object_id: ObjectId) -> bool:
        """Whether the object is here whole; remembers that the caller now relies on it.

        What others published since the session began may be missed: it is then written twice, which harms nobody.
        """
        if self._places:
            with self._lock:
                if object_id in self._places:
                    return True
        own = [item for _, item in self._written(object_id)]
        if own and covers(own):
            return True
        if covers(self._kept(self._safe(self._store.locate_known(object_id)))):
            self.relied_on.add(object_id)
            return True
        return self._borrow(object_id)

    def _kept(self, records: list[Located]) -> list[Located]:
        return [item for item in records if not is_external(item)] if self.borrows == "none" else records

    def _borrow(self, object_id: ObjectId) -> bool:
        """Whether a lender has the object; what a published model has is recorded here as external."""
        lenders = self._store.lenders
        if self.borrows == "none" or not lenders.lines:
            return False
        offered = lenders.offer(object_id)
        if offered is not None:
            with self._lock:
                self._places[object_id] = offered
            self._record_places()
            return True
        if not lenders.lends(object_id):
            if self.borrows != "any" or lenders.might_lend(object_id) is None:
                return False
            self.unchecked.add(object_id)
        self.relied_on.add(object_id)
        return True

    def _record_places(self) -> None:
        """Write external records, unless an object is staged, which must stay at the end of the pack."""
        with self._lock:
            while self._places and not self._is_staging:
                object_id, (place, size) = next(iter(self._places.items()))
                self.append(object_id, start=0, stop=size, total=size, header=encode(place), payload=())
                del self._places[object_id]  # only now, or for a moment `has` would find it nowhere

    @property
    def lenders(self) -> Lenders:
        """Who lends to the store."""
        return self._store.lenders

    def foreign(self, located: Located) -> Foreign:
        """How to read a borrowed or external object."""
        if not is_external(located):
            return self._store.lenders.foreign(located)
        external, object_id = read_external_record(self.read_part(located, 0, located.length), located)
        return self._store.lenders.read_external(external, object_id, located.total)

    def absence(self, object_id: ObjectId) -> IntegrityError:
        """Why there are no records of the object."""
        return self._store.absence(object_id)

    def objects(self) -> Iterator[Located]:
        """Records written in this session."""
        with self._lock:
            return iter([item for group in self._own.values() for _, item in group])

    def read(self, located: Located) -> tuple[bytes, memoryview]:
        """(header, payload) of a record, sealed or not."""
        return located.split(self.read_part(located, 0, located.length))

    def read_part(self, located: Located, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a record, sealed or not."""
        if not located.pack.startswith("+"):
            return self._store.read_part(located, start, stop)
        writer = self.writers[int(located.pack[1:])]
        with self._lock:  # the writer's file offset is shared where there is no pread
            return writer.read(located, start, stop)

    def seal(self) -> list[str]:
        """Make every pack durable and visible; returns their names.  Nothing refers to them yet."""
        if self.unchecked:
            raise BugError(f"{len(self.unchecked)} borrowed objects were not compared with their ids")
        self._store.lenders.save()
        with self._lock:
            if not self.writers:
                with contextlib.suppress(OSError):  # everything that was staged may have been taken back
                    self._folder.rmdir()
                return []
            try:
                self._store.packs_path.mkdir(parents=True, exist_ok=True)
                names = [(writer.path, f"{writer.close()}-{os.urandom(8).hex()}.pack") for writer in self.writers]
                for path, name in names:
                    rename(path, self._store.packs_path / name)
                sync_directory(self._store.packs_path)
                self._folder.rmdir()
            except OSError as error:
                raise RepositoryError(
                    f"cannot write to {self._store.packs_path}: {error.strerror or error}",
                    hint="free some space, then run the command again; nothing was recorded",
                ) from error
            self.writers = []
            self._own = {}
            self._store.lookup.refresh()
            self.sealed = [name for _, name in names]
            return self.sealed

    def rename_sealed(self, name: str) -> None:
        """Publish a sealed pack under another nonce; raises FileNotFoundError when it is gone already."""
        fresh = f"{name[:64]}-{os.urandom(8).hex()}.pack"
        try:
            rename(self._store.packs_path / name, self._store.packs_path / fresh)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RepositoryError(f"cannot rename pack {name[:16]}: {error.strerror or error}") from error
        sync_directory(self._store.packs_path)
        self.sealed[self.sealed.index(name)] = fresh

    def abort(self) -> None:
        """Forget everything that was written."""
        with self._lock:
            for writer in self.writers:
                writer.abort()
            with contextlib.suppress(OSError):
                self._folder.rmdir()
            self.writers = []
            self._own = {}


class StagedRecords:
    """Records at the end of a session's packs that have no id yet (see `StagedObject`).

    They are at the very end because nothing else is written meanwhile, so that discarding them is a truncation.
    """

    def __init__(self, session: PackSession) -> None:
        self._session = session
        self._packs = len(session.writers)
        self._mark = session.writers[-1].mark() if session.writers else None
        self._done: list[tuple[PackWriter, Located]] = []
        self._writer: PackWriter | None = None
        self._offset = 0

    def write(self, payload: Iterable[bytes | bytearray | memoryview]) -> None:
        """Append to the payload of the current record."""
        with self._session.writing():
            if self._writer is None:
                self._writer = self._session.writer()
                self._offset = self._writer.size
            for chunk in payload:
                if len(chunk):
                    self._writer.write(chunk)

    def end_record(
        self,
        *,
        start: int,
        stop: int,
        total: int,
        header: bytes,
        base: ObjectId | None = None,
        positions: BlobId | None = None,
    ) -> int:
        """Finish the current record; returns its length."""
        self.write((header,))
        writer, offset = self._writer, self._offset
        if writer is None:
            raise BugError("a record was ended before it began")
        length = writer.size - offset
        digests = [None if needed is None else needed.digest for needed in (base, positions)]
        self._done.append((writer, Located("", b"", start, stop, total, "", offset, length, len(header), *digests)))
        self._writer = None
        self._session.relied_on.update(needed for needed in (base, positions) if needed is not None)
        return length

    def name(self, object_id: ObjectId) -> None:
        """Give all finished records to the object."""
        self._session.adopt(object_id, self._done)

    def discard(self) -> None:
        """Take everything back."""
        self._session.cut(self._packs, self._mark)
