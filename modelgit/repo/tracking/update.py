"""Moving the work tree to another manifest: intent first, files next, the root, and the intent cleared last.

Whatever dies in between, the next command reads the intent and finishes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from modelgit.amounts import counted
from modelgit.errors import IntegrityError, RepositoryError
from modelgit.objects import CommitId, ContentId, FileEntry, Literal, Manifest, ManifestId, OperationId, View
from modelgit.objects.manifest import content_id, manifest_id
from modelgit.progress import SILENT, Progress
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.repo.merges.state import clear_state
from modelgit.repo.tracking.outside import forget_stale
from modelgit.repo.tracking.training import joined
from modelgit.repo.tracking.tree import WorkFile, content_of, hash_changed
from modelgit.repo.upkeep.pruned import refuse_missing
from modelgit.store.base import ObjectStore
from modelgit.store.borrow import require
from modelgit.store.durable import sync_directory
from modelgit.store.session import PackSession
from modelgit.worktree.checkout import find_regular, obstacles, remove_file, write_files
from modelgit.worktree.copying import copy_file
from modelgit.worktree.journal import Intent

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["check_clean", "finish_pending", "move_worktree", "rescue"]


def check_clean(
    repo: Repository, source: Manifest, target: Manifest, *, verb: str, hint: str, progress: Progress = SILENT
) -> None:
    """Refuse when a file that would be written or removed holds something that is not recorded.

    Raises RepositoryError that names the model or file and counts what would be lost.
    """
    dirty = dirty_paths(repo, source, target, progress=progress)
    if not dirty:
        return
    models = {path: model.path for model in source.models for path in model.weights}
    model = next((models[path] for path in dirty if path in models), None)
    if model is not None:
        count = _changed_tensors(repo, model)
        what = f"{model} has changes that {verb} would overwrite ({counted(count, 'tensor')})"
    else:
        more = f" and {len(dirty) - 1} more" if len(dirty) > 1 else ""
        what = f"{dirty[0]}{more} has changes that {verb} would overwrite"
    raise RepositoryError(what, hint=hint)


def _changed_tensors(repo: Repository, model: str) -> int:
    from modelgit.repo.tracking.status import status

    return sum(len(item.tensors) for item in status(repo).models if item.path == model)


def dirty_paths(repo: Repository, source: Manifest, target: Manifest, *, progress: Progress = SILENT) -> list[str]:
    """Files that differ between the manifests and whose work tree copy is not the source's (nor the target's)."""
    before = {entry.path: entry.digest for entry in source.files}
    after = {entry.path: entry.digest for entry in target.files}
    touched = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    in_the_way = strangers(repo, source, target)
    if in_the_way:
        return in_the_way
    files = files_at(repo, touched)
    now, _ = hash_changed(repo, files, progress=progress)
    return sorted(
        path
        for path in touched
        if (path in now or path in before) and now.get(path) not in (before.get(path), after.get(path))
    )


def files_at(repo: Repository, paths: set[str]) -> dict[str, WorkFile]:
    """The regular files at `paths`, whether or not today's settings track them (or can be read at all)."""
    files = {}
    for path in sorted(paths):
        status = find_regular(repo.worktree, path)
        if status is not None:
            files[path] = WorkFile(path, status, repo.index.lookup(path, status))
    return files


def strangers(
    repo: Repository, source: Manifest, target: Manifest, *, paths: Collection[str] | None = None
) -> list[str]:
    """What nobody recorded and lies where a directory or a file of `target` must go (`worktree.checkout.obstacles`)."""
    before = {entry.path: entry.digest for entry in source.files}
    after = {entry.path: entry.digest for entry in target.files}
    names = {*before, *after} if paths is None else {*paths}
    leaving = {path for path in names if path in before and path not in after}
    found: set[str] = set()
    for path in names:
        if path in after and (paths is not None or before.get(path) != after[path]):
            found.update(obstacles(repo.worktree, path, leaving))
    return sorted(found)


