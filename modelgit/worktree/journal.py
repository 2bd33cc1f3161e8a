"""The intent to change the work tree, written before the first file is touched and cleared after the last.

Whoever finds a journal finishes what it says: a half-done switch is never mistaken for edits of the user.
"""

from __future__ import annotations

from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.objects import CommitId, FileEntry, ManifestId, OperationId, Record, decode, encode
from modelgit.store.durable import make_directory, sync_directory, write_durably

__all__ = ["Intent", "Journal"]


class Intent(Record, frozen=True, kw_only=True):
    """From which manifest to which, and what to publish when the files are there.

    `refs` are the refs that the view gets (None deletes one) where they are still at `expected`; others stay as they
    are then.  `branch` and `detached` are the head that it gets, `restores` and `redo` what the operation says of an
    undo.  `paths` limits the change to some files (restore); `publishes` False changes files only.
    `source_training` and `target_training` are the files of training state, which have a manifest of their own that may
    be gone by then.  `rescue` is the operation's.
    """

    source: ManifestId | None
    target: ManifestId
    description: str
    author: str
    publishes: bool = True
    branch: str | None = None
    detached: CommitId | None = None
    refs: dict[str, CommitId | None] = {}
    expected: dict[str, CommitId | None] = {}
    paths: tuple[str, ...] | None = None
    restores: OperationId | None = None
    redo: tuple[OperationId, ...] = ()
    source_training: tuple[FileEntry, ...] = ()
    target_training: tuple[FileEntry, ...] = ()
    rescue: str = ""


class Journal:
    """The intent in the file `path`; at most one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Intent | None:
        """The pending intent, if there is one."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        return decode(Intent, data, what="the work tree's journal")

    @property
    def pending(self) -> bool:
        """Whether something was left unfinished."""
        return self._path.exists()

    def write(self, intent: Intent) -> None:
        """Make the intent durable."""
        make_directory(self._path.parent)
        write_durably(self._path, encode(intent))

    def clear(self) -> None:
        """Everything that the intent said is done."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise RepositoryError(f"cannot remove {self._path}: {error.strerror or error}") from error
        sync_directory(self._path.parent)
