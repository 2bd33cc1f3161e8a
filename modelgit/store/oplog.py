"""Operations: immutable views of all refs, each with its predecessor; one small file each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from modelgit.errors import IntegrityError
from modelgit.objects import Operation, OperationId, decode, encode
from modelgit.store.base import RootStore, VersionedRoot
from modelgit.store.durable import make_directory, sync_directory, write_durably

__all__ = ["OperationLog"]

_NAME = re.compile(r"[0-9a-f]{64}\Z")


class OperationLog:
    """Files `<path>/operations/<hex>`."""

    def __init__(self, path: Path) -> None:
        self._folder = path / "operations"

    def write(self, operation: Operation) -> OperationId:
        """Store an operation durably; harmless until a root names it."""
        data = encode(operation)
        object_id = OperationId.of(data)
        make_directory(self._folder)
        write_durably(self._folder / object_id.hex, data)
        return object_id

    def read(self, object_id: OperationId) -> Operation:
        """Read an operation.  Raises IntegrityError when it is missing or damaged."""
        try:
            data = (self._folder / object_id.hex).read_bytes()
        except FileNotFoundError:
            raise IntegrityError(f"operation {object_id.short} is missing") from None
        if OperationId.of(data) != object_id:
            raise IntegrityError(f"operation {object_id.short} does not match its id")
        return decode(Operation, data, what=f"operation {object_id.short}")

    def current(self, roots: RootStore) -> tuple[VersionedRoot, Operation]:
        """The current root and its operation.  Raises IntegrityError when the operation is missing or damaged.

        Between the two readings another writer may publish, and a collection delete what the old root named: then the
        new one is read.
        """
        root = roots.read()
        while True:
            try:
                return root, self.read(root.root.operation)
            except IntegrityError:
                newer = roots.read()
                if newer.root.operation == root.root.operation:
                    raise
                root = newer

    def has(self, object_id: OperationId) -> bool:
        """Whether the operation is still kept."""
        return (self._folder / object_id.hex).exists()

    def history(self, newest: OperationId) -> Iterator[tuple[OperationId, Operation]]:
        """Operations from `newest` back, as far as they are kept."""
        current: OperationId | None = newest
        while current is not None and self.has(current):
            operation = self.read(current)
            yield current, operation
            current = operation.parent

    def listed(self) -> set[OperationId]:
        """Every operation that there is a file of, whether or not a root ever named it."""
        names = [path.name for path in self._folder.iterdir() if _NAME.match(path.name)]
        return {OperationId(bytes.fromhex(name)) for name in names}

    def remove(self, operations: Iterable[OperationId]) -> None:
        """Delete operations that nobody needs any more; once this returns they do not come back."""
        gone = False
        for object_id in operations:
            with contextlib.suppress(OSError):  # then it is deleted next time
                (self._folder / object_id.hex).unlink()
                gone = True
        if gone:
            sync_directory(self._folder)