def move_worktree(
    repo: Repository,
    source: Manifest,
    target: Manifest,
    *,
    description: str,
    view: View | None,
    after: View | None,
    paths: Collection[str] | None = None,
    training: tuple[Manifest, Manifest] = (Manifest(), Manifest()),
    session: PackSession | None = None,
    restores: OperationId | None = None,
    redo: tuple[OperationId, ...] = (),
    rescued: str = "",
    progress: Progress = SILENT,
) -> None:
    """Bring the files from `source` to `target`, each with its `training` state, and publish the step.

    The step is from `view` to `after` (None: files only); `rescued` is its directory of the rescue area.

    The caller holds the lock, has checked that nothing is lost, and has sealed `session`, which must hold the target.
    """
    recorded = (source, target)
    source, target = joined(source, training[0]), joined(target, training[1])
    in_the_way = strangers(repo, source, target, paths=paths)
    if in_the_way:
        place = repo.worktree / in_the_way[0]
        raise RepositoryError(f"{place} is in the way", hint=f"move it away: `mv {place} {place}.old`")
    before = {entry.path: entry for entry in source.files}
    coming = [
        entry for entry in target.files if (before.get(entry.path) != entry if paths is None else entry.path in paths)
    ]
    refuse_missing(repo, target, {entry.path for entry in coming})
    for entry in coming:  # once the intent is written, it must be possible to finish it
        content = repo.content_at(entry.digest)
        require(repo.store, [tensor.id for tensor in content.tensors])
        require(repo.store, {part.blob for part in content.segments if isinstance(part, Literal)})
    refs: dict[str, CommitId | None] = {}
    expected: dict[str, CommitId | None] = {}
    if view is not None and after is not None:
        for ref in sorted({*view.refs, *after.refs}):
            if view.refs.get(ref) != after.refs.get(ref):
                refs[ref] = after.refs.get(ref)
                expected[ref] = view.refs.get(ref)
    intent = Intent(
        source=manifest_id(recorded[0]),
        target=manifest_id(recorded[1]),
        description=description,
        author=str(repo.signature()),
        publishes=after is not None,
        branch=after.branch if after else None,
        detached=after.detached if after else None,
        refs=refs,
        expected=expected,
        paths=None if paths is None else tuple(sorted(paths)),
        restores=restores,
        redo=redo,
        source_training=training[0].files,
        target_training=training[1].files,
        rescue=rescued,
    )
    repo.journal.write(intent)
    _apply_intent(repo, intent, source, target, session=session, progress=progress)


def finish_pending(repo: Repository, *, locked: bool = False) -> None:
    """Finish what a killed command began.  Files that are neither the old nor the new ones are put aside first."""
    if not locked:
        with repo.lock:
            finish_pending(repo, locked=True)
            return
    intent = repo.journal.read()
    if intent is None:
        return
    source = Manifest() if intent.source is None else _manifest_or_empty(repo, intent.source)
    source = joined(source, Manifest(files=intent.source_training))
    target = joined(repo.manifest_at(intent.target), Manifest(files=intent.target_training))
    _rescue_strangers(repo, intent, source, target)
    _apply_intent(repo, intent, source, target)
    repo.index.save()


def _manifest_or_empty(repo: Repository, source: ManifestId) -> Manifest:
    return repo.manifest_at(source) if repo.store.has(source) else Manifest()


