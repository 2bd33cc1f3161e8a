"""Code that mgit.toml and suites name runs only after somebody on this machine looked at it and said so.

Trust is bound to the content of the code: when a named module or one beside it changes, comes or goes, it lapses.  What
covers a command is its text, and the files of the repository that its words name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from typing import Literal as OneOf

import msgspec
from blake3 import blake3

from modelgit.errors import MgitError, NothingToDo, UsageError
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
    "CodeChange",
    "CodeFiles",
    "RecordedFiles",
    "WorktreeFiles",
    "allow_entry",
    "changed_code",
    "is_trusted",
    "named_code",
    "revoke",
    "suite_code",
    "suite_distrust",
    "trust",
]

_MAX_BYTES = 16 << 20
"""A file that a command names and that is larger is taken for data."""
_VERSION = 2
_SHOWN = 5
_IMPORTABLE = (".py", ".pyc", ".so", ".pyd")
_CACHED = "__pycache__"


class CodeChange(NamedTuple):
    """A file, or what names code ("shell python evals/tool.py"), that is not as it was when it was trusted."""

    name: str
    what: OneOf["changed", "new", "removed"]


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


def is_trusted(repo: Repository) -> bool:
    """Whether exactly the code that is named reaches now was trusted here, and there is any."""
    covered = _covered(repo)
    return bool(covered) and not _changes(_known(repo), covered)


def changed_code(repo: Repository) -> tuple[CodeChange, ...]:
    """What is not as it was when it was trusted, of all code that is named; everything is new before that."""
    return _changes(_known(repo), _covered(repo))


def allow_entry(repo: Repository, entry: str) -> None:
    """Raise UsageError unless exactly the code that `entry` reaches now was trusted here.

    `entry` must be among what mgit.toml names: a merge may bring one that nobody here has looked at.
    """
    name, known = f"entry {entry}", _known(repo)
    covered = _of_tasks(WorktreeFiles(repo), repo.settings.task.values())
    if name not in covered or not known:
        raise UsageError(f"entry `{entry}` is code, and this repository is not trusted", hint="`mgit trust`")
    if changes := _changes(known, {name: covered[name]}):
        raise UsageError(
            f"entry `{entry}` is code that is no longer trusted: {_words(changes)} since",
            hint="look at it, then `mgit trust`",
        )


def suite_distrust(repo: Repository, suite: Suite) -> str | None:
    """Why the code that the tests of a suite name may not run here, as a clause; None when it may, or none is named."""
    covered, known = _of_tests(WorktreeFiles(repo), suite), _known(repo)
    if covered and not known:
        return "the code that this suite names is not trusted here"
    changes = _changes(known, covered)
    return f"the code that this suite names is no longer trusted: {_words(changes)} since" if changes else None


def trust(repo: Repository) -> dict[str, str]:
    """Trust the code as it is now; returns what was trusted.  Raises NothingToDo when nothing names any."""
    covered = _covered(repo)
    if not covered:
        raise NothingToDo(
            "neither mgit.toml nor a suite names code that would run", hint="`mgit config list` shows the settings"
        )
    content = {"version": _VERSION, "code": covered}
    write_durably(_path(repo), json.dumps(content, indent=1, sort_keys=True).encode())
    return {name: digest for files in covered.values() for name, digest in files.items()}


def revoke(repo: Repository) -> None:
    """Trust nothing any more."""
    _path(repo).unlink(missing_ok=True)


def _path(repo: Repository) -> Path:
    return repo.paths.directory / "trust.json"


_Code = Mapping[str, Mapping[str, str]]
"""By what names it, the hash of each file that it reaches."""


def _known(repo: Repository) -> _Code:
    """The code that was trusted; none where the file is of another version."""
    try:
        content = json.loads(_path(repo).read_bytes())
        return msgspec.convert(content["code"], dict[str, dict[str, str]]) if content["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _changes(known: _Code, covered: _Code) -> tuple[CodeChange, ...]:
    """What differs between the code that was trusted and what is reached now, each file once."""
    everything = {name: digest for files in known.values() for name, digest in files.items()}
    found: dict[str, CodeChange] = {}
    for called, files in covered.items():
        before = known.get(called, everything)
        for name, digest in files.items():
            if name not in before:
                found[name] = CodeChange(name, "new")
            elif before[name] != digest:
                found[name] = CodeChange(name, "changed")
        for name in known.get(called, {}):
            if name not in files:
                found[name] = CodeChange(name, "removed")
    return tuple(found[name] for name in sorted(found))


def _words(changes: Sequence[CodeChange]) -> str:
    """`evals/tool.py changed, evals/json.py is new`, as a part of a sentence."""
    verbs = {"changed": "changed", "new": "is new", "removed": "was removed"}
    shown = [f"{change.name} {verbs[change.what]}" for change in changes[:_SHOWN]]
    if len(changes) > _SHOWN:
        shown.append(f"{len(changes) - _SHOWN} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


# -- what covers what


def _covered(repo: Repository) -> dict[str, dict[str, str]]:
    files = WorktreeFiles(repo)
    found = _of_tasks(files, repo.settings.task.values())
    for suite in _readable_suites(repo):
        found |= _of_tests(files, suite)
    return found


def _readable_suites(repo: Repository) -> Iterator[Suite]:
    from modelgit.repo.gates.suites import worktree_suites

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
