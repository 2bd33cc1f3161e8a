"""Statistics that a repository keeps beside its commits: found again by the weights that they are of."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from modelgit.errors import IntegrityError, UsageError
from modelgit.objects import CommitId, FisherId, KeptEstimate, Manifest, ModelEntry, Statistics
from modelgit.objects.graph import ancestors
from modelgit.objects.refs import short_ref
from modelgit.repo.contents import find_model, tensors_of, view_entries, views_of
from modelgit.store.session import PackSession
from modelgit.store.side_records import with_estimates

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "find_kept",
    "forget",
    "forget_all",
    "keep",
    "kept_estimates",
    "kept_statistics",
    "refs_by_weights",
    "shapes_of",
    "weights_key",
    "weights_of_history",
]


def weights_key(repo: Repository, manifest: Manifest, model: str) -> str:
    """The name of a model's weights: equal for equal tensors, whatever else the commits hold."""
    return _key(repo, manifest, find_model(manifest, model))


def _key(repo: Repository, manifest: Manifest, entry: ModelEntry) -> str:
    tensors = sorted((name, tensor.id.hex) for name, tensor in tensors_of(repo, manifest, entry).items())
    tensors += sorted((view.name, view.id.hex) for view in view_entries(views_of(repo, manifest, entry)))
    return blake3(msgspec.json.encode(tensors)).hexdigest()[:24]


def weights_of_history(
    repo: Repository, tips: Iterable[CommitId], wanted: Collection[str]
) -> dict[str, tuple[Manifest, str]]:
    """Where the weights called `wanted` occur in what `tips` reach: a manifest and the path of the model in it.

    Reads metadata only, and stops as soon as all are found.
    """
    found: dict[str, tuple[Manifest, str]] = {}
    seen: set[tuple[object, ...]] = set()
    for commit in ancestors(tips, repo.parents_of):
        if len(found) == len(set(wanted)):
            break
        manifest = repo.manifest_of(commit)
        for entry in manifest.models:
            files = tuple(item.digest for path in entry.weights if (item := manifest.file(path)) is not None)
            if files in seen:
                continue
            seen.add(files)
            key = _key(repo, manifest, entry)
            if key in wanted:
                found.setdefault(key, (manifest, entry.path))
    return found


def refs_by_weights(repo: Repository) -> dict[str, list[str]]:
    """The short names of branches, tags and remote branches, by the weights of the models at their tips."""
    found: dict[str, list[str]] = {}
    for ref, commit in sorted(repo.view().refs.items()):
        manifest = repo.manifest_of(commit)
        for key in {_key(repo, manifest, entry) for entry in manifest.models}:
            found.setdefault(key, []).append(short_ref(ref))
    return found


def shapes_of(repo: Repository, manifest: Manifest, model: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors, views among them, by name."""
    entry = find_model(manifest, model)
    found = {name: tensor.spec.shape for name, tensor in tensors_of(repo, manifest, entry).items()}
    return found | {view.name: view.spec.shape for view in view_entries(views_of(repo, manifest, entry))}


def kept_statistics(repo: Repository) -> Statistics:
    """What is kept beside the commits.  Raises IntegrityError when the list is missing or damaged."""
    return repo.statistics_records.read_current(lambda: repo.roots.read().root.statistics)


def kept_estimates(repo: Repository, *, weights: str = "") -> list[KeptEstimate]:
    """The estimates that are kept (of certain weights), the newest first.

    Raises IntegrityError when the list is missing or damaged.
    """
    return [item for item in reversed(kept_statistics(repo).fishers) if not weights or item.weights == weights]


def keep(
    repo: Repository,
    estimates: Collection[tuple[str, FisherId]],
    description: str,
    *,
    session: PackSession,
    origin: str = "",
) -> None:
    """List estimates, by key, in the root; their packs are in `session`, sealed."""
    now = time.time_ns() // 1_000_000
    fresh = [KeptEstimate(key=key, id=object_id, time_ms=now, origin=origin) for key, object_id in estimates]
    repo.publish(lambda view: view, description, session=session, keep=lambda record: with_estimates(record, fresh))


def find_kept(repo: Repository, name: str) -> KeptEstimate:
    """The kept estimate whose id begins with `name`; "latest" is the newest.

    Raises UsageError when that is none or several.
    """
    known = kept_estimates(repo)
    if name == "latest" and known:
        return known[0]
    digits = name.removeprefix("b3:").lower()
    found = {item.id: item for item in known if item.id.hex.startswith(digits)} if len(digits) >= 4 else {}
    if len(found) != 1:
        what = f"`{name}` could be {len(found)} estimates" if found else f"no Fisher estimate `{name}`"
        raise UsageError(what, hint="`mgit fisher list` shows them, `mgit fisher REV` makes one")
    return next(iter(found.values()))


def forget_all(repo: Repository) -> None:
    """Begin a new list of kept estimates, whether or not the one that the root names can be read.

    Notes stay unless they are lost with a list that is damaged.
    """

    def without(record: Statistics) -> Statistics:
        return msgspec.structs.replace(record, fishers=())

    try:
        kept_statistics(repo)
    except IntegrityError:
        repo.publish(lambda view: view, "fisher: remove all", keep=Statistics())
    else:
        repo.publish(lambda view: view, "fisher: remove all", keep=without)


def forget(repo: Repository, kept: KeptEstimate) -> None:
    """Take an estimate off the list; `mgit gc` frees its bytes."""

    def without(record: Statistics) -> Statistics:
        return msgspec.structs.replace(record, fishers=tuple(item for item in record.fishers if item.id != kept.id))

    repo.publish(lambda view: view, "fisher: remove", keep=without)
