"""Notes on their way: they travel with the branches whose commits have the weights that they are about.

A push sends them in the very step that moves its refs, so that whoever decides about the update sees both.  A fetch
brings them in a step of their own, and each by itself: one that is not what it should be is left out and named, and
stops nothing else.  Whether anybody vouches for a note is no matter of transport (`signing.notes`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from modelgit.errors import IntegrityError, MgitError, RemoteError
from modelgit.objects import EvalRecord, KeptNote, Note, Statistics
from modelgit.objects.acceptances import read_acceptance
from modelgit.objects.approvals import read_approval
from modelgit.objects.attestations import read_test_result, sums_up
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import Needed, Transport
from modelgit.remotes.reading import CombinedStore
from modelgit.remotes.receive import receive_objects
from modelgit.store.base import ObjectStore
from modelgit.store.metadata import read_record
from modelgit.store.session import PackSession

__all__ = ["MovedNotes", "advertised_notes", "fetch_notes", "needed_by_notes"]

_WEIGHTS = re.compile(r"[0-9a-f]{64}\Z")


class MovedNotes(NamedTuple):
    """The notes that came over, and a sentence for each that was refused."""

    notes: tuple[KeptNote, ...] = ()
    refused: tuple[str, ...] = ()
    objects: int = 0
    bytes_moved: int = 0


def advertised_notes(record: Statistics, *, remote: str) -> tuple[KeptNote, ...]:
    """What a remote lists, the oldest first.  Raises RemoteError for a list that nobody here would write."""
    seen = set()
    for item in record.notes:
        if item.id in seen or (item.kind == "test-result" and not _WEIGHTS.match(item.about)):
            raise RemoteError(f"{remote} lists note {item.id.short} twice, or under no weights: none was fetched")
        seen.add(item.id)
    return record.notes


def needed_by_notes(store: ObjectStore, notes: Iterable[KeptNote]) -> Iterator[Needed]:
    """The objects that notes consist of.  Raises IntegrityError when one cannot be read."""
    for kept in notes:
        note = read_record(store, kept.id, Note)
        if note.record is not None:
            yield Needed(note.record, "the verdict of a note")
        yield Needed(kept.id, f"note about {kept.about[:12]!a}")


def _read_note(store: ObjectStore, kept: KeptNote) -> Note:
    """A note that is what the list says: of that kind, about these weights or this suite, and true to its verdict.

    Raises IntegrityError for one that is not.
    """
    note = read_record(store, kept.id, Note)
    if note.kind != kept.kind:
        raise IntegrityError(f"it is a {note.kind}, listed as a {kept.kind}")
    if note.kind == "acceptance":
        if read_acceptance(note.statement).suite != kept.about or note.record is not None:
            raise IntegrityError("it is for another suite than the list says")
        return note
    if note.kind == "approval":
        if read_approval(note.statement).commit != kept.about or note.record is not None:
            raise IntegrityError("it is of another commit than the list says")
        return note
    result = read_test_result(note.statement)
    if result.weights != kept.about:
        raise IntegrityError("it is about other weights than the list says")
    if note.record != result.record or not sums_up(result, read_record(store, result.record, EvalRecord)):
        raise IntegrityError("it does not say what its verdict says")
    return note


def fetch_notes(
    session: PackSession,
    transport: Transport,
    wanted: Sequence[KeptNote],
    *,
    remote: str = "origin",
    threads: int = 1,
    progress: Progress = SILENT,
) -> MovedNotes:
    """Bring the notes `wanted` into `session`, and seal it; the caller publishes it with the list.

    Raises RemoteError or IntegrityError when the transfer fails as a whole; nothing is kept then.
    """
    store = CombinedStore(session, transport, far_name=remote)
    good: list[KeptNote] = []
    refused: list[str] = []
    for item in wanted:
        progress.check()
        try:
            _read_note(store, item)
        except (IntegrityError, RemoteError) as error:
            refused.append(f"refuses note {item.id.short} from {remote}: {error.message}")
        else:
            good.append(item)

    try:
        objects, size = receive_objects(
            transport, session, needed_by_notes(store, good), where=remote, threads=threads, progress=progress
        )
        session.seal()
    except BaseException:
        with contextlib.suppress(MgitError):
            session.abort()
        raise
    return MovedNotes(tuple(good), tuple(refused), objects, size)
