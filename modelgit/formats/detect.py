"""Open a file for positional reads, and scan it in the format that its content and name call for."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import FORMATS, CheckpointFormat, ReadAt, ScannedFile
from modelgit.formats.lookalikes import is_weight_name, refuse_page

__all__ = ["FileReader", "is_same_stat", "scan_file", "scan_reader"]

_HEAD_BYTES = 4096
_TEXT_SUFFIXES = frozenset({".json", ".jsonl", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"})
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # so that opening a FIFO that somebody put there does not wait for ever
)


def is_same_stat(before: os.stat_result, now: os.stat_result) -> bool:
    """Whether size, times and inode are the same: nobody has written to the file between the two, nor replaced it."""
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino) == (
        now.st_size,
        now.st_mtime_ns,
        now.st_ctime_ns,
        now.st_ino,
    )


class FileReader:
    """A regular file opened for positional reads, from several threads if need be.

    A last path component that is a symbolic link is refused.  `stat` is what the file was when it was opened;
    `shown` is the path as the user knows it and appears in every message.
    """

    def __init__(self, path: Path, *, shown: str) -> None:
        self.path = path
        self.shown = shown
        try:
            self._descriptor = os.open(path, _FLAGS)
        except OSError as error:
            # FreeBSD says EMLINK, NetBSD EFTYPE where Linux and macOS say ELOOP.
            if error.errno in (errno.ELOOP, errno.EMLINK, getattr(errno, "EFTYPE", errno.ELOOP)):
                raise CheckpointFormatError(
                    f"{shown} is a symbolic link, which is not followed", hint=f"`cp -L` puts a copy at {shown}"
                ) from None
            reason = error.strerror or str(error)
            raise CheckpointFormatError(f"{shown} cannot be read: {reason}") from error
        self.stat = os.fstat(self._descriptor)
        self.size = self.stat.st_size
        self._seeking = threading.Lock()
        if not stat.S_ISREG(self.stat.st_mode):
            self.close()
            raise CheckpointFormatError(f"{shown} is not a regular file")

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.  Raises CheckpointFormatError when the file is shorter by now."""
        parts: list[bytes] = []
        missing = length
        while missing:
            try:
                part = self._read_some(offset, missing)
            except OSError as error:
                raise CheckpointFormatError(f"{self.shown} cannot be read: {error.strerror or error}") from error
            if not part:
                raise self._short(offset, missing)
            parts.append(part)
            offset += len(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset` on, without allocating.  Raises CheckpointFormatError like `read`."""
        if not hasattr(os, "preadv"):
            out[:] = self.read(offset, out.nbytes)
            return
        while out.nbytes:
            try:
                got = os.preadv(self._descriptor, [out[: 1 << 30]], offset)
            except OSError as error:
                raise CheckpointFormatError(f"{self.shown} cannot be read: {error.strerror or error}") from error
            if not got:
                raise self._short(offset, out.nbytes)
            offset += got
            out = out[got:]

    def _short(self, offset: int, missing: int) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"{self.shown} ends at byte {offset}, {missing} bytes early: it changed while it was read",
            hint="try again when nothing writes to it",
        )

    def is_unchanged(self) -> bool:
        """Whether size, times and inode are still those of the opening; False says that the bytes read may be mixed."""
        return is_same_stat(self.stat, os.fstat(self._descriptor))

    def _read_some(self, offset: int, length: int) -> bytes:
        length = min(length, 1 << 30)  # one system call moves less than 2 GiB
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, offset)
        with self._seeking:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, length)


def _has_signs(head: bytes, name: str) -> bool:
    """Whether some built-in format may recognise the file: a wider test than theirs, for which none has to be loaded.

    Most files of a checkpoint are text, and importing ten parsers costs more than committing a small model.
    """
    lowered = name.lower()
    return (
        is_weight_name(lowered)
        or lowered.endswith(".distcp")
        or ".onnx" in lowered
        or head.startswith((b"PK\3\4", b"\x80", b"\x93NUMPY", b"GGUF"))
        or head[8:9] == b"{"
    )


def _candidates(head: bytes, name: str) -> Iterator[CheckpointFormat]:
    """Formats in the order in which they are asked: the built-in ones, installed ones by name, opaque last."""
    if _has_signs(head, name):
        for known in FORMATS.builtins:
            if known != "opaque":
                yield FORMATS.get(known)
    if PurePosixPath(name).suffix.lower() not in _TEXT_SUFFIXES:  # finding out what is installed takes its time, too
        for known in FORMATS.names():
            if known not in FORMATS.builtins:
                yield FORMATS.get(known)
    yield FORMATS.get("opaque")


def scan_reader(file: ReadAt, *, opaque: bool = False) -> ScannedFile:
    """Scan an open file in the first format that recognises it; with `opaque`, take it byte for byte.

    Raises CheckpointFormatError for a malformed file: a broken `.safetensors` is an error, never quietly opaque.
    """
    if opaque:
        return FORMATS.get("opaque").scan(file)
    head = file.read(0, min(file.size, _HEAD_BYTES))
    refuse_page(head, file.shown)
    for candidate in _candidates(head, file.path.name):
        if candidate.detect(head, file.path.name):
            return candidate.scan(file)
    raise CheckpointFormatError(f"{file.shown} is of no known format")


def scan_file(path: Path, *, shown: str, opaque: bool = False) -> ScannedFile:
    """Scan the file at `path`, which messages call `shown`, as `scan_reader` does.  Raises CheckpointFormatError."""
    with FileReader(path, shown=shown) as file:
        return scan_reader(file, opaque=opaque)
