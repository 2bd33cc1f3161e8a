"""Where stored objects come from: the commit, file and name under which each was recorded first.  Metadata only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from modelgit.objects import (
    BlobId,
    CommitId,
    ContentId,
    FisherEstimate,
    FisherId,
    Literal,
    Manifest,
    Mask,
    MaskId,
    ObjectId,
)
from modelgit.objects.graph import topological
from modelgit.repo.upkeep.reach import kept_objects
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository
    from modelgit.repo.upkeep.collection import Key

__all__ = ["MaskNames", "Origin", "commits_in_order", "origins_of"]


class Origin(NamedTuple):
    """The first place where an object was recorded; `kind` is what people call such bytes."""

    kind: str
    name: str
    path: str
    commit: CommitId | None


def commits_in_order(repo: Repository, commits: set[CommitId]) -> list[CommitId]:
    """`commits` and all that they come from, parents first."""
    order = topological(commits, repo.parents_of, lambda commit: repo.commit_at(commit).committer.time_s)
    return list(order)[::-1]


def origins_of(repo: Repository, needed: set[Key], commits: list[CommitId]) -> dict[Key, Origin]:
    """An origin for every object of `commits` (parents first) and for the masks and estimates among `needed`."""
    found: dict[Key, Origin] = {}
    contents: set[ContentId] = set()

    def note(object_id: ObjectId, kind: str, name: str, path: str, commit: CommitId | None) -> None:
        found.setdefault((object_id.KIND, object_id.digest), Origin(kind, name, path, commit))

    for commit_id in commits:
        commit = repo.commit_at(commit_id)
        for record in (commit_id, commit.manifest, commit.patch, *(verdict.record for verdict in commit.verdicts)):
            note(record, "metadata", record.KIND, "", commit_id)
        for number, manifest_id in enumerate((commit.manifest, commit.training)):
            if manifest_id is None or (number and not repo.store.has(manifest_id)):
                continue
            if number:
                note(manifest_id, "training state", "manifest", "", commit_id)
            for object_id, kind, name, path in _files(repo, repo.manifest_at(manifest_id), bool(number), contents):
                note(object_id, kind, name, path, commit_id)
    for kind, digest in sorted(needed):
        if kind == "mask":
            note(MaskId(digest), "masks", "mask", "", None)
            for region in read_record(repo.store, MaskId(digest), Mask).regions:
                if region.positions is not None:
                    note(region.positions, "masks", "positions", "", None)
        elif kind == "fisher":
            note(FisherId(digest), "estimates", "estimate", "", None)
            estimate = read_record(repo.store, FisherId(digest), FisherEstimate)
            for entry in estimate.diagonal:
                note(entry.id, "estimates", f"Fisher information of {entry.name}", "", None)
            for gram in estimate.grams:
                note(gram.id, "estimates", f"Gram matrix of what goes into {gram.name}", "", None)
    return found


class MaskNames:
    """The masks that this clone keeps or a patch of `commits` names, by their positions; read when first asked for."""

    def __init__(self, repo: Repository, commits: Iterable[CommitId]) -> None:
        self._repo = repo
        self._commits = commits

    def of(self, positions: bytes) -> MaskId | BlobId:
        """The mask whose positions lie in the blob of this digest, or the blob where no mask is known any more."""
        return self._masks.get(positions) or BlobId(positions)

    @cached_property
    def _masks(self) -> dict[bytes, MaskId]:
        masks = {mask for mask in kept_objects(self._repo) if isinstance(mask, MaskId)}
        for commit in self._commits:
            masks.update(self._repo.patch_of(commit).masks)
        found: dict[bytes, MaskId] = {}
        for mask in sorted(masks):
            for region in read_record(self._repo.store, mask, Mask).regions:
                if region.positions is not None:
                    found.setdefault(region.positions.digest, mask)
        return found


def _files(
    repo: Repository, manifest: Manifest, is_training: bool, contents: set[ContentId]
) -> Iterator[tuple[ObjectId, str, str, str]]:
    weights = {path for model in manifest.models for path in model.weights}
    # Weights first: a tensor that lies in another file, too, is there for the model.
    for entry in sorted(manifest.files, key=lambda entry: entry.path not in weights):
        if entry.digest in contents:
            continue
        contents.add(entry.digest)
        kind = "training state" if is_training else "weights" if entry.path in weights else "other files"
        yield entry.digest, "training state" if is_training else "metadata", "content", entry.path
        content = repo.content_at(entry.digest)
        for tensor in content.tensors:
            yield tensor.id, kind, tensor.name, entry.path
        for segment in content.segments:
            if isinstance(segment, Literal):
                yield segment.blob, kind, "(header)" if content.tensors else "(bytes)", entry.path
