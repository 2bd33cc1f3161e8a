"""`blame`: which commit gave each tensor, or each row of one, the values that it has now.

A tensor belongs to the newest commit after which it was never another one: walking back from a revision, it is passed
on to the first parent that has the same id, and stays with a commit that no parent agrees with.  That needs metadata
alone.  Rows are passed on in the same way when their bytes are those of a parent; only commits that changed the tensor
are looked into, a window of rows at a time.  A model that a commit moved to another path is followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.objects import CommitId, TensorEntry
from modelgit.objects.graph import topological
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import find_model
from modelgit.repo.history.cat import find_tensor
from modelgit.repo.load import LazyTensor, model_state
from modelgit.repo.moves import path_elsewhere

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["BlamedRows", "BlamedTensor", "blame_rows", "blame_tensors"]

_WINDOW_BYTES = 4 << 20


class BlamedTensor(NamedTuple):
    """A tensor of a model and the commit that last changed it."""

    model: str
    name: str
    entry: TensorEntry
    commit: CommitId


class BlamedRows(NamedTuple):
    """Rows `start` to `stop` (excluded) of a tensor, and the commit that last changed them all."""

    start: int
    stop: int
    commit: CommitId


def blame_tensors(repo: Repository, revision: str = "HEAD", *, model: str | None = None) -> list[BlamedTensor]:
    """Every tensor of a revision (or of one of its models) with the commit that last changed it; reads no weights.

    A model that was moved is followed; a tensor that a commit moved to another model or gave another name belongs to
    that commit.
    """
    tip = repo.resolve(revision)
    manifest = repo.manifest_of(tip)
    models = manifest.models if model is None else (find_model(manifest, model),)
    wanted = {
        (entry.path, name): tensor
        for entry in models
        for name, tensor in model_state(repo, manifest, entry).entries.items()
    }

    owners = _owners(repo, tip, wanted)
    return [BlamedTensor(path, name, wanted[path, name], owners[path, name]) for path, name in sorted(wanted)]


def _same(one: TensorEntry, other: TensorEntry) -> bool:
    return one.id == other.id and one.spec == other.spec


def _owners(
    repo: Repository, tip: CommitId, wanted: Mapping[tuple[str, str], TensorEntry]
) -> Mapping[tuple[str, str], CommitId]:
    """The commit that each tensor stays with; they are named by model and name as at the tip."""
    held: dict[CommitId, dict[tuple[str, str], str]] = {tip: {key: key[0] for key in wanted}}
    owners: dict[tuple[str, str], CommitId] = {}
    for commit in topological((tip,), repo.parents_of, lambda c: repo.commit_at(c).committer.time_s):
        mine = held.pop(commit, {})
        for parent in repo.parents_of(commit):
            if not mine:
                break
            passed = _passed_on(repo, commit, parent, mine, wanted)
            mine = {key: path for key, path in mine.items() if key not in passed}
            if passed:
                held[parent] = {**passed, **held.get(parent, {})}
        owners |= dict.fromkeys(mine, commit)
        if not held:
            break
    return owners


def _passed_on(
    repo: Repository,
    commit: CommitId,
    parent: CommitId,
    mine: Mapping[tuple[str, str], str],
    wanted: Mapping[tuple[str, str], TensorEntry],
) -> dict[tuple[str, str], str]:
    """What the parent has as the tip has it, of tensors that are in models at these paths of the commit.

    The paths given back are those of the parent.
    """
    here, there = repo.manifest_of(commit), repo.manifest_of(parent)
    found: dict[tuple[str, str], str] = {}
    for path in sorted(set(mine.values())):
        was = path_elsewhere(repo, path, here, there)
        if was is None:
            continue
        tensors = model_state(repo, there, find_model(there, was)).entries
        for key, where in mine.items():
            if where == path and key[1] in tensors and _same(tensors[key[1]], wanted[key]):
                found[key] = was
    return found


def blame_rows(
    repo: Repository,
    name: str,
    revision: str = "HEAD",
    *,
    model: str | None = None,
    rows: tuple[int, int] | None = None,
    progress: Progress = SILENT,
) -> list[BlamedRows]:
    """Which commit last changed each row of the tensor `name` (each value of one with a single dimension).

    `rows` are the first row and the one behind the last.  Neighbours of one commit are given as one.  Held are a number
    for each row and a window of two versions of the tensor.  Raises UsageError when there is no such tensor or row.
    """
    tip = repo.resolve(revision)
    found = find_tensor(repo, revision, name, model=model)
    tensor = found.tensor
    if tensor.spec.kind.bits % 8 or tensor.spec.kind.is_block:
        raise UsageError(
            f"the rows of {tensor.name} are packed ({tensor.spec.dtype}) and are not compared one by one",
            hint=f"`mgit blame {revision}` names the commit that last changed the whole tensor",
        )
    count = tensor.shape[0] if tensor.shape else 1
    first, stop = rows or (0, count)
    if not 0 <= first < stop <= count:
        raise UsageError(
            f"rows {first}:{stop} are not within the {count} rows of {tensor.name}",
            hint=f"`mgit blame {revision} {tensor.name} --rows 0:{count}`",
        )
    numbers = _row_owners(repo, tip, found.model, tensor, first, stop, progress)
    return _runs(numbers, first)


def _row_owners(
    repo: Repository, tip: CommitId, path: str, tensor: LazyTensor, first: int, stop: int, progress: Progress
) -> list[CommitId]:
    held: dict[CommitId, NDArray[np.bool_]] = {tip: np.ones(stop - first, dtype=bool)}
    places = {tip: path}
    owners: list[CommitId] = [tip] * (stop - first)
    order = list(topological((tip,), repo.parents_of, lambda c: repo.commit_at(c).committer.time_s))
    progress.start("compare", len(order), unit="commits")
    for commit in order:
        progress.check()
        progress.advance("compare", 1)
        mine = held.pop(commit, None)
        if mine is None:
            continue
        for parent in repo.parents_of(commit):
            if not mine.any():
                break
            was = path_elsewhere(repo, places[commit], repo.manifest_of(commit), repo.manifest_of(parent))
            if was is None:
                continue
            passed = _same_rows(repo, parent, was, tensor, mine, first)
            mine &= ~passed
            if passed.any():
                places.setdefault(parent, was)
                held[parent] = held[parent] | passed if parent in held else passed
        for row in np.flatnonzero(mine):
            owners[int(row)] = commit
        if not held:
            break
    progress.finish("compare")
    return owners


def _same_rows(
    repo: Repository, commit: CommitId, path: str, tensor: LazyTensor, wanted: NDArray[np.bool_], first: int
) -> NDArray[np.bool_]:
    """Which of the `wanted` rows have the same bytes in `commit` as in `tensor`."""
    nothing = np.zeros_like(wanted)
    manifest = repo.manifest_of(commit)
    state = model_state(repo, manifest, find_model(manifest, path))
    if tensor.name not in state:
        return nothing
    before = state[tensor.name]
    if _same(before.entry, tensor.entry):
        return wanted.copy()
    if before.spec.dtype != tensor.spec.dtype or before.shape[1:] != tensor.shape[1:] or not tensor.shape:
        return nothing
    row_bytes = tensor.size_bytes // tensor.shape[0] if tensor.shape[0] else 0
    if not row_bytes:
        return nothing
    step = max(1, _WINDOW_BYTES // row_bytes)
    same = nothing
    common = min(len(before), len(tensor)) - first
    for start in range(0, max(0, min(common, wanted.size)), step):
        end = min(start + step, common, wanted.size)
        if wanted[start:end].any():
            new, old = (
                np.frombuffer(side.rows(first + start, first + end).raw(), np.uint8).reshape(end - start, row_bytes)
                for side in (tensor, before)
            )
            same[start:end] = (new == old).all(axis=1) & wanted[start:end]
    return same


def _runs(owners: Sequence[CommitId], first: int) -> list[BlamedRows]:
    found: list[BlamedRows] = []
    for row, commit in enumerate(owners, first):
        if found and found[-1].commit == commit:
            found[-1] = found[-1]._replace(stop=row + 1)
        else:
            found.append(BlamedRows(row, row + 1, commit))
    return found
