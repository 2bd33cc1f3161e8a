"""Which examples changed sides between two commits, and which commit made one wrong; from cached predictions.

What is asked is what suites ask: the data of suites whose tasks give one class for each example.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from typing import Literal as OneOf

import numpy as np

from modelgit.errors import UsageError
from modelgit.models.kinds import PER_EXAMPLE_KINDS
from modelgit.objects import CommitId, Manifest
from modelgit.objects.graph import first_parents
from modelgit.progress import SILENT, Progress
from modelgit.repo.gates.suites import SuiteTexts, recorded_suites, worktree_suites

if TYPE_CHECKING:
    from modelgit.evals.base import Dataset
    from modelgit.evals.metrics import Flips
    from modelgit.evals.suites import Suite
    from modelgit.repo.gates.sides import ManifestSide
    from modelgit.repo.repository import Repository

__all__ = ["BlamedExample", "DataFlips", "FlippedExample", "Moment", "blame_example", "flips"]


class FlippedExample(NamedTuple):
    """An example with another prediction: labels by name, and the old model's margin p1 - p2.

    `kind` is "negative" (right, now wrong), "positive" (wrong, now right) or "changed" (wrong in another way, or
    without a label).
    """

    kind: OneOf["negative", "positive", "changed"]
    example: str
    text: str
    gold: str
    before: str
    after: str
    margin: float


class DataFlips(NamedTuple):
    """What changed on one set of examples: `counts` over the labelled ones of `total`, and every example that did."""

    data: str
    suites: tuple[str, ...]
    total: int
    counts: Flips
    examples: tuple[FlippedExample, ...]


class Moment(NamedTuple):
    """What a commit said about an example; `right` is None where the example has no label."""

    commit: CommitId
    predicted: str
    right: bool | None


class BlamedExample(NamedTuple):
    """An example and the commit since which it is as it is now.

    `now` is the state at the revision, `since` the oldest commit of an unbroken line of first parents with the same
    state, `before` what its parent said; None where the history has never been different.  `others` are what further
    parents of `since` said, if it is a merge.  `looked` counts the commits that were asked.
    """

    data: str
    example: str
    text: str
    gold: str
    now: Moment
    since: CommitId
    before: Moment | None
    others: tuple[Moment, ...]
    looked: int


class _Asked(NamedTuple):
    """A set of examples, its file, and a suite that says how its task runs; `suites` are all that use it."""

    path: str
    data: Dataset
    suite: Suite
    suites: tuple[str, ...]


def flips(
    repo: Repository,
    old: str,
    new: str,
    *,
    suites: Sequence[str] = (),
    data: str | None = None,
    progress: Progress = SILENT,
) -> list[DataFlips]:
    """The examples on which the models of two commits differ, in the order of the data.

    `suites` are names of suites (all), `data` the path of one set of examples, or its name in a suite.  Predictions
    that no evaluation has left in the cache are computed and kept.  Raises UsageError when no suite has such data.
    """
    before, after = repo.manifest_of(repo.resolve(old)), repo.manifest_of(repo.resolve(new))
    found = []
    with ExitStack() as stack:
        for asked in _asked(repo, after, suites, data):
            sides = _Sides(repo, asked.suite, after, stack, progress)
            found.append(_compared(asked, sides.at(before), sides.at(after)))
    return found


def _compared(asked: _Asked, before: ManifestSide, after: ManifestSide) -> DataFlips:
    from modelgit.evals.metrics import count_flips
    from modelgit.evals.paired import label_name

    data, names = asked.data, asked.data.task.labels
    old, new = before.predictions(data), after.predictions(data)
    gold = data.labels
    labelled = gold >= 0
    was, is_now = (old.labels == gold) & labelled, (new.labels == gold) & labelled
    margins = old.margins
    examples = tuple(
        FlippedExample(
            "negative" if was[at] else "positive" if is_now[at] else "changed",
            data.examples[at].id,
            data.examples[at].text,
            label_name(names, int(gold[at])) if labelled[at] else "",
            label_name(names, int(old.labels[at])),
            label_name(names, int(new.labels[at])),
            float(margins[at]),
        )
        for at in np.flatnonzero(old.labels != new.labels).tolist()
    )
    counts = count_flips(was[labelled], is_now[labelled])
    return DataFlips(asked.path, asked.suites, len(data), counts, examples)


def blame_example(
    repo: Repository,
    example: str,
    revision: str = "HEAD",
    *,
    suites: Sequence[str] = (),
    data: str | None = None,
    progress: Progress = SILENT,
) -> BlamedExample:
    """Since which commit `example` (its id) is right, or wrong, as it is at `revision`.

    Goes back along first parents and asks each model about this one example, unless its weights were asked before.
    Raises UsageError when no data, or several, have an example of this id.
    """
    tip = repo.resolve(revision)
    found = [
        (asked, at)
        for asked in _asked(repo, repo.manifest_of(tip), suites, data)
        for at, item in enumerate(asked.data.examples)
        if item.id == example
    ]
    if not found:
        raise UsageError(
            f"no example `{example}` in the data of the suites",
            hint="`mgit flips A..B` lists ids; an example without the field `id` is named by its line",
        )
    if len(found) > 1:
        places = sorted({asked.path for asked, _ in found})
        raise UsageError(
            f"{len(found)} examples are called `{example}`, in {', '.join(places)}",
            hint=f"`mgit blame --example {example} --data {places[0]}`"
            if len(places) > 1
            else "give each example an id of its own",
        )
    asked, at = found[0]
    with ExitStack() as stack:
        sides = _Sides(repo, asked.suite, repo.manifest_of(tip), stack, progress)
        return _followed(repo, asked, at, tip, sides, progress)


def _followed(
    repo: Repository, asked: _Asked, at: int, tip: CommitId, sides: _Sides, progress: Progress
) -> BlamedExample:
    from modelgit.evals.paired import label_name

    names, gold = asked.data.task.labels, int(asked.data.labels[at])
    seen: dict[str, int] = {}

    def moment(commit: CommitId) -> Moment | None:
        side = sides.at(repo.manifest_of(commit))
        if not side.has_model(asked.data.task):
            return None
        if side.weights not in seen:
            indices = np.array([at], dtype=np.int64)
            seen[side.weights] = int(side.predictions(asked.data, indices).labels[0])
        label = seen[side.weights]
        return Moment(commit, label_name(names, label), None if gold < 0 else label == gold)

    now = moment(tip)
    if now is None:
        raise UsageError(
            f"{tip.short} has no model for the data {asked.path}", hint="name a revision: `mgit log --oneline`"
        )
    last, before = now, None
    others: tuple[Moment, ...] = ()
    for commit in islice(first_parents(tip, repo.parents_of), 1, None):
        progress.check()
        found = moment(commit)
        if found is None:
            break
        if (found.right, found.predicted if gold < 0 else "") != (now.right, now.predicted if gold < 0 else ""):
            before = found
            break
        last = found
    if before is not None:
        others = tuple(item for parent in repo.parents_of(last.commit)[1:] if (item := moment(parent)) is not None)
    example = asked.data.examples[at]
    shown = label_name(names, gold) if gold >= 0 else ""
    return BlamedExample(asked.path, example.id, example.text, shown, now, last.commit, before, others, len(seen))


class _Sides:
    """The models of commits, as a suite runs them; few are held at a time."""

    def __init__(self, repo: Repository, suite: Suite, newest: Manifest, stack: ExitStack, progress: Progress) -> None:
        from modelgit.evals.runner import run_settings
        from modelgit.repo.gates.sides import LoadedModels

        self._repo = repo
        self._settings = run_settings(suite.run)
        self._newest = newest
        self._models = LoadedModels()
        self._stack = stack
        self._progress = progress

    def at(self, manifest: Manifest) -> ManifestSide:
        from modelgit.repo.gates.sides import ManifestSide

        return ManifestSide(
            self._repo,
            self._repo.store,
            manifest,
            name="",
            settings=self._settings,
            models=self._models,
            stack=self._stack,
            path_from=(self._repo.store, self._newest),
            progress=self._progress,
        )


def _asked(repo: Repository, manifest: Manifest, suites: Sequence[str], data: str | None) -> list[_Asked]:
    """The sets of examples of suites, each once: same file, same task, same device."""
    from modelgit.repo.gates.sides import read_dataset

    texts: SuiteTexts = recorded_suites(repo, manifest) if repo.paths.worktree is None else worktree_suites(repo)
    found: dict[object, _Asked] = {}
    known: list[str] = []
    for suite in texts.suites(suites):
        for name, source in suite.data.items():
            if source.task.kind not in PER_EXAMPLE_KINDS:
                continue
            known.append(source.path)
            if data is not None and data not in (name, source.path):
                continue
            key = (source.path, source.task.model, source.task.entry, suite.run.device, suite.run.dtype)
            if key in found:
                if suite.name not in found[key].suites:
                    found[key] = found[key]._replace(suites=(*found[key].suites, suite.name))
            else:
                found[key] = _Asked(source.path, read_dataset(repo, repo.store, manifest, source), suite, (suite.name,))
    if not found:
        names = sorted(set(known))
        raise UsageError(
            f"no suite has the data `{data}`"
            if data is not None and names
            else "no suite has data with one class each",
            hint=f"known: {', '.join(names)}" if names else "`mgit eval --help` says how a suite is written",
        )
    return list(found.values())
