"""The stat cache: which content each file had when it was last looked at.  A cache: it may be deleted at any time."""

from __future__ import annotations

import contextlib
import os
import time
from functools import cached_property
from pathlib import Path

from modelgit.errors import IntegrityError
from modelgit.objects import ContentId, Record, decode, encode
from modelgit.store.durable import temporary_name, write_cache_file
from modelgit.store.mounts import is_network

__all__ = ["FileStat", "StatIndex"]

_FINE_NS = 20_000_000  # kernel ticks are at most 10 ms
_COARSE_NS = 2_000_000_000  # FAT and some network file systems count in seconds
_ATTRIBUTE_CACHE_NS = 60_000_000_000  # acregmax of NFS; others keep attributes for less
_CLOCKS_AGREE_NS = 1_000_000_000


class FileStat(Record, frozen=True, kw_only=True):
    """What `stat` said, and what the file held then; `seen_ns` is the clock when it was read."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    seen_ns: int
    digest: ContentId


class _Stored(Record, frozen=True, kw_only=True):
    files: dict[str, FileStat]


class StatIndex:
    """Content by path, trusted only where `stat` proves that nothing happened since.

    A file that was changed within the clock's granularity before it was looked at may have been changed again without a
    trace: such an entry is never trusted (git's racy rule).  On a network file system the same goes for the time that a
    client may keep attributes for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, FileStat] | None = None
        self._dirty = False

    @cached_property
    def _cached_ns(self) -> int:
        """How old what `stat` says may be: clients of a network file system ask the server only now and then."""
        return _ATTRIBUTE_CACHE_NS if is_network(self._path) else 0

    @cached_property
    def _ahead_ns(self) -> int:
        """By how much the clock that stamps files is ahead of ours: that of a file server may be far off.

        Rather too little than too much: an entry that looks older than it is would be trusted too early.
        """
        if not self._cached_ns:
            return 0
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            probe = self._path.with_name(temporary_name())
            try:
                probe.write_bytes(b"clock")
                ahead = probe.stat().st_mtime_ns - time.time_ns()
            finally:
                probe.unlink()
            return ahead if abs(ahead) > _CLOCKS_AGREE_NS else 0
        return 0

    def lookup(self, path: str, status: os.stat_result) -> ContentId | None:
        """The content of the file if its `stat` is the one we know and can be trusted."""
        entry = self._load().get(path)
        if entry is None:
            return None
        same = (entry.size, entry.mtime_ns, entry.ctime_ns, entry.inode) == (
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
        )
        newest = max(entry.mtime_ns, entry.ctime_ns)
        granularity = _COARSE_NS if newest % 1_000_000_000 == 0 else _FINE_NS
        if not same or entry.seen_ns - newest <= granularity:
            return None
        return entry.digest if entry.seen_ns - newest > self._cached_ns else None

    def remember(self, path: str, status: os.stat_result, digest: ContentId, *, seen_ns: int | None = None) -> None:
        """Record that the file whose stat was `status` before it was read held `digest`."""
        self._load()[path] = FileStat(
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            inode=status.st_ino,
            seen_ns=(time.time_ns() if seen_ns is None else seen_ns) + self._ahead_ns,
            digest=digest,
        )
        self._dirty = True

    def forget(self, path: str) -> None:
        """Drop what is known of a path."""
        if self._load().pop(path, None) is not None:
            self._dirty = True

    def save(self) -> None:
        """Write the cache if it changed; a read-only repository just stays slow."""
        if not self._dirty or self._files is None:
            return
        if write_cache_file(self._path, encode(_Stored(files=self._files))):
            self._dirty = False

    def _load(self) -> dict[str, FileStat]:
        if self._files is None:
            self._files = {}
            with contextlib.suppress(OSError, IntegrityError):
                self._files = decode(_Stored, self._path.read_bytes(), what="the stat cache").files
        return self._files
