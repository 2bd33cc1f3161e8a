"""What is killed: one command on a repository that a test prepared.

Usage: driver.py COMMAND WORKTREE SOCKET.  Serves the tests from forks of itself: a start of Python and numpy at each of
a thousand points would take ten times as long as all commands.  Every message on the socket (the number of the
descriptor) is a work tree, and comes with a connection and the standard output and error of the command.  The command
runs in a process of its own, which sends its id over the connection and begins when it has received a byte (whoever
wants to trace it is there by then); its exit status follows.  WORKTREE is used up by a rehearsal.

A command prints "acknowledged <commit>" once it has returned, and exits with 0; for a declared error it prints "refused
<class>: <message>" and exits with 9.  Anything else is a traceback.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import modelgit
from modelgit.environment import Environment
from modelgit.errors import MgitError
from modelgit.repo import Repository

REFUSED = 9


def opened(worktree: Path) -> Repository:
    """The repository, with surroundings of its own; `commit` and `merge` run single-threaded, so that counts repeat."""
    home = worktree.parent / "home"
    environment = Environment(
        home=home,
        config_home=home / ".config",
        cache_home=home / ".cache",
        cwd=worktree,
        author="Ada <ada@example.org>",
        host="testhost",
        offline=True,
        overrides={"storage.threads": "1"},
    )
    return modelgit.open(worktree, environment=environment)


def run(repo: Repository, command: str) -> None:
    """One command.  What only some of them need is imported there: this program is started a thousand times."""
    if command == "commit":
        repo.commit("killed")
    elif command == "commit-from":
        repo.commit("killed", source=str(repo.worktree.parent / "run" / "bot"), as_path="bot")
    elif command == "commit-borrowed":
        from modelgit.repo.exchange.borrow import add

        add(repo, str(repo.worktree.parent / "run"))
        repo.commit("killed")
    elif command == "commit-density":
        from modelgit.repo.patches.density import commit_patch

        commit_patch(repo, "killed", density=0.02, importance="magnitude")
    elif command == "switch":
        repo.switch("side")
    elif command == "merge":
        repo.merge("side", strategy="average")
    elif command == "repack":
        from modelgit.repo.upkeep.repack import repack

        repack(repo, prune_now=True)
    elif command == "prune":
        from modelgit.repo.upkeep.prune import prune

        prune(repo)
    else:
        raise SystemExit(f"no command {command}")


def main(worktree: Path, command: str) -> int:
    """Run one command and say how it ended."""
    try:
        with opened(worktree) as repo:
            run(repo, command)
            print(f"acknowledged {repo.head()}", flush=True)
    except MgitError as error:
        with contextlib.suppress(OSError):  # the disk that is full may be that of the log, too
            print(f"refused {type(error).__name__}: {error.message} [{error.hint or ''}]", flush=True)
        return REFUSED
    return 0


def rehearse(worktree: Path, command: str) -> list[str]:
    """The modules that the command imports.  It runs in a fork, so that nothing but them stays in memory."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

        def name_modules() -> int:
            code = main(worktree, command)
            with open(writing, "w") as file:
                file.write("\n".join(sys.modules))
            return code

        leave(name_modules)
    os.close(writing)
    with open(reading) as file:
        names = file.read().split()
    _, status = os.wait()
    if status != 0:
        raise SystemExit(f"{command}: the rehearsal failed")
    return [name for name in names if name != "__main__"]


def leave(work: Callable[[], int]) -> NoReturn:
    """End a fork with the status that `work` returns; to take all imported modules down would cost more than it."""
    code = 1
    try:
        code = work()
    except Exception:  # noqa: BLE001  (shown as Python shows it)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def perform(worktree: Path, command: str, connection: socket.socket, output: int, errors: int) -> None:
    """Run the command in a child and send how it ended."""
    child = os.fork()
    if child == 0:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        # Where Linux lets processes trace only what they have started: PR_SET_PTRACER, PR_SET_PTRACER_ANY.
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
        connection.sendall(b"%d\n" % os.getpid())
        connection.recv(1)
        connection.close()
        leave(lambda: main(worktree, command))
    _, status = os.waitpid(child, 0)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def serve(command: str, worktree: Path, requests: socket.socket) -> int:
    """Answer until the tests are gone."""
    for name in rehearse(worktree, command):
        with contextlib.suppress(ImportError):  # parts of a package that only the package itself can import
            importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    requests.sendall(b"ready")
    while True:
        message, (*descriptors,), _, _ = socket.recv_fds(requests, 4096, 3)
        if not message:
            return 0
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            connection, output, errors = descriptors
            perform(Path(os.fsdecode(message)), command, socket.socket(fileno=connection), output, errors)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], Path(sys.argv[2]), socket.socket(fileno=int(sys.argv[3]))))
