"""What kind of file system a path lies on, as far as the system says."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["is_network"]

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
_ESCAPE = re.compile(r"\\([0-7]{3})")


def is_network(path: Path, *, mounts: str | None = None) -> bool:
    """Whether other hosts may change files at `path`; False where that is not known.

    `mounts` is the text of Linux' table of mounts (proc(5), mountinfo), by default that of this process.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return False
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
    return kind in _NETWORK or kind.startswith("fuse.")
