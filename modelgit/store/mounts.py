"""What kind of file system a path lies on, as far as the system says."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

__all__ = ["is_network", "reserve"]

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    [
        "9p",
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse",
        "gfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "prl_fs",
        "pvfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "vmhgfs",
        "wekafs",
    ]
)
_RESERVING = frozenset({"ext4", "xfs", "btrfs", "f2fs", "tmpfs"})
_ESCAPE = re.compile(r"\\([0-7]{3})")


def is_network(path: Path, *, mounts: str | None = None) -> bool:
    """Whether other hosts may change files at `path`; False where that is not known.

    `mounts` is the text of Linux' table of mounts (proc(5), mountinfo), by default that of this process.
    """
    kind = _kind(path, mounts)
    return kind in _NETWORK or kind.startswith("fuse.")


def reserve(descriptor: int, path: Path, offset: int, size_bytes: int) -> bool:
    """Ask for the blocks of bytes that are about to be written to the open file at `path`; returns whether that helped.

    The pages of a file that grows are otherwise found one by one, which costs more than filling them.  Only file
    systems that do this at once are asked: for others the C library writes into every block.
    Raises OSError when the disk is too full.
    """
    if not hasattr(os, "posix_fallocate") or not size_bytes or _kind(path, None) not in _RESERVING:
        return False
    try:
        os.posix_fallocate(descriptor, offset, size_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return False
    return True


def _kind(path: Path, mounts: str | None) -> str:
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""
    place = os.path.realpath(path)
    longest, kind = -1, ""
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), fields[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # a later one hides an earlier one
            longest, kind = len(point), after.split(" ")[0]
    return kind
