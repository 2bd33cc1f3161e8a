"""Code that mgit.toml and suites name runs only after somebody on this machine looked at it and said so.

Trust is bound to the content of the code: when a named module or one beside it changes, it lapses.  What covers a
command is its text, and the files of the repository that its words name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from modelgit.errors import MgitError, NothingToDo
from modelgit.objects.paths import path_problem
from modelgit.store.durable import write_durably

if TYPE_CHECKING:
    from modelgit.config.schema import TaskSettings
    from modelgit.evals.suites import Suite
    from modelgit.repo.repository import Repository

__all__ = ["is_trusted", "named_code", "revoke", "suite_code", "suite_is_trusted", "trust"]

_MAX_BYTES = 16 << 20
"""A file that a command names and that is larger is taken for data."""


def named_code(repo: Repository) -> dict[str, str]:
    """What could run, by name: tasks' entries, suites' functions and commands, and the hash of each file they reach.

    An entry's module is found by name; since it may import its neighbours, every Python file in the directory of a
    named one counts.  Suites that do not parse name nothing, and run nothing.
    """
    found: dict[str, str] = {}
    for files in _covered(repo).values():
        found |= files
    return found


def suite_code(repo: Repository, suite: Suite) -> dict[str, str]:
    """The code of the work tree that a suite and its tasks name, as `named_code` gives it."""
    found: dict[str, str] = {}
    for files in _of_suite(repo, suite).values():
        found |= files
    return found


def is_trusted(repo: Repository, entry: str | None = None) -> bool:
    """Whether exactly the code that `entry` (by default everything that is named) reaches now was trusted here.

    `entry` must be among what mgit.toml names: a merge may bring one that nobody here has looked at.
    """
    covered = _of_tasks(repo, repo.settings.task.values()) if entry is not None else _covered(repo)
    if entry is not None:
        name = f"entry {entry}"
        covered = {name: covered[name]} if name in covered else {}
    return bool(covered) and _all_trusted(repo, covered)


def suite_is_trusted(repo: Repository, suite: Suite) -> bool:
    """Whether all code that the tests of a suite name was trusted here as it is now; also when they name none."""
    return _all_trusted(repo, _of_tests(repo, suite))


def trust(repo: Repository) -> dict[str, str]:
    """Trust the code as it is now; returns what was trusted.  Raises NothingToDo when nothing names any."""
    code = named_code(repo)
    if not code:
        raise NothingToDo(
            "neither mgit.toml nor a suite names code that would run", hint="`mgit config list` shows the settings"
        )
    write_durably(_path(repo), json.dumps(code, indent=1, sort_keys=True).encode())
    return code


def revoke(repo: Repository) -> None:
    """Trust nothing any more."""
    _path(repo).unlink(missing_ok=True)


def _path(repo: Repository) -> Path:
    return repo.paths.directory / "trust.json"


def _all_trusted(repo: Repository, covered: Mapping[str, Mapping[str, str]]) -> bool:
    try:
        known = json.loads(_path(repo).read_bytes())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        return False
    return all(known.get(name) == digest for files in covered.values() for name, digest in files.items())


# -- what covers what


def _covered(repo: Repository) -> dict[str, dict[str, str]]:
    found = _of_tasks(repo, repo.settings.task.values())
    for suite in _readable_suites(repo):
        found |= _of_tests(repo, suite)
    return found


def _readable_suites(repo: Repository) -> Iterator[Suite]:
    from modelgit.repo.suites import worktree_suites

    texts = worktree_suites(repo)
    for name in texts.files:
        try:
            yield from texts.suites([name])
        except MgitError:
            continue  # it is refused, with its reason, where it would run


def _of_suite(repo: Repository, suite: Suite) -> dict[str, dict[str, str]]:
    tasks = [*suite.tasks.values(), *(source.task for source in suite.data.values())]
    return {**_of_tasks(repo, tasks), **_of_tests(repo, suite)}


def _of_tasks(repo: Repository, tasks: Iterable[TaskSettings]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for task in tasks:
        if task.entry is not None:
            name = f"entry {task.entry}"
            found[name] = {**_module(repo, task.entry.partition(":")[0]), name: ""}
    return found


def _of_tests(repo: Repository, suite: Suite) -> dict[str, dict[str, str]]:
    from modelgit.config.suites import PythonTest, ShellTest

    found: dict[str, dict[str, str]] = {}
    for test in suite.tests:
        if isinstance(test, PythonTest):
            name = f"python {test.entry}"
            found[name] = {**_file(repo, test.entry.partition(":")[0]), name: ""}
        elif isinstance(test, ShellTest):
            name = f"shell {test.command}"
            found[name] = {**_command(repo, test.command), name: ""}
    return found


def _module(repo: Repository, module: str) -> dict[str, str]:
    base = repo.worktree.joinpath(*module.split("."))
    found: dict[str, str] = {}
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            found |= _file(repo, file.relative_to(repo.worktree).as_posix())
    return found


def _file(repo: Repository, path: str) -> dict[str, str]:
    """A file of the repository; of a Python file its neighbours, too."""
    file = repo.worktree / path
    if path_problem(path) is not None or not file.is_file():
        return {}
    files = sorted(file.parent.glob("*.py")) if file.suffix == ".py" else [file]
    return {item.relative_to(repo.worktree).as_posix(): _digest(item) for item in files if item.is_file()}


def _command(repo: Repository, command: str) -> dict[str, str]:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    found: dict[str, str] = {}
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            found |= _module(repo, word)
            continue
        path = word.removeprefix("./")
        file = repo.worktree / path
        if path and path_problem(path) is None and file.is_file() and file.stat().st_size <= _MAX_BYTES:
            found |= _file(repo, path)
    return found


def _digest(file: Path) -> str:
    return blake3(file.read_bytes()).hexdigest()
