"""Tasks of mgit.toml bound to a manifest: the model that computes, and its examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.evals.cache import PredictionCache, prediction_key
from modelgit.evals.predictions import SuiteData, TaskCandidate
from modelgit.evals.suites import Suite
from modelgit.models.base import Example, ExampleSet, TaskModel
from modelgit.models.data import read_examples
from modelgit.models.load import build_task, encode_examples
from modelgit.objects import Manifest, ManifestId, encode
from modelgit.objects.paths import path_problem
from modelgit.progress import SILENT, Progress
from modelgit.repo.load import find_model, model_files, model_state, view_entries
from modelgit.repo.trust import is_trusted, named_code
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["open_task", "suite_candidate", "suite_examples", "task_examples", "task_settings"]


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


def task_examples(repo: Repository, settings: TaskSettings, path: str) -> tuple[tuple[Example, ...], str]:
    """Examples and their fingerprint from a file of the work tree; `path` is relative to the repository root."""
    _check_path(path)
    file = repo.worktree / path
    if not file.is_file():
        raise UsageError(f"the data file {path} is not there", hint="`mgit restore` brings recorded files back")
    return read_examples(file, settings, shown=path)


def _check_path(path: str) -> None:
    """mgit.toml travels: it may not have files read that lie outside of the repository."""
    problem = path_problem(path)
    if problem is not None:
        raise UsageError(
            f"the data file {path!a} cannot be read: {problem}",
            hint="write a path below the repository root in mgit.toml; a data directory may be a link",
        )


def open_task(
    repo: Repository, manifest: Manifest, settings: TaskSettings, *, store: ObjectStore | None = None
) -> TaskModel:
    """The task's model with the weights of `manifest`."""
    store = store or repo.store
    entry = find_model(manifest, settings.model)
    state = model_state(repo, manifest, entry, store=store)
    files = model_files(repo, manifest, entry.path, store=store)
    return build_task(settings, state.arrays(), files, trusted=is_trusted(repo, settings.entry), root=repo.worktree)


def encoded(
    repo: Repository,
    manifest: Manifest,
    settings: TaskSettings,
    examples: tuple[Example, ...],
    fingerprint: str,
    *,
    store: ObjectStore | None = None,
) -> ExampleSet:
    """The inputs of the task's model for `examples`."""
    files = model_files(repo, manifest, settings.model, store=store)
    return encode_examples(
        settings, examples, fingerprint, files, trusted=is_trusted(repo, settings.entry), root=repo.worktree
    )


def suite_candidate(
    repo: Repository,
    store: ObjectStore,
    manifest: Manifest,
    suite: Suite,
    *,
    data_from: Manifest | None = None,
    data_store: ObjectStore | None = None,
    progress: Progress = SILENT,
) -> TaskCandidate:
    """One side of a suite: predictions come from the cache where the weights have been seen before.

    `data_from` is the manifest whose data both sides are measured on; data files that are not recorded are read from
    the work tree.
    """
    settings = suite.task
    examples, fingerprint = suite_examples(repo, data_from or manifest, suite, data_store or store)
    entry = find_model(manifest, settings.model)
    tensors = [
        *repo.tensors_of(manifest, entry, store=store).values(),
        *view_entries(repo.views_of(manifest, entry, store=store)),
    ]
    files = model_files(repo, manifest, entry.path, store=store)
    key = prediction_key(tensors, settings, files, fingerprint, code=code_version(repo, settings))
    return TaskCandidate(
        ManifestId.of(encode(manifest)),
        key,
        examples,
        SuiteData.of(examples, fingerprint, settings),
        load=lambda: open_task(repo, manifest, settings, store=store),
        encode=lambda subset: encoded(repo, manifest, settings, subset, fingerprint, store=store),
        cache=PredictionCache(repo.paths.predictions),
        versions={"torch": _version("torch")},
        progress=progress,
    )


def suite_examples(
    repo: Repository, manifest: Manifest, suite: Suite, store: ObjectStore
) -> tuple[tuple[Example, ...], str]:
    """The examples of a suite and their fingerprint, from the recorded data file, or else from the work tree."""
    _check_path(suite.data)
    recorded = manifest.file(suite.data)
    if recorded is None:
        return task_examples(repo, suite.task, suite.data)
    # The recorded data, not whatever lies in the work tree by now.
    import tempfile

    data = repo.file_bytes(repo.content_at(recorded.digest, store=store), store=store)
    with tempfile.TemporaryDirectory(prefix="mgit-") as folder:
        file = Path(folder) / Path(suite.data).name
        file.write_bytes(data)
        # Images lie beside the file that names them, in the work tree.
        return read_examples(file, suite.task, shown=suite.data, folder=(repo.worktree / suite.data).parent)


def code_version(repo: Repository, settings: TaskSettings) -> str:
    """The version of everything that turns weights into predictions, the user's own code included."""
    from modelgit import __version__

    own = sorted(named_code(repo).items()) if settings.entry is not None else []
    libraries = f"torch {_version('torch')}"
    if settings.entry is None and settings.adapter != "bert-classifier":
        libraries += f", transformers {_version('transformers')}"
    return f"modelgit {__version__}, {libraries}, {own}"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return ".".join(version(package).split("+")[0].split(".")[:2])
    except PackageNotFoundError:
        return "none"
