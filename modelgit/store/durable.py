"""Making bytes survive a power cut: write, flush, rename, flush the directory."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from modelgit.errors import RepositoryError

__all__ = [
    "create",
    "make_directory",
    "new_file",
    "process_space",
    "publish",
    "rename",
    "replacing",
    "sync_directory",
    "temporary_name",
    "write_all",
    "write_cache_file",
    "write_durably",
]


def temporary_name() -> str:
    """A file name that no other writer uses, on any host."""
    return f"tmp-{os.getpid()}-{os.urandom(6).hex()}"


@functools.cache
def process_space() -> str:
    """Eight hex digits for the host, and the container on it, in which numbers of processes mean something."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (it is a text, not a path)
    return blake3(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte; a short write (quota, RLIMIT_FSIZE) is continued until the system says why it stops."""
    view = memoryview(data).cast("B")
    while len(view):
        written = os.write(descriptor, view)
        view = view[written:]


def create(path: Path, *, mode: int = 0o666) -> int:
    """A descriptor of the new file `path`, open for reading and writing.  Raises OSError, also where it exists."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)


@contextlib.contextmanager
def new_file(path: Path, *, mode: int = 0o666) -> Iterator[int]:
    """The new file `path`, open for reading and writing, and flushed at the end.  Raises OSError as `create` does."""
    descriptor = create(path, mode=mode)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory.  Windows has no such call and needs none for renames.

    Raises RepositoryError when the disk refuses: the names may be there all the same.
    """
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RepositoryError(f"cannot flush {path} to disk: {error.strerror or error}") from error


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are missing.  Raises RepositoryError when the disk refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RepositoryError(f"cannot write {path}: {error.strerror or error}") from error


def rename(source: Path, target: Path) -> None:
    """Rename a file, also where a network file system loses the answer and then says that the source is gone.

    Raises OSError when `target` is not what `source` was.
    """
    before = source.stat()
    try:
        os.replace(source, target)
    except OSError:
        with contextlib.suppress(OSError):
            after = target.stat()
            same = (after.st_ino, after.st_size, after.st_mtime_ns) == (
                before.st_ino,
                before.st_size,
                before.st_mtime_ns,
            )
            if same and not os.path.lexists(source):
                return
        raise


def publish(temporary: Path, target: Path) -> None:
    """Rename a flushed file over `target` and flush the directory."""
    rename(temporary, target)
    sync_directory(target.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """A new file that takes the place of `path` at the end: a crash leaves the old or the new file, never a mix.

    Raises RepositoryError when the disk refuses.
    """
    temporary = path.parent / temporary_name()
    try:
        with new_file(temporary) as descriptor:
            yield descriptor
        publish(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RepositoryError(f"cannot write {path}: {error.strerror or error}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by a file that holds `data`; raises as `replacing` does."""
    with replacing(path) as descriptor:
        write_all(descriptor, data)


def write_cache_file(path: Path, data: bytes) -> bool:
    """Replace `path`, a file that can be made again, without flushing it; returns whether that worked.

    A full or read-only disk leaves everything as it was.  Readers must notice a file that a power cut tore.
    """
    temporary = path.with_name(temporary_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True
