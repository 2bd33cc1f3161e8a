"""Borrowed objects: bytes that another repository, a directory of checkpoints or a Hugging Face cache holds already.

A lender is only ever read.  Only tensors and blobs are borrowed, never metadata, so that history can be read without
any lender.  Nothing is relied on before it was compared with its id; the leaf digests of that moment are kept here
(`lenders`), and every leaf that is read later is compared with its own: a lender may change at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import IntegrityError, LenderError
from modelgit.objects import BlobId, External, ObjectId, TensorId, id_class
from modelgit.store.base import BORROWED, Foreign, Located, ObjectStore, covers, is_external
from modelgit.store.lenders import WORTH_BYTES, LenderLine, LenderList, LentFile, LentObject, LentTable
from modelgit.store.lent_files import LentFiles, same_file, snapshot_path

if TYPE_CHECKING:
    from modelgit.store.fs import FileSystemStore

__all__ = ["MAX_DEPTH", "Lenders", "missing_object", "require"]

MAX_DEPTH = 3
"""How far lenders of lenders are followed."""


class _Entry(NamedTuple):
    lender: LenderLine
    file: LentFile | None
    item: LentObject


def missing_object(object_id: ObjectId) -> IntegrityError:
    """The error for an object of which there is no record."""
    return IntegrityError(
        f"{object_id.KIND} {object_id} is missing from the store",
        hint="`mgit fsck` shows what is affected, `mgit fetch --repair` gets it from a remote",
    )


def require(store: ObjectStore, objects: Iterable[TensorId | BlobId]) -> None:
    """Make sure, from metadata alone, that all objects and what they are coded against are within reach.

    Raises IntegrityError, naming the first one that is not: missing, stored in part, borrowed from a lender that is
    gone, or external and not on this machine.
    """
    pending: list[ObjectId] = list(objects)
    seen = set(pending)
    while pending:
        object_id = pending.pop()
        rows = [item for item in store.locate(object_id) if not item.is_leaf_table]
        if not covers(rows):
            raise store.absence(object_id)
        stored = [item for item in rows if not is_external(item)]
        if not covers(stored):
            store.foreign(next(item for item in rows if is_external(item)))
        elif not covers(item for item in stored if item.base is None):
            needed = {id_class(kind)(digest) for item in stored for kind, digest in item.needs}
            pending += needed - seen
            seen |= needed


class Lenders:
    """The lenders of one store.  Thread-safe; costs one failed `open` where nothing is borrowed.

    `records` are the files that hold the list of lenders and their tables.
    """

    def __init__(self, store: FileSystemStore, *, hub: Path | None, depth: int) -> None:
        self._store = store
        self._hub = hub
        self._depth = depth
        self.records = LenderList(store.path / "borrow")
        self._lock = threading.RLock()
        self._lines: tuple[LenderLine, ...] | None = None
        self._entries: dict[tuple[str, bytes], list[_Entry]] | None = None
        self._fresh: dict[LenderLine, list[LentObject]] = {}
        self._vouched: set[tuple[str, str, bytes]] = set()
        self._seen: set[tuple[str, str]] = set()  # files of lenders that were there in this process
        self._stores: dict[LenderLine, FileSystemStore] = {}
        self.files = LentFiles()

    # -- who lends

    @property
    def lines(self) -> tuple[LenderLine, ...]:
        """All lenders, in the order in which they are asked."""
        with self._lock:
            if self._lines is None:
                self._lines = self.records.read() if self._depth <= MAX_DEPTH else ()
            return self._lines

    def reload(self) -> None:
        """Forget what was read: the list or a table changed."""
        with self._lock:
            self._lines = None
            self._entries = None
            self._vouched = set()
            self._seen = set()

    def refresh(self) -> None:
        """Look at lending repositories again: packs may have come or gone."""
        with self._lock:
            for store in self._stores.values():
                store.lookup.refresh()

    def store_of(self, lender: LenderLine) -> FileSystemStore:
        """The lending repository's store."""
        with self._lock:
            found = self._stores.get(lender)
            if found is None:
                # No lookup table: what a stranger's cache says is not to be believed.
                found = type(self._store)(lender.path, hub=self._hub, depth=self._depth + 1)
                self._stores[lender] = found
            return found

    def is_there(self, lender: LenderLine) -> bool:
        """Whether the lender can be found at all."""
        if lender.kind == "store":
            return (lender.path / "format").is_file()
        root = self.root_of(lender)
        return root is not None and root.is_dir()

    def root_of(self, lender: LenderLine) -> Path | None:
        """The directory that a lender's file names are relative to; None without a Hugging Face cache."""
        return self._snapshot(lender.target) if lender.kind == "hub" else lender.path

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()
        self._seen.clear()
        self.files.close()

    # -- what they have

    def locate(self, object_id: ObjectId) -> list[Located]:
        """One record for an object that a lender has and that was checked once; none otherwise."""
        for entry in self._find(object_id):
            if entry.lender.kind != "hub" and self._is_usable(entry, object_id):
                size = entry.item.size + len(entry.item.header)
                return [_row(object_id, entry.item, entry.lender.key, size)]
        return []

    def portable(self, object_id: ObjectId) -> list[Located]:
        """Records to be copied as they are: those of a lending repository, or the bytes of a file as one record."""
        if not isinstance(object_id, TensorId | BlobId):
            return []
        for line in self.lines:
            if line.kind == "store":
                found = self.store_of(line).portable(object_id)
                if found:
                    return [item._replace(pack=f"{BORROWED}{line.key}:{item.pack}") for item in found]
        return [item for item in self.locate(object_id) if item.header]

    def lends(self, object_id: ObjectId) -> bool:
        """Whether a lender has the object, and it was checked against its id."""
        return any(entry.lender.kind != "hub" and self._vouch(entry, object_id) for entry in self._find(object_id))

    def might_lend(self, object_id: ObjectId) -> LenderLine | None:
        """A lending repository that says that it has the object: what it holds is still to be checked.

        None for what takes next to nothing there, too: it is not worth borrowing.
        """
        if not isinstance(object_id, TensorId | BlobId):
            return None
        for line in self.lines:
            if line.kind == "store":
                store = self.store_of(line)
                found = store.locate_known(object_id) or store.lenders.locate(object_id)
                held = [item for item in found if not is_external(item)]  # that a model has it is recorded here, too
                if covers(held) and sum(item.length for item in held) >= WORTH_BYTES:
                    return line
        return None

    def offer(self, object_id: ObjectId) -> tuple[External, int] | None:
        """Where the object lies in a published model that this repository declared as a base, and its size."""
        for entry in self._find(object_id):
            if (
                entry.lender.kind == "hub"
                and entry.file is not None
                and entry.item.size
                and self._vouch(entry, object_id)
            ):
                item = entry.item
                place = External(
                    source=entry.lender.target,
                    path=entry.file.path,
                    leaves=item.leaves,
                    offset=item.offset,
                    spec=item.spec,
                )
                return place, item.size
        return None

    def learn(self, lender: LenderLine, item: LentObject) -> None:
        """Remember an object of a lending repository that was just compared with its id."""
        with self._lock:
            self._table().setdefault((item.kind, item.digest), []).append(_Entry(lender, None, item))
            self._fresh.setdefault(lender, []).append(item)

    def save(self) -> None:
        """Make what was learnt durable."""
        with self._lock:
            for lender, items in self._fresh.items():
                self.records.add_table(lender, LentTable(objects=tuple(items)))
            self._fresh = {}

    def objects(self) -> Mapping[tuple[str, bytes], Sequence[tuple[LenderLine, LentObject]]]:
        """Everything that was checked once, by kind and digest."""
        with self._lock:
            return {key: [(entry.lender, entry.item) for entry in found] for key, found in self._table().items()}

    # -- reading

    def read_part(self, located: Located, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a record that `locate` or `portable` gave."""
        key, _, pack = located.pack.removeprefix(BORROWED).partition(":")
        line = next((line for line in self.lines if line.key == key), None)
        if line is None:
            raise LenderError(
                f"{located.kind} b3:{located.digest.hex()} was lent by one who is not on the list any more"
            )
        if pack:
            return self.store_of(line).read_part(located._replace(pack=pack), start, stop)
        entry = self._entry(located, key)
        cut = entry.item.size
        data = b""
        if start < cut and entry.file is not None:
            first = entry.item.offset
            data = self.files.read(line.path, entry.file.path, first + start, first + min(stop, cut))
        return data + entry.item.header[max(0, start - cut) : max(0, stop - cut)]

    def foreign(self, located: Located) -> Foreign:
        """How to read an object through a record that `locate` gave."""
        key = located.pack.removeprefix(BORROWED)
        entry = self._entry(located, key)
        hint = "`mgit fetch --repair` gets it from a remote"
        if entry.file is None:
            return Foreign(entry.item.leaves, entry.lender.target, hint, store=self.store_of(entry.lender))
        path, first = entry.file.path, entry.item.offset

        def read(start: int, stop: int) -> bytes:
            try:
                return self.files.read(entry.lender.path, path, first + start, first + stop)
            except LenderError as error:
                what = f"{located.kind} b3:{located.digest.hex()}"
                raise LenderError(f"{what} cannot be borrowed: {error.message}", hint=hint) from None

        return Foreign(entry.item.leaves, str(entry.lender.path / path), hint, read=read)

    def read_external(self, external: External, object_id: ObjectId, size: int) -> Foreign:
        """How to read an external object.  Raises ExternalAbsentError when the model is not on this machine."""
        from modelgit.store.hub import absent, external_root

        root = external_root(self._hub, external)
        status = None if root is None else self.files.status(root, external.path)
        if root is None or status is None or status.st_size < external.offset + size:
            raise absent(external, object_id)
        place, first = root, external.offset

        def read(start: int, stop: int) -> bytes:
            return self.files.read(place, external.path, first + start, first + stop)

        hint = f"remove {root} and download it again"
        return Foreign(external.leaves, str(root / external.path), hint, read=read)

    def explain(self, object_id: ObjectId) -> IntegrityError:
        """Why an object cannot be found: who lent it, or who might have."""
        what = f"{object_id.KIND} {object_id}"
        hint = "`mgit fetch --repair` gets it from a remote; `mgit borrow list` shows who lends"
        for entry in self._find(object_id):
            if entry.lender.kind == "hub":
                continue
            place = entry.lender.path if entry.file is None else entry.lender.path / entry.file.path
            if not self.is_there(entry.lender):
                problem = f"{entry.lender.target}, which is not there"
            elif entry.file is None:
                problem = f"{place}, which does not have it any more"
            else:
                problem = f"{place}, which has changed or is gone"
            return LenderError(f"{what} is borrowed from {problem}", hint=hint)
        for line in self.lines:
            if line.kind == "store" and isinstance(object_id, TensorId | BlobId) and not self.is_there(line):
                return LenderError(f"{what} is missing, and the lender {line.target} is not there", hint=hint)
        return missing_object(object_id)

    # -- inside

    def _table(self) -> dict[tuple[str, bytes], list[_Entry]]:
        if self._entries is None:
            found: dict[tuple[str, bytes], list[_Entry]] = {}
            for line in self.lines:
                for table in self.records.tables(line):
                    _add(found, line, table)
                _add(found, line, LentTable(objects=tuple(self._fresh.get(line, ()))))
            self._entries = found
        return self._entries

    def _find(self, object_id: ObjectId) -> list[_Entry]:
        if not isinstance(object_id, TensorId | BlobId) or not self.lines:
            return []
        with self._lock:
            return list(self._table().get((object_id.KIND, object_id.digest), ()))

    def _entry(self, located: Located, key: str) -> _Entry:
        with self._lock:
            for entry in self._table().get((located.kind, located.digest), ()):
                if entry.lender.key == key:
                    return entry
        raise LenderError(f"{located.kind} b3:{located.digest.hex()} is not known as borrowed any more")

    def _is_usable(self, entry: _Entry, object_id: ObjectId) -> bool:
        if entry.file is None:
            return self.store_of(entry.lender).has(object_id)
        key = (entry.lender.key, entry.file.path)
        if key in self._seen:
            return True  # should it be gone by now, then reading says so
        status = self.files.status(entry.lender.path, entry.file.path)
        if status is None or status.st_size != entry.file.size:
            return False
        self._seen.add(key)
        return True

    def _vouch(self, entry: _Entry, object_id: ObjectId) -> bool:
        """Whether the lender still has what it had: by `stat`, or else by hashing it again, once per process."""
        if entry.file is None:
            return self.store_of(entry.lender).has(object_id)
        root = self.root_of(entry.lender)
        status = None if root is None else self.files.status(root, entry.file.path)
        if root is None or status is None or status.st_size != entry.file.size:
            return False
        known = entry.file
        if same_file(known.size, known.mtime_ns, known.inode, known.seen_ns, status):
            return True
        key = (entry.lender.key, entry.item.kind, entry.item.digest)
        if key in self._vouched:
            return True
        item = entry.item
        if not self.files.matches(root, known.path, item.offset, item.size, item.leaves):
            return False
        self._vouched.add(key)
        return True

    def _snapshot(self, source: str) -> Path | None:
        from modelgit.objects import parse_source

        if self._hub is None:
            return None
        parsed = parse_source(source)
        return snapshot_path(self._hub, parsed.folder, parsed.revision)


def _add(found: dict[tuple[str, bytes], list[_Entry]], line: LenderLine, table: LentTable) -> None:
    for item in table.objects:
        if line.kind == "store":
            file = None
        elif 0 <= item.file < len(table.files):
            file = table.files[item.file]
        else:
            continue
        if len(item.digest) == 32 and item.size >= 0:
            found.setdefault((item.kind, item.digest), []).append(_Entry(line, file, item))


def _row(object_id: ObjectId, item: LentObject, key: str, length: int) -> Located:
    pack = BORROWED + key
    return Located(object_id.KIND, object_id.digest, 0, item.size, item.size, pack, 0, length, len(item.header), None)
