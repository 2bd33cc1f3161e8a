"""`diff`: which tensors, how many values, how far; and what the change does to the model's behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import UsageError
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.formats.layouts import ADAPTER_CONFIG, adapter_base, describe
from modelgit.numerics.stats import PairStatistics, compare
from modelgit.objects import Manifest
from modelgit.objects.diffs import FileDiff, TensorDiff, key_changes
from modelgit.objects.patches import ChangeKind
from modelgit.objects.paths import join_path
from modelgit.patching.base import TensorSource, windows
from modelgit.patching.jobs import StoredObject
from modelgit.progress import SILENT, Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.contents import file_bytes, models_of
from modelgit.repo.tracking.record import record_worktree
from modelgit.reporting.html import ShownDiff
from modelgit.store.base import ObjectStore
from modelgit.worktree.content import FileRange

if TYPE_CHECKING:
    from modelgit.repo.history.behaviour import KnownFisher
    from modelgit.repo.history.samples import Prompts
    from modelgit.repo.repository import Repository

__all__ = ["diff", "diff_files"]

_MAX_JSON_BYTES = 16 << 20


def diff(
    repo: Repository,
    old: str | None = None,
    new: str | None = None,
    *,
    fisher: bool = False,
    task: str | None = None,
    examples: int = 512,
    prompts: Prompts | None = None,
    progress: Progress = SILENT,
) -> ShownDiff:
    """Compare two revisions; `new` None is the work tree, `old` None the current commit.

    Manifests are compared first; only tensors that differ are read.  With `fisher` both models run on the first
    `examples` of a task's test data: how far the outputs move, which tensors carry it, which predictions change, and
    the share of the Fisher mass that lies on changed values.  With `prompts` both answer every prompt of a file.
    Raises UsageError that says what to write in mgit.toml when there is no such task.
    """
    run = _Run(repo, task, examples, prompts, progress)
    if fisher:
        from modelgit.repo.history.behaviour import known_fisher

        # Before anything is locked: an estimate is kept, for this and for the next time.
        run.fisher = known_fisher(repo, old or "HEAD", task, examples=examples, progress=progress)
    old_commit = repo.resolve(old or "HEAD")
    before = repo.manifest_of(old_commit)
    if new is not None:
        new_commit = repo.resolve(new)
        return _diff(run, before, repo.manifest_of(new_commit), repo.store, old_commit.short, new_commit.short)
    with repo.writing():
        session = repo.session()
        try:
            after = record_worktree(repo, session, before, progress=progress).manifest
            return _diff(run, before, after, session, old_commit.short, "worktree")
        finally:
            session.abort()


@dataclass
class _Run:
    """What a diff was asked for; `fisher` None: nothing that needs the models to compute."""

    repo: Repository
    task: str | None
    examples: int
    prompts: Prompts | None
    progress: Progress
    fisher: KnownFisher | None = None


def _diff(
    run: _Run, before: Manifest, after: Manifest, store: ObjectStore, old_label: str, new_label: str
) -> ShownDiff:
    repo, progress = run.repo, run.progress
    changes = compare_manifests(repo, before, after, new_store=store)
    old_models = models_of(repo, before)
    new_models = models_of(repo, after, store=store)
    old_reader, new_reader = repo.reader(), repo.reader(store)
    total = sum(
        new_models[change.model][change.name].spec.size_bytes for change in changes.tensors if change.kind == "changed"
    )
    progress.start("compare", total)
    tensors = []
    for change in changes.tensors:
        progress.check()
        entry = new_models.get(change.model, {}).get(change.name)
        previous = old_models.get(change.model, {}).get(change.name)
        if change.kind == "changed" and entry is not None and previous is not None:
            tensors.append(
                compare_pair(
                    change.model,
                    change.name,
                    StoredObject(old_reader, previous.id, previous.spec),
                    StoredObject(new_reader, entry.id, entry.spec),
                    progress=progress,
                )
            )
        else:
            tensors.append(
                TensorDiff(
                    model=change.model,
                    name=change.name,
                    kind=change.kind,
                    spec_old=previous.spec if previous else None,
                    spec_new=entry.spec if entry else None,
                    elements=change.elements,
                )
            )
    progress.finish("compare")
    files = tuple(_file_diff(repo, before, after, store, item.path, item.kind) for item in changes.files)
    found = None
    if run.fisher is not None:
        from modelgit.repo.history.behaviour import compare_behaviour

        found = compare_behaviour(
            repo, before, after, store, run.fisher, task=run.task, examples=run.examples, progress=progress
        )
    samples = None
    if run.prompts is not None:
        from modelgit.repo.history.samples import compare_samples

        samples = compare_samples(repo, before, after, store, run.prompts, task=run.task, progress=progress)
    return ShownDiff(
        old=old_label,
        new=new_label,
        tensors=tuple(tensors),
        files=files,
        behaviour=found,
        samples=samples,
        sizes={
            model: {name: entry.spec.elements for name, entry in entries.items()}
            for model, entries in new_models.items()
        },
        bases=_bases(repo, after, store),
    )


def _bases(repo: Repository, manifest: Manifest, store: ObjectStore) -> dict[str, str]:
    """The base models that the adapters of a manifest name."""
    found: dict[str, str] = {}
    for model in manifest.models:
        config = manifest.file(join_path(model.path, ADAPTER_CONFIG))
        if model.layout == "peft-adapter" and config is not None and config.size <= _MAX_JSON_BYTES:
            base = adapter_base(file_bytes(repo, config.digest, store=store))
            if base:
                found[model.path] = base
    return found


def compare_pair(
    model: str,
    name: str,
    old: TensorSource,
    new: TensorSource,
    *,
    progress: Progress = SILENT,
) -> TensorDiff:
    """Compare two tensors of one spec, window by window."""
    spec = new.spec
    total = PairStatistics()
    for start, stop in windows(spec.size_bytes):
        total = total.merge(compare(old.read(start, stop), new.read(start, stop), spec.dtype))
        progress.check()
        progress.advance("compare", stop - start)
    has_values = total.squared_old or total.squared_difference
    return TensorDiff(
        model=model,
        name=name,
        kind="changed",
        spec_old=old.spec,
        spec_new=spec,
        elements=spec.elements,
        values_changed=min(total.changed, spec.elements),
        norm_delta=total.difference_norm if has_values else None,
        norm_old=total.squared_old**0.5 if has_values else None,
        max_abs=total.largest_difference if has_values else None,
        rms=(total.squared_difference / max(1, spec.elements)) ** 0.5 if has_values else None,
        nonfinite_old=total.nonfinite_old,
        nonfinite_new=total.nonfinite_new,
    )


def _file_diff(
    repo: Repository, before: Manifest, after: Manifest, store: ObjectStore, path: str, kind: ChangeKind
) -> FileDiff:
    old, new = before.file(path), after.file(path)
    if old is None or new is None or max(old.size, new.size) > _MAX_JSON_BYTES or not path.endswith(".json"):
        return FileDiff(path=path, kind=kind)
    left = file_bytes(repo, old.digest)
    right = file_bytes(repo, new.digest, store=store)
    return FileDiff(path=path, kind=kind, keys=key_changes(left, right))


def diff_files(left: Path, right: Path, *, cwd: Path, progress: Progress = SILENT) -> ShownDiff:
    """Compare two checkpoint files or directories without a repository."""
    sides = [_open_path(cwd / path, str(path)) for path in (left, right)]
    try:
        (old, old_files), (new, new_files) = ((side.tensors, side.files) for side in sides)
        tensors = []
        sizes = {"": {name: source.spec.elements for name, source in new.items()}}
        progress.start("compare", sum(source.spec.size_bytes for source in new.values()))
        for name in dict.fromkeys([*new, *old]):
            progress.check()
            a, b = old.get(name), new.get(name)
            if a is not None and b is not None and a.spec == b.spec:
                item = compare_pair("", name, a, b, progress=progress)
                if item.values_changed:
                    tensors.append(item)
                continue
            kind: ChangeKind = "added" if a is None else "removed" if b is None else "respecified"
            present = b or a
            tensors.append(
                TensorDiff(
                    model="",
                    name=name,
                    kind=kind,
                    spec_old=a.spec if a else None,
                    spec_new=b.spec if b else None,
                    elements=present.spec.elements if present else 0,
                )
            )
        progress.finish("compare")
        files = []
        for name in sorted({*old_files, *new_files}):
            x, y = old_files.get(name), new_files.get(name)
            if x != y:
                change: ChangeKind = "added" if x is None else "removed" if y is None else "changed"
                keys = key_changes(x, y) if x is not None and y is not None else ()
                files.append(FileDiff(path=name, kind=change, keys=keys))
        base = adapter_base(new_files.get(ADAPTER_CONFIG, b""))
        return ShownDiff(
            old=str(left),
            new=str(right),
            tensors=tuple(tensors),
            files=tuple(files),
            sizes=sizes,
            bases={"": base} if base else {},
        )
    finally:
        for side in sides:
            side.close()


class _OpenPath:
    """A checkpoint outside of any repository, opened for reading."""

    def __init__(self) -> None:
        self.tensors: dict[str, TensorSource] = {}
        self.files: dict[str, bytes] = {}
        self._readers: list[FileReader] = []

    def add(self, path: Path, shown: str, name: str) -> None:
        reader = FileReader(path, shown=shown)
        self._readers.append(reader)
        scanned = scan_reader(reader)
        if not scanned.tensors and reader.size <= _MAX_JSON_BYTES:
            self.files[name] = reader.read(0, reader.size)
        for item in scanned.ranges:
            if item.tensor is not None:
                found = scanned.tensors[item.tensor]
                self.tensors[found.name] = FileRange(reader, item.offset, found.spec)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


def _open_path(path: Path, shown: str) -> _OpenPath:
    opened = _OpenPath()
    if not path.exists():
        raise UsageError(f"there is nothing at {shown}", hint="`mgit diff --no-index A B` takes two paths")
    try:
        if path.is_dir():
            described = describe(path, ".")
            for name in described.files:
                opened.add(path / name, f"{shown}/{name}", name)
        else:
            opened.add(path, shown, path.name)
    except BaseException:
        opened.close()
        raise
    return opened
