"""What a remote is to the rest: a root that can be read and swapped, records that can be found, read and received.

The verbs are few, so that a directory, a bucket and a server that speaks over ssh or https can all carry them:
`root`, `missing`, `locate`, `fetch` (a range of a record), `send` (begin to upload) and `swap` (move refs, last).  What
must be sent, in which order, and what is checked on arrival is decided once, in `remotes.sync`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from modelgit.environment import Environment
from modelgit.objects import CommitId, KeptEstimate, KeptNote, ObjectId, Pruning, Statistics, TensorSpec, View
from modelgit.progress import Progress
from modelgit.registry import Registry
from modelgit.remotes.url import RemoteUrl, parse_url
from modelgit.store.base import Located, RecordWriter, VersionedRoot

__all__ = [
    "TRANSPORTS",
    "Needed",
    "RefUpdate",
    "RemoteRoot",
    "Transport",
    "TransportFactory",
    "Upload",
    "open_transport",
]


class RemoteRoot(NamedTuple):
    """The state of a remote at one moment: its root, the view that it names, and whether files follow that view.

    `checked_out` is the full name of the branch that somebody has in a work tree there; nobody may push to it.
    `prunings` list the commits that it has without their weights.
    """

    root: VersionedRoot
    view: View
    checked_out: str | None = None
    prunings: tuple[Pruning, ...] = ()

    @property
    def epoch(self) -> int:
        """How many garbage collections the remote has seen."""
        return self.root.root.epoch


class RefUpdate(NamedTuple):
    """One ref to move: `name` in full (`heads/main`), to `new` (None deletes it).

    Without `force` the remote's commit must be an ancestor of `new`.  With `force`, and for deletions, the ref must
    be at `expected` (None: it must not exist), so that nothing is thrown away unseen.
    """

    name: str
    new: CommitId | None
    expected: CommitId | None = None
    force: bool = False


class Needed(NamedTuple):
    """One object that a commit needs: what it is called, and what it must turn out to be.

    `spec` is set for tensors, `size` (raw bytes) where the object that names it says so.  What a file's content that is
    not `whole` consists of may be missing: it belongs to a commit that comes without its weights.
    """

    id: ObjectId
    name: str
    spec: TensorSpec | None = None
    size: int | None = None
    whole: bool = True


class Upload(RecordWriter, Protocol):
    """Records on their way to a remote: invisible until `finish`, and no trace of them after `abort`."""

    @property
    def epoch(self) -> int:
        """The garbage collections that the remote had seen when the upload began."""

    @property
    def bytes_written(self) -> int:
        """Bytes of records so far."""

    def finish(self, items: Sequence[Needed], *, threads: int, progress: Progress) -> None:
        """Check every object against its id where it now lies, then make all of them durable.

        Raises IntegrityError, naming the object, when one is not what it should be.
        """

    def abort(self) -> None:
        """Forget everything that was not finished."""


class Transport(Protocol):
    """A connection to one remote.  Every failure to reach it or to use it is a RemoteError."""

    url: str

    def create(self, *, branch: str, author: str) -> bool:
        """Make the remote repository, with default branch `branch`, if it is not there; returns whether it was made."""

    def root(self) -> RemoteRoot:
        """The current state."""

    def statistics(self, state: RemoteRoot) -> Statistics:
        """The statistics that the remote keeps besides its commits, as of `state`.

        Raises IntegrityError when the list is damaged.
        """

    def missing(self, ids: Collection[ObjectId], *, upload: Upload | None = None) -> set[ObjectId]:
        """Those of `ids` that the remote does not hold whole.

        With `upload`, the others are remembered: its commits rely on them.
        """

    def locate(self, ids: Collection[ObjectId]) -> Mapping[ObjectId, list[Located]]:
        """The records of each object, none for an unknown one."""

    def fetch(self, located: Located, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a record, counted from its first byte."""

    def send(self, *, epoch: int) -> Upload:
        """Begin to upload; `epoch` is that of the root that was read before anything was looked up."""

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
        """Move all refs together, or none; the last step of a push.

        `prunings` list commits of the upload that come without their weights; `estimates` and `notes` join the kept
        ones.

        Each ref must be at its update's `expected` in the very root that is replaced.  Raises ConflictError when one
        is not, or when a garbage collection ran since `upload` began.
        """

    def close(self) -> None:
        """Let go of files and connections."""


class TransportFactory(Protocol):
    """Opens a remote; looks at nothing before the first verb."""

    def __call__(self, url: RemoteUrl, *, environment: Environment, relative_to: Path) -> Transport:
        """Relative paths in `url` start at `relative_to`."""


TRANSPORTS: Registry[TransportFactory] = Registry(
    "transport",
    "modelgit.transports",
    {"file": "modelgit.remotes.directory:open_directory"},
)


def open_transport(url: str, *, environment: Environment, relative_to: Path) -> Transport:
    """The transport for `url`, by its scheme; a plain path is a directory.

    Raises UsageError for a URL that is malformed or has an unknown scheme.
    """
    parsed = parse_url(url)
    return TRANSPORTS.get(parsed.scheme)(parsed, environment=environment, relative_to=relative_to)
