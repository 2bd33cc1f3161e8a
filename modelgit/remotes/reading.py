"""A remote seen as a store, so that whatever reads objects here reads them there too."""

from __future__ import annotations

from collections.abc import Iterator

from modelgit.errors import IntegrityError, RemoteError
from modelgit.objects import Commit, CommitId, ObjectId
from modelgit.remotes.base import Transport
from modelgit.store.base import Foreign, Located, ObjectStore, covers
from modelgit.store.borrow import missing_object
from modelgit.store.metadata import MAX_METADATA_BYTES, read_record

__all__ = ["CombinedStore"]

_FAR = "remote:"  # a copied repository may have packs of the same names


class CombinedStore:
    """Objects of `near` (None: nothing is near), and of a remote where `near` lacks them."""

    def __init__(self, near: ObjectStore | None, far: Transport, *, far_name: str) -> None:
        self._near = near
        self._far = far
        self._far_name = far_name

    def read_commit(self, commit: CommitId) -> Commit:
        """A commit, checked against its id."""
        return read_record(self, commit, Commit)

    def locate(self, object_id: ObjectId) -> list[Located]:
        """Records here, or else there.  Raises RemoteError when there are none."""
        found = self._find(object_id)
        if not found:
            raise RemoteError(
                f"{self._far_name} does not hold {object_id.KIND} {object_id}",
                hint=f"`mgit fsck` in {self._far_name} shows what else is missing",
            )
        return found

    def _find(self, object_id: ObjectId) -> list[Located]:
        here = [] if self._near is None else self._near.locate(object_id)
        if covers(here):
            return here
        there = self._far.locate([object_id]).get(object_id, [])
        return [item._replace(pack=_FAR + item.pack) for item in there]

    def read(self, located: Located) -> tuple[bytes, memoryview]:
        """(header, payload) of a record."""
        if located.length > MAX_METADATA_BYTES:
            raise IntegrityError(f"{located.kind} b3:{located.digest.hex()} claims {located.length} bytes")
        return located.split(self.read_part(located, 0, located.length))

    def read_part(self, located: Located, start: int, stop: int) -> bytes:
        """A range of a record."""
        if located.pack.startswith(_FAR) or self._near is None:
            return self._far.fetch(located._replace(pack=located.pack[len(_FAR) :]), start, stop)
        return self._near.read_part(located, start, stop)

    def has(self, object_id: ObjectId) -> bool:
        """Whether the object is whole on one of the two sides."""
        return covers(self._find(object_id))

    def foreign(self, located: Located) -> Foreign:
        """How to read a borrowed or external object."""
        if self._near is None:
            raise RemoteError(
                f"{self._far_name} has {located.kind} b3:{located.digest.hex()} only by reference to another place",
                hint=f"`mgit clone '{self._far_name}'` gives a repository that can look there",
            )
        return self._near.foreign(located)

    def absence(self, object_id: ObjectId) -> IntegrityError:
        """Why there are no records of the object."""
        return missing_object(object_id) if self._near is None else self._near.absence(object_id)

    def objects(self) -> Iterator[Located]:
        """Records that are here; those of a remote are not listed."""
        return iter(()) if self._near is None else self._near.objects()
