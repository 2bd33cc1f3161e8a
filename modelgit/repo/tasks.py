"""Tasks of mgit.toml bound to a manifest: the model that computes, and its examples."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example, ExampleSet, TaskModel
from modelgit.models.data import read_examples
from modelgit.models.load import build_task, encode_examples
from modelgit.objects import Manifest
from modelgit.objects.paths import path_problem
from modelgit.repo.contents import find_model, model_files
from modelgit.repo.load import model_state
from modelgit.repo.trust import allow_entry, named_code
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "check_data_path",
    "code_version",
    "encoded",
    "library_versions",
    "open_task",
    "task_examples",
    "task_settings",
]


def task_settings(repo: Repository, name: str | None) -> tuple[str, TaskSettings]:
    """The task called `name`, or the only one.  Raises UsageError that says what to write in mgit.toml."""
    tasks = repo.settings.task
    if name is None and len(tasks) == 1:
        name = next(iter(tasks))
    if name is None or name not in tasks:
        example = '[task.NAME]  model = "models/bot"  adapter = "bert-classifier"  train = "data/train.jsonl"'
        what = f"no task `{name}` in mgit.toml" if name else f"which task? mgit.toml has {len(tasks) or 'none'}"
        known = f"known: {', '.join(sorted(tasks))}" if tasks else f"add to mgit.toml: {example}"
        raise UsageError(what, hint=known)
    return name, tasks[name]


def task_examples(
    repo: Repository,
    settings: TaskSettings,
    path: str,
    *,
    id_field: str = "id",
    also: frozenset[str] = frozenset(),
) -> tuple[tuple[Example, ...], str]:
    """Examples and their fingerprint from a file of the work tree; `path` is relative to the repository root.

    The other arguments are those of `models.data.read_examples`.
    """
    check_data_path(path)
    file = repo.worktree / path
    if not file.is_file():
        raise UsageError(f"the data file {path} is not there", hint="`mgit restore` brings recorded files back")
    return read_examples(file, settings, shown=path, id_field=id_field, also=also)


def check_data_path(path: str) -> None:
    """Raise UsageError unless `path` lies below the root: mgit.toml travels, and may not have other files read."""
    problem = path_problem(path)
    if problem is not None:
        raise UsageError(
            f"the data file {path!a} cannot be read: {problem}",
            hint="write a path below the repository root in mgit.toml; a data directory may be a link",
        )


def open_task(
    repo: Repository, manifest: Manifest, settings: TaskSettings, *, store: ObjectStore | None = None
) -> TaskModel:
    """The task's model with the weights of `manifest`.  Raises UsageError where its entry is not trusted."""
    store = store or repo.store
    entry = find_model(manifest, settings.model)
    state = model_state(repo, manifest, entry, store=store)
    files = model_files(repo, manifest, entry.path, store=store)
    if settings.entry is not None:
        allow_entry(repo, settings.entry)
    return build_task(settings, state.arrays(), files, trusted=True, root=repo.worktree)


def encoded(
    repo: Repository,
    manifest: Manifest,
    settings: TaskSettings,
    examples: tuple[Example, ...],
    fingerprint: str,
    *,
    store: ObjectStore | None = None,
) -> ExampleSet:
    """The inputs of the task's model for `examples`.  Raises UsageError where its entry is not trusted."""
    files = model_files(repo, manifest, settings.model, store=store)
    if settings.entry is not None:
        allow_entry(repo, settings.entry)
    return encode_examples(settings, examples, fingerprint, files, trusted=True, root=repo.worktree)


def code_version(repo: Repository, settings: TaskSettings) -> str:
    """The version of everything that turns weights into predictions, the user's own code included."""
    from modelgit import __version__

    own = sorted(named_code(repo).items()) if settings.entry is not None else []
    libraries = f"torch {_version('torch')}"
    if settings.entry is None and settings.adapter != "bert-classifier":
        libraries += f", transformers {_version('transformers')}"
    return f"modelgit {__version__}, {libraries}, {own}"


def library_versions() -> dict[str, str]:
    """What computes: versions by package, of those that are installed."""
    from modelgit import __version__

    found = {package: _version(package) for package in ("torch", "transformers", "tokenizers")}
    return {"modelgit": __version__, **{package: version for package, version in found.items() if version != "none"}}


@functools.cache
def _version(package: str) -> str:
    """Major and minor version of an installed package, "none" when it is not there."""
    found = _recorded_version(package)
    if found is None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version(package)
        except PackageNotFoundError:
            return "none"
    return ".".join(found.split("+")[0].split(".")[:2])


def _recorded_version(package: str) -> str | None:
    """The version that the name of a package's record has (`torch-2.13.0.dist-info`); None where there is none.

    `importlib.metadata` would know it, too, but to load that takes half as long as all else that a warm evaluation
    does beside numpy.
    """
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except OSError:
            continue
        for name in names:
            project, _, version = name.removesuffix(".dist-info").partition("-")
            if version and name.endswith(".dist-info") and project.lower().replace("-", "_") == package:
                return version
    return None
