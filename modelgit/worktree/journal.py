"""The intent to change the work tree, written before the first file is touched and cleared after the last.

Whoever finds a journal finishes what it says: a half-done switch is never mistaken for edits of the user.
"""

from __future__ import annotations

from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.objects import CommitId, ManifestId, OperationId, Record, decode, encode
from modelgit.store.durable import make_directory, sync_directory, write_durably

__all__ = ["Intent", "Journal"]


class Intent(Record, frozen=True, kw_only=True):
    """From which manifest to which, and what to publish when the files are there.

    `head` and `refs` are what the view gets (None deletes a ref); other refs stay as they are then.  `operation` is the
    operation that was current when the intent was formed: when the root has moved past it and `write_id`-like evidence
    (the view already says so) shows that the intent was published, only the files are finished.
    `paths` limits the change to some files (restore); such an intent publishes nothing.
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


class Journal:
    """The file `<worktree>/journal`."""

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
