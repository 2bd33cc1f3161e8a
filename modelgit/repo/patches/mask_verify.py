"""Prove that training stayed within a mask: of commits, of checkpoints, of every step of a run's journal.

Everything is compared, bit for bit, with a base: the state that the run began with.  Tensors with equal ids are equal;
others are read window by window, on both sides.  A journal has fingerprints only, which are compared with those of the
base, computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.fisher.journal import JournalStart, JournalStep, Watched, read_journal
from modelgit.fisher.outside import fingerprint, mask_fingerprint, model_fingerprint, zero_positions
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.formats.layouts import describe
from modelgit.numerics.floats import has_float_values, to_float32
from modelgit.objects import CommitId, MaskId
from modelgit.objects.graph import ancestors, topological
from modelgit.patching.base import TensorReads, TensorSource, windows
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import find_model, tensors_of
from modelgit.repo.patches.masks import find_mask
from modelgit.repo.patches.strayed import count_strayed, outside_mask
from modelgit.worktree.content import FileRange

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["MaskVerification", "Strayed", "verify_mask"]

_TASK = "Verifying"
Positions = Mapping[str, NDArray[np.int64] | None]


class Strayed(NamedTuple):
    """A tensor that is not as in the base outside the mask.

    `where` is a commit, a step or a checkpoint; `values` how many differ, None where that is not known; `why` is
    "changed", "missing" (or a step without a line), "new" or "shape".
    """

    where: str
    tensor: str
    values: int | None
    why: str = "changed"


class MaskVerification(NamedTuple):
    """What was looked at, and every violation in order.

    `steps` of a journal were checked of the `steps_made` that it tells of.  `unknown` are tensors of a run that the
    base does not have: that they stayed as they were is known, what they were is not.  `unfinished` says that a
    journal has no last line: its run was cut off, or goes on.
    """

    mask: MaskId
    base: CommitId
    commits: int
    checkpoints: int
    steps: int
    steps_made: int
    unfinished: bool
    unknown: tuple[str, ...]
    violations: tuple[Strayed, ...]


class _Work:
    """The mask and the base, and what was found so far."""

    def __init__(self, repo: Repository, name: str, base: str, progress: Progress) -> None:
        self.repo = repo
        self.progress = progress
        found = find_mask(repo, name)
        self.mask_id, self.mask, self.positions = found.id, found.record, found.positions()
        self.base = repo.resolve(base)
        self.manifest = repo.manifest_of(self.base)
        self.tensors = tensors_of(repo, self.manifest, find_model(self.manifest, self.mask.model))
        self.reader: TensorReads = repo.reader()
        self.violations: list[Strayed] = []
        self.unknown: dict[str, None] = {}
        self.commits = self.checkpoints = self.steps = self.steps_made = 0
        self.unfinished = False


def verify_mask(
    repo: Repository,
    name: str,
    *,
    targets: Sequence[str] = (),
    runs: Sequence[Path | str] = (),
    base: str | None = None,
    progress: Progress = SILENT,
) -> MaskVerification:
    """Whether `targets` and the journals `runs` differ from `base` only inside the mask called `name`.

    A target is a range `A..B` (every commit that B has and A has not), a revision, or the path of a checkpoint.  The
    base is A for a range, the parent of a single revision, and HEAD for checkpoints and journals, if it is not given;
    without targets and runs, HEAD is looked at.  Raises UsageError for a journal that was written under another mask,
    and for targets with different bases.
    """
    ranges = [_range(repo, target) for target in targets or (() if runs else ("HEAD",))]
    starts = {start for _, start, _ in ranges if start is not None}
    alone = next((target for target, start, commits in ranges if commits and start is None), None)
    if base is None and alone is not None:
        raise UsageError(
            f"{alone} has no parent to compare with", hint="say `--base REV`, or check a checkpoint or --run"
        )
    if base is None and len(starts) > 1:
        raise UsageError("these have different bases, so it is not clear what to compare with", hint="say `--base REV`")
    work = _Work(repo, name, base or next(iter(starts), "HEAD"), progress)
    try:
        for target, _, commits in ranges:
            if commits is None:
                _check_checkpoint(work, target)
            else:
                _check_commits(work, commits)
        for run in runs:
            _check_journal(work, repo.environment.cwd / run)
    finally:
        progress.finish(_TASK)
    return MaskVerification(
        mask=work.mask_id,
        base=work.base,
        commits=work.commits,
        checkpoints=work.checkpoints,
        steps=work.steps,
        steps_made=work.steps_made,
        unfinished=work.unfinished,
        unknown=tuple(work.unknown),
        violations=tuple(work.violations),
    )


def _range(repo: Repository, target: str) -> tuple[str, str | None, list[CommitId] | None]:
    """The target, the revision to compare with, and its commits, the oldest first; None for a path."""
    first, dots, last = target.partition("..")
    if not dots and (repo.environment.cwd / target).exists():
        return target, None, None

    def time(commit: CommitId) -> int:
        return repo.commit_at(commit).committer.time_s

    if dots and first and last and not last.startswith("."):
        known = set(ancestors([repo.resolve(first)], repo.parents_of))
        found = list(topological([repo.resolve(last)], repo.parents_of, time, stop=known))
        if not found:
            raise UsageError(f"there is no commit in {target}", hint="`mgit log` shows the history")
        return target, first, found[::-1]
    commit = repo.resolve(target)
    parents = repo.parents_of(commit)
    return target, str(parents[0]) if parents else None, [commit]


def _check_commits(work: _Work, commits: list[CommitId]) -> None:
    work.progress.start(_TASK, len(commits), unit="commits")
    for commit in commits:
        work.progress.check()
        manifest = work.repo.manifest_of(commit)
        strayed = outside_mask(work.repo, work.mask, work.manifest, manifest)
        tensors = tensors_of(work.repo, manifest, find_model(manifest, work.mask.model))
        for tensor, count in strayed.items():
            why = "changed" if tensor in work.tensors and work.tensors[tensor].spec == tensors[tensor].spec else "shape"
            work.violations.append(Strayed(commit.short, tensor, count, why if tensor in work.tensors else "new"))
        _note_missing(work, commit.short, tensors)
        work.commits += 1
        work.progress.advance(_TASK, 1)


def _note_missing(work: _Work, where: str, present: Mapping[str, object]) -> None:
    work.violations += [
        Strayed(where, name, entry.spec.elements, "missing")
        for name, entry in work.tensors.items()
        if name not in present and work.positions.get(name, ()) is not None
    ]


@contextmanager
def _checkpoint(repo: Repository, shown: str) -> Iterator[dict[str, TensorSource]]:
    """The model's tensors in a checkpoint directory or file, by name."""
    path = repo.environment.cwd / shown
    root, name = (path, ".") if path.is_dir() else (path.parent, path.name)
    track = repo.settings.track
    weights = describe(root, name, ignore=track.left_out, opaque=track.opaque).weights
    if not weights:
        raise UsageError(f"there are no weights in {shown}", hint="name the checkpoint that the run wrote")
    readers: list[FileReader] = []
    found: dict[str, TensorSource] = {}
    try:
        for file in weights:
            readers.append(FileReader(root / file, shown=f"{shown}/{file}" if name == "." else shown))
            scanned = scan_reader(readers[-1])
            for item in scanned.ranges:
                if item.tensor is not None:
                    tensor = scanned.tensors[item.tensor]
                    found[tensor.name] = FileRange(readers[-1], item.offset, tensor.spec)
        yield found
    finally:
        for reader in readers:
            reader.close()


