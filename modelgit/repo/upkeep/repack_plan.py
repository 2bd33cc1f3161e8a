"""What `repack` works on: the stored objects in an order in which a base never depends on what is coded against it.

The order is a topological one of all bases that records name now, so that any mixture of old and new records is free of
circles: what a crash leaves behind can be read whichever record a reader takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from modelgit.objects import (
    BlobId,
    CommitId,
    ContentId,
    Literal,
    Manifest,
    TensorId,
    TensorSpec,
)
from modelgit.objects.graph import topological
from modelgit.patching.chain import link_cost
from modelgit.repo.upkeep.collection import Key, Marking

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["RepackItem", "RepackPlan", "plan_repack"]

_SIBLINGS = 2


class RepackItem(NamedTuple):
    """A stored tensor or blob: what messages call it, and the objects of its history that it may be coded against."""

    id: TensorId | BlobId
    name: str
    spec: TensorSpec | None
    size: int
    candidates: tuple[TensorId | BlobId, ...]

    @property
    def key(self) -> Key:
        """Kind and digest."""
        return self.id.KIND, self.id.digest


class RepackPlan(NamedTuple):
    """Items in waves: what an item may be coded against is in an earlier wave.

    `hidden` are objects that nothing needs but as bases; `tainted` those whose chain of bases leads through one.
    `heights` say what the objects coded against an object add to the cost of reading it.
    """

    waves: list[list[RepackItem]]
    hidden: set[Key]
    tainted: set[Key]
    heights: dict[Key, float]


class _Named(NamedTuple):
    name: str
    candidates: tuple[TensorId | BlobId, ...]


def plan_repack(repo: Repository, marking: Marking) -> RepackPlan:
    """Order everything that is needed, and find candidates by name in the history."""
    named = dict(_history(repo, marking))
    # Garbage too: a second record, as a crash leaves them, is read until it is collected.
    things = {key for key in marking.stored if key[0] in ("tensor", "blob")}
    bases = {key: _bases(marking, key) & things for key in things}
    order = _ordered(bases, {key: number for number, key in enumerate(named)})
    position = {key: number for number, key in enumerate(order)}
    hidden = {key for key in order if key not in marking.needed}
    tainted: set[Key] = set()
    levels: dict[Key, int] = {}
    waves: dict[int, list[RepackItem]] = {}
    for key in order:
        used = {(key[0], row.base) for row in marking.chosen_of(key) if row.base is not None}
        if not used.isdisjoint(hidden) or not used.isdisjoint(tainted):
            tainted.add(key)
        below = [levels[base] for base in bases[key]]
        if key not in hidden:
            item = _item(marking, key, named.get(key), position)
            below += [levels[candidate.KIND, candidate.digest] for candidate in item.candidates]
            waves.setdefault(1 + max(below, default=0), []).append(item)
        levels[key] = 1 + max(below, default=0)
    return RepackPlan([waves[level] for level in sorted(waves)], hidden, tainted, _heights(marking, order))


def _bases(marking: Marking, key: Key) -> set[Key]:
    return {(key[0], item.base) for item in marking.records_of(key) if item.base is not None}


def _ordered(bases: dict[Key, set[Key]], wish: dict[Key, int]) -> list[Key]:
    """Bases first, else in the order of `wish`; what is in a circle, or rests on one, is left out."""
    waiting = {key: len(found) for key, found in bases.items()}
    above: dict[Key, list[Key]] = {}
    for key, found in bases.items():
        for base in found:
            above.setdefault(base, []).append(key)
    ready = [(wish.get(key, -1), key) for key, count in waiting.items() if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, key = heapq.heappop(ready)
        order.append(key)
        for other in above.get(key, ()):
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, (wish.get(other, -1), other))
    return order


def _item(marking: Marking, key: Key, named: _Named | None, position: dict[Key, int]) -> RepackItem:
    object_id = (TensorId if key[0] == "tensor" else BlobId)(key[1])
    records = marking.records_of(key)
    candidates = tuple(
        other
        for other in (named.candidates if named else ())
        if position.get((other.KIND, other.digest), len(position)) < position[key]
        and (other.KIND, other.digest) in marking.needed
    )
    name = named.name if named else object_id.short
    return RepackItem(object_id, name, marking.needed[key], records[0].total if records else 0, candidates)


def _heights(marking: Marking, order: list[Key]) -> dict[Key, float]:
    heights: dict[Key, float] = {}
    for key in reversed(order):
        records = marking.chosen_of(key)
        base = next((item.base for item in records if item.base is not None), None)
        raw = sum(item.stop - item.start for item in records)
        if base is None or not raw:
            continue
        cost = link_cost(sum(item.length for item in records) / raw) + heights.get(key, 0.0)
        heights[key[0], base] = max(heights.get((key[0], base), 0.0), cost)
    return heights


def _history(repo: Repository, marking: Marking) -> Iterator[tuple[Key, _Named]]:
    """Every tensor and literal of the needed commits, parents first, with what bore its name before."""
    commits = [CommitId(digest) for kind, digest in marking.needed if kind == "commit"]
    order = list(topological(commits, repo.parents_of, lambda commit: repo.commit_at(commit).committer.time_s))
    contents: set[ContentId] = set()
    earlier: dict[tuple[object, ...], list[TensorId | BlobId]] = {}
    given: set[Key] = set()
    for commit_id in reversed(order):
        commit = repo.commit_at(commit_id)
        parents = [repo.manifest_of(parent) for parent in commit.parents]
        training = commit.training
        if training is not None and repo.store.has(training):
            yield from _of_manifest(repo, repo.manifest_at(training), [], contents, earlier, given)
        yield from _of_manifest(repo, repo.manifest_at(commit.manifest), parents, contents, earlier, given)


def _of_manifest(
    repo: Repository,
    manifest: Manifest,
    parents: Collection[Manifest],
    contents: set[ContentId],
    earlier: dict[tuple[object, ...], list[TensorId | BlobId]],
    given: set[Key],
) -> Iterator[tuple[Key, _Named]]:
    for entry in manifest.files:
        if entry.digest in contents:
            continue
        contents.add(entry.digest)
        content = repo.content_at(entry.digest)
        before: dict[str, list[TensorId]] = {}
        for parent in parents:
            old = parent.file(entry.path)
            if old is not None and old.digest != entry.digest:
                for tensor in repo.content_at(old.digest).tensors:
                    before.setdefault(tensor.name, []).append(tensor.id)
        literals = [segment.blob for segment in content.segments if isinstance(segment, Literal)]
        things: list[tuple[TensorId | BlobId, str, tuple[object, ...], list[TensorId]]] = [
            (tensor.id, tensor.name, (tensor.name, tensor.spec.dtype, tensor.spec.shape), before.get(tensor.name, []))
            for tensor in content.tensors
        ]
        things += [
            (blob, f"{entry.path} (bytes {number})", (entry.path, number), []) for number, blob in enumerate(literals)
        ]
        for object_id, name, slot, old_ids in things:
            known = earlier.setdefault(slot, [])
            key = (object_id.KIND, object_id.digest)
            if key not in given:
                given.add(key)
                found = dict.fromkeys([*old_ids, *reversed(known[-_SIBLINGS:]), *known[:1]])
                found.pop(object_id, None)
                yield key, _Named(name, tuple(found))
            if object_id not in known[-_SIBLINGS:]:
                known.append(object_id)
