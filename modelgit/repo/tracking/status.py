"""`status`: stat everything, hash only what `stat` does not vouch for, compare ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.objects import CommitId, ContentId, FileContent, Manifest, Record, TensorEntry
from modelgit.objects.graph import ahead_behind
from modelgit.progress import SILENT, Progress
from modelgit.repo.tracking.outside import left_behind
from modelgit.repo.tracking.training import training_files, training_of
from modelgit.repo.tracking.tree import WorkFile, content_of, hash_changed, work_files
from modelgit.worktree.content import hash_file

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["ChangedFile", "ChangedModel", "Status", "status"]


class ChangedFile(Record, frozen=True, kw_only=True):
    """A file that is "added", "modified" or "deleted"."""

    path: str
    change: str


class ChangedModel(Record, frozen=True, kw_only=True):
    """A model with changed tensors: their names, and how many tensors the model has now."""

    path: str
    tensors: tuple[str, ...]
    total: int


class Status(Record, frozen=True, kw_only=True):
    """Where the work tree stands.

    `upstream` is the ref that the branch is compared with (the remote branch of that name, else main); `ahead` and
    `behind` count commits.  `merging` names the commit of an unfinished merge, `verb` says whether it is one, or a
    cherry-pick, revert or rebase.
    `training` are changed files of training state.  `left_at` is the commit that files of the work tree are still of,
    when commits were made without it since.
    """

    branch: str | None
    head: CommitId | None
    models: tuple[ChangedModel, ...] = ()
    files: tuple[ChangedFile, ...] = ()
    upstream: str | None = None
    ahead: int = 0
    behind: int = 0
    merging: CommitId | None = None
    verb: str = ""
    conflicts: int = 0
    tracked: int = 0
    training: tuple[ChangedFile, ...] = ()
    left_at: CommitId | None = None

    @property
    def is_clean(self) -> bool:
        """Whether a commit would have nothing to record."""
        return not self.models and not self.files and not self.training


def status(repo: Repository, *, progress: Progress = SILENT) -> Status:
    """Compare the work tree with the current commit."""
    view = repo.view()
    manifest = repo.manifest_of(view.head)
    files = work_files(repo)
    now, read = hash_changed(repo, files, progress=progress)
    before = {entry.path: entry.digest for entry in manifest.files}
    changed: list[ChangedFile] = []
    modes = {entry.path: entry.executable for entry in manifest.files}
    for path in sorted({*before, *now}):
        mode = files[path].executable if path in files and path in modes else None
        if before.get(path) != now.get(path) or mode not in (None, modes.get(path)):
            change = "added" if path not in before else "deleted" if path not in now else "modified"
            changed.append(ChangedFile(path=path, change=change))
    models, explained = _models(repo, manifest, before, now, read, files)
    training = _training(repo, view.head, progress)
    repo.index.save()
    upstream, ahead, behind = _upstream(repo)
    merging, conflicts, verb = _merging(repo)
    return Status(
        branch=view.branch,
        head=view.head,
        models=tuple(models),
        files=tuple(item for item in changed if item.path not in explained),
        upstream=upstream,
        ahead=ahead,
        behind=behind,
        merging=merging,
        verb=verb,
        conflicts=conflicts,
        tracked=len(files),
        training=training,
        left_at=left_behind(repo, manifest, now) if changed else None,
    )


def _training(repo: Repository, head: CommitId | None, progress: Progress) -> tuple[ChangedFile, ...]:
    """Changed files of training state; those of a commit whose state is not kept here are not missed."""
    before = {entry.path: entry.digest for entry in training_of(repo, head).manifest.files}
    if not before and not repo.settings.track.training_state:
        return ()
    now, _ = hash_changed(repo, training_files(repo), progress=progress)
    return tuple(
        ChangedFile(path=path, change="added" if path not in before else "deleted" if path not in now else "modified")
        for path in sorted({*before, *now})
        if before.get(path) != now.get(path)
    )


def _models(
    repo: Repository,
    manifest: Manifest,
    before: dict[str, ContentId],
    now: dict[str, ContentId],
    read: dict[str, FileContent],
    files: dict[str, WorkFile],
) -> tuple[list[ChangedModel], set[str]]:
    """Models whose weights files changed, with the tensors that did; and the files that this explains."""
    found: list[ChangedModel] = []
    explained: set[str] = set()
    for model in manifest.models:
        touched = [path for path in model.weights if before.get(path) != now.get(path)]
        if not touched:
            continue
        old: dict[str, TensorEntry] = {}
        new: dict[str, TensorEntry] = {}
        for path in model.weights:
            for entry in repo.content_at(before[path]).tensors if path in before else ():
                old[entry.name] = entry
            if path in now:
                content = read.get(path) or content_of(repo, now[path]) or _read_again(repo, files[path])
                for entry in content.tensors:
                    new[entry.name] = entry
        names = [name for name, entry in new.items() if name not in old or old[name].id != entry.id]
        names += [name for name in old if name not in new]
        if names:
            found.append(ChangedModel(path=model.path, tensors=tuple(names), total=len(new)))
            explained |= {path for path in touched if path in now}
    return found, explained


def _read_again(repo: Repository, file: WorkFile) -> FileContent:
    """For a file that `stat` vouches for, when the cache that said what it holds was deleted."""
    return hash_file(repo.worktree / file.path, shown=file.path, threads=repo.threads, opaque=file.opaque)[0]


def _upstream(repo: Repository) -> tuple[str | None, int, int]:
    view = repo.view()
    if view.branch is None or view.head is None:
        return None, 0, 0
    remotes = sorted(ref for ref in view.refs if ref.startswith("remotes/") and ref.endswith(f"/{view.branch}"))
    if remotes:
        ref = remotes[0]
    elif view.branch != "main" and "heads/main" in view.refs:
        ref = "heads/main"
    else:
        return None, 0, 0
    ahead, behind = ahead_behind(view.head, view.refs[ref], repo.parents_of)
    return ref.split("/", 1)[1], ahead, behind


def _merging(repo: Repository) -> tuple[CommitId | None, int, str]:
    if not repo.paths.merge.exists():
        return None, 0, ""
    from modelgit.repo.merges.state import read_state

    state = read_state(repo)
    return (None, 0, "") if state is None else (state.source or state.theirs, len(state.conflicts), state.name)
