"""A remote that is a directory: a repository without a work tree, kept by the same code as the local one.

It may lie on a disk, a network file system or a synchronised share; its root moves by creating a numbered file, which
needs neither locks nor clocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from modelgit.environment import Environment
from modelgit.errors import ConflictError, IntegrityError, LenderError, RemoteError, RepositoryError, RootMoved
from modelgit.objects import BlobId, KeptEstimate, KeptNote, ObjectId, Pruning, Statistics, View
from modelgit.progress import Progress
from modelgit.remotes.base import Needed, RefUpdate, RemoteRoot, Upload
from modelgit.remotes.receive import verify_objects
from modelgit.remotes.url import RemoteUrl
from modelgit.store.base import Located, covers
from modelgit.store.durable import write_durably
from modelgit.store.fs import FileSystemStore
from modelgit.store.oplog import OperationLog
from modelgit.store.publish import initialise, publish
from modelgit.store.root import FORMAT_LINE, FileRoot
from modelgit.store.session import PackSession
from modelgit.store.side_records import retention_records, statistics_records, with_estimates, with_notes

__all__ = ["DirectoryTransport", "initialise_bare", "open_directory"]

_WORKTREE_DIRECTORY = ".mgit"
_OURS = frozenset({"format", "packs", "root", "operations", "incoming"})


def open_directory(url: RemoteUrl, *, environment: Environment, relative_to: Path) -> DirectoryTransport:
    """The transport for a `file` URL or a plain path."""
    return DirectoryTransport(url.local_path(relative_to, environment.home), url=url.text, hub=environment.hub_cache)


def initialise_bare(path: Path, *, branch: str = "main", author: str) -> None:
    """Make a bare repository in `path`, a directory that is missing or empty.

    One that was left half made by a crash is finished.  Raises RemoteError for a directory with other files in it.
    """
    try:
        names = {entry.name for entry in path.iterdir()} if path.exists() else set()
        # `tmp-…` is a file that another process, making the repository at this moment, is about to rename.
        foreign = sorted(name for name in names - _OURS if not name.startswith("tmp-"))
        if foreign:
            raise RemoteError(
                f"{path} is not an mgit repository and not empty: it holds {foreign[0]!a}",
                hint="name an empty directory, or one that does not exist yet",
            )
        if not path.parent.is_dir():
            raise RemoteError(f"{path.parent} does not exist", hint=f"`mkdir -p '{path.parent}'`")
        (path / "packs").mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(RootMoved):  # somebody else makes it at this moment
            if not _has_root(path):
                initialise(FileRoot(path), OperationLog(path), view=View(branch=branch), author=author)
        write_durably(path / "format", FORMAT_LINE.encode())
    except OSError as error:
        raise RemoteError(f"cannot make a repository in {path}: {error.strerror or error}") from error
    except RepositoryError as error:
        raise RemoteError(error.message, hint=error.hint) from error


def _has_root(path: Path) -> bool:
    folder = path / "root"
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


class DirectoryTransport:
    """The remote at `path`: a bare repository, or the `.mgit` of one with a work tree."""

    def __init__(self, path: Path, *, url: str | None = None, hub: Path | None = None) -> None:
        self.url = url or str(path)
        self._hub = hub
        self._given = path
        self._opened: _Opened | None = None

    def create(self, *, branch: str, author: str) -> bool:
        """Make a bare repository if the directory is missing or empty."""
        if self._find() is not None:
            return False
        initialise_bare(self._given, branch=branch, author=author)
        return True

    def root(self) -> RemoteRoot:
        """The current root and view."""
        with _translated(self.url):
            side = self._side()
            root, operation = side.operations.current(side.roots)
            side.condemned = frozenset(root.root.condemned)
            side.store.lookup.refresh()  # packs may have been collected since we looked last
            view = operation.view
            prunings = retention_records(side.store.path).read(root.root.retention).prunings
        checked_out = f"heads/{view.branch}" if side.has_worktree and view.branch is not None else None
        return RemoteRoot(root, view, checked_out, prunings)

    def statistics(self, state: RemoteRoot) -> Statistics:
        """The record that the root names."""
        with _translated(self.url):
            return statistics_records(self._side().store.path).read(state.root.root.statistics)

    def missing(self, ids: Collection[ObjectId], *, upload: Upload | None = None) -> set[ObjectId]:
        """Objects that are not there whole, in packs that will stay."""
        with _translated(self.url):
            side = self._side()
            condemned = set(side.roots.read().root.condemned)
            present = {
                object_id
                for object_id in ids
                if covers(item for item in side.store.locate(object_id) if item.pack not in condemned)
            }
        if isinstance(upload, DirectoryUpload):
            upload.rely_on(present)
        return set(ids) - present

    def locate(self, ids: Collection[ObjectId]) -> Mapping[ObjectId, list[Located]]:
        """The records of each object."""
        with _translated(self.url):
            side = self._side()
            return {object_id: side.lasting(side.store.portable(object_id)) for object_id in ids}

    def fetch(self, located: Located, start: int, stop: int) -> bytes:
        """A range of a record."""
        with _translated(self.url):
            store = self._side().store
            try:
                return store.read_part(located, start, stop)
            except LenderError:
                raise
            except IntegrityError as error:
                if (store.packs_path / located.pack).exists():
                    raise
                raise RemoteError(
                    f"garbage collection ran on {self.url} while it was being read", hint="run the command again"
                ) from error

    def send(self, *, epoch: int) -> DirectoryUpload:
        """Begin to write packs into the directory."""
        with _translated(self.url):
            side = self._side()
            condemned = side.roots.read().root.condemned
            return DirectoryUpload(side.store.session(epoch=epoch, condemned=condemned), self.url)

    def swap(
        self,
        updates: Iterable[RefUpdate],
        *,
        upload: Upload | None,
        description: str,
        author: str,
        prunings: Sequence[Pruning] = (),
        estimates: Sequence[KeptEstimate] = (),
        notes: Sequence[KeptNote] = (),
    ) -> View:
        """Move the refs by moving the directory's root."""
        moves = list(updates)
        with _translated(self.url):
            side = self._side()

            def change(view: View) -> View:
                # Epochs only grow: if it is still the old one now, then so it was in the root that is to be replaced.
                if upload is not None and side.roots.read().root.epoch != upload.epoch:
                    raise ConflictError(f"garbage collection ran on {self.url} meanwhile", hint="run it again")
                return _moved(view, moves, self.url)

            def listed(record: Statistics) -> Statistics:
                return with_notes(with_estimates(record, estimates), notes)

            session = upload.session if isinstance(upload, DirectoryUpload) else None
            return publish(
                side.roots,
                side.operations,
                side.store,
                change,
                description=description,
                author=author,
                session=session,
                prunings=prunings,
                keep=listed if estimates or notes else None,
            )

    def close(self) -> None:
        """Close the files."""
        if self._opened is not None:
            self._opened.store.close()
            self._opened = None

    def _find(self) -> Path | None:
        """The repository directory, or None when there is nothing yet."""
        try:
            for path in (self._given / _WORKTREE_DIRECTORY, self._given):
                if (path / "format").is_file():
                    return path
            if self._given.exists() and not self._given.is_dir():
                raise RemoteError(f"{self._given} is a file, not a repository", hint="name a directory")
        except OSError as error:
            raise RemoteError(f"cannot read {self._given}: {error.strerror or error}") from error
        return None

    def _side(self) -> _Opened:
        if self._opened is None:
            path = self._find()
            if path is None:
                state = "is not an mgit repository" if self._given.exists() else "does not exist"
                raise RemoteError(f"the remote {self._given} {state}", hint=f"`mgit push` to `{self.url}` makes one")
            line = (path / "format").read_text(encoding="utf-8", errors="replace")
            if line != FORMAT_LINE:
                raise RemoteError(
                    f"{path} has repository format {line.strip()[:60]!a}, which this mgit does not read",
                    hint="`pip install --upgrade modelgit`",
                )
            self._opened = _Opened(path, self._hub)
        return self._opened


