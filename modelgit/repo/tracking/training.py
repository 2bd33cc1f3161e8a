"""Training state beside the weights: optimizer moments, schedules, random states, shards of distributed checkpoints.

It is recorded with a commit and apart from its model: the commit names it by a manifest of its own (`Commit.training`),
so it is never gated, loaded, compared or merged as weights, and it may expire while the commit stays.  A training
manifest that is present is whole; one that is absent is not kept here any more (or never came): that, and nothing else,
is how expired state is told from damage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.errors import RepositoryError, UsageError
from modelgit.formats.listing import list_files, matching_pattern
from modelgit.objects import CommitId, FileEntry, Manifest, ManifestId, encode
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import tensors_of
from modelgit.repo.tracking.tree import WorkFile, look_at
from modelgit.store.metadata import write_metadata
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.objects import TensorEntry
    from modelgit.repo.repository import Repository

__all__ = ["TrainingState", "joined", "record_training", "refuse_absent", "training_files", "training_of"]


class TrainingState(NamedTuple):
    """The training state of a commit: its id (None: the commit has none), and its files as far as they are here."""

    id: ManifestId | None = None
    manifest: Manifest = Manifest()

    @property
    def is_absent(self) -> bool:
        """Whether the commit has training state that is not kept here."""
        return self.id is not None and not self.manifest.files


def training_of(repo: Repository, commit: CommitId | None) -> TrainingState:
    """The training state of a commit; its manifest is empty where there is none, or none any more."""
    training = None if commit is None else repo.commit_at(commit).training
    if training is None or not repo.store.has(training):
        return TrainingState(training)
    return TrainingState(training, repo.manifest_at(training))


def joined(manifest: Manifest, training: Manifest) -> Manifest:
    """Everything that a commit puts into the work tree."""
    if not training.files:
        return manifest
    files = {entry.path: entry for entry in (*training.files, *manifest.files)}
    return msgspec.structs.replace(manifest, files=tuple(files[path] for path in sorted(files)))


def refuse_absent(commit: CommitId, training: TrainingState) -> None:
    """Raise RepositoryError, saying why, when the commit's training state is not kept here."""
    if training.is_absent:
        raise RepositoryError(
            f"the training state of {commit.short} is not kept here: it expired, or was never fetched",
            hint="`mgit log` shows later commits; the model itself is there",
        )


def training_files(repo: Repository) -> dict[str, WorkFile]:
    """Every file of training state that a commit would record now, by path.  Stats files, reads none."""
    settings = repo.settings.track
    ignore = settings.ignore_in_training
    found: dict[str, WorkFile] = {}
    for place in settings.training_state:
        try:
            listing = list_files(repo.worktree, place, ignore=ignore)
        except UsageError:
            continue  # what is gone shows up as deleted files
        patterns = settings.training_patterns(place)
        for path in listing.files:
            if path in found or (patterns is not None and not _matches(path, place, patterns)):
                continue
            found[path] = look_at(repo, path)
    return dict(sorted(found.items()))


def _matches(path: str, place: str, patterns: tuple[str, ...]) -> bool:
    """Whether the file, or a directory below `place` that it lies in, has the name of training state."""
    inner = path if place == "." else path[len(place) :].lstrip("/")
    parts = inner.split("/")
    return any(
        matching_pattern("/".join(parts[:depth]), patterns, directory=depth < len(parts)) is not None
        for depth in range(1, len(parts) + 1)
    )


def record_training(
    repo: Repository,
    session: PackSession,
    parent: CommitId | None,
    tree: Manifest,
    *,
    only: Mapping[str, bool] | None = None,
    progress: Progress = SILENT,
) -> TrainingState:
    """Store the training state that lies beside the model `tree`.

    `only` is as in `record_worktree`.  A file is coded against the last one of its path or, where a run made a new
    directory, of its base name; weights in a checkpoint directory against the model's.
    """
    from modelgit.repo.tracking.record import is_stored, record_file

    before = training_of(repo, parent)
    files = training_files(repo)
    old = {entry.path: entry for entry in before.manifest.files}
    model: dict[str, TensorEntry] = {}
    entries: dict[str, FileEntry] = {path: entry for path, entry in old.items() if only and not only.get(path, False)}
    changed = sum(file.status.st_size for file in files.values() if file.known is None)
    progress.start("store", changed)
    writer = repo.writer(session, progress=progress)
    for path, file in files.items():
        if only is not None and not only.get(path, False):
            continue
        previous = old.get(path) or _namesake(path, old)
        executable = file.executable if file.executable is not None else path in old and old[path].executable
        if file.known is not None and is_stored(repo, session, file, old.get(path)):
            digest, size = file.known, file.status.st_size
        else:
            if not model:
                model = {
                    name: entry
                    for item in tree.models
                    for name, entry in tensors_of(repo, tree, item, store=session).items()
                }
            bases = dict(model)
            if previous is not None:
                bases.update({entry.name: entry for entry in repo.content_at(previous.digest).tensors})
            digest, scanned, _ = record_file(repo, session, writer, file, previous, bases)
            size = scanned.size
        entries[path] = FileEntry(path=path, size=size, digest=digest, executable=executable)
    progress.finish("store")
    if not entries:
        return TrainingState()
    manifest = Manifest(files=tuple(entries[path] for path in sorted(entries)))
    data = encode(manifest)
    manifest_id = ManifestId.of(data)
    if not session.has(manifest_id):
        old_data = encode(before.manifest)
        base = (before.id, old_data) if before.id is not None and not before.is_absent else None
        write_metadata(session, manifest_id, data, base=base)
    return TrainingState(manifest_id, manifest)


def _namesake(path: str, old: Mapping[str, FileEntry]) -> FileEntry | None:
    """The last file of the same base name elsewhere: checkpoint-1000/optimizer.pt follows checkpoint-500's."""
    name = path.rpartition("/")[2]
    found = [entry for entry in old.values() if entry.path.rpartition("/")[2] == name]
    return found[-1] if found else None
