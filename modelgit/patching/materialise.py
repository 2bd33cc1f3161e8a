"""Reading tensors back: find the cheapest record, decode what is asked for, follow bases."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from modelgit.codecs.base import word_dtype
from modelgit.codecs.lowrank import decode_factors
from modelgit.errors import IntegrityError
from modelgit.numerics.lowrank import Factors, predict
from modelgit.numerics.scratch import scratch
from modelgit.objects import LEAF_BYTES, BlobId, ObjectId, TensorId, TensorSpec, preimage
from modelgit.patching.base import STEP_BYTES, WINDOW_BYTES
from modelgit.patching.chain import MAX_CHAIN
from modelgit.patching.foreign import ForeignReader
from modelgit.patching.leaves import REPAIR, LeafChecks, VerifiedReads, check_leaf_tables, stored_leaves
from modelgit.patching.positions import PositionReads, bind
from modelgit.patching.records import UnitTable, checksum, read_header
from modelgit.store.base import Located, ObjectStore, is_external, is_foreign
from modelgit.store.fs import PackGoneError

__all__ = ["TensorReader"]

_TABLES = 4096
_FACTOR_NUMBERS = 1 << 22  # of all corrections that are kept: 32 MiB


class TensorReader:
    """Reads ranges of stored tensors and blobs.  Thread-safe; memory is a few times the range asked for."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._leaves = LeafChecks(store, self)
        self._tables: OrderedDict[tuple[str, int], UnitTable] = OrderedDict()
        self._corrections: OrderedDict[tuple[str, int], Factors] = OrderedDict()
        self._lock = threading.Lock()
        self._foreign = ForeignReader(store, TensorReader)
        self._positions = PositionReads(self)

    def size(self, tensor: TensorId | BlobId) -> int | None:
        """Raw length in bytes, or None when the object is not here."""
        found = self._store.locate(tensor)
        return found[0].total if found else None

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        """Raw bytes `start` to `stop` (on word borders).

        Raises IntegrityError when the object is missing, damaged, or coded against a chain that is too deep.
        """
        if not 0 <= start <= stop or (stop - start > WINDOW_BYTES and stop > (self.size(tensor) or 0)):
            # Before anything of that size is allocated.
            raise IntegrityError(f"{tensor.KIND} {tensor} does not have the bytes {start} to {stop}")
        out = bytearray(stop - start)
        self.read_into(tensor, start, memoryview(out))
        return out

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        """Fill `out` with the raw bytes from `start` on; raises IntegrityError like `read`."""
        stop = start + out.nbytes
        try:
            self._fill(tensor, start, stop, out, 0)
        except PackGoneError:  # garbage collection moved it meanwhile: look again, once
            self._fill(tensor, start, stop, out, 0)

    def grain(self, tensor: TensorId | BlobId) -> int:
        """The largest unit in the tensor's chain, at least STEP_BYTES."""
        largest, current = STEP_BYTES, tensor
        for _ in range(MAX_CHAIN):
            found = _cheapest(self._store.locate(current))
            if not found:
                break
            item = found[0]
            largest = max(largest, LEAF_BYTES if is_foreign(item) else self._table(item).unit_bytes)
            if item.base is None:
                break
            current = type(tensor)(item.base)
        return min(largest, WINDOW_BYTES)

    def read_blob(self, blob: BlobId, *, limit: int = 1 << 30) -> bytes:
        """A whole blob, at most `limit` bytes."""
        size = self.size(blob)
        if size is None:
            raise self._store.absence(blob)
        if size > limit:
            raise IntegrityError(f"blob {blob} has {size} bytes where at most {limit} are expected")
        return bytes(self.read(blob, 0, size))

    def verify(self, object_id: TensorId | BlobId, spec: TensorSpec | None) -> None:
        """Rebuild the object and compare it with its id; raises IntegrityError when they differ."""
        size = self.size(object_id)
        if size is None:
            raise self._store.absence(object_id)
        if spec is not None and size != spec.size_bytes:
            raise IntegrityError(f"object {object_id} has {size} bytes, its shape asks for {spec.size_bytes}")
        expected = preimage(size, spec, stored_leaves(self, object_id, size))
        if type(object_id).of(expected) != object_id:
            raise IntegrityError(f"object {object_id} does not match its id", hint=REPAIR)
        check_leaf_tables(self._store, object_id, expected)

    def verifying(self, specs: Mapping[TensorId, TensorSpec]) -> VerifiedReads:
        """Reads with every byte checked against the id: for what comes from a source that is not trusted.

        `specs` are those of the tensors that will be asked for.  The leaves of 4 MiB that a range touches are
        rebuilt; an object without a leaf table is rebuilt whole, once.  Reads raise IntegrityError if they differ.
        """
        return VerifiedReads(self._leaves, specs)

    def record(self, tensor: TensorId | BlobId) -> tuple[Located, UnitTable] | None:
        """The record that a read would use for the first bytes, with its header.

        None when there is none, or when the object lies elsewhere (see `patching.foreign`).
        """
        found = _cheapest(self._store.locate(tensor))
        return (found[0], self._table(found[0])) if found and not is_foreign(found[0]) else None

    def _fill(self, object_id: ObjectId, start: int, stop: int, out: memoryview, depth: int) -> None:
        if depth > MAX_CHAIN:
            raise IntegrityError(f"{object_id.KIND} {object_id} is coded in a chain deeper than {MAX_CHAIN}")
        records = self._store.locate(object_id)
        if not records:
            raise self._store.absence(object_id)
        if stop > records[0].total or start > stop:
            raise IntegrityError(f"{object_id.KIND} {object_id} has {records[0].total} bytes, {stop} are asked for")
        position = start
        if start == stop:
            return
        while position < stop:
            usable = [item for item in records if item.start <= position < item.stop]
            if not usable:
                raise IntegrityError(
                    f"{object_id.KIND} {object_id} is stored only in part", hint="`mgit fetch` completes it"
                )
            item = _cheapest(usable)[0]
            end = min(stop, item.stop)
            if is_foreign(item):
                self._foreign.fill(item, object_id, position, end, out[position - start : end - start])
                position = end
                continue
            self._decode(item, object_id, position, end, out[position - start : end - start], depth)
            position = end

    def _fill_base(self, base: ObjectId, start: int, stop: int, out: memoryview, depth: int) -> None:
        """Bytes of a base, which goes on with zeros beyond its end: the object may have grown."""
        found = self._store.locate(base)
        if not found:
            raise self._store.absence(base)
        end = max(start, min(stop, found[0].total))
        if end > start:
            self._fill(base, start, end, out[: end - start], depth)
        if end < stop:
            np.frombuffer(out[end - start :], np.uint8)[:] = 0

    def _decode(self, item: Located, object_id: ObjectId, start: int, stop: int, out: memoryview, depth: int) -> None:
        table = self._table(item)
        word = word_dtype(table.layout)
        if start % word.itemsize or stop % word.itemsize:
            raise IntegrityError(f"{object_id.KIND} {object_id} is read off its word borders")
        size = table.unit_bytes
        first, last = (start - item.start) // size, -(-(stop - item.start) // size)
        low = item.start + first * size
        high = min(item.start + last * size, item.stop)
        codec = table.codec
        payload = memoryview(self._store.read_part(item, table.offsets[first], table.offsets[last]))
        whole = codec.random_access or (low == start and high == stop)
        target = out if whole else memoryview(bytearray(high - low))
        base: memoryview | None = None
        if item.base is not None:
            if codec.random_access:
                low, high = start, stop
                self._fill_base(type(object_id)(item.base), low, high, target, depth + 1)
                base = target
            else:
                base = scratch(f"materialise.base{depth}", high - low, np.uint8).data
                self._fill_base(type(object_id)(item.base), low, high, base, depth + 1)
            if table.prelude_bytes:
                known = np.frombuffer(base, word)
                predict(self._factors(item, object_id, table), known, low // word.itemsize, known)
        elif codec.random_access:
            low, high = start, stop
        for number in range(first, last):
            begin = max(item.start + number * size, low)
            end = min(item.start + (number + 1) * size, high)
            cut = table.offsets[first]
            part = payload[table.offsets[number] - cut : table.offsets[number + 1] - cut]
            if checksum(part) != table.checksums[number]:
                raise _damaged(object_id, item, f"unit {number}")
            words = np.frombuffer(target[begin - low : end - low], word)
            unit = item.start + number * size
            codec = bind(
                codec,
                self._positions,
                table.section,
                item.total // word.itemsize,
                unit // word.itemsize,
                min(unit + size, item.stop) // word.itemsize,
            )
            codec.decode(
                part,
                table.layout,
                words,
                base=None if base is None else np.frombuffer(base[begin - low : end - low], word),
                start=(begin - unit) // word.itemsize if codec.random_access else 0,
            )
        if not whole:
            out[:] = target[start - low : stop - low]

    def _table(self, item: Located) -> UnitTable:
        key = (item.pack, item.offset)
        with self._lock:
            table = self._tables.get(key)
        if table is None:
            table = read_header(self._store, item)
            if not item.pack.startswith("+"):  # the numbers of unsealed packs are used again by the next session
                with self._lock:
                    self._tables[key] = table
                    if len(self._tables) > _TABLES:
                        self._tables.popitem(last=False)
        return table

    def _factors(self, item: Located, object_id: ObjectId, table: UnitTable) -> Factors:
        """The correction in front of a record's units; those of a few records are kept."""
        key = (item.pack, item.offset)
        with self._lock:
            factors = self._corrections.get(key)
            if factors is not None:
                self._corrections.move_to_end(key)
                return factors
        prelude = self._store.read_part(item, 0, table.prelude_bytes)
        if checksum(prelude) != table.prelude_check:
            raise _damaged(object_id, item, "prelude")
        width = table.layout.word_bytes
        factors = decode_factors(prelude, table.layout, item.start // width, (item.stop - item.start) // width)
        if not item.pack.startswith("+"):
            with self._lock:
                self._corrections[key] = factors
                held = sum(kept.left.size + kept.right.size for kept in self._corrections.values())
                while held > _FACTOR_NUMBERS:
                    _, dropped = self._corrections.popitem(last=False)
                    held -= dropped.left.size + dropped.right.size
        return factors


def _damaged(object_id: ObjectId, item: Located, where: str) -> IntegrityError:
    return IntegrityError(
        f"object {object_id} is damaged on disk (pack {item.pack[:16]}, {where})",
        hint="`mgit fetch --repair` gets a good copy from a remote",
    )


def _cheapest(records: list[Located]) -> list[Located]:
    ranges = [item for item in records if not item.is_leaf_table]
    return sorted(ranges, key=lambda item: (is_external(item), item.base is not None, item.length))
