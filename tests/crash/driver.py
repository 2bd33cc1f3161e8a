"""What is killed: one command on a repository that a test prepared.

Usage: driver.py WORKTREE COMMAND.  Prints "acknowledged <commit>" once the command has returned, and exits with 0; for
a declared error it prints "refused <class>: <message>" and exits with 9.  Anything else is a traceback.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

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
        from modelgit.repo.borrow import add

        add(repo, str(repo.worktree.parent / "run"))
        repo.commit("killed")
    elif command == "commit-density":
        from modelgit.repo.density import commit_patch

        commit_patch(repo, "killed", density=0.02, importance="magnitude")
    elif command == "switch":
        repo.switch("side")
    elif command == "merge":
        repo.merge("side", strategy="average")
    elif command == "repack":
        from modelgit.repo.repack import repack

        repack(repo, prune_now=True)
    elif command == "prune":
        from modelgit.repo.prune import prune

        prune(repo)
    else:
        raise SystemExit(f"no command {command}")


def main() -> int:
    """Run what the command line says."""
    worktree, command = Path(sys.argv[1]), sys.argv[2]
    try:
        with opened(worktree) as repo:
            run(repo, command)
            print(f"acknowledged {repo.head()}", flush=True)
    except MgitError as error:
        with contextlib.suppress(OSError):  # the disk that is full may be that of the log, too
            print(f"refused {type(error).__name__}: {error.message} [{error.hint or ''}]", flush=True)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
