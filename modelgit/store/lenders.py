"""What a repository borrows, on disk: the list of lenders, and per lender tables of objects with their leaf digests.

`borrow/lenders` has one lender a line (`store PATH`, `files PATH`, `hub hf:org/name@COMMIT`).  `borrow/KEY-HEX.table`
are immutable; what they say together counts.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.objects import Record, TensorSpec, decode, encode
from modelgit.store.durable import make_directory, write_durably

__all__ = ["KINDS", "WORTH_BYTES", "LenderLine", "LenderList", "LentFile", "LentObject", "LentTable"]

KINDS = ("store", "files", "hub")
WORTH_BYTES = 1024
"""What takes less than this is not borrowed: a record that says where it lies would be hardly any shorter."""
_TABLE = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}\.table\Z")
_MAX_TABLE_BYTES = 1 << 30
_MAX_LENDERS = 16


class LentFile(Record, frozen=True, kw_only=True):
    """A file of a lender as it was when it was hashed; `path` is relative to the lender's directory."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    seen_ns: int


class LentObject(Record, frozen=True, kw_only=True):
    """An object that a lender has, checked once against its id.

    `leaves` are its leaf digests, one after the other.  Of a lender of files, `file` is the number of the file and
    `offset` the place in it; `header` is that of the record that would hold the same bytes uncoded.
    """

    kind: str
    digest: bytes
    size: int
    leaves: bytes
    file: int = 0
    offset: int = 0
    header: bytes = b""
    spec: TensorSpec | None = None


class LentTable(Record, frozen=True, kw_only=True):
    """Objects of one lender."""

    files: tuple[LentFile, ...] = ()
    objects: tuple[LentObject, ...] = ()


class LenderLine(NamedTuple):
    """A lender: its kind, and the absolute path of its directory or the name of a published model."""

    kind: str
    target: str

    @property
    def key(self) -> str:
        """What its tables and the records that it lends are called after."""
        return blake3(f"{self.kind} {self.target}".encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        """The directory."""
        return Path(self.target)


class LenderList:
    """The directory `borrow` of a repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "lenders"

    def read(self) -> tuple[LenderLine, ...]:
        """All lenders, in the order in which they are asked.  Raises RepositoryError for an unreadable list."""
        try:
            text = self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise RepositoryError(f"{self._file} cannot be read: {error}") from None
        lines = []
        for line in text.splitlines()[:_MAX_LENDERS]:
            kind, _, target = line.strip().partition(" ")
            if kind in KINDS and target:
                lines.append(LenderLine(kind, target))
        return tuple(dict.fromkeys(lines))

    def write(self, lenders: Sequence[LenderLine]) -> None:
        """Replace the list."""
        make_directory(self._folder)
        write_durably(self._file, "".join(f"{line.kind} {line.target}\n" for line in lenders).encode())

    def tables(self, lender: LenderLine) -> Iterator[LentTable]:
        """What is known of a lender's objects.

        A damaged table counts as absent: `mgit borrow update` makes it anew.
        """
        for path in self._paths(lender):
            with contextlib.suppress(OSError, IntegrityError):
                if path.stat().st_size > _MAX_TABLE_BYTES:
                    continue
                data = path.read_bytes()
                if blake3(data[:-32]).digest() == data[-32:]:
                    yield decode(LentTable, data[:-32], what=f"the table {path.name}")

    def add_table(self, lender: LenderLine, table: LentTable, *, replace: bool = False) -> None:
        """Write a table durably; with `replace`, instead of all that there are."""
        old = self._paths(lender) if replace else []
        make_directory(self._folder)
        body = encode(table)
        name = f"{lender.key}-{os.urandom(8).hex()}.table"
        write_durably(self._folder / name, body + blake3(body).digest())
        self._remove(old)

    def forget(self, lender: LenderLine) -> None:
        """Remove all tables of a lender."""
        self._remove(self._paths(lender))

    def _paths(self, lender: LenderLine) -> list[Path]:
        try:
            names = sorted(entry.name for entry in os.scandir(self._folder))
        except OSError:
            return []
        return [self._folder / name for name in names if (m := _TABLE.match(name)) and m.group(1) == lender.key]

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()
