"""Copying bytes between files: shared by the file system where it can (reflinks), inside the kernel where it may.

Every faster way may be refused, by the file system, by the kernel or by a sandbox; then the next one is tried, and
reading and writing works everywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.store.durable import create, write_all

__all__ = ["copy_file", "copy_range"]

# Not offered for these files, by this file system, by this kernel, or in this sandbox.
_REFUSALS = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY, errno.EPERM, errno.EBADF}
)
_FICLONE = 0x40049409  # include/uapi/linux/fs.h: _IOW(0x94, 9, int)
_BUFFER_BYTES = 4 << 20
_BINARY = getattr(os, "O_BINARY", 0)


def copy_range(source: int, source_offset: int, target: int, target_offset: int, length: int) -> None:
    """Copy `length` bytes between two open files at the given offsets; neither file position counts on return.

    On file systems with reflinks the kernel shares whole blocks and copies the rest.  The two ranges must not lie in
    one file and overlap.  Raises RepositoryError when the source ends before, OSError when the disk refuses.
    """
    done = 0
    if hasattr(os, "copy_file_range"):
        try:
            while done < length:
                count = os.copy_file_range(
                    source, target, length - done, offset_src=source_offset + done, offset_dst=target_offset + done
                )
                if count == 0:  # at the end of the source; some file systems say so when they cannot do it at all
                    break
                done += count
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
    while done < length:
        data = _read_at(source, min(_BUFFER_BYTES, length - done), source_offset + done)
        if not data:
            raise RepositoryError(
                f"a file ends {length - done} bytes before the range that was to be copied from it",
                hint="try again when nothing writes it",
            )
        _write_at(target, data, target_offset + done)
        done += len(data)


def copy_file(source: Path, target: Path, *, mode: int = 0o666) -> None:
    """Copy a file to `target`, which must not exist, and flush it; a whole-file reflink where there are such.

    The copy has the permissions `mode` less the umask, and only bytes are copied: no times, no attributes.
    Raises RepositoryError when the source is cut meanwhile, OSError when the disk refuses; the target is then removed.
    """
    reading = os.open(source, os.O_RDONLY | _BINARY)
    try:
        writing = create(target, mode=mode)
        try:
            if not _clone(reading, writing):
                copy_range(reading, 0, writing, 0, os.fstat(reading).st_size)
            os.fsync(writing)
        except BaseException:
            with contextlib.suppress(OSError):
                target.unlink()
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _clone(source: int, target: int) -> bool:
    """Make `target` share all blocks of `source`; False where that is not offered."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return False
    return True


def _read_at(descriptor: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, length)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    if hasattr(os, "pwrite"):
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
        return
    os.lseek(descriptor, offset, os.SEEK_SET)
    write_all(descriptor, data)