def _check_checkpoint(work: _Work, shown: str) -> None:
    with _checkpoint(work.repo, shown) as tensors:
        work.progress.start(_TASK, len(tensors), unit="tensors")
        for name, source in tensors.items():
            work.progress.check()
            entry, allowed = work.tensors.get(name), work.positions.get(name, np.empty(0, np.int64))
            if entry is None:
                if allowed is not None:
                    work.violations.append(Strayed(shown, name, source.spec.elements, "new"))
            elif allowed is not None and entry.spec != source.spec:
                work.violations.append(Strayed(shown, name, source.spec.elements, "shape"))
            elif allowed is not None and (count := count_strayed(work.reader, entry, source.read, allowed)):
                work.violations.append(Strayed(shown, name, count))
            work.progress.advance(_TASK, 1)
        _note_missing(work, shown, tensors)
    work.checkpoints += 1


# -- journals


def _check_journal(work: _Work, path: Path) -> None:
    start: JournalStart | None = None
    due, found, ended = 1, False, True
    for number, line in read_journal(path):
        found = True
        if isinstance(line, JournalStart):
            work.unfinished |= not ended
            _check_start(work, path, line)
            start, ended, due = line, False, line.first + line.every - 1
        elif start is None or ended:
            raise UsageError(f"line {number} of the journal {path} belongs to no run")
        elif isinstance(line, JournalStep):
            work.progress.check()
            _check_step(work, start, line, due)
            due = line.step + start.every
            work.steps += 1
            work.steps_made = max(work.steps_made, line.step)
        else:
            ended = True
            last = start.first + line.steps - 1
            work.steps_made = max(work.steps_made, last)
            if due <= last:
                work.violations.append(Strayed(f"step {due}", "", None, "missing"))
            if line.digest != start.digest:
                work.violations.append(Strayed("the end of the run", "", None))
    if not found:
        raise UsageError(f"there is no journal at {path}", hint="`freeze_outside(…, journal=PATH)` writes one")
    work.unfinished |= not ended


