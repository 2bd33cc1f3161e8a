"""Estimates on their way: pushed and fetched when asked, listed by the receiver in the step that makes them visible.

They belong to weights, not to commits: which ones may travel is decided by the caller, who knows the commits.  What
comes from a remote is checked like everything else (every object against its id, every length against its
declaration), and besides must be an estimate of those very weights, with values that one can have.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from modelgit.errors import CheckpointFormatError, ConflictError, IntegrityError, MgitError, RemoteError
from modelgit.objects import FisherEstimate, KeptEstimate, ObjectId, Statistics
from modelgit.patching.materialise import TensorReader
from modelgit.patching.statistics import check_values, read_triangle
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import Needed, Transport
from modelgit.remotes.reading import CombinedStore
from modelgit.remotes.receive import copy_records, receive_objects
from modelgit.remotes.selection import select_records
from modelgit.store.base import ObjectStore
from modelgit.store.fs import FileSystemStore
from modelgit.store.metadata import read_record
from modelgit.store.session import PackSession

__all__ = ["MovedEstimates", "advertised_estimates", "check_estimate", "fetch_estimates", "push_estimates"]

_TRIES = 16
_KEY = re.compile(r"[0-9a-f]{24}-[0-9a-f]{24}\Z")

Shapes = Callable[[KeptEstimate, FisherEstimate], dict[str, tuple[int, ...]]]
"""The shapes of the tensors of the model that an estimate is of, by name."""


class MovedEstimates(NamedTuple):
    """The estimates that a push or fetch brought to the other side, with what travelled for them."""

    estimates: tuple[KeptEstimate, ...] = ()
    objects: int = 0
    bytes_moved: int = 0


def advertised_estimates(record: Statistics, *, remote: str) -> tuple[KeptEstimate, ...]:
    """What a remote lists, the oldest first.  Raises RemoteError for a list that nobody here would write."""
    keys = set()
    for item in record.fishers:
        if not _KEY.match(item.key) or item.key in keys:
            raise RemoteError(
                f"{remote} lists a Fisher estimate under the name {item.key[:60]!a}, which is none or there twice",
                hint=f"fetch without `--fisher`; who keeps {remote} can `mgit fisher remove` it",
            )
        keys.add(item.key)
    return record.fishers


def push_estimates(
    local: FileSystemStore,
    transport: Transport,
    kept: Sequence[KeptEstimate],
    *,
    author: str,
    remote: str = "origin",
    threads: int = 1,
    progress: Progress = SILENT,
) -> MovedEstimates:
    """Send those of `kept` that the remote has no estimate of the same key for.

    Raises RemoteError when the remote fails, IntegrityError when an object to send is missing or damaged.
    """
    for _ in range(_TRIES):
        state = transport.root()
        there = {item.key for item in transport.statistics(state).fishers}
        fresh = [msgspec.structs.replace(item, origin=author) for item in kept if item.key not in there]
        if not fresh:
            return MovedEstimates()
        upload = transport.send(epoch=state.epoch)

        def missing(ids: Collection[ObjectId], upload=upload) -> set[ObjectId]:  # type: ignore[no-untyped-def]
            return transport.missing(ids, upload=upload)

        try:
            wanted = [item for kept_one in fresh for item in _needed(local, kept_one)]
            absent = missing([item.id for item in wanted])
            selection = select_records(
                lambda ids: {object_id: local.portable(object_id) for object_id in ids},
                list({item.id: item for item in wanted if item.id in absent}.values()),
                missing,
                where="this repository",
                lacking=IntegrityError,
            )
            size = copy_records(local.read_part, selection.records, upload, task="send", progress=progress)
            upload.finish(selection.items, threads=threads, progress=progress)
        except BaseException:
            with contextlib.suppress(MgitError):
                upload.abort()
            raise
        try:
            transport.swap([], upload=upload, description="push: estimates", author=author, estimates=fresh)
        except ConflictError:
            continue
        return MovedEstimates(tuple(fresh), len(selection.items), size)
    raise ConflictError(f"{remote} is being changed too often to get a word in", hint="run `mgit push --fisher` again")


def fetch_estimates(
    session: PackSession,
    transport: Transport,
    wanted: Sequence[KeptEstimate],
    *,
    shapes: Shapes,
    remote: str = "origin",
    threads: int = 1,
    progress: Progress = SILENT,
) -> MovedEstimates:
    """Bring the estimates `wanted` into `session`, and seal it; the caller publishes it with the list.

    Raises RemoteError when the remote fails or lacks an object, IntegrityError for one that is not what it should be;
    nothing is kept then.
    """
    store = CombinedStore(session, transport, far_name=remote)
    try:
        needed: dict[ObjectId, Needed] = {}
        records = []
        for item in wanted:
            with _refusing(item, remote):
                record = read_record(store, item.id, FisherEstimate)
                check_estimate(item, record, shapes(item, record))
            records.append(record)
            needed |= {found.id: found for found in _needed(store, item)}
        objects, size = receive_objects(
            transport, session, needed.values(), where=remote, threads=threads, progress=progress
        )
        reads = TensorReader(session)
        for item, record in zip(wanted, records, strict=True):
            for name, tensor in record.coded().items():
                progress.check()
                with _refusing(item, remote):
                    check_values(reads, name, tensor)
            for gram in record.coded_grams().values():
                progress.check()
                with _refusing(item, remote):
                    read_triangle(reads, gram)
        session.seal()
    except BaseException:
        with contextlib.suppress(MgitError):
            session.abort()
        raise
    return MovedEstimates(tuple(wanted), objects, size)


@contextlib.contextmanager
def _refusing(kept: KeptEstimate, remote: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(
            f"refuses Fisher estimate {kept.id.short} from {remote}: {error.message}",
            hint="fetch without `--fisher`; no estimate was recorded",
        ) from error


def check_estimate(kept: KeptEstimate, record: FisherEstimate, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise IntegrityError unless `record` can be what `kept` says: one of these weights, tensor by tensor."""
    if record.weights != kept.weights:
        raise IntegrityError("it is of other weights than the list says")
    names = [entry.name for entry in record.diagonal]
    if names != sorted(set(names)) or not record.scales.keys() <= set(names):
        raise IntegrityError("its tensors are out of order, or scales are given for others")
    if record.examples < 1:
        raise IntegrityError(f"it is said to be of {record.examples} examples")
    for entry in record.diagonal:
        dtype = "U8" if entry.name in record.scales else "F32"
        try:
            entry.spec.check()
        except CheckpointFormatError as error:
            raise IntegrityError(f"it holds {error.message}") from None
        if entry.spec.dtype != dtype or entry.spec.shape != shapes.get(entry.name):
            raise IntegrityError(f"tensor {entry.name[:120]!a} is not one of the model, or has another form")
    _check_grams(record, shapes)


def _check_grams(record: FisherEstimate, shapes: dict[str, tuple[int, ...]]) -> None:
    names = [entry.name for entry in record.grams]
    if names != sorted(set(names)):
        raise IntegrityError("its Gram matrices are out of order")
    for entry in record.grams:
        shape = shapes.get(entry.name, ())
        wanted = 0 if len(shape) < 2 else shape[0] if entry.first else math.prod(shape[1:])
        if not 0 < entry.size == wanted:
            raise IntegrityError(f"the Gram matrix for {entry.name[:120]!a} does not fit what goes into it")


def _needed(store: ObjectStore, kept: KeptEstimate) -> Iterator[Needed]:
    record = read_record(store, kept.id, FisherEstimate)
    for entry in record.stored:
        shown = entry.name if entry.name.isprintable() and len(entry.name) <= 120 else ascii(entry.name[:120])
        yield Needed(entry.id, f"statistic of {shown}", entry.spec, entry.spec.size_bytes)
    yield Needed(kept.id, f"Fisher estimate of task {record.task[:60]!a}")
