"""What is to be stored, and what became of it."""

from __future__ import annotations

from typing import NamedTuple

from modelgit.errors import RepositoryError
from modelgit.numerics.nonfinite import ValueCounts
from modelgit.objects import BlobId, TensorId, TensorSpec
from modelgit.patching.base import STEP_BYTES, WINDOW_BYTES, TensorReads, TensorSource
from modelgit.patching.positions import Section

__all__ = ["BlobSource", "SourceChangedError", "StoreJob", "Stored", "StoredObject"]


class SourceChangedError(RepositoryError):
    """A file gave different bytes when it was read again: somebody is writing it."""

    code = "source-changed"


class StoreJob(NamedTuple):
    """One tensor (or blob, when `spec` is None) to store.

    `parent` is the tensor of the same name in the parent commit: the first candidate for a base, and what changed
    values are counted against.  It may have more or fewer rows: it is cut, or goes on with zeros.  `bases` are further
    candidates.  `name` is what messages call the job.  `masks` are stored positions, outside of which it may not have
    changed; those that the records of its bases refer to are looked at besides.
    """

    name: str
    source: TensorSource
    spec: TensorSpec | None
    size: int
    parent: TensorId | BlobId | None = None
    bases: tuple[TensorId | BlobId, ...] = ()
    masks: tuple[Section, ...] = ()


class Stored(NamedTuple):
    """What became of a job: `codec` is "known" when nothing had to be written.

    `values_changed` counts elements that differ in bits from `parent`; None when that was not looked at or the parent
    has another size.  `nonfinite` counts NaN and infinities; None for blobs and for what was not coded.
    """

    name: str
    id: TensorId | BlobId
    codec: str
    bytes_written: int
    values_changed: int | None
    nonfinite: ValueCounts | None = None


class BlobSource:
    """Bytes in memory as a source."""

    step_bytes = STEP_BYTES

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.spec = TensorSpec(dtype="U8", shape=(len(data),))
        self._data = memoryview(data)

    def read(self, start: int, stop: int) -> memoryview:
        """A slice, not a copy."""
        return self._data[start:stop]

    def read_into(self, start: int, out: memoryview) -> None:
        """A copy."""
        out[:] = self._data[start : start + out.nbytes]


class StoredObject:
    """What is stored (or borrowed) already as a source, by windows: to be coded again, or compared."""

    step_bytes = WINDOW_BYTES

    def __init__(self, reader: TensorReads, object_id: TensorId | BlobId, spec: TensorSpec | None) -> None:
        self.spec = spec or TensorSpec(dtype="U8", shape=(reader.size(object_id) or 0,))
        self._reader = reader
        self._id = object_id

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop`."""
        return self._reader.read(self._id, start, stop)

    def read_into(self, start: int, out: memoryview) -> None:
        """The same from `start` on, into a buffer of the caller's."""
        self._reader.read_into(self._id, start, out)