class _Opened:
    def __init__(self, path: Path, hub: Path | None) -> None:
        self.has_worktree = path.name == _WORKTREE_DIRECTORY
        self.store = FileSystemStore(path, hub=hub)
        self.roots = FileRoot(path)
        self.operations = OperationLog(path)
        self.condemned: frozenset[str] = frozenset()

    def lasting(self, records: list[Located]) -> list[Located]:
        """Records in packs that will stay, if these are enough."""
        kept = [item for item in records if item.pack not in self.condemned]
        return kept if covers(kept) else records


class DirectoryUpload:
    """Packs on their way into a directory."""

    def __init__(self, session: PackSession, url: str) -> None:
        self.session = session
        self._url = url

    @property
    def epoch(self) -> int:
        """The epoch at the beginning."""
        return self.session.epoch

    @property
    def bytes_written(self) -> int:
        """Bytes of records."""
        return self.session.bytes_written

    def rely_on(self, ids: Iterable[ObjectId]) -> None:
        """Remember objects that were found and will not be written again."""
        self.session.relied_on.update(ids)

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
        """Write one record."""
        with _translated(self._url):
            self.session.append(
                object_id,
                start=start,
                stop=stop,
                total=total,
                header=header,
                payload=payload,
                base=base,
                positions=positions,
            )

    def finish(self, items: Sequence[Needed], *, threads: int, progress: Progress) -> None:
        """Read every object back out of the unsealed packs, then seal them."""
        verify_objects(self.session, items, threads=threads, where="this repository", progress=progress)
        with _translated(self._url):
            self.session.seal()

    def abort(self) -> None:
        """Remove what was not sealed."""
        with _translated(self._url):
            self.session.abort()


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Failures of the directory are failures of a remote; what to do about a lost race is up to the caller."""
    try:
        yield
    except ConflictError:
        raise
    except RepositoryError as error:
        raise RemoteError(f"{url}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise RemoteError(
            f"cannot use {url}: {error.strerror or error}", hint="look who may read and write there"
        ) from error


def _moved(view: View, updates: Sequence[RefUpdate], url: str) -> View:
    for update in updates:
        if view.refs.get(update.name) != update.expected:
            raise ConflictError(f"{update.name} moved on {url} at the same moment", hint="run the command again")
        view = view.with_moved({update.name: update.new})
    return view
