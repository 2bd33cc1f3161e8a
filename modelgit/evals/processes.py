"""Other programs that tests run: with a time limit, a memory limit, bounded output and nothing of the environment.

This keeps an honest test from hanging, from filling the memory and from reading secrets by accident.  It is no
sandbox: code that means harm is kept out by `mgit trust`, not by these limits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from modelgit.errors import CheckFailed, UsageError

__all__ = ["Finished", "Limits", "environment_of", "physical_memory_bytes", "run_program", "shell_arguments"]

_POLL_S = 0.1
_PATIENCE_S = 5.0
_TAIL_BYTES = 4096
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Wall time in `seconds`, private memory in `memory_bytes` (None for no limit), and bytes of standard output."""

    seconds: float
    memory_bytes: int | None = None
    output_bytes: int = 16 << 20


@dataclass(frozen=True)
class Finished:
    """What a program that ended well wrote to its standard output, and the last few kilobytes of its messages."""

    output: bytes
    messages: str


def physical_memory_bytes() -> int | None:
    """The memory of this machine; None where the platform does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def environment_of(home: Path, given: Mapping[str, str], *, seed: int) -> dict[str, str]:
    """The whole environment of a test's program: what is `given` (no secrets), and a home of its own.

    `python` is the interpreter that runs modelgit, with the same packages.
    """
    known = given.get("PATH") or os.pathsep.join(("/usr/local/bin", *os.defpath.split(os.pathsep)))
    return {
        "LANG": "C.UTF-8",
        **given,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), known)),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path and Path(path).exists()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": str(seed % (1 << 32)),
        "PYTHONIOENCODING": "utf-8",
        "HOME": str(home),
        "TMPDIR": str(home),
        "MGIT_SEED": str(seed),
    }


def shell_arguments(command: str, *, memory_bytes: int | None) -> list[str]:
    """The arguments that run `command` in a shell, with at most `memory_bytes` of private memory where that is known.

    Raises UsageError where there is no shell.
    """
    shell = shutil.which("sh", path=os.defpath)
    if shell is None:
        raise UsageError("a test of kind `shell` needs the program `sh`, which this machine does not have")
    limit = "" if memory_bytes is None else f"ulimit -d {memory_bytes >> 10} 2>/dev/null; "
    return [shell, "-c", f'ulimit -c 0 2>/dev/null; {limit}exec "$0" -c "$1"', shell, command]


def run_program(
    arguments: Sequence[str],
    *,
    what: str,
    limits: Limits,
    directory: Path,
    environment: Mapping[str, str],
    given: bytes = b"",
    check: Callable[[], None] = lambda: None,
) -> Finished:
    """Run a program in `directory` with exactly `environment` and `given` on its standard input.

    `check` is called ten times a second and may raise.  However this ends, the program and all that it started in its
    process group are killed.  Raises CheckFailed, which calls it `what`, for a program that cannot be started, takes
    too long, writes too much or ends with an error.
    """
    try:
        process = subprocess.Popen(
            list(arguments),
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise CheckFailed(f"{what} cannot be started: {error.strerror or error}") from error
    output, messages = _Kept(limits.output_bytes), _Kept(_TAIL_BYTES, tail=True)
    threads = [
        threading.Thread(target=_feed, args=(process.stdin, given), daemon=True),
        threading.Thread(target=output.read, args=(process.stdout,), daemon=True),
        threading.Thread(target=messages.read, args=(process.stderr,), daemon=True),
    ]
    try:
        for thread in threads:
            thread.start()
        _wait(process, limits, output, what, check)
    finally:
        _kill(process)
        for thread in threads:
            # What left the process group may hold the pipes open for ever.
            thread.join(_PATIENCE_S)
    if output.overflowed.is_set():
        raise _too_much(what, limits)
    text = messages.text()
    if process.returncode:
        raise CheckFailed(f"{what} ended with {_status(process.returncode)}{_last_line(text)}")
    return Finished(bytes(output.data), text)


def _wait(
    process: subprocess.Popen[bytes], limits: Limits, output: _Kept, what: str, check: Callable[[], None]
) -> None:
    end = time.monotonic() + limits.seconds
    while True:
        try:
            process.wait(timeout=max(0.0, min(_POLL_S, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            check()
        else:
            return
        if output.overflowed.is_set():
            raise _too_much(what, limits)
        if time.monotonic() >= end:
            raise CheckFailed(
                f"{what} was stopped after {limits.seconds:g} s",
                hint=f'`timeout = "{2 * limits.seconds:g}s"` in the test gives it longer',
            )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the program's process group: what it left running, too."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


class _Kept:
    """What a stream gave: the first `limit` bytes, or (`tail`) the last ones."""

    def __init__(self, limit: int, *, tail: bool = False) -> None:
        self.limit = limit
        self.tail = tail
        self.data = bytearray()
        self.overflowed = threading.Event()

    def read(self, stream: IO[bytes]) -> None:
        """Read to the end, whatever is kept: a program must not wait for a full pipe."""
        with stream, contextlib.suppress(OSError, ValueError):
            while chunk := os.read(stream.fileno(), _CHUNK_BYTES):
                if self.tail:
                    self.data += chunk
                    del self.data[: -self.limit]
                elif len(self.data) + len(chunk) <= self.limit:
                    self.data += chunk
                else:
                    self.overflowed.set()

    def text(self) -> str:
        """As text, whatever the bytes are."""
        return self.data.decode("utf-8", errors="replace")


def _feed(stream: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(OSError), stream:
        stream.write(data)


def _too_much(what: str, limits: Limits) -> CheckFailed:
    return CheckFailed(
        f"{what} wrote more than {limits.output_bytes >> 20} MiB to its standard output",
        hint="print one JSON object, and everything else to standard error",
    )


def _status(code: int) -> str:
    if code > 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""
