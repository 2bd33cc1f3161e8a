"""Where suites come from: the work tree, or a manifest; and what identifies one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from modelgit.config.schema import Settings
from modelgit.config.suite_files import SUITES_DIRECTORY, suite_name
from modelgit.errors import UsageError
from modelgit.objects import Manifest
from modelgit.repo.contents import file_bytes
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.repo.settings import load as load_settings
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.evals.base import Dataset
    from modelgit.evals.suites import Suite
    from modelgit.repo.repository import Repository

__all__ = ["SuiteTexts", "identity_of", "recorded_suites", "suite_ids", "worktree_suites"]


@dataclass(frozen=True)
class SuiteTexts:
    """The settings and the suite files (texts by the name of the suite) of one place."""

    settings: Settings
    files: Mapping[str, str]

    def over(self, other: SuiteTexts) -> SuiteTexts:
        """The suites and tasks of both; where both have one of a name, this place's counts."""
        mine = {*self.files, *self.settings.eval}
        return SuiteTexts(
            msgspec.structs.replace(
                self.settings,
                eval={name: suite for name, suite in other.settings.eval.items() if name not in mine}
                | self.settings.eval,
                task={**other.settings.task, **self.settings.task},
            ),
            {**{name: text for name, text in other.files.items() if name not in mine}, **self.files},
        )

    def __bool__(self) -> bool:
        return bool(self.files or self.settings.eval)

    def suites(self, names: Sequence[str] = ()) -> tuple[Suite, ...]:
        """All of them checked, or those in `names`.  Raises UsageError as `evals.suites.load_suites` does."""
        from modelgit.evals.suites import load_suites

        return load_suites(self.settings, self.files, names=names or None)


def worktree_suites(repo: Repository) -> SuiteTexts:
    """What lies in the work tree now; none of a repository without one."""
    files = {}
    if repo.paths.worktree is not None:
        for file in sorted((repo.paths.worktree / SUITES_DIRECTORY).glob("*.toml")):
            name = suite_name(f"{SUITES_DIRECTORY}/{file.name}")
            if name is not None and file.is_file():
                files[name] = _text(file.read_bytes(), f"{SUITES_DIRECTORY}/{file.name}")
    return SuiteTexts(repo.settings, files)


def recorded_suites(repo: Repository, manifest: Manifest, *, store: ObjectStore | None = None) -> SuiteTexts:
    """What `manifest` records; other settings are those of this clone."""
    texts = {}
    for entry in manifest.files:
        if entry.path == PROJECT_CONFIG or suite_name(entry.path) is not None:
            data = file_bytes(repo, entry.digest, store=store)
            texts[entry.path] = _text(data, entry.path)
    settings = load_settings(repo, project=texts.pop(PROJECT_CONFIG, "")).settings
    return SuiteTexts(settings, {str(suite_name(path)): text for path, text in texts.items()})


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None


def identity_of(
    repo: Repository,
    suite: Suite,
    datasets: Mapping[str, Dataset],
    *,
    manifest: Manifest | None = None,
    store: ObjectStore | None = None,
) -> str:
    """The id of a suite with the data that were read for it, and with the code that it names.

    The code is that of the work tree, from which it runs, or that `manifest` records.
    """
    from modelgit.evals.runner import suite_id
    from modelgit.repo.trust import suite_code

    fingerprints = {name: data.fingerprint for name, data in datasets.items()}
    return suite_id(suite, fingerprints, suite_code(repo, suite, manifest=manifest, store=store))


def suite_ids(
    repo: Repository, manifest: Manifest, *, names: Collection[str] | None = None, store: ObjectStore | None = None
) -> dict[str, str]:
    """The ids of the suites that `manifest` records (of those in `names` that it has), with its data and its code.

    Data and code that are not recorded are read from the work tree.  Raises UsageError for suites that cannot be read.
    """
    from modelgit.repo.gates.sides import read_dataset

    texts = recorded_suites(repo, manifest, store=store)
    known = {*texts.files, *texts.settings.eval}
    chosen = sorted(known if names is None else known.intersection(names))
    found = {}
    for suite in texts.suites(chosen) if chosen else ():
        datasets = {
            name: read_dataset(repo, store or repo.store, manifest, source) for name, source in suite.data.items()
        }
        found[suite.name] = identity_of(repo, suite, datasets, manifest=manifest, store=store)
    return found
