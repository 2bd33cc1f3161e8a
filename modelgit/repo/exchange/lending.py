"""Hashing the files of a lender once, so that what lies there need not be stored here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from modelgit.errors import CheckpointFormatError, RepositoryError
from modelgit.formats.base import ScannedFile, ScannedRange
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.objects import LEAF_BYTES, TensorSpec, leaf_digest, raw_id
from modelgit.objects.paths import path_problem
from modelgit.parallel import Workers
from modelgit.patching.foreign import UncodedHeader
from modelgit.patching.records import checksum
from modelgit.progress import SILENT, Progress
from modelgit.repo.layout import METADATA
from modelgit.store.lenders import WORTH_BYTES, LentFile, LentObject, LentTable
from modelgit.store.lent_files import LentFiles, fence_of, resolve_inside, same_file

__all__ = ["HashedFiles", "hash_lender"]

_NOT_MODELS = frozenset({"blobs", "refs", ".no_exist", ".locks"})  # of a Hugging Face cache; snapshots link into blobs


class HashedFiles(NamedTuple):
    """A lender's table, and sentences about files that cannot be lent."""

    table: LentTable
    skipped: tuple[str, ...]


class _Leaf(NamedTuple):
    start: int
    stop: int


def hash_lender(
    root: Path, *, known: Iterable[LentTable] = (), threads: int, progress: Progress = SILENT
) -> HashedFiles:
    """Read every file below `root` once, but those that are in a `known` table and have not changed since.

    Work trees of repositories are passed over: they change.  Symbolic links are followed as far as they stay inside
    (see `lent_files.fence_of`).  Raises RepositoryError when a file changes meanwhile.
    """
    files: list[LentFile] = []
    objects: list[LentObject] = []
    skipped: list[str] = []
    seen: set[tuple[int, int]] = set()
    lent = LentFiles()
    found: list[tuple[str, os.stat_result]] = []
    for path in _paths(root):
        status = lent.status(root, path)
        if status is None:
            skipped.append(f"{path}: not a file inside of {fence_of(root)}")
        elif status.st_size >= WORTH_BYTES and (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            found.append((path, status))
    kept = _unchanged(known, dict(found))
    progress.start("hash", sum(status.st_size for path, status in found if path not in kept))
    with Workers(threads, name="mgit-hash") as workers:
        for path, _ in found:
            real = resolve_inside(root, path, fence_of(root))
            if real is None:
                continue
            if path in kept:
                file, items = kept[path]
                objects += [msgspec.structs.replace(item, file=len(files)) for item in items]
                files.append(file)
                continue
            try:
                file, items = _hash_file(root, path, real, len(files), workers, progress)
            except CheckpointFormatError as error:
                skipped.append(error.message)
                continue
            files.append(file)
            objects += items
    progress.finish("hash")
    return HashedFiles(LentTable(files=tuple(files), objects=tuple(objects)), tuple(skipped))


def _unchanged(
    known: Iterable[LentTable], found: Mapping[str, os.stat_result]
) -> dict[str, tuple[LentFile, list[LentObject]]]:
    kept: dict[str, tuple[LentFile, list[LentObject]]] = {}
    for table in known:
        held: dict[int, list[LentObject]] = {}
        for item in table.objects:
            held.setdefault(item.file, []).append(item)
        for number, file in enumerate(table.files):
            status = found.get(file.path)
            if status and same_file(file.size, file.mtime_ns, file.inode, file.seen_ns, status):
                kept[file.path] = (file, held.get(number, []))
    return kept


def _paths(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if METADATA in folders:
            folders.clear()
            continue
        cached = here.name.startswith("models--")
        folders[:] = sorted(name for name in folders if name != ".git" and not (cached and name in _NOT_MODELS))
        for name in sorted(names):
            path = (here / name).relative_to(root).as_posix()
            if path_problem(path) is None:
                yield path


def _hash_file(
    root: Path, path: str, real: Path, number: int, workers: Workers, progress: Progress
) -> tuple[LentFile, list[LentObject]]:
    seen_ns = time.time_ns()
    with FileReader(real, shown=str(root / path)) as file:
        file.path = root / path  # the format goes by the name that people see, not by that of a blob in a cache
        scanned = scan_reader(file)
        # What is no tensor is one blob of all its pieces: it lies here in one place only if there is one piece.
        pieces = sum(part.tensor is None for part in scanned.ranges)
        worth = [
            part for part in scanned.ranges if part.length >= WORTH_BYTES and (part.tensor is not None or pieces == 1)
        ]
        items = [_hash_range(file, scanned, part, number, workers, progress) for part in worth]
        if not file.is_unchanged():
            raise RepositoryError(
                f"{root / path} changed while it was being read", hint="wait until nothing writes it, then try again"
            )
        status = file.stat
    known = LentFile(path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino, seen_ns=seen_ns)
    return known, items


def _hash_range(
    file: FileReader,
    scanned: ScannedFile,
    part: ScannedRange,
    number: int,
    workers: Workers,
    progress: Progress,
) -> LentObject:
    spec: TensorSpec | None = None if part.tensor is None else scanned.tensors[part.tensor].spec

    def digest(leaf: _Leaf) -> tuple[bytes, int, int]:
        progress.check()
        data = file.read(part.offset + leaf.start, leaf.stop - leaf.start)
        progress.advance("hash", len(data))
        return leaf_digest(data), len(data), checksum(data)

    leaves: list[bytes] = []
    header = UncodedHeader(spec)
    for value, size, check in workers.ordered(digest, _leaves(part.length), ahead=4 * workers.count):
        leaves.append(value)
        header.add(size, check)
    object_id = raw_id(part.length, spec, leaves)
    return LentObject(
        kind=object_id.KIND,
        digest=object_id.digest,
        size=part.length,
        leaves=b"".join(leaves),
        file=number,
        offset=part.offset,
        header=header.packed(),
        spec=spec,
    )


def _leaves(size: int) -> Iterator[_Leaf]:
    return (_Leaf(at, min(at + LEAF_BYTES, size)) for at in range(0, size, LEAF_BYTES))
