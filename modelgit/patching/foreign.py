"""Reading objects that lie elsewhere: whole leaves, each compared with its digest before a byte of it is used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.codecs.base import Layout, layout_of
from modelgit.errors import BugError, ExternalAbsentError, IntegrityError, LenderError
from modelgit.objects import (
    DIGEST_BYTES,
    LEAF_BYTES,
    BlobId,
    ObjectId,
    TensorId,
    TensorSpec,
    leaf_count,
    leaf_digest,
    raw_id,
)
from modelgit.patching.leaves import stored_leaves
from modelgit.patching.records import RecordHeader
from modelgit.store.base import Foreign, Located, ObjectStore
from modelgit.store.lenders import LentObject
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.patching.materialise import TensorReader

__all__ = ["ForeignReader", "Relied", "UncodedHeader", "settle"]

_KEPT_LEAVES = 8


class Relied(NamedTuple):
    """An object that was found at a lender, what it must be, and what messages call it."""

    id: TensorId | BlobId
    spec: TensorSpec | None
    name: str
    size: int | None = None


class ForeignReader:
    """Reads borrowed and external objects for a TensorReader.  Thread-safe; keeps the last few leaves (32 MiB)."""

    def __init__(self, store: ObjectStore, open_reader: Callable[[ObjectStore], TensorReader]) -> None:
        self._store = store
        self._open_reader = open_reader
        self._readers: dict[int, tuple[ObjectStore, TensorReader]] = {}
        self._sources: OrderedDict[tuple[str, bytes, str, int], Foreign] = OrderedDict()
        self._leaves: OrderedDict[tuple[str, bytes, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def fill(self, item: Located, object_id: ObjectId, start: int, stop: int, out: memoryview) -> None:
        """Bytes `start` to `stop` of the object into `out`.

        Raises LenderError when what it lies in is gone or has changed.
        """
        for number in range(start // LEAF_BYTES, -(-stop // LEAF_BYTES)):
            begin = number * LEAF_BYTES
            leaf = self._leaf(item, object_id, number)
            low, high = max(start, begin), min(stop, begin + LEAF_BYTES)
            out[low - start : high - start] = memoryview(leaf)[low - begin : high - begin]

    def _leaf(self, item: Located, object_id: ObjectId, number: int) -> bytes:
        key = (object_id.KIND, object_id.digest, number)
        with self._lock:
            known = self._leaves.get(key)
            if known is not None:
                self._leaves.move_to_end(key)
                return known
        source = self._source(item)
        begin = number * LEAF_BYTES
        end = min(begin + LEAF_BYTES, item.total)
        if source.read is not None:
            data = source.read(begin, end)
        elif source.store is not None:
            data = bytes(self._reader(source.store).read(_leaf_object(object_id), begin, end))
        else:
            raise BugError(f"{object_id} lies nowhere")
        if leaf_digest(data) != source.leaves[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
            raise LenderError(
                f"{object_id.KIND} {object_id} has changed in {source.shown}, from which it is borrowed",
                hint=source.hint,
            )
        with self._lock:
            self._leaves[key] = data
            if len(self._leaves) > _KEPT_LEAVES:
                self._leaves.popitem(last=False)
        return data

    def _source(self, item: Located) -> Foreign:
        key = (item.kind, item.digest, item.pack, item.offset)
        with self._lock:
            found = self._sources.get(key)
        if found is None:
            found = self._store.foreign(item)
            if len(found.leaves) != DIGEST_BYTES * leaf_count(item.total):
                raise IntegrityError(f"{item.kind} b3:{item.digest.hex()} has a table of leaves that does not fit it")
            with self._lock:
                if not item.pack.startswith("+"):  # the numbers of unsealed packs are used again
                    self._sources[key] = found
                if len(self._sources) > 4096:
                    self._sources.popitem(last=False)
        return found

    def _reader(self, store: ObjectStore) -> TensorReader:
        with self._lock:
            known = self._readers.get(id(store))
            if known is None:
                known = self._readers[id(store)] = (store, self._open_reader(store))
            return known[1]


class UncodedHeader:
    """The header of a record that would hold the same bytes uncoded, made leaf by leaf."""

    def __init__(self, spec: TensorSpec | None) -> None:
        self._layout = Layout(1, False) if spec is None else layout_of(spec)
        self._table = bytearray()

    def add(self, size: int, check: int) -> None:
        """The next leaf: its size and `records.checksum`."""
        self._table += size.to_bytes(4, "little") + check.to_bytes(8, "little")

    def packed(self) -> bytes:
        """The header."""
        layout = self._layout
        return msgspec.msgpack.encode(
            RecordHeader("raw", layout.word_bytes, layout.is_float, LEAF_BYTES, bytes(self._table))
        )


def settle(session: PackSession, open_reader: Callable[[ObjectStore], TensorReader], objects: Iterable[Relied]) -> None:
    """Compare those of `objects` that a lending repository is said to have with their ids, and remember their leaves.

    Raises LenderError, naming the object and the lender, when it has something else.
    """
    readers: dict[str, TensorReader] = {}
    for relied in objects:
        if relied.id not in session.unchecked:
            continue
        line = session.lenders.might_lend(relied.id)
        if line is None:
            raise session.absence(relied.id)
        if line.key not in readers:
            readers[line.key] = open_reader(session.lenders.store_of(line))
        reader = readers[line.key]
        size = reader.size(relied.id) or 0
        wrong = LenderError(
            f"{line.target} does not hold {relied.id.KIND} {relied.id} ({relied.name}) as it should",
            hint=f"`mgit borrow remove {line.target}`, then run the command again",
        )
        expected = relied.size if relied.spec is None else relied.spec.size_bytes
        if expected is not None and size != expected:
            raise wrong  # before anything is read: a lender may claim exabytes
        try:
            leaves = stored_leaves(reader, relied.id, size)
        except ExternalAbsentError:
            raise  # the lender borrows it, too, from a model that is not on this machine
        except IntegrityError as error:
            raise wrong from error
        if raw_id(size, relied.spec, leaves) != relied.id:
            raise wrong
        item = LentObject(kind=relied.id.KIND, digest=relied.id.digest, size=size, leaves=b"".join(leaves))
        session.lenders.learn(line, item)
        session.unchecked.discard(relied.id)


def _leaf_object(object_id: ObjectId) -> TensorId | BlobId:
    if isinstance(object_id, TensorId | BlobId):
        return object_id
    raise BugError(f"{object_id.KIND} {object_id} is metadata, which is never borrowed")
