"""The root as numbered files: version N+1 is published by creating its name, which only one writer can do.

`link()` (or a rename that refuses to replace, on Windows) is atomic on local disks and on network file systems alike,
so no lock and no clock is involved.  The last versions are kept for readers that are just looking.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from pathlib import Path

from blake3 import blake3

from modelgit.errors import IntegrityError, RepositoryError, RootMoved
from modelgit.objects import Root, decode, encode
from modelgit.store.base import VersionedRoot
from modelgit.store.durable import make_directory, new_file, sync_directory, temporary_name, write_all

__all__ = ["FORMAT", "FORMAT_LINE", "RECENT_WRITES", "FileRoot"]

FORMAT = 1
FORMAT_LINE = "mgit repository, format 1 (experimental)\n"
RECENT_WRITES = 64
_KEPT = 64
_NAME = re.compile(r"[0-9]{12}\Z")
_TRIES = 50
_PAUSES_S = (0.01, 0.05, 0.25)


class FileRoot:
    """The root of a repository directory: files `<path>/root/000000000042`."""

    def __init__(self, path: Path) -> None:
        self._folder = path / "root"

    def read(self) -> VersionedRoot:
        """The newest root.  Raises RepositoryError when there is none, IntegrityError when it is damaged."""
        for _ in range(_TRIES):
            version = self._newest()
            try:
                data = self._file(version).read_bytes()
            except FileNotFoundError:
                continue  # an old version was tidied away between the listing and the read
            except OSError as error:
                raise RepositoryError(f"cannot read {self._folder}: {error.strerror or error}") from error
            return VersionedRoot(version, _parse(data, version))
        raise RepositoryError(f"the root in {self._folder} moves faster than it can be read")

    def swap(self, expected: int, new: Root) -> VersionedRoot:
        """Publish `new` as version `expected` + 1; raises RootMoved when another writer was first."""
        make_directory(self._folder)
        body = encode(new)
        temporary = self._folder / temporary_name()
        target = self._file(expected + 1)
        try:
            with new_file(temporary, mode=0o444) as descriptor:
                write_all(descriptor, body + blake3(body).digest())
            if expected and self._newest() != expected:
                raise FileExistsError
            try:
                _create_only(temporary, target)
            except OSError:
                # A network file system may lose the answer of a link that took place: ask whose it is.
                if not self._is_ours(expected + 1, new):
                    raise
        except FileExistsError:
            raise RootMoved("another process changed the repository at the same moment", hint="run it again") from None
        except OSError as error:
            raise RepositoryError(f"cannot write {self._folder}: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        with contextlib.suppress(OSError):  # it has landed: a failure to flush the name cannot take it back
            sync_directory(self._folder)
        if self._newest() - expected > _KEPT:
            # We slept through so many versions that our number had been tidied away and could be created again.
            newest = self.read()
            if new.write_id not in newest.root.recent:
                raise RootMoved("other processes changed the repository meanwhile", hint="run it again")
        with contextlib.suppress(OSError):
            self._file(expected + 1 - _KEPT).unlink()
        return VersionedRoot(expected + 1, new)

    def _is_ours(self, version: int, new: Root) -> bool:
        for pause_s in (0.0, *_PAUSES_S):
            time.sleep(pause_s)
            try:
                current = _parse(self._file(version).read_bytes(), version)
            except (FileNotFoundError, IntegrityError):
                return False
            except OSError:  # stale, too: the question has to be asked again
                continue
            return bool(current.write_id) and current.write_id == new.write_id
        return False

    def _newest(self) -> int:
        try:
            versions = [int(entry.name) for entry in os.scandir(self._folder) if _NAME.match(entry.name)]
        except FileNotFoundError:
            versions = []
        except OSError as error:
            raise RepositoryError(f"cannot read {self._folder}: {error.strerror or error}") from error
        if not versions:
            raise RepositoryError(f"{self._folder.parent} is not an mgit repository: it has no root")
        return max(versions)

    def _file(self, version: int) -> Path:
        return self._folder / f"{version:012d}"


def _create_only(temporary: Path, target: Path) -> None:
    if sys.platform == "win32":
        temporary.rename(target)  # refuses to replace there
        return
    os.link(temporary, target)


def _parse(data: bytes, version: int) -> Root:
    body, checksum = data[:-32], data[-32:]
    if blake3(body).digest() != checksum:
        raise IntegrityError(f"root version {version} is damaged", hint="`mgit fsck` lists what can be saved")
    root = decode(Root, body, what="the root")
    if root.format > FORMAT:
        raise RepositoryError(
            f"this repository has format {root.format}, this mgit reads up to {FORMAT}",
            hint="`pip install --upgrade modelgit`",
        )
    return root