def _check_start(work: _Work, path: Path, start: JournalStart) -> None:
    """The run began with the base, as far as that lies outside of the mask."""
    if start.mask != mask_fingerprint(work.positions):
        raise UsageError(
            f"the run of {path} trained under another mask than {work.mask_id.short}",
            hint="`mgit mask list` shows the masks",
        )
    if start.digest != model_fingerprint({name: item.digest for name, item in start.tensors.items()}):
        raise UsageError(f"the journal {path} contradicts itself: its first line has been changed")
    where = f"the start of the run (before step {start.first})"
    work.progress.start(_TASK, len(start.tensors), unit="tensors")
    for name, watched in start.tensors.items():
        work.progress.check()
        known = next((other for other in (name, *watched.aliases) if other in work.tensors), None)
        digest = None if known is None else _stored_fingerprint(work, known, watched)
        if known is None or digest is None:
            work.unknown[name] = None
        elif work.tensors[known].spec.shape != watched.shape:
            work.violations.append(Strayed(where, name, None, "shape"))
        elif digest != watched.digest:
            work.violations.append(Strayed(where, name, None))
        work.progress.advance(_TASK, 1)


def _check_step(work: _Work, start: JournalStart, line: JournalStep, due: int) -> None:
    where = f"step {line.step}"
    if line.step != due:
        work.violations.append(Strayed(f"step {due}", "", None, "missing"))
    work.violations += [Strayed(where, leak.tensor, leak.values) for leak in line.leaks]
    if not line.leaks and (line.digest != start.digest or line.violations):
        work.violations.append(Strayed(where, "", None))


def _stored_fingerprint(work: _Work, name: str, watched: Watched) -> str | None:
    """The fingerprint of a tensor of the base outside the mask, as the element type of the run has it.

    None where it cannot be computed: a type that is not exact or not rounded as torch does.
    """
    entry = work.tensors[name]
    allowed = work.positions.get(name, np.empty(0, np.int64))
    if allowed is None:
        return None
    unit = max(1, entry.spec.kind.bits // 8)
    if watched.dtype != entry.spec.dtype and not _converts(entry.spec.dtype, watched.dtype):
        return None

    def parts() -> Iterator[bytes]:
        for start, stop in windows(entry.spec.size_bytes):
            raw = work.reader.read(entry.id, start, stop)
            words: NDArray[np.generic]
            if watched.dtype == entry.spec.dtype:
                words = np.frombuffer(raw, f"<u{unit}").copy()
            else:
                words = _converted(raw, entry.spec.dtype, watched.dtype)
            zero_positions(words, allowed, start // unit)
            yield words.tobytes()

    return fingerprint(parts())


def _converts(stored: str, trained: str) -> bool:
    return has_float_values(stored) and stored in ("F32", "F16", "BF16") and trained in ("F32", "F16", "BF16")


def _converted(raw: bytearray, stored: str, trained: str) -> NDArray[np.generic]:
    """Words of another float type: widened exactly, or rounded to the nearest, ties to even, as torch does."""
    import ml_dtypes

    values = to_float32(raw, stored)
    kinds = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
    with np.errstate(over="ignore"):
        converted = values.astype(kinds[trained])
    return converted.view(f"<u{converted.itemsize}")
