"""From a merge back to files: whose segments a weights file has and what its tensors are now, and the other files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.formats.safetensors_write import build_header, read_metadata
from modelgit.formats.zip_checksums import ZIP_FORMATS, stale_checksums
from modelgit.merging.plan import Side, StoredTensor
from modelgit.objects import (
    BlobId,
    ContentId,
    FileContent,
    FileEntry,
    Literal,
    Manifest,
    ModelEntry,
    Segment,
    TensorEntry,
    TensorRef,
)
from modelgit.objects.manifest import manifest_id
from modelgit.objects.merges import MergePlan
from modelgit.patching.encode import write_blob
from modelgit.patching.files import StoredFile
from modelgit.repo.tracking.record import write_content_record
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["OpenSide", "merged_files", "merged_weights", "open_side", "store_file", "with_checksums"]


class OpenSide(NamedTuple):
    """A manifest with everything that a merge asks of it.

    `place` says for each model and logical tensor name in which file it lies and under which name.
    """

    manifest: Manifest
    side: Side
    place: Mapping[str, Mapping[str, tuple[str, str]]]
    weights: frozenset[str]


def open_side(repo: Repository, manifest: Manifest, *, exists: bool = True) -> OpenSide:
    """Open one of the three manifests of a merge; `exists` is False for "no common ancestor"."""
    models: dict[str, dict[str, StoredTensor]] = {}
    place: dict[str, dict[str, tuple[str, str]]] = {}
    weights = frozenset(path for model in manifest.models for path in model.weights)
    for model in manifest.models:
        tensors: dict[str, StoredTensor] = {}
        where: dict[str, tuple[str, str]] = {}
        for path in model.weights:
            entry = manifest.file(path)
            for tensor in repo.content_at(entry.digest).tensors if entry is not None else ():
                name = tensor.name if tensor.name not in tensors else f"{path}:{tensor.name}"
                tensors[name] = (tensor.spec, tensor.id)
                where[name] = (path, tensor.name)
        models[model.path] = tensors
        place[model.path] = where
    side = Side(
        manifest=manifest_id(manifest) if exists else None,
        models=models,
        files={entry.path: entry.digest for entry in manifest.files if entry.path not in weights},
    )
    return OpenSide(manifest, side, place, weights)


def merged_weights(
    repo: Repository,
    session: PackSession,
    ours: OpenSide,
    theirs: OpenSide,
    tensors: Mapping[str, Mapping[str, StoredTensor]],
) -> tuple[list[FileEntry], list[ModelEntry]]:
    """The weights files and models that hold exactly `tensors` (by model and logical name).

    A file keeps the segments of ours where its tensors have the names and specs of ours, else of theirs; where neither
    fits, a safetensors file gets a new header.  Raises RepositoryError for other formats.
    """
    entries: list[FileEntry] = []
    models: list[ModelEntry] = []
    for model, found in sorted(tensors.items()):
        if not found:
            continue
        per_file: dict[str, dict[str, StoredTensor]] = {}
        for name, stored in found.items():
            places = ours.place.get(model, {})
            path, inner = places[name] if name in places else theirs.place[model][name]
            per_file.setdefault(path, {})[inner] = stored
        for path, wanted in sorted(per_file.items()):
            entries.append(_file(repo, session, ours.manifest, theirs.manifest, path, wanted))
        template = next(entry for side in (ours, theirs) for entry in side.manifest.models if entry.path == model)
        models.append(ModelEntry(path=model, layout=template.layout, weights=tuple(sorted(per_file))))
    return entries, models


def _file(
    repo: Repository,
    session: PackSession,
    ours: Manifest,
    theirs: Manifest,
    path: str,
    wanted: Mapping[str, StoredTensor],
) -> FileEntry:
    sides = [(entry, repo.content_at(entry.digest)) for entry in (ours.file(path), theirs.file(path)) if entry]
    for entry, content in sides:
        if {tensor.name: tensor.spec for tensor in content.tensors} == {n: spec for n, (spec, _) in wanted.items()}:
            made = FileContent(
                format=content.format,
                segments=content.segments,
                tensors=tuple(
                    TensorEntry(name=tensor.name, spec=tensor.spec, id=wanted[tensor.name][1])
                    for tensor in content.tensors
                ),
                views=content.views,
            )
            made = with_checksums(repo, session, path, content, made)
            digest = write_content_record(session, made, (entry.digest, content))
            return FileEntry(path=path, size=entry.size, digest=digest, executable=entry.executable)
    return _rebuilt(repo, session, path, sides, wanted)


def with_checksums(
    repo: Repository, session: PackSession, path: str, before: FileContent, made: FileContent
) -> FileContent:
    """`made`, a file in which tensors of `before` were replaced; an archive's checksums are right again."""
    if made.format not in ZIP_FORMATS:
        return made
    changed: list[tuple[int, int]] = []
    literals: list[tuple[int, Literal]] = []
    at = 0
    for segment in made.segments:
        if isinstance(segment, Literal):
            literals.append((at, segment))
            at += segment.length
        else:
            old, new = before.tensors[segment.index], made.tensors[segment.index]
            if old.id != new.id:
                changed.append((at, at + new.spec.size_bytes))
            at += new.spec.size_bytes
    blobs: dict[BlobId, bytearray] = {}
    for offset, checksum in stale_checksums(StoredFile(repo.reader(session), made, shown=path), changed):
        for number, value in enumerate(checksum):
            place = offset + number
            start, literal = literals[bisect_right(literals, place, key=lambda item: item[0]) - 1]
            if not 0 <= place - start < literal.length:
                raise IntegrityError(f"{path}: a checksum of the archive lies inside of a tensor")
            data = blobs.get(literal.blob)
            if data is None:
                data = blobs[literal.blob] = bytearray(repo.reader(session).read_blob(literal.blob))
            data[literal.offset + place - start] = value
    written = {
        blob: write_blob(session, bytes(data), name=f"{path} (header)", parent=blob) for blob, data in blobs.items()
    }
    segments = tuple(
        msgspec.structs.replace(segment, blob=written.get(segment.blob, segment.blob))
        if isinstance(segment, Literal)
        else segment
        for segment in made.segments
    )
    return msgspec.structs.replace(made, segments=segments)