def _apply_intent(
    repo: Repository,
    intent: Intent,
    source: Manifest,
    target: Manifest,
    *,
    session: PackSession | None = None,
    progress: Progress = SILENT,
) -> None:
    """Do what an intent says, whatever part of it is done already."""
    before = {entry.path: entry for entry in source.files}
    after = {entry.path: entry for entry in target.files}
    wanted = intent.paths
    names = {path for path in {*before, *after} if wanted is None or path in wanted}
    write, remove = [], []
    for path in sorted(names):
        entry = after.get(path)
        if entry is None:
            if path in before:
                remove.append(path)
        elif wanted is None and before.get(path) == entry:
            continue  # untouched files stay as they are, edited or deleted
        elif not _in_place(repo, entry):
            write.append(entry)
    # First, because a directory may take the place of a file, or a file that of a directory.
    for path in remove:
        if find_regular(repo.worktree, path) is not None:
            remove_file(repo.worktree, path, repo.index)
        repo.index.forget(path)
    store: ObjectStore = repo.store
    reader = repo.reader(store)
    write_files(
        repo.worktree,
        write,
        lambda entry: repo.content_at(entry.digest),
        reader,
        repo.index,
        threads=repo.threads,
        known=lambda digest: content_of(repo, digest),
        progress=progress,
    )
    if any(entry.path == PROJECT_CONFIG for entry in write) or PROJECT_CONFIG in remove:
        repo.forget_settings()
    if intent.publishes:
        repo.publish(
            _step(intent),
            intent.description,
            session=session,
            moves_files=True,
            restores=intent.restores,
            redo=intent.redo,
            author=intent.author,
            rescue=intent.rescue,
        )
        # Whatever moved the branch ended a merge that was under way; left behind, it would come back with an undo.
        clear_state(repo)
        forget_stale(repo)
    repo.index.save()
    repo.journal.clear()


def _step(intent: Intent) -> Callable[[View], View]:
    """The change of the view, applied to whatever the view is by then.

    Refs that somebody else moved meanwhile stay where they moved them: the files are there already, and a ref is never
    taken back.
    """

    def change(view: View) -> View:
        free = (ref for ref in intent.refs if view.refs.get(ref) == intent.expected.get(ref))
        moved = view.with_moved({ref: intent.refs[ref] for ref in free})
        return View(refs=moved.refs, branch=intent.branch, detached=intent.detached)

    return change


def _in_place(repo: Repository, entry: FileEntry) -> bool:
    """Whether the work tree already holds the entry, by a stat that can be trusted."""
    path = repo.worktree / entry.path
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return False
    if repo.index.lookup(entry.path, status) != entry.digest:
        return False
    executable = bool(status.st_mode & 0o100)
    if executable != entry.executable:
        try:
            path.chmod(status.st_mode & 0o666 | (0o111 if entry.executable else 0))
        except OSError as error:
            raise RepositoryError(f"cannot change the mode of {path}: {error.strerror or error}") from error
    return True


def _rescue_strangers(repo: Repository, intent: Intent, source: Manifest, target: Manifest) -> None:
    before = {entry.path: entry.digest for entry in source.files}
    after = {entry.path: entry.digest for entry in target.files}
    names = {path for path in {*before, *after} if intent.paths is None or path in intent.paths}
    for path in sorted(names):
        if before.get(path) == after.get(path) and intent.paths is None:
            continue
        if find_regular(repo.worktree, path) is None:
            continue
        found = _digest(repo, path)
        if found not in (before.get(path), after.get(path)):
            rescue(repo, path)


def _digest(repo: Repository, path: str) -> ContentId | None:
    from modelgit.errors import CheckpointFormatError
    from modelgit.formats.listing import matching_pattern
    from modelgit.worktree.content import hash_file

    try:
        opaque = matching_pattern(path, repo.settings.track.opaque, directory=False) is not None
        return content_id(hash_file(repo.worktree / path, shown=path, threads=repo.threads, opaque=opaque)[0])
    except CheckpointFormatError:
        return None


def rescue(repo: Repository, path: str, *, under: str | None = None) -> str:
    """Copy a file that is about to be overwritten into the rescue area; returns where to, for people.

    It goes into the directory `under` there, by default one that is named by the time.
    """
    stamp = under or time.strftime("%Y%m%d-%H%M%S")
    target = repo.paths.rescue / stamp / path
    number = 1
    while target.exists():  # two rescues of one file within a second
        number += 1
        target = repo.paths.rescue / f"{stamp}.{number}" / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(repo.worktree / path, target)
        import shutil  # loads three compressors

        shutil.copystat(repo.worktree / path, target)
        sync_directory(target.parent)
    except OSError as error:
        raise RepositoryError(
            f"cannot keep a copy of {path}: {error.strerror or error}", hint="free some space, then run it again"
        ) from error
    if target.stat().st_size != (repo.worktree / path).stat().st_size:
        raise IntegrityError(f"{path} changed while it was being put aside")
    return str(target)
