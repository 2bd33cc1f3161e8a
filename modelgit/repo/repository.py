"""A repository: the store, the root, the work tree and the settings, wired together.

The verbs live in modules of their own and are imported when they are first used, so that `status` and `log` load
neither numpy nor anything heavier.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.environment import Environment
from modelgit.errors import IntegrityError, RepositoryError, UsageError
from modelgit.objects import (
    Commit,
    CommitId,
    ContentId,
    FileContent,
    Manifest,
    ManifestId,
    ObjectId,
    OperationId,
    Patch,
    Pruning,
    Signature,
    Statistics,
    View,
)
from modelgit.progress import SILENT, Progress
from modelgit.repo.layout import METADATA, RepositoryPaths, discover
from modelgit.store.base import ObjectStore
from modelgit.store.durable import write_durably
from modelgit.store.fs import FileSystemStore
from modelgit.store.oplog import OperationLog
from modelgit.store.publish import initialise, publish
from modelgit.store.record_cache import RecordCache
from modelgit.store.root import FORMAT_LINE, FileRoot
from modelgit.store.session import PackSession
from modelgit.store.side_records import retention_records, statistics_records
from modelgit.worktree.index import StatIndex
from modelgit.worktree.journal import Journal
from modelgit.worktree.lockfile import LockFile

if TYPE_CHECKING:
    from modelgit.config.load import LoadedSettings
    from modelgit.config.schema import Settings
    from modelgit.objects import EvalRecord
    from modelgit.patching.correct import Product
    from modelgit.patching.encode import TensorWriter
    from modelgit.patching.materialise import TensorReader
    from modelgit.repo.history.samples import Prompts
    from modelgit.repo.load import ModelState
    from modelgit.repo.merges.merge import MergeResult
    from modelgit.repo.patches.density import Reduced
    from modelgit.repo.patches.fisher import Diagonal, StoredFisher
    from modelgit.repo.patches.mask_apply import AppliedMask
    from modelgit.repo.patches.mask_create import CreatedMask
    from modelgit.repo.patches.masks import StoredMask
    from modelgit.repo.tracking.commit_records import CommitResult
    from modelgit.repo.tracking.status import Status
    from modelgit.reporting.html import ShownDiff

__all__ = ["Repository"]


class Repository:
    """An open repository.

    Methods raise subclasses of MgitError only.  An instance may be used from several threads for reading; verbs that
    write hold the work tree's lock.
    """

    def __init__(self, paths: RepositoryPaths, environment: Environment) -> None:
        self.paths = paths
        self.environment = environment
        self.store = FileSystemStore(paths.directory, cache=paths.lookup, hub=environment.hub_cache)
        self.store.explain = self._explain
        self.records = RecordCache()
        self.roots = FileRoot(paths.directory)
        self.operations = OperationLog(paths.directory)
        self.retention_records = retention_records(paths.directory)
        self.statistics_records = statistics_records(paths.directory)
        self.index = StatIndex(paths.stat_index)
        self.journal = Journal(paths.journal)
        self.lock = LockFile(paths.lock, host=environment.host)

    # -- opening

    @classmethod
    def open(cls, path: Path | str = ".", *, environment: Environment | None = None) -> Repository:
        """Open the repository that `path` lies in, finishing what a crash left half-done.

        Raises RepositoryError when there is none, or one of a format that this version does not read.
        """
        environment = environment or Environment.capture()
        repo = cls(discover(environment.cwd / path), environment)
        if repo.journal.pending:
            from modelgit.repo.tracking.update import finish_pending

            # What it needs may be damaged, or lie with a lender that is away: then `fsck`, `fetch --repair` and
            # `borrow copy` must run all the same.  Whoever wants to write the work tree gets the error.
            with contextlib.suppress(IntegrityError):
                finish_pending(repo)
        return repo

    @classmethod
    def init(
        cls, path: Path | str = ".", *, branch: str = "main", environment: Environment | None = None
    ) -> Repository:
        """Make an empty repository in `path`.  Raises RepositoryError when there is one already."""
        environment = environment or Environment.capture()
        worktree = (environment.cwd / path).resolve()
        directory = worktree / METADATA
        if (directory / "format").exists():
            raise RepositoryError(f"{worktree} is an mgit repository already", hint="`mgit status` shows its state")
        try:
            (directory / "packs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RepositoryError(f"cannot write {directory}: {error.strerror or error}") from error
        paths = RepositoryPaths(directory, worktree=worktree)
        repo = cls(paths, environment)
        with contextlib.suppress(RepositoryError):
            if repo.roots.read():  # an init that was killed before its last step
                write_durably(paths.format, FORMAT_LINE.encode())
                return repo
        initialise(repo.roots, repo.operations, view=View(branch=branch), author=str(repo.signature()))
        write_durably(paths.format, FORMAT_LINE.encode())
        return repo

    def close(self) -> None:
        """Close all files."""
        self.index.save()
        if self.store.lookup.wants_cache:
            self.store.lookup.write_cache()
        self.store.close()

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is configured

    @cached_property
    def loaded_settings(self) -> LoadedSettings:
        """Settings with the origin of each value."""
        from modelgit.repo.settings import load

        return load(self)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.loaded_settings.settings

    def forget_settings(self) -> None:
        """Read the settings again when they are next asked for: a file changed."""
        self.__dict__.pop("loaded_settings", None)

    @property
    def worktree(self) -> Path:
        """The directory that the user works in."""
        if self.paths.worktree is None:
            raise RepositoryError(
                f"{self.paths.directory} is a bare repository: it has no work tree",
                hint=f"`mgit clone {self.paths.directory} DIRECTORY` makes a repository with one",
            )
        return self.paths.worktree

    @property
    def threads(self) -> int:
        """How many threads hash, encode and decode."""
        chosen = 0
        with contextlib.suppress(UsageError):  # a broken mgit.toml must not keep anybody from restoring or checking
            chosen = self.settings.storage.threads
        return chosen or min(8, os.cpu_count() or 1)

    def signature(self, *, author: str | None = None) -> Signature:
        """Who acts now: the argument, MGIT_AUTHOR, the settings, or user@host."""
        from modelgit.repo.settings import signature

        return signature(self, author)

    # -- reading

    def view(self) -> View:
        """The current view of all refs."""
        return self.operations.current(self.roots)[1].view

    def head(self) -> CommitId | None:
        """The commit that the work tree follows."""
        return self.view().head

    def resolve(self, revision: str) -> CommitId:
        """The commit that `revision` names: a branch, tag, remote branch, id prefix, HEAD, with `~N` and `^N`."""
        from modelgit.repo.revisions import resolve

        return resolve(self, revision)

    def commit_at(self, commit: CommitId) -> Commit:
        """Read a commit."""
        return self.records.read(self.store, commit, Commit)

    def manifest_of(self, commit: CommitId | None) -> Manifest:
        """The manifest of a commit, empty for None."""
        if commit is None:
            return Manifest()
        return self.manifest_at(self.commit_at(commit).manifest)

    def manifest_at(self, manifest: ManifestId, *, store: ObjectStore | None = None) -> Manifest:
        """Read a manifest."""
        return self.records.read(store or self.store, manifest, Manifest)

    def patch_of(self, commit: CommitId) -> Patch:
        """The patch of a commit."""
        return self.records.read(self.store, self.commit_at(commit).patch, Patch)

    def parents_of(self, commit: CommitId) -> Sequence[CommitId]:
        """The parents of a commit."""
        return self.commit_at(commit).parents

    def content_at(self, content: ContentId, *, store: ObjectStore | None = None) -> FileContent:
        """Read a file's content record."""
        return self.records.read(store or self.store, content, FileContent)

    def reader(self, store: ObjectStore | None = None) -> TensorReader:
        """A reader of tensors and blobs."""
        from modelgit.patching.materialise import TensorReader

        return TensorReader(store or self.store)

    def writer(
        self,
        session: PackSession,
        *,
        products: Callable[[str], Product | None] | None = None,
        progress: Progress = SILENT,
    ) -> TensorWriter:
        """A writer of tensors and blobs as the settings want it; one for all files of a command.

        `products` says what declared adapters added to the tensor of a name.
        """
        from modelgit.patching.encode import TensorWriter

        storage = self.settings.storage
        return TensorWriter(
            session,
            threads=self.threads,
            effort=storage.effort,
            verify=storage.verify,
            products=products,
            progress=progress,
        )

    def _explain(self, object_id: ObjectId) -> IntegrityError | None:
        from modelgit.repo.upkeep.pruned import explain

        return explain(self, object_id)

    # -- writing

    def session(self) -> PackSession:
        """Begin to write objects."""
        root = self.roots.read().root
        return self.store.session(epoch=root.epoch, condemned=root.condemned)

    def publish(
        self,
        change: Callable[[View], View],
        description: str,
        *,
        session: PackSession | None = None,
        moves_files: bool = False,
        restores: OperationId | None = None,
        redo: tuple[OperationId, ...] = (),
        author: str | None = None,
        prunings: Sequence[Pruning] = (),
        keep: Callable[[Statistics], Statistics] | Statistics | None = None,
        rescue: str = "",
    ) -> View:
        """Move the root (see `store.publish`)."""
        return publish(
            self.roots,
            self.operations,
            self.store,
            change,
            description=description,
            author=author or str(self.signature()),
            session=session,
            moves_files=moves_files,
            restores=restores,
            redo=redo,
            prunings=prunings,
            keep=keep,
            rescue=rescue,
        )

    @contextlib.contextmanager
    def writing(self, *, finish: bool = True) -> Iterator[None]:
        """Hold the work tree: one writer at a time, and nothing half-done from before.

        Without `finish` something half-done stays: for what brings objects and leaves the work tree alone.
        """
        with self.lock:
            if finish and self.journal.pending:
                from modelgit.repo.tracking.update import finish_pending

                finish_pending(self, locked=True)
            yield
            self.index.save()

    # -- verbs

    def track(self, path: str) -> object:
        """Record `path` in mgit.toml (see `repo.track`)."""
        from modelgit.repo.tracking.track import track

        return track(self, path)

    def status(self, *, progress: Progress = SILENT) -> Status:
        """What differs between the work tree and the current commit."""
        from modelgit.repo.tracking.status import status

        return status(self, progress=progress)

    def commit(
        self,
        message: str,
        *,
        only: Sequence[str] = (),
        gate: str = "block",
        allow_empty: bool = False,
        masks: Sequence[str] = (),
        base: str | None = None,
        adapters: Sequence[Path | str] = (),
        source: str | None = None,
        as_path: str | None = None,
        worktree: bool = True,
        branch: str | None = None,
        author: str | None = None,
        progress: Progress = SILENT,
    ) -> CommitResult:
        """Record what changed, or the checkpoint at `source` (see `repo.commit`)."""
        from modelgit.repo.tracking.commit import commit

        return commit(
            self,
            message,
            only=only,
            gate=gate,
            allow_empty=allow_empty,
            masks=masks,
            base=base,
            adapters=adapters,
            source=source,
            as_path=as_path,
            worktree=worktree,
            branch=branch,
            author=author,
            progress=progress,
        )

    def commit_patch(
        self,
        message: str,
        *,
        density: float | None = None,
        max_kl: float | None = None,
        importance: str = "fisher",
        seed: int = 0,
        draws: int = 1,
        task: str | None = None,
        gate: str = "block",
        progress: Progress = SILENT,
    ) -> Reduced:
        """Record a sparse patch of a dense change, lossy, without training (see `repo.density`)."""
        from modelgit.repo.patches.density import commit_patch

        return commit_patch(
            self, message, density=density, max_kl=max_kl, importance=importance, seed=seed, draws=draws, task=task,
            gate=gate, progress=progress,
        )  # fmt: skip

    def load(self, revision: str = "HEAD", *, model: str | None = None) -> ModelState:
        """Tensors of a model by name; nothing is read before it is asked for (see `repo.load`)."""
        from modelgit.repo.load import load

        return load(self, revision, model=model)

    def snapshot(self, revision: str = "HEAD", *, model: str | None = None, progress: Progress = SILENT) -> Path:
        """A read-only directory with a model's files, for `from_pretrained` and the like (see `repo.snapshots`)."""
        from modelgit.repo.snapshots import snapshot

        return snapshot(self, revision, model=model, progress=progress)

    def diff(
        self,
        old: str | None = None,
        new: str | None = None,
        *,
        fisher: bool = False,
        task: str | None = None,
        examples: int = 512,
        prompts: Prompts | None = None,
        progress: Progress = SILENT,
    ) -> ShownDiff:
        """Compare two revisions; `new` None is the work tree, `old` None the current commit (see `repo.diff`)."""
        from modelgit.repo.history.diff import diff

        return diff(self, old, new, fisher=fisher, task=task, examples=examples, prompts=prompts, progress=progress)

    def switch(
        self,
        target: str,
        *,
        create: bool = False,
        start: str | None = None,
        detach: bool = False,
        discard: bool = False,
        progress: Progress = SILENT,
    ) -> View:
        """Make another branch current and bring its files (see `repo.switch`)."""
        from modelgit.repo.tracking.switch import switch

        return switch(self, target, create=create, start=start, detach=detach, discard=discard, progress=progress)

    def merge(
        self,
        revision: str,
        *,
        strategy: str | None = None,
        options: Mapping[str, str] | None = None,
        message: str | None = None,
        progress: Progress = SILENT,
    ) -> MergeResult:
        """Merge a revision into the current branch; raises MergeConflicts with the list (see `repo.merge`)."""
        from modelgit.repo.merges.merge import merge

        return merge(self, revision, strategy=strategy, options=options, message=message, progress=progress)

    def evaluate(
        self, revision: str | None = None, *, suites: Sequence[str] = (), progress: Progress = SILENT
    ) -> list[EvalRecord]:
        """Run suites on a revision, or on the work tree (see `repo.evaluate`)."""
        from modelgit.repo.gates.evaluate import evaluate

        return evaluate(self, revision, suites=suites, progress=progress)

    def create_mask(
        self,
        *,
        density: float | None = None,
        task: str | None = None,
        revision: str | None = None,
        score: str = "fisher",
        from_diff: tuple[str, str] | None = None,
        budget: str = "global",
        examples: int = 512,
        seed: int = 0,
        head: Sequence[str] | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        name: str | None = None,
        progress: Progress = SILENT,
    ) -> CreatedMask:
        """Choose the share of a model's values that a training run may change (see `repo.mask_create`)."""
        from modelgit.repo.patches.mask_create import create_mask

        return create_mask(
            self,
            density=density,
            task=task,
            revision=revision,
            score=score,
            from_diff=from_diff,
            budget=budget,
            examples=examples,
            seed=seed,
            head=head,
            include=include,
            exclude=exclude,
            name=name,
            progress=progress,
        )

    def fisher(
        self,
        revision: str = "HEAD",
        *,
        task: str | None = None,
        estimator: str = "auto",
        examples: int = 512,
        seed: int = 0,
        grams: bool = False,
        progress: Progress = SILENT,
    ) -> StoredFisher:
        """The Fisher diagonal of a task's model, from the store or made now (see `repo.fisher`)."""
        from modelgit.repo.patches.fisher import estimate_fisher

        return estimate_fisher(
            self,
            task=task,
            revision=revision,
            estimator=estimator,
            examples=examples,
            seed=seed,
            grams=grams,
            progress=progress,
        )

    def diagonal(self, stored: StoredFisher) -> Diagonal:
        """The values of an estimate by tensor name: float32 arrays, read when they are asked for."""
        from modelgit.repo.patches.fisher import diagonal_of

        return diagonal_of(self, stored.estimate)

    def mask(self, name: str) -> StoredMask:
        """A mask by its name, its id or the beginning of it, or "latest" (see `repo.masks`)."""
        from modelgit.repo.patches.masks import find_mask

        return find_mask(self, name)

    def masks(self) -> list[StoredMask]:
        """The masks that this clone keeps, newest first, and then those of commits in the history."""
        from modelgit.repo.patches.masks import list_masks

        return list_masks(self)

    def apply_mask(
        self, name: str, *, revision: str = "HEAD", dry_run: bool = False, progress: Progress = SILENT
    ) -> AppliedMask:
        """Give values of the work tree outside of a mask back what `revision` has there (see `repo.mask_apply`)."""
        from modelgit.repo.patches.mask_apply import apply_mask

        return apply_mask(self, name, revision=revision, dry_run=dry_run, progress=progress)
