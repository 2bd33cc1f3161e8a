"""Recording files: their tensors go into the session's packs, their segments into content records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.formats.layouts import describe
from modelgit.numerics.nonfinite import ValueCounts
from modelgit.objects import (
    BlobId,
    ContentId,
    FileContent,
    FileEntry,
    Literal,
    Manifest,
    Mask,
    ModelEntry,
    TensorEntry,
    TensorId,
    TensorSpec,
    encode,
)
from modelgit.objects.paths import is_within
from modelgit.patching.base import TensorSource
from modelgit.patching.encode import TensorWriter
from modelgit.patching.foreign import Relied, settle
from modelgit.patching.jobs import SourceChangedError, Stored, StoreJob
from modelgit.patching.materialise import TensorReader
from modelgit.patching.positions import Section
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import tensors_of
from modelgit.repo.tracking.outside import Outside
from modelgit.repo.tracking.tree import WorkFile, work_files
from modelgit.store.metadata import write_metadata
from modelgit.store.session import PackSession
from modelgit.worktree.content import FileRange, LiteralBytes, assemble

if TYPE_CHECKING:
    from modelgit.patching.adapters import AdapterSet
    from modelgit.repo.repository import Repository

__all__ = [
    "RecordedTree",
    "is_stored",
    "nonfinite_counts",
    "previous_tensors",
    "record_file",
    "record_worktree",
    "write_content_record",
]


MaskSections = Mapping[str, Sequence[tuple[TensorSpec, Section]]]


class RecordedTree(NamedTuple):
    """What a recording found and stored: the manifest, and per file that was read what became of its tensors."""

    manifest: Manifest
    stored: dict[str, list[Stored]]


def previous_tensors(repo: Repository, manifest: Manifest) -> dict[str, dict[str, TensorEntry]]:
    """For each weights file of `manifest`, the tensors that a new version of it may be coded against, by name.

    All files of a model share one mapping, so that a tensor that moved to another shard still finds its base.
    """
    found: dict[str, dict[str, TensorEntry]] = {}
    for model in manifest.models:
        tensors = tensors_of(repo, manifest, model)
        for path in model.weights:
            found[path] = tensors
    return found


def record_worktree(
    repo: Repository,
    session: PackSession,
    parent: Manifest,
    *,
    only: Mapping[str, bool] | None = None,
    outside: Outside | None = None,
    adapters: AdapterSet | None = None,
    masks: Sequence[Mask] = (),
    progress: Progress = SILENT,
) -> RecordedTree:
    """Store every tracked file that changed and return the new manifest.

    `only` maps a path to whether its new state is taken; other paths keep the parent's.  Files that `stat` vouches for
    and that the store holds are not read.  With `outside`, files are not taken from the work tree but from there.
    `adapters` are declared to have been merged into the parent's tensors; `masks` to hold all positions that changed.
    """
    files = work_files(repo) if outside is None else outside.with_settings(repo, parent)
    before = {entry.path: entry for entry in parent.files}
    bases = previous_tensors(repo, parent)
    sections = _sections(masks)
    model_bases = {model.path: tensors_of(repo, parent, model) for model in parent.models}
    entries: dict[str, FileEntry] = {}
    stored: dict[str, list[Stored]] = {}
    scanned: dict[str, ScannedFile] = {}
    stored_already = {file.path for file in files.values() if is_stored(repo, session, file, before.get(file.path))}
    changed = [file for file in files.values() if file.path not in stored_already]
    progress.start("store", sum(file.status.st_size for file in changed))
    taken = {path for path in {*files, *before} if only is None or only.get(path, False)}
    writer = repo.writer(session, products=None if adapters is None else adapters.product, progress=progress)
    for file in files.values():
        if file.path not in taken:
            continue
        executable = file.executable
        if executable is None:
            executable = file.path in before and before[file.path].executable
        if file.known is not None and file.path in stored_already:
            digest, size = file.known, file.status.st_size
        else:
            base = bases.get(file.path) or _model_tensors(model_bases, file.path)
            digest, scanned[file.path], stored[file.path] = record_file(
                repo, session, writer, file, before.get(file.path), base, sections=sections
            )
            size = scanned[file.path].size
        entries[file.path] = FileEntry(path=file.path, size=size, digest=digest, executable=executable)
    entries.update({path: entry for path, entry in before.items() if path not in taken})
    progress.finish("store")
    models = _models(repo, entries, parent, outside, scanned)
    return RecordedTree(Manifest(files=tuple(entries[path] for path in sorted(entries)), models=models), stored)


def is_stored(repo: Repository, session: PackSession, file: WorkFile, before: FileEntry | None) -> bool:
    """Whether the file need not be read: `stat` vouches for it, and everything that it consists of is here.

    A content record alone proves nothing: garbage collection may have left it behind and taken the tensors.
    """
    if file.known is None:
        return False
    if before is not None and before.digest == file.known:
        return True  # the current commit reaches it
    if not session.has(file.known):
        return False
    content = repo.content_at(file.known)
    literals = (segment.blob for segment in content.segments if isinstance(segment, Literal))
    return all(session.has(tensor.id) for tensor in content.tensors) and all(session.has(blob) for blob in literals)


def _model_tensors(models: Mapping[str, dict[str, TensorEntry]], path: str) -> dict[str, TensorEntry]:
    """A file that is new in a tracked directory may hold tensors that the model had in another file."""
    for model, tensors in models.items():
        if is_within(path, model):
            return tensors
    return {}


def _models(
    repo: Repository,
    entries: Mapping[str, FileEntry],
    parent: Manifest,
    outside: Outside | None,
    scanned: Mapping[str, ScannedFile],
) -> tuple[ModelEntry, ...]:
    found = []
    previous = {model.path: model for model in parent.models}
    for path in sorted(set(repo.settings.track.paths)):
        inside = {name for name in entries if is_within(name, path)}
        if not inside:
            continue
        if outside is not None:
            model = outside.model(repo, path, previous.get(path))
            if model is not None:
                found.append(model)
            continue
        if (repo.worktree / path).exists():
            track = repo.settings.track
            described = describe(repo.worktree, path, ignore=track.left_out, opaque=track.opaque, known=scanned)
            weights = tuple(name for name in described.weights if name in entries)
            layout: str = described.layout
        else:
            weights = tuple(name for name in previous[path].weights if name in entries) if path in previous else ()
            layout = previous[path].layout if path in previous else "directory"
        if weights:
            found.append(ModelEntry(path=path, layout=layout, weights=weights))
    return tuple(found)


def record_file(
    repo: Repository,
    session: PackSession,
    writer: TensorWriter,
    file: WorkFile,
    before: FileEntry | None,
    bases: Mapping[str, TensorEntry],
    *,
    sections: MaskSections | None = None,
    through: Callable[[str, TensorSource], TensorSource] | None = None,
) -> tuple[ContentId, ScannedFile, list[Stored]]:
    """Store one file; returns its content id, what a scan found and what became of its ranges.

    `sections` are positions by tensor name, of masks that the change is said to have been made under.  `through` may
    put another source of as many bytes in the place of a tensor's: what is stored is then not what lies in the file,
    and the caller must see to checksums over it.
    Raises SourceChangedError, naming the file, when it changes meanwhile.
    """
    seen_ns = time.time_ns()
    with ExitStack() as stack:
        place = file.place or repo.worktree / file.path
        reader = stack.enter_context(FileReader(place, shown=file.path if file.place is None else str(place)))
        scanned = scan_reader(reader, opaque=file.opaque)
        old = repo.content_at(before.digest) if before is not None else None
        session.borrows = "any"
        stored = list(writer.store(_jobs(file.path, scanned, reader, old, bases, sections or {}, through)))
        session.borrows = "checked"
        if not reader.is_unchanged():
            raise SourceChangedError(
                f"{file.path} changed while it was being committed",
                hint="wait until nothing writes the file, then run `mgit commit` again",
            )
        blob = next((item.id for item in stored if isinstance(item.id, BlobId)), None)
        literal = sum(part.length for part in scanned.ranges if part.tensor is None)
        tensors = [item for item in stored if isinstance(item.id, TensorId)]
        found = [Relied(item.id, tensor.spec, item.name) for item, tensor in zip(tensors, scanned.tensors, strict=True)]
        settle(
            session,
            TensorReader,
            found if blob is None else [*found, Relied(blob, None, f"{file.path} (header)", literal)],
        )
        content = assemble(scanned, blob, [item.id for item in tensors if isinstance(item.id, TensorId)])
        digest = write_content_record(session, content, None if before is None or old is None else (before.digest, old))
        if file.place is None and through is None:
            repo.index.remember(file.path, reader.stat, digest, seen_ns=seen_ns)
        return digest, scanned, stored


def _jobs(
    path: str,
    scanned: ScannedFile,
    reader: FileReader,
    old: FileContent | None,
    bases: Mapping[str, TensorEntry],
    sections: MaskSections,
    through: Callable[[str, TensorSource], TensorSource] | None,
) -> Iterator[StoreJob]:
    literal = LiteralBytes(reader, scanned)
    if literal.size:
        parents = (segment.blob for segment in old.segments if isinstance(segment, Literal)) if old is not None else ()
        yield StoreJob(f"{path} (header)", literal, None, literal.size, next(iter(parents), None))
    place = {item.tensor: item for item in scanned.ranges if item.tensor is not None}
    for index, tensor in enumerate(scanned.tensors):
        item = place[index]
        base = bases.get(tensor.name)
        usable = base is not None and _comparable(base.spec, tensor.spec)
        source: TensorSource = FileRange(reader, item.offset, tensor.spec)
        yield StoreJob(
            tensor.name,
            source if through is None else through(tensor.name, source),
            tensor.spec,
            item.length,
            base.id if usable and base is not None else None,
            masks=tuple(section for spec, section in sections.get(tensor.name, ()) if spec == tensor.spec),
        )


def _sections(masks: Sequence[Mask]) -> MaskSections:
    if not masks:
        return {}
    from modelgit.repo.patches.masks import mask_sections

    return mask_sections(masks)


def _comparable(old: TensorSpec, new: TensorSpec) -> bool:
    """Whether one may be coded against the other: the same tensor, or one that has grown or lost rows at its end."""
    return old.dtype == new.dtype and (old.shape == new.shape or (bool(old.shape) and old.shape[1:] == new.shape[1:]))


def nonfinite_counts(stored: Iterable[Iterable[Stored]]) -> dict[TensorId, ValueCounts]:
    """What a writer saw of NaN and infinities, by tensor, for the gate."""
    return {
        item.id: item.nonfinite
        for items in stored
        for item in items
        if isinstance(item.id, TensorId) and item.nonfinite is not None
    }


def write_content_record(
    session: PackSession, content: FileContent, base: tuple[ContentId, FileContent] | None
) -> ContentId:
    """Store a content record, compressed against the previous version of the file; returns its id."""
    data = encode(content)
    object_id = ContentId.of(data)
    if not session.has(object_id):
        write_metadata(session, object_id, data, base=None if base is None else (base[0], encode(base[1])))
    return object_id
