"""A model as a sparse patch leaves it: which tensors the patch draws from, and the files that hold the outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.errors import BugError
from modelgit.fisher.changes import TensorDelta, can_be_drawn
from modelgit.fisher.patched import PatchedTensor
from modelgit.fisher.sparsify import Plan
from modelgit.formats.zip_checksums import ZIP_FORMATS
from modelgit.objects import FileContent, FileEntry, Literal, Manifest, ModelEntry, TensorEntry, TensorId
from modelgit.patching.base import TensorSource
from modelgit.patching.encode import write_blob
from modelgit.patching.jobs import Stored, StoredObject, StoreJob
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import tensors_of
from modelgit.repo.merges.files import with_checksums
from modelgit.repo.tracking.record import write_content_record
from modelgit.store.base import ObjectStore
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["DenseChange", "PatchedFiles", "dense_change", "write_patched"]


class DenseChange(NamedTuple):
    """What a dense change of one model consists of.

    `deltas` may be drawn from.  `same_as` maps tensors that were and are equal to one of them (tied weights stored
    twice) to its name: they must stay equal.  Everything else is taken as it is; `taken` counts the values among it
    that belong to the head, `exact` names changed tensors that nothing can be drawn from.  `elements` counts all values
    that could be drawn from, each tensor once.
    """

    model: ModelEntry
    before: Mapping[str, TensorEntry]
    after: Mapping[str, TensorEntry]
    deltas: tuple[TensorDelta, ...]
    same_as: Mapping[str, str]
    taken: int
    exact: tuple[str, ...]
    elements: int


class PatchedFiles(NamedTuple):
    """The weights files of a patched model, by path, and what became of their tensors."""

    entries: dict[str, FileEntry]
    stored: dict[str, list[Stored]]


def dense_change(
    repo: Repository,
    store: ObjectStore,
    before: Manifest,
    after: Manifest,
    model: ModelEntry,
    *,
    head: frozenset[str],
    preferred: Sequence[str] = (),
) -> DenseChange:
    """Compare a model of `after`, which lies in `store`, with the one of the same path in `before`.

    Of tied tensors the one among `preferred` (those with a Fisher estimate) speaks for the others.
    """
    previous = before.model(model.path)
    old = {} if previous is None else tensors_of(repo, before, previous)
    new = tensors_of(repo, after, model, store=store)
    reads, old_reads = repo.reader(store), repo.reader()
    deltas: dict[tuple[TensorId, TensorId], TensorDelta] = {}
    same_as: dict[str, str] = {}
    exact: list[str] = []
    taken = 0
    liked = frozenset(preferred)
    for name in sorted(new, key=lambda name: (name not in liked, name)):
        entry, was = new[name], old.get(name)
        if was is not None and was.id == entry.id:
            continue
        if was is None or was.spec != entry.spec or not can_be_drawn(entry.spec):
            exact.append(name)
            taken += entry.spec.elements if name in head else 0
            continue
        first = deltas.get((was.id, entry.id))
        if first is not None:
            same_as[name] = first.name
            continue
        deltas[was.id, entry.id] = TensorDelta(
            name,
            entry.spec,
            StoredObject(old_reads, was.id, was.spec),
            StoredObject(reads, entry.id, entry.spec),
            name in head,
        )
    sizes = {entry.id: entry.spec.elements for entry in new.values() if can_be_drawn(entry.spec)}
    return DenseChange(
        model, old, new, tuple(deltas.values()), same_as, taken, tuple(sorted(exact)), sum(sizes.values())
    )


def write_patched(
    repo: Repository,
    session: PackSession,
    store: ObjectStore,
    before: Manifest,
    after: Manifest,
    change: DenseChange,
    plan: Plan,
    *,
    progress: Progress = SILENT,
) -> PatchedFiles:
    """Store the changed weights files of the model in `session`, with the tensors of the patch.

    The dense ones are read from `store`.  A file keeps its format, order, header and padding.
    """
    entries: dict[str, FileEntry] = {}
    stored: dict[str, list[Stored]] = {}
    made: dict[str, TensorId] = {}
    writer = repo.writer(session, progress=progress)
    reads = repo.reader(store)
    changed = [path for path in change.model.weights if before.file(path) != after.file(path)]
    progress.start("store", sum(entry.size for path in changed if (entry := after.file(path)) is not None))
    names = _names(repo, store, after, change.model)
    drawn = {delta.name for delta in change.deltas}

    def source(name: str, entry: TensorEntry) -> TensorSource:
        return PatchedTensor(plan, name) if name in drawn else StoredObject(reads, entry.id, entry.spec)

    def jobs(wanted: Sequence[str]) -> Iterator[StoreJob]:
        for name in wanted:
            entry, was = change.after[name], change.before.get(name)
            parent = was.id if was is not None and was.spec == entry.spec else None
            yield StoreJob(name, source(name, entry), entry.spec, entry.spec.size_bytes, parent)

    # Tied tensors may lie in another file than the one that speaks for them: all tensors first.
    kept = {name for name, was in change.before.items() if change.after.get(name) == was and session.has(was.id)}
    for path in changed:
        wanted = [name for name in names[path] if name not in kept and name not in change.same_as]
        stored[path] = list(writer.store(jobs(wanted)))
        for item in stored[path]:
            if not isinstance(item.id, TensorId):
                raise BugError(f"{item.name} was stored as a {item.id.KIND}")
            made[item.name] = item.id
    progress.finish("store")
    made |= {name: made[first] for name, first in change.same_as.items()}
    for path in changed:
        dense = after.file(path)
        if dense is not None:
            entries[path] = _file(repo, session, store, before, dense, names[path], made)
    return PatchedFiles(entries, stored)


def _names(repo: Repository, store: ObjectStore, manifest: Manifest, model: ModelEntry) -> dict[str, list[str]]:
    """The logical names (see `repo.contents.tensors_of`) of the tensors of each weights file, in its order."""
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    for path in model.weights:
        entry = manifest.file(path)
        found[path] = []
        for tensor in repo.content_at(entry.digest, store=store).tensors if entry is not None else ():
            name = tensor.name if tensor.name not in seen else f"{path}:{tensor.name}"
            seen.add(name)
            found[path].append(name)
    return found


def _file(
    repo: Repository,
    session: PackSession,
    store: ObjectStore,
    before: Manifest,
    dense: FileEntry,
    names: Sequence[str],
    made: Mapping[str, TensorId],
) -> FileEntry:
    content = repo.content_at(dense.digest, store=store)
    previous = before.file(dense.path)
    old = None if previous is None else repo.content_at(previous.digest)
    parents = [segment.blob for segment in old.segments if isinstance(segment, Literal)] if old is not None else []
    for blob in dict.fromkeys(segment.blob for segment in content.segments if isinstance(segment, Literal)):
        if not session.has(blob):
            data = repo.reader(store).read_blob(blob)
            write_blob(session, data, name=f"{dense.path} (header)", parent=parents[0] if parents else None)
    tensors = tuple(
        TensorEntry(name=entry.name, spec=entry.spec, id=made.get(name, entry.id))
        for name, entry in zip(names, content.tensors, strict=True)
    )
    patched: FileContent = msgspec.structs.replace(content, tensors=tensors)
    if content.format in ZIP_FORMATS:
        patched = with_checksums(repo, session, dense.path, content, patched)
    digest = write_content_record(session, patched, None if previous is None or old is None else (previous.digest, old))
    return FileEntry(path=dense.path, size=dense.size, digest=digest, executable=dense.executable)
