"""Cache files that begin with a kind and a checksum: one that a power cut tore, or that is another's, is no cache."""

from __future__ import annotations

import contextlib
from pathlib import Path

from blake3 import blake3

from modelgit.store.durable import write_cache_file

__all__ = ["read_checked", "write_checked"]

_DIGEST_BYTES = 32


def read_checked(path: Path, magic: bytes) -> bytes | None:
    """What `write_checked` wrote with the same `magic`; None where there is nothing that is whole.

    A file that is damaged, or of another kind, is removed.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = len(magic) + _DIGEST_BYTES
    content = data[head:]
    if data[:head] == magic + blake3(content).digest():
        return content
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def write_checked(path: Path, magic: bytes, content: bytes) -> None:
    """Keep `content`, a copy of which is held meanwhile.  A cache that cannot be written is left as it was."""
    write_cache_file(path, magic + blake3(content).digest() + content)