def _rebuilt(
    repo: Repository,
    session: PackSession,
    path: str,
    sides: list[tuple[FileEntry, FileContent]],
    wanted: Mapping[str, StoredTensor],
) -> FileEntry:
    if any(content.format != "safetensors" for _, content in sides):
        raise RepositoryError(
            f"{path} has other tensors on both sides, and only safetensors files can be put together anew",
            hint=f"convert {path} to safetensors on both branches, commit that, then `mgit merge` again",
        )
    order = list(dict.fromkeys(tensor.name for _, content in sides for tensor in content.tensors))
    names = [name for name in order if name in wanted]
    first = sides[0][1]
    literal = next((segment for segment in first.segments if isinstance(segment, Literal)), None)
    metadata = read_metadata(repo.reader().read_blob(literal.blob)) if literal is not None else None
    header = build_header([(name, wanted[name][0]) for name in names], metadata)
    blob = write_blob(session, header, name=f"{path} (header)")
    segments: list[Segment] = [Literal(blob=blob, length=len(header))]
    segments += [TensorRef(index=index) for index in range(len(names))]
    content = FileContent(
        format="safetensors",
        segments=tuple(segments),
        tensors=tuple(TensorEntry(name=name, spec=wanted[name][0], id=wanted[name][1]) for name in names),
    )
    digest: ContentId = write_content_record(session, content, (sides[0][0].digest, first))
    size = len(header) + sum(wanted[name][0].size_bytes for name in names)
    return FileEntry(path=path, size=size, digest=digest)


def merged_files(
    repo: Repository,
    session: PackSession,
    ours: OpenSide,
    theirs: OpenSide,
    plan: MergePlan,
    contents: Mapping[str, bytes | None],
) -> list[FileEntry]:
    """The files without weights of a merge: a side's as it is, or what `contents` says (None: gone)."""
    entries = []
    for decision in plan.files:
        path = decision.path
        if path in contents:
            data = contents[path]
            if data is not None:
                entries.append(store_file(repo, session, path, data, ours.manifest.file(path)))
            continue
        side = theirs if decision.action == "theirs" else ours
        entry = side.manifest.file(path)
        if entry is not None:
            entries.append(entry)
    return entries


def store_file(repo: Repository, session: PackSession, path: str, data: bytes, before: FileEntry | None) -> FileEntry:
    """Store a merged file without weights, against what it was `before`."""
    blob = write_blob(session, data, name=path)
    content = FileContent(format="opaque", segments=(Literal(blob=blob, length=len(data)),))
    base = None if before is None else (before.digest, repo.content_at(before.digest))
    digest = write_content_record(session, content, base)
    return FileEntry(
        path=path, size=len(data), digest=digest, executable=before.executable if before is not None else False
    )
