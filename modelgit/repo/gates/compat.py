"""The compatibility budget: how much can have broken since the last tag, from what was recorded on the way.

Whoever is right at A and wrong at C is wrong at B, too, a flip from A to B, or right at B, a flip from B to C.  So
NFR(A, C) <= NFR(A, B) + NFR(B, C) over the same examples, and in the same way for churn: the recorded figures of the
steps bound the whole without evaluating anything.  The bound is loose (flips back are not taken off), so that a direct
evaluation, where there is one, is named beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import IntegrityError, NothingToDo
from modelgit.objects import CheckResult, CommitId, EvalRecord, ManifestId
from modelgit.objects.graph import first_parents
from modelgit.repo.reviews.attested import Attestations
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["CompatLine", "CompatReport", "CompatStep", "SuiteChange", "compatibility"]

_METRICS = ("negative flips", "churn")
_PROVEN = re.compile(r"max ([0-9.]+) %\Z")


class CompatStep(NamedTuple):
    """What a commit can have broken against the one before it.

    `bound` is None where nothing recorded says; `how` is "measured" (on all examples), "proven" (the limit that a
    sample passed, wrong with probability `alpha` at most) or "same weights".
    """

    commit: CommitId
    bound: float | None
    how: str = ""
    alpha: float = 0.0


class CompatLine(NamedTuple):
    """One metric of one test over all steps, the oldest first.

    `bound` is their sum (at most 1), None where a step is not known; `direct` is what a recorded evaluation against the
    tag itself measured or proved (`direct_how`); `budget` the limit on it that the suite states.  `alpha` bounds the
    probability that a proven step is wrong.
    """

    suite: str
    test: str
    metric: str
    bound: float | None
    steps: tuple[CompatStep, ...]
    direct: float | None = None
    direct_how: str = ""
    budget: str = ""
    alpha: float = 0.0


class SuiteChange(NamedTuple):
    """A suite that was another one before `commit` (another id: its file, its data or its code).

    What was recorded before is of another question, and is not added to what was recorded since.
    """

    suite: str
    commit: CommitId


class CompatReport(NamedTuple):
    """The way from the last tag to a commit, and the last change of each suite on it."""

    tag: str
    tagged: CommitId
    tip: CommitId
    commits: int
    lines: tuple[CompatLine, ...]
    changes: tuple[SuiteChange, ...] = ()


class _Found(NamedTuple):
    value: float
    how: str
    alpha: float
    limit: str


_Key = tuple[str, str, str, str]  # suite, its id, test, metric


def compatibility(repo: Repository, revision: str = "HEAD") -> CompatReport:
    """The budget from the last tag behind `revision`, along first parents.  Reads metadata only.

    Raises NothingToDo when there is no tag on the way.
    """
    tip = repo.resolve(revision)
    tags: dict[CommitId, str] = {}
    for ref, target in sorted(repo.view().refs.items()):
        if ref.startswith("tags/"):
            tags.setdefault(target, ref.removeprefix("tags/"))
    way: list[CommitId] = []
    for commit in first_parents(tip, repo.parents_of):
        if commit in tags:
            break
        way.append(commit)
    else:
        raise NothingToDo(f"no tag lies behind {revision}", hint="`mgit tag NAME REV` marks a release")
    with Attestations(repo) as attestations:
        measured: dict[CommitId, dict[_Key, _Found]] = {}
        direct: dict[_Key, _Found] = {}
        asked: dict[CommitId, dict[str, set[str]]] = {}
        same: set[CommitId] = set()
        before = commit
        for step in reversed(way):
            if attestations.weights_of(step) == attestations.weights_of(before):
                same.add(step)
            records = _records(repo, attestations, step)
            measured[step] = dict(_findings(repo, attestations, records, before))
            asked[step] = {}
            for record in records:
                asked[step].setdefault(record.suite, set()).add(record.suite_id)
            before = step
        if way:
            direct = dict(_findings(repo, attestations, _records(repo, attestations, tip), commit))
    lines = [_line(key, list(reversed(way)), measured, direct.get(key), same) for key in _current(way, measured)]
    changes = tuple(_changes(way, measured, asked))
    return CompatReport(tags[commit], commit, tip, len(way), tuple(lines), changes)


def _changes(
    way: list[CommitId], measured: dict[CommitId, dict[_Key, _Found]], asked: dict[CommitId, dict[str, set[str]]]
) -> Iterator[SuiteChange]:
    """Where each suite last became another one; commits that say nothing of it are passed over."""
    now: dict[str, str] = {}
    for commit in way:  # the newest first
        for suite, identity, *_ in measured[commit]:
            now.setdefault(suite, identity)
    for suite, identity in sorted(now.items()):
        since = None
        for commit in way:
            found = asked[commit].get(suite, set())
            if identity in found:
                since = commit
            elif found and since is not None:
                yield SuiteChange(suite, since)
                break


def _current(way: list[CommitId], measured: dict[CommitId, dict[_Key, _Found]]) -> list[_Key]:
    """The metrics of the suites as they were last: figures of other examples cannot be added up."""
    newest: dict[tuple[str, str, str], _Key] = {}
    for commit in way:  # the newest first
        for key in measured[commit]:
            newest.setdefault((key[0], key[2], key[3]), key)
    return sorted(newest.values())


def _line(
    key: _Key,
    way: list[CommitId],
    measured: dict[CommitId, dict[_Key, _Found]],
    direct: _Found | None,
    same: set[CommitId],
) -> CompatLine:
    steps = []
    for commit in way:
        found = measured[commit].get(key)
        if commit in same:
            steps.append(CompatStep(commit, 0.0, "same weights"))
        elif found is None:
            steps.append(CompatStep(commit, None))
        else:
            steps.append(CompatStep(commit, found.value, found.how, found.alpha))
    known = [step.bound for step in steps if step.bound is not None]
    return CompatLine(
        suite=key[0],
        test=key[2],
        metric=key[3],
        bound=min(1.0, sum(known)) if len(known) == len(steps) else None,
        steps=tuple(steps),
        direct=None if direct is None else direct.value,
        direct_how="" if direct is None else direct.how,
        budget="" if direct is None else direct.limit,
        alpha=min(1.0, sum(step.alpha for step in steps)),
    )


def _findings(
    repo: Repository, attestations: Attestations, records: Sequence[EvalRecord], before: CommitId
) -> Iterator[tuple[_Key, _Found]]:
    """What the records of a commit say of it against `before`: told by the weights, not by a baseline's name."""
    best: dict[_Key, _Found] = {}
    for record in records:
        names = {item.name for item in record.baselines if item.weights == attestations.weights_of(before)}
        if not record.baselines and record.baseline == _manifest(repo, before):
            names = {"", "parent"}
        for check in record.results:
            if check.name not in _METRICS or check.slice or check.against not in names:
                continue
            key = (record.suite, record.suite_id, check.test, check.name)
            found = _bound(check, record)
            if found is not None and (key not in best or found.how == "measured"):
                best[key] = found
    yield from best.items()


def _bound(check: CheckResult, record: EvalRecord) -> _Found | None:
    if check.value is not None and check.examples == check.total:
        return _Found(check.value, "measured", 0.0, check.limit)
    proven = _PROVEN.match(check.limit)
    if check.decision == "pass" and proven is not None:
        return _Found(float(proven[1]) / 100, "proven", record.alpha or 0.0, check.limit)
    return None  # a sample that broke a limit says how little is wrong at least, not how much at most


def _manifest(repo: Repository, commit: CommitId) -> ManifestId:
    return repo.commit_at(commit).manifest


def _records(repo: Repository, attestations: Attestations, commit: CommitId) -> list[EvalRecord]:
    """The verdicts about the weights of a commit: what it was recorded with, and notes that count."""
    weights = attestations.weights_of(commit)
    return [found for found in _read(repo, attestations, commit) if found.weights in ("", weights)]


def _read(repo: Repository, attestations: Attestations, commit: CommitId) -> Iterator[EvalRecord]:
    for verdict in repo.commit_at(commit).verdicts:
        try:
            yield read_record(repo.store, verdict.record, EvalRecord)
        except IntegrityError:
            continue
    for known in attestations.notes_of(commit):
        if known.counts and known.record is not None:
            yield known.record
