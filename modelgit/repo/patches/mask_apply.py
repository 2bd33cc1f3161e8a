"""`mask apply`: values outside of a mask get back, bit for bit, what a revision has there."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import RepositoryError
from modelgit.formats.detect import FileReader
from modelgit.formats.layouts import describe
from modelgit.objects import FileContent, FileEntry, Literal, Manifest, ManifestId, ModelEntry, TensorEntry, encode
from modelgit.objects.paths import is_within
from modelgit.patching.base import TensorReads, TensorSource
from modelgit.patching.jobs import StoredObject
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import find_model, tensors_of, views_of
from modelgit.repo.merges.files import with_checksums
from modelgit.repo.merges.state import refuse_during_merge
from modelgit.repo.patches.masks import StoredMask, find_mask, mask_sections
from modelgit.repo.patches.strayed import count_strayed, over_stored, strayed_values
from modelgit.repo.tracking.record import previous_tensors, record_file, write_content_record
from modelgit.repo.tracking.training import training_of
from modelgit.repo.tracking.tree import WorkFile, content_of, hash_changed, work_files
from modelgit.repo.tracking.update import move_worktree, rescue
from modelgit.store.metadata import write_metadata
from modelgit.worktree.content import FileRange

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["AppliedMask", "apply_mask"]


class AppliedMask(NamedTuple):
    """What applying a mask did (or would do): values put back by tensor, and the files that hold them.

    `rescued` are copies of these files as they were (paths for people; none for a dry run).
    """

    mask: StoredMask
    values: dict[str, int]
    files: tuple[str, ...]
    rescued: tuple[str, ...]

    @property
    def total(self) -> int:
        """All values that were put back."""
        return sum(self.values.values())


class _Masked:
    """A tensor of the work tree with the values outside of a mask taken from a stored one."""

    def __init__(
        self, now: TensorSource, reader: TensorReads, entry: TensorEntry, allowed: NDArray[np.int64] | None
    ) -> None:
        self.spec = entry.spec
        self.step_bytes = now.step_bytes
        self._now = now
        self._reader = reader
        self._entry = entry
        self._allowed = allowed

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop`."""
        mixed, old = bytearray(self._now.read(start, stop)), self._reader.read(self._entry.id, start, stop)
        _, changed, word = strayed_values(old, mixed, start, self._entry, self._allowed)
        np.copyto(np.frombuffer(mixed, word), np.frombuffer(old, word), where=changed)
        return mixed

    def read_into(self, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        out[:] = self.read(start, start + out.nbytes)

    def count(self) -> int:
        """How many values differ outside of the mask."""
        return count_strayed(self._reader, self._entry, self._now.read, self._allowed)


class _Found(NamedTuple):
    """The weights files of a model as they lie in the work tree, and what of each tensor may stay.

    `tensors` has by file and name in it: the recorded tensor, and the positions that stay as they are; those that are
    not in it stay whole.
    """

    files: dict[str, WorkFile]
    contents: dict[str, FileContent]
    tensors: dict[str, dict[str, tuple[TensorEntry, NDArray[np.int64] | None]]]


def apply_mask(
    repo: Repository, name: str, *, revision: str = "HEAD", dry_run: bool = False, progress: Progress = SILENT
) -> AppliedMask:
    """Give values of the work tree that lie outside of a mask back what `revision` has there.

    The files are written like those of a `restore`: all or none, whatever is killed when; copies of them as they were
    are kept in the rescue area for 7 days, from which `undo` brings them back.  Reads the model in windows.  Raises
    RepositoryError for tensors that `revision` does not have or has in another shape, unless the mask holds them whole.
    """
    with repo.writing():
        refuse_during_merge(repo, "applying a mask")
        mask = find_mask(repo, name)
        commit = repo.resolve(revision)
        base = repo.manifest_of(commit)
        found = _look(repo, mask, base, find_model(base, mask.record.model), commit.short, progress)
        values, files = _count(repo, found, progress)
        if not values or dry_run:
            return AppliedMask(mask, values, files, ())
        head = repo.manifest_of(repo.head())
        target = _record(repo, mask, found, base, head, files, progress)
        folder = f"mask-{mask.id.hex[:8]}-{secrets.token_hex(4)}"
        rescued = tuple(rescue(repo, path, under=folder) for path in files)
        view = repo.view()
        move_worktree(
            repo,
            head,
            target,
            training=(training_of(repo, repo.head()).manifest,) * 2,
            description=f"mask apply: {mask.label}",
            view=view,
            after=view,
            paths=files,
            rescued=folder,
            progress=progress,
        )
        return AppliedMask(mask, values, files, rescued)


def _look(
    repo: Repository, mask: StoredMask, base: Manifest, model: ModelEntry, shown: str, progress: Progress
) -> _Found:
    track = repo.settings.track
    files = {p: file for p, file in work_files(repo).items() if is_within(p, model.path)}
    if not files:
        raise RepositoryError(
            f"{model.path} is not in the work tree", hint=f"`mgit restore {model.path}` brings it back"
        )
    weights = describe(repo.worktree, model.path, ignore=track.left_out, opaque=track.opaque).weights
    files = {path: files[path] for path in weights}
    for path, file in files.items():
        if file.known is not None and content_of(repo, file.known) is None:
            files[path] = file._replace(known=None)  # its record is forgotten: read it again
    ids, read = hash_changed(repo, files, progress=progress)
    contents: dict[str, FileContent] = {}
    for path in files:
        content = read.get(path) or content_of(repo, ids[path])
        if content is None:
            raise RepositoryError(f"{path} changed while it was being read", hint="try again when nothing writes it")
        contents[path] = content
    old = tensors_of(repo, base, model)
    allowed = over_stored(mask.positions(), views_of(repo, base, model))
    tensors: dict[str, dict[str, tuple[TensorEntry, NDArray[np.int64] | None]]] = {}
    seen: set[str] = set()
    for path, content in contents.items():
        for tensor in content.tensors:
            name = tensor.name if tensor.name not in seen else f"{path}:{tensor.name}"
            seen.add(name)
            if name in allowed and allowed[name] is None:
                continue
            if name not in old or old[name].spec != tensor.spec:
                what = "has no tensor" if name not in old else "has another shape or type of tensor"
                raise RepositoryError(
                    f"{shown} {what} `{name}`, so nothing can be put back there",
                    hint="`--from REV` takes the values from another commit",
                )
            if old[name].id != tensor.id:
                tensors.setdefault(path, {})[tensor.name] = (old[name], allowed.get(name))
    gone = sorted(old.keys() - seen)
    if gone:
        raise RepositoryError(
            f"{model.path} in the work tree has no tensor `{gone[0]}`",
            hint=f"`mgit restore {model.path}` brings it back",
        )
    return _Found(files, contents, tensors)


def _through(
    reader: TensorReads, tensors: Mapping[str, tuple[TensorEntry, NDArray[np.int64] | None]]
) -> Callable[[str, TensorSource], TensorSource]:
    def through(name: str, source: TensorSource) -> TensorSource:
        if name not in tensors:
            return source
        entry, allowed = tensors[name]
        if allowed is None:
            return StoredObject(reader, entry.id, entry.spec)
        return _Masked(source, reader, entry, allowed)

    return through


def _count(repo: Repository, found: _Found, progress: Progress) -> tuple[dict[str, int], tuple[str, ...]]:
    """How many values are to be put back, by tensor, and in which files."""
    reader = repo.reader()
    values: dict[str, int] = {}
    files: list[str] = []
    progress.start("compare", sum(len(tensors) for tensors in found.tensors.values()), unit="tensors")
    for path, tensors in found.tensors.items():
        before = len(values)
        with _opened(repo, path, found.contents[path]) as sources:
            for name, (entry, allowed) in tensors.items():
                progress.check()
                count = _Masked(sources[name], reader, entry, allowed).count()
                if count:
                    values[entry.name if entry.name not in values else f"{path}:{entry.name}"] = count
                progress.advance("compare", 1)
        if len(values) > before:
            files.append(path)
    progress.finish("compare")
    return values, tuple(files)


@contextmanager
def _opened(repo: Repository, path: str, content: FileContent) -> Iterator[dict[str, TensorSource]]:
    """The tensors of a file of the work tree by name."""
    with FileReader(repo.worktree / path, shown=path) as reader:
        sources: dict[str, TensorSource] = {}
        offset = 0
        for segment in content.segments:
            if isinstance(segment, Literal):
                offset += segment.length
                continue
            tensor = content.tensors[segment.index]
            sources[tensor.name] = FileRange(reader, offset, tensor.spec)
            offset += tensor.spec.size_bytes
        yield sources


def _record(
    repo: Repository,
    mask: StoredMask,
    found: _Found,
    base: Manifest,
    head: Manifest,
    files: tuple[str, ...],
    progress: Progress,
) -> Manifest:
    """Store the files with the mask applied; returns the current commit's manifest with them in it."""
    entries = {entry.path: entry for entry in head.files}
    bases = previous_tensors(repo, base)
    known = {name: entry for tensors in bases.values() for name, entry in tensors.items()}
    sections = mask_sections([mask.record])  # so that a commit under the mask finds values without positions
    progress.start("store", sum(found.files[path].status.st_size for path in files))
    with repo.session() as session:
        writer, reader = repo.writer(session, progress=progress), repo.reader()
        for path in files:
            through = _through(reader, found.tensors[path])
            file = found.files[path]
            digest, scanned, _ = record_file(
                repo,
                session,
                writer,
                file,
                entries.get(path),
                bases.get(path, known),
                sections=sections,
                through=through,
            )
            content = repo.content_at(digest, store=session)
            made = with_checksums(repo, session, path, found.contents[path], content)
            if made != content:
                digest = write_content_record(session, made, None)
            executable = file.executable if file.executable is not None else False
            entries[path] = FileEntry(path=path, size=scanned.size, digest=digest, executable=executable)
        target = Manifest(files=tuple(entries[path] for path in sorted(entries)), models=head.models)
        data = encode(target)
        write_metadata(session, ManifestId.of(data), data)
        session.seal()
    progress.finish("store")
    return target
