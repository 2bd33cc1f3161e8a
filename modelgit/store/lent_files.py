"""Reading ranges of files that belong to somebody else: opened for reading only, symbolic links kept inside a fence."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path

from modelgit.errors import IntegrityError, LenderError
from modelgit.objects import DIGEST_BYTES, LEAF_BYTES, leaf_digest
from modelgit.store.packs import read_at

__all__ = ["LentFiles", "fence_of", "resolve_inside", "same_file", "snapshot_path"]

_OPEN_FILES = 64
_FINE_NS = 20_000_000  # as in `worktree.index`: what changed that shortly before it was looked at may change unseen
_COARSE_NS = 2_000_000_000
_CACHED_MODEL = "models--"


def fence_of(root: Path) -> Path:
    """The directory that links below `root` may not leave.

    The files of a Hugging Face cache are links from `models--ORG--NAME/snapshots/COMMIT` into `blobs` beside it.
    """
    real = Path(os.path.realpath(root))
    for folder in real.parents:
        if folder.name.startswith(_CACHED_MODEL) and real.relative_to(folder).parts[0] == "snapshots":
            return folder
    return real


def snapshot_path(hub: Path, folder: str, commit: str) -> Path:
    """Where a Hugging Face cache keeps the files of a commit."""
    return hub / folder / "snapshots" / commit


def resolve_inside(root: Path, relative: str, fence: Path) -> Path | None:
    """The real path of `root / relative`, or None when a link on the way leads out of `fence`."""
    real = Path(os.path.realpath(root / relative))
    return real if real.is_relative_to(fence) else None


def same_file(size: int, mtime_ns: int, inode: int, seen_ns: int, status: os.stat_result) -> bool:
    """Whether `stat` vouches for a file being the one that was hashed at `seen_ns`."""
    granularity = _COARSE_NS if mtime_ns % 1_000_000_000 == 0 else _FINE_NS
    unchanged = (size, mtime_ns, inode) == (status.st_size, status.st_mtime_ns, status.st_ino)
    return unchanged and seen_ns - mtime_ns > granularity


class LentFiles:
    """Open files of lenders, a few at a time.  Thread-safe."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._fences: dict[Path, Path] = {}
        self._lock = threading.Lock()

    def _fence(self, root: Path) -> Path:
        found = self._fences.get(root)
        if found is None:
            found = self._fences[root] = fence_of(root)
        return found

    def status(self, root: Path, relative: str) -> os.stat_result | None:
        """The stat of the regular file that is there now; None for anything else."""
        real = resolve_inside(root, relative, self._fence(root))
        try:
            status = None if real is None else real.stat()
        except OSError:
            return None
        return status if status is not None and stat.S_ISREG(status.st_mode) else None

    def read(self, root: Path, relative: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file.  Raises LenderError when it is gone, shorter, or no regular file."""
        path = root / relative
        try:
            with self._lock:
                descriptor = self._descriptor(root, relative)
                if not hasattr(os, "pread"):
                    return read_at(descriptor, start, stop - start, path.name)
            return read_at(descriptor, start, stop - start, path.name)
        except IntegrityError:
            raise LenderError(f"{path} ends before byte {stop}: it has changed") from None
        except OSError as error:
            raise LenderError(f"{path} cannot be read: {error.strerror or error}") from None

    def matches(self, root: Path, relative: str, offset: int, size: int, leaves: bytes) -> bool:
        """Whether the range has these leaf digests now: it is read whole."""
        try:
            for number, start in enumerate(range(0, max(1, size), LEAF_BYTES)):
                data = self.read(root, relative, offset + start, offset + min(start + LEAF_BYTES, size))
                if leaf_digest(data) != leaves[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
                    return False
        except LenderError:
            return False
        return True

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()
            self._fences.clear()

    def _descriptor(self, root: Path, relative: str) -> int:
        path = root / relative
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        real = resolve_inside(root, relative, self._fence(root))
        if real is None:
            raise LenderError(f"{path} is a link that leads out of {self._fence(root)}")
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(real, flags)  # O_NONBLOCK: a FIFO must not hang us
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise LenderError(f"{path} is not a regular file")
        self._open[path] = descriptor
        # As in FileSystemStore: another thread may be about to read from an old one.
        while len(self._open) > 8 * _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor
