"""Read-only copies of models in a cache: built aside, renamed into place, looked after by sizes and times.

    <cache>/<manifest>-<model>/record     what was written, with the size and the time of every file
    <cache>/<manifest>-<model>/<name>/    the files of the model, read-only

Files that are equal in two snapshots are one file with two names.  A file that a user may write to is never linked,
only copied (sharing blocks where the file system can).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from modelgit.errors import IntegrityError, RepositoryError
from modelgit.objects import ContentId, FileContent, ManifestId, Record, decode, encode
from modelgit.objects.paths import check_tree
from modelgit.patching.base import TensorReads
from modelgit.progress import SILENT, Progress
from modelgit.store.durable import make_directory, sync_directory, temporary_name, write_durably
from modelgit.worktree.rebuild import write_content

__all__ = ["KEEP_DAYS", "MAX_BYTES", "SnapshotCache", "SnapshotSource", "Wanted"]

KEEP_DAYS = 30
"""How long a snapshot that nobody asks for is kept."""

MAX_BYTES = 64 << 30
"""What all snapshots of a cache may take before those that were not asked for in the last day go, oldest first."""

_RECORD = "record"
_FRESH_S = 86400.0
_STALE_S = 6 * 3600.0  # an unfinished one of another process is taken for abandoned
_TRIES = 8


class Wanted(NamedTuple):
    """A file of a snapshot: its path there, what it holds, and how it is to be made."""

    path: str
    size: int
    digest: ContentId
    executable: bool


class _Kept(Record, frozen=True, kw_only=True):
    path: str
    size: int
    digest: ContentId
    mtime_ns: int
    executable: bool = False


class _Made(Record, frozen=True, kw_only=True):
    manifest: ManifestId
    model: str
    name: str
    files: tuple[_Kept, ...] = ()


class SnapshotSource(NamedTuple):
    """Where bytes come from: `content` and `reads` from a store, `copy` from elsewhere if that is possible at once.

    `copy` is given a digest and the path to make, and says whether it made it.
    """

    content: Callable[[ContentId], FileContent]
    reads: Callable[[FileContent], TensorReads]
    copy: Callable[[ContentId, Path], bool]


class SnapshotCache:
    """Snapshots below one directory.  Several processes may build and use them at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, manifest: ManifestId, model: str) -> Path | None:
        """The snapshot, if there is one and its files are as they were written; it then counts as used now."""
        place = self._place(manifest, model)
        made = _read(place)
        if made is None or made.manifest != manifest or made.model != model or not _is_sound(place / made.name, made):
            return None
        with contextlib.suppress(OSError):
            os.utime(place / _RECORD)
        return place / made.name

    def build(
        self,
        manifest: ManifestId,
        model: str,
        files: Sequence[Wanted],
        source: SnapshotSource,
        *,
        name: str,
        threads: int,
        progress: Progress = SILENT,
    ) -> Path:
        """Make the snapshot and return its directory; one that another process finished meanwhile is taken instead.

        Raises IntegrityError when what is stored is damaged or has unsafe paths, RepositoryError when the disk refuses.
        """
        check_tree([item.path for item in files])
        make_directory(self.folder)
        aside = self.folder / temporary_name()
        progress.start("checkout", sum(item.size for item in files))
        try:
            inside = aside / name
            inside.mkdir(parents=True)
            links = self._links()
            kept = [
                self._make(item, inside / item.path, links, source, threads, progress)
                for item in sorted(files, key=lambda item: item.path)
            ]
            made = _Made(manifest=manifest, model=model, name=name, files=tuple(kept))
            for folder, _, _ in os.walk(inside, topdown=False):
                sync_directory(Path(folder))
                Path(folder).chmod(0o555)
            write_durably(aside / _RECORD, encode(made))
            place = self._install(aside, manifest, model)
        except OSError as error:
            raise RepositoryError(
                f"cannot write a snapshot to {self.folder}: {error.strerror or error}",
                hint="free some space",
            ) from error
        finally:
            _remove(aside)
        progress.finish("checkout")
        return place / name

    def tidy(self, *, max_bytes: int = MAX_BYTES) -> int:
        """Remove what has not been asked for in a long time, or is too much; returns how many snapshots went.

        Programs that have files of one open keep them.
        """
        now = time.time()
        used: list[tuple[float, Path]] = []
        for place in self._places():
            with contextlib.suppress(OSError):
                used.append(((place / _RECORD).stat().st_mtime, place))
        for place in self._leftovers():
            with contextlib.suppress(OSError):
                if now - place.stat().st_mtime > _STALE_S:
                    _remove(place)
        count = total = 0
        seen: set[tuple[int, int]] = set()
        for last, place in sorted(used, reverse=True):
            total += _size(place, seen)
            too_much = total > max_bytes and now - last > _FRESH_S
            if too_much or now - last > KEEP_DAYS * 86400:
                self._take(place)
                count += 1
        return count

    # -- within

    def _place(self, manifest: ManifestId, model: str) -> Path:
        return self.folder / f"{manifest.hex}-{blake3(model.encode()).hexdigest()[:16]}"

    def _places(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                if not entry.name.startswith("tmp-") and entry.is_dir(follow_symlinks=False):
                    yield Path(entry.path)

    def _leftovers(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                if entry.name.startswith("tmp-"):
                    yield Path(entry.path)

    def _links(self) -> dict[tuple[ContentId, bool], tuple[Path, _Kept]]:
        """Files of other snapshots by what they hold."""
        found: dict[tuple[ContentId, bool], tuple[Path, _Kept]] = {}
        for place in self._places():
            made = _read(place)
            if made is not None:
                for item in made.files:
                    found.setdefault((item.digest, item.executable), (place / made.name / item.path, item))
        return found

    def _make(
        self,
        item: Wanted,
        target: Path,
        links: dict[tuple[ContentId, bool], tuple[Path, _Kept]],
        source: SnapshotSource,
        threads: int,
        progress: Progress,
    ) -> _Kept:
        progress.check()
        target.parent.mkdir(parents=True, exist_ok=True)
        known = links.get((item.digest, item.executable))
        if known is not None and _link(*known, target):
            progress.advance("checkout", item.size)
        else:
            if source.copy(item.digest, target):
                progress.advance("checkout", item.size)
            else:
                content = source.content(item.digest)
                write_content(source.reads(content), content, item.size, target, threads=threads, progress=progress)
            target.chmod(0o555 if item.executable else 0o444)
        status = target.stat()
        if status.st_size != item.size:
            raise IntegrityError(f"{item.path} has {status.st_size} bytes, the manifest promises {item.size}")
        kept = _Kept(
            path=item.path,
            size=item.size,
            digest=item.digest,
            executable=item.executable,
            mtime_ns=status.st_mtime_ns,
        )
        links.setdefault((item.digest, item.executable), (target, kept))  # two equal files of one model
        return kept

    def _install(self, aside: Path, manifest: ManifestId, model: str) -> Path:
        place = self._place(manifest, model)
        for _ in range(_TRIES):
            try:
                aside.rename(place)
            except OSError:
                if not place.exists():
                    raise
                if self.find(manifest, model) is None:  # damaged, or half-removed: out of the way
                    self._take(place)
                    continue
            else:
                sync_directory(self.folder)
            return place
        raise RepositoryError(f"cannot put a snapshot at {place}", hint=f"`rm -rf '{place}'`")

    def _take(self, place: Path) -> None:
        """Remove a snapshot: out of sight first, at once."""
        away = self.folder / temporary_name()
        with contextlib.suppress(OSError):
            place.rename(away)
            _remove(away)


def _read(place: Path) -> _Made | None:
    try:
        return decode(_Made, (place / _RECORD).read_bytes(), what="the record of a snapshot")
    except (OSError, IntegrityError):
        return None


def _is_sound(folder: Path, made: _Made) -> bool:
    """Whether every file has the size and the time that it was left with, and there are no others."""
    try:
        for item in made.files:
            status = (folder / item.path).lstat()
            if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns):
                return False
        return sum(len(names) for _, _, names in os.walk(folder)) == len(made.files)
    except OSError:
        return False


def _link(path: Path, kept: _Kept, target: Path) -> bool:
    """Give a file of another snapshot a second name, if it is as it was left; False where that cannot be."""
    try:
        os.link(path, target, follow_symlinks=False)
        status = target.lstat()
    except (OSError, NotImplementedError):
        with contextlib.suppress(OSError):
            target.unlink()
        return False
    if stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (kept.size, kept.mtime_ns):
        return True
    target.unlink()
    return False


def _size(place: Path, seen: set[tuple[int, int]]) -> int:
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(OSError):
                status = Path(folder, name).lstat()
                if (key := (status.st_dev, status.st_ino)) not in seen:
                    seen.add(key)
                    total += status.st_size
    return total


def _remove(place: Path) -> None:
    """Remove a directory with its read-only ones; files that have other names keep their modes."""
    for folder, _, names in os.walk(place):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o755)
            for name in names if sys.platform == "win32" else ():
                Path(folder, name).chmod(0o666)
    shutil.rmtree(place, ignore_errors=True)
