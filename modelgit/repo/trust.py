"""Code that mgit.toml names runs only after somebody on this machine looked at it and said so.

Trust is bound to the content of the code: when a named module changes, it lapses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from modelgit.errors import NothingToDo
from modelgit.store.durable import write_durably

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["is_trusted", "named_code", "revoke", "trust"]


def named_code(repo: Repository) -> dict[str, str]:
    """Hash of each Python file of the work tree that a task's `entry` can reach, by path.

    The module itself is found by name; since it may import its neighbours, every Python file below the repository root
    that lies in a directory with a named module counts.
    """
    found: dict[str, str] = {}
    for task in repo.settings.task.values():
        if task.entry is None:
            continue
        module = task.entry.partition(":")[0]
        base = repo.worktree.joinpath(*module.split("."))
        candidates = [base.with_suffix(".py"), base / "__init__.py"]
        for file in candidates:
            if not file.is_file():
                continue
            folder = file.parent
            for neighbour in sorted(folder.glob("*.py")):
                found[neighbour.relative_to(repo.worktree).as_posix()] = _digest(neighbour)
        found.setdefault(f"entry {task.entry}", "")
    return found


def _digest(file: Path) -> str:
    return blake3(file.read_bytes()).hexdigest()


def _path(repo: Repository) -> Path:
    return repo.paths.directory / "trust.json"


def is_trusted(repo: Repository, entry: str | None = None) -> bool:
    """Whether exactly the code that mgit.toml names now was trusted on this machine.

    `entry` must be among what it names: a merge may bring an mgit.toml that nobody here has looked at.
    """
    code = named_code(repo)
    if not code or (entry is not None and f"entry {entry}" not in code):
        return False
    try:
        return bool(json.loads(_path(repo).read_bytes()) == code)
    except (OSError, ValueError):
        return False


def trust(repo: Repository) -> dict[str, str]:
    """Trust the code as it is now; returns what was trusted.  Raises NothingToDo when mgit.toml names none."""
    code = named_code(repo)
    if not code:
        raise NothingToDo("mgit.toml names no code that would run", hint="`mgit config list` shows the settings")
    write_durably(_path(repo), json.dumps(code, indent=1, sort_keys=True).encode())
    return code


def revoke(repo: Repository) -> None:
    """Trust nothing any more."""
    _path(repo).unlink(missing_ok=True)
