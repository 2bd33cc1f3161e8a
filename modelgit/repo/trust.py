"""Code that mgit.toml and suites name runs only after somebody on this machine looked at it and said so.

Trust is bound to the content of the code: when a named module or one beside it changes, it lapses.  What covers a
command is its text, and the files of the repository that its words name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from modelgit.errors import MgitError, NothingToDo
from modelgit.objects.paths import is_within, path_problem
from modelgit.repo.contents import file_bytes
from modelgit.store.durable import write_durably

if TYPE_CHECKING:
    from modelgit.config.schema import TaskSettings
    from modelgit.evals.suites import Suite
    from modelgit.objects import Manifest
    from modelgit.repo.repository import Repository
    from modelgit.store.base import ObjectStore

__all__ = [
    "CodeFiles",
    "RecordedFiles",
    "WorktreeFiles",
    "is_trusted",
    "named_code",
    "revoke",
    "suite_code",
    "suite_is_trusted",
    "trust",
]

_MAX_BYTES = 16 << 20
"""A file that a command names and that is larger is taken for data."""
_IMPORTABLE = (".py", ".pyc", ".so", ".pyd")
_CACHED = "__pycache__"


def named_code(repo: Repository) -> dict[str, str]:
    """What could run, by name: tasks' entries, suites' functions and commands, and the hash of each file they reach.

    An entry's module is found by name; since it may import its neighbours, every Python file in the directory of a
    named one counts.  Suites that do not parse name nothing, and run nothing.
    """
    found: dict[str, str] = {}
    for files in _covered(repo).values():
        found |= files
    return found


def suite_code(
    repo: Repository, suite: Suite, *, manifest: Manifest | None = None, store: ObjectStore | None = None
) -> dict[str, str]:
    """The code that a suite and its tasks name, as `named_code` gives it: of the work tree, or that `manifest` records.

    A file that `manifest` does not record is that of the work tree; of one that it does, so are its neighbours.
    """
    places: CodeFiles = WorktreeFiles(repo) if manifest is None else RecordedFiles(repo, manifest, store or repo.store)
    found: dict[str, str] = {}
    tasks = [*suite.tasks.values(), *(source.task for source in suite.data.values())]
    for files in {**_of_tasks(places, tasks), **_of_tests(places, suite)}.values():
        found |= files
    return found


def is_trusted(repo: Repository, entry: str | None = None) -> bool:
    """Whether exactly the code that `entry` (by default everything that is named) reaches now was trusted here.

    `entry` must be among what mgit.toml names: a merge may bring one that nobody here has looked at.
    """
    covered = _of_tasks(WorktreeFiles(repo), repo.settings.task.values()) if entry is not None else _covered(repo)
    if entry is not None:
        name = f"entry {entry}"
        covered = {name: covered[name]} if name in covered else {}
    return bool(covered) and _all_trusted(repo, covered)


def suite_is_trusted(repo: Repository, suite: Suite) -> bool:
    """Whether all code that the tests of a suite name was trusted here as it is now; also when they name none."""
    return _all_trusted(repo, _of_tests(WorktreeFiles(repo), suite))


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
    files = WorktreeFiles(repo)
    found = _of_tasks(files, repo.settings.task.values())
    for suite in _readable_suites(repo):
        found |= _of_tests(files, suite)
    return found


def _readable_suites(repo: Repository) -> Iterator[Suite]:
    from modelgit.repo.suites import worktree_suites

    texts = worktree_suites(repo)
    for name in texts.files:
        try:
            yield from texts.suites([name])
        except MgitError:
            continue  # it is refused, with its reason, where it would run


def _of_tasks(files: CodeFiles, tasks: Iterable[TaskSettings]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for task in tasks:
        if task.entry is not None:
            name = f"entry {task.entry}"
            found[name] = {**_module(files, task.entry.partition(":")[0]), name: ""}
    return found


def _of_tests(files: CodeFiles, suite: Suite) -> dict[str, dict[str, str]]:
    from modelgit.config.suites import LmEvalTest, PythonTest, ShellTest

    found: dict[str, dict[str, str]] = {}
    for test in suite.tests:
        if isinstance(test, PythonTest):
            name = f"python {test.entry}"
            found[name] = {**_file(files, test.entry.partition(":")[0]), name: ""}
        elif isinstance(test, ShellTest):
            name = f"shell {test.command}"
            found[name] = {**_command(files, test.command), name: ""}
        elif isinstance(test, LmEvalTest) and test.include_path is not None:
            name = f"lm-eval {test.include_path}"
            found[name] = {**_folder(files, test.include_path), name: ""}
    return found


def _module(files: CodeFiles, module: str) -> dict[str, str]:
    base = "/".join(module.split("."))
    return {**_file(files, f"{base}.py"), **_file(files, f"{base}/__init__.py")}


def _file(files: CodeFiles, path: str) -> dict[str, str]:
    """A file of the repository; of a Python file what it can import from beside it, too."""
    if path_problem(path) is not None or files.size(path) is None:
        return {}
    names = files.modules_beside(path) if path.endswith(".py") else [path]
    return {name: files.digest(name) for name in names}


def _is_importable(inside: str, packages: Collection[str], head: Callable[[], bytes]) -> bool:
    """Whether a script can import the file `inside`, a path relative to the script's directory.

    That are modules, compiled or not, and packages: one called `json` stands before the library's.  `head` reads the
    first eight bytes.
    """
    first, more, _ = inside.partition("/")
    if not inside.endswith(_IMPORTABLE) or (more and first not in packages and first != _CACHED):
        return False
    return not _is_passing(inside, head)


def _is_passing(path: str, head: Callable[[], bytes]) -> bool:
    """Whether a file is what Python keeps of a source for the next time, and throws away when that is written again.

    Such caches come and go.  Those that are bound to the source by a hash, or by nothing, are code: anybody can write
    one that Python takes for a source that says something else (PEP 552).
    """
    return path.endswith(".pyc") and path.split("/")[-2:-1] == [_CACHED] and head()[4:8] == bytes(4)


def _packages(inside: Iterable[str]) -> frozenset[str]:
    """The directories among paths that hold an `__init__`."""
    found = (path.split("/") for path in inside)
    return frozenset(
        parts[0] for parts in found if len(parts) == 2 and parts[1].startswith("__init__.") and parts[0] != _CACHED
    )


def _folder(files: CodeFiles, path: str) -> dict[str, str]:
    """Every file below a directory of the repository: the YAML of a task may name any of them."""
    return {} if path_problem(path) is not None else {name: files.digest(name) for name in files.below(path)}


def _command(files: CodeFiles, command: str) -> dict[str, str]:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    found: dict[str, str] = {}
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            found |= _module(files, word)
            continue
        path = word.removeprefix("./")
        if path and path_problem(path) is None:
            size = files.size(path)
            if size is not None and size <= _MAX_BYTES:
                found |= _file(files, path)
    return found


# -- where code lies


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(8)


class CodeFiles(Protocol):
    """Files of a repository, by path relative to its root."""

    def size(self, path: str) -> int | None:
        """Bytes of a regular file; None where there is none."""

    def digest(self, path: str) -> str:
        """The BLAKE3 of a file that is there, in hex."""

    def modules_beside(self, path: str) -> list[str]:
        """What a Python file that is there can import from its directory, itself included, sorted."""

    def below(self, path: str) -> list[str]:
        """All files below a directory, sorted."""


class WorktreeFiles:
    """The files of the work tree; none of a bare repository."""

    def __init__(self, repo: Repository) -> None:
        self._root = repo.paths.worktree

    def size(self, path: str) -> int | None:
        """Bytes of a regular file."""
        if self._root is None or not (self._root / path).is_file():
            return None
        return (self._root / path).stat().st_size

    def digest(self, path: str) -> str:
        """The BLAKE3 of a file."""
        return blake3(((self._root or Path()) / path).read_bytes()).hexdigest()

    def modules_beside(self, path: str) -> list[str]:
        """The modules and packages of the directory."""
        if self._root is None:
            return []
        folder = (self._root / path).parent
        packages = _packages(item.relative_to(folder).as_posix() for item in folder.glob("*/__init__.*"))
        found = [*folder.glob("*"), *folder.glob(f"{_CACHED}/*")]
        for name in packages:
            found += (folder / name).rglob("*")
        inside = ((item.relative_to(folder).as_posix(), item) for item in found if item.is_file())
        importable = (item for short, item in inside if _is_importable(short, packages, partial(_head, item)))
        return self._named(importable, self._root)

    def below(self, path: str) -> list[str]:
        """All files below a directory but what Python keeps for the next time."""
        if self._root is None:
            return []
        found = (item for item in (self._root / path).rglob("*") if item.is_file())
        return self._named(
            (item for item in found if not _is_passing(item.as_posix(), partial(_head, item))), self._root
        )

    @staticmethod
    def _named(found: Iterable[Path], root: Path) -> list[str]:
        return [item.relative_to(root).as_posix() for item in sorted(found) if item.is_file()]


class RecordedFiles:
    """The files that a manifest records; those that it does not are looked for in the work tree."""

    def __init__(self, repo: Repository, manifest: Manifest, store: ObjectStore) -> None:
        self._repo = repo
        self._store = store
        self._entries = {entry.path: entry for entry in manifest.files}
        self._here = WorktreeFiles(repo)

    def size(self, path: str) -> int | None:
        """Bytes of a file."""
        entry = self._entries.get(path)
        return self._here.size(path) if entry is None else entry.size

    def digest(self, path: str) -> str:
        """The BLAKE3 of a file."""
        entry = self._entries.get(path)
        if entry is None:
            return self._here.digest(path)
        return blake3(file_bytes(self._repo, entry.digest, store=self._store)).hexdigest()

    def modules_beside(self, path: str) -> list[str]:
        """The recorded modules and packages beside a recorded file: a stranger's neighbour is none of them."""
        if path not in self._entries:
            return self._here.modules_beside(path)
        folder = path[: path.rfind("/") + 1]
        inside = {name[len(folder) :]: name for name in self._entries if name.startswith(folder)}
        packages = _packages(inside)
        return sorted(
            name for short, name in inside.items() if _is_importable(short, packages, partial(self._head, name))
        )

    def _head(self, path: str) -> bytes:
        return file_bytes(self._repo, self._entries[path].digest, store=self._store)[:8]

    def below(self, path: str) -> list[str]:
        """The recorded files below a directory; those of the work tree where none is recorded."""
        inside = (name for name in self._entries if is_within(name, path.rstrip("/")))
        found = sorted(name for name in inside if not _is_passing(name, partial(self._head, name)))
        return found or self._here.below(path)
