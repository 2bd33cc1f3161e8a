"""One writer of the work tree at a time: a file created exclusively, that says who holds it.

A lock of a process of this host that is gone is taken over.  A lock of another host is never broken by us: its process
ids mean nothing here.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from modelgit.errors import ConflictError, RepositoryError
from modelgit.store.durable import make_directory

__all__ = ["LockFile", "is_alive"]

_PATIENCE_S = 10.0
_PAUSE_S = 0.02


class LockFile:
    """A context manager around `<path>`; waits a little for another process or thread, then says who holds it.

    The thread that holds it may enter it again.
    """

    def __init__(self, path: Path, *, host: str, patience_s: float = _PATIENCE_S) -> None:
        self._path = path
        self._host = host
        self._patience_s = patience_s
        self._depth = 0
        self._thread = threading.RLock()

    def __enter__(self) -> LockFile:
        if not self._thread.acquire(timeout=self._patience_s):
            raise ConflictError("the work tree is in use by another thread", hint="wait for it, then try again")
        try:
            if self._depth == 0:
                self._acquire()
        except BaseException:
            self._thread.release()
            raise
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._thread.release()

    def _acquire(self) -> None:
        deadline = time.monotonic() + self._patience_s
        me = json.dumps({"host": self._host, "pid": os.getpid(), "started": _started(os.getpid())}).encode()
        make_directory(self._path.parent)
        while True:
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                holder = self._holder()
                if holder is not None and self._is_gone(holder):
                    self._break(holder)
                    continue
                if time.monotonic() > deadline:
                    pid, host = (holder or {}).get("pid", "?"), (holder or {}).get("host", "?")
                    raise ConflictError(
                        f"the work tree is in use by process {pid} on {host}",
                        hint=f"wait for it; if it is gone for certain: `rm {self._path}`",
                    ) from None
                time.sleep(_PAUSE_S)
            except OSError as error:
                raise RepositoryError(f"cannot write {self._path}: {error.strerror or error}") from error
            else:
                try:
                    os.write(descriptor, me)
                except OSError as error:
                    # A lock that does not say whose it is would keep everybody waiting.
                    with contextlib.suppress(OSError):
                        self._path.unlink()
                    raise RepositoryError(f"cannot write {self._path}: {error.strerror or error}") from error
                finally:
                    os.close(descriptor)
                return

    def _holder(self) -> dict[str, object] | None:
        try:
            value = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            # Just created and not yet written, just released, or left empty by a crash: age tells them apart.
            try:
                age_s = time.time() - self._path.stat().st_mtime
            except OSError:
                return None
            return {"host": self._host, "pid": -1} if age_s > self._patience_s / 2 else None
        return value if isinstance(value, dict) else None

    def _is_gone(self, holder: dict[str, object]) -> bool:
        if holder.get("host") != self._host or not isinstance(holder.get("pid"), int):
            return False
        pid = int(str(holder["pid"]))
        if pid <= 0:
            return True
        if not is_alive(pid):
            return True
        started = holder.get("started")
        return started is not None and _started(pid) is not None and started != _started(pid)

    def _break(self, holder: dict[str, object]) -> None:
        # Two processes may both find the holder gone: only the one that renames the stale file away goes on, and what
        # it renamed is looked at again, so that a fresh lock of the other is given back.
        aside = self._path.with_name(f"{self._path.name}.stale-{os.getpid()}")
        try:
            os.replace(self._path, aside)
        except OSError:
            return
        try:
            found = json.loads(aside.read_bytes())
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict) and found != holder and not self._is_gone(found):
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        with contextlib.suppress(OSError):
            aside.unlink()


def is_alive(pid: int) -> bool:
    """Whether a process of this host has this number; True where that cannot be asked."""
    if sys.platform == "win32":
        return True  # no cheap and safe question there: the message says how to remove the file
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _started(pid: int) -> str | None:
    """The kernel's start time of a process, so that a number used again is not mistaken for the old process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError, ValueError):
        return None
