"""What a commit needs: everything below it, named and described, without what its ancestors have already."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from modelgit.errors import CheckpointFormatError, IntegrityError
from modelgit.objects import (
    BlobId,
    Commit,
    CommitId,
    ContentId,
    FileContent,
    Literal,
    Manifest,
    Mask,
    MaskId,
    ObjectId,
    Patch,
    check_view,
)
from modelgit.objects.graph import topological
from modelgit.objects.paths import check_tree
from modelgit.remotes.base import Needed
from modelgit.store.base import ObjectStore
from modelgit.store.metadata import read_record

__all__ = ["check_content", "closure", "new_commits", "shown_name", "weights_of"]


def new_commits(
    store: ObjectStore, tips: Iterable[CommitId], *, stop: Collection[CommitId] = ()
) -> dict[CommitId, Commit]:
    """The commits reachable from `tips` but not in `stop`, parents before children."""
    known: dict[CommitId, Commit] = {}

    def parents(commit: CommitId) -> tuple[CommitId, ...]:
        known[commit] = read_record(store, commit, Commit)
        return known[commit].parents

    order = list(topological(tips, parents, lambda commit: known[commit].committer.time_s, stop=stop))
    return {commit: known[commit] for commit in reversed(order)}


def closure(
    store: ObjectStore, commits: dict[CommitId, Commit], *, pruned: Collection[CommitId] = ()
) -> Iterator[Needed]:
    """All objects that `commits` (parents before children, see `new_commits`) need, children before parents, each once.

    A parent outside `commits` is a commit that the other side has, with all that belongs to it; what it shares with its
    child is left out, and so are the weights of commits that the other side has `pruned`.  Only metadata is read.
    Raises IntegrityError for metadata that is missing or makes no sense.
    """
    seen: set[ObjectId] = set()

    def once(item: Needed) -> Iterator[Needed]:
        if item.id not in seen:
            seen.add(item.id)
            yield item

    for commit_id, commit in commits.items():
        manifest = read_record(store, commit.manifest, Manifest)
        check_tree(entry.path for entry in manifest.files)
        for parent in commit.parents:
            if parent not in commits:
                seen |= {parent} if parent in pruned else _shared(store, parent, manifest)
        dropped = {path for model in manifest.models for path in model.weights} if commit_id in pruned else ()
        for entry in manifest.files:
            if entry.path in dropped:
                continue
            if entry.digest not in seen:
                yield from _content(store, entry.digest, entry.path, entry.size, seen)
        for entry in manifest.files:
            if entry.path in dropped and entry.digest not in seen:
                # Not `seen`: its tensors may be needed by another commit.
                yield Needed(entry.digest, entry.path, whole=False)
        yield from once(Needed(commit.manifest, f"files of commit {commit_id.short}"))
        patch = read_record(store, commit.patch, Patch)
        for mask in patch.masks:
            if mask not in seen:
                yield from _mask(store, mask, seen)
        yield from once(Needed(commit.patch, f"patch of commit {commit_id.short}"))
        for verdict in commit.verdicts:
            yield from once(Needed(verdict.record, f"verdict on commit {commit_id.short}"))
        yield from once(Needed(commit_id, f"commit {commit_id.short}"))


def weights_of(store: ObjectStore, commit: Commit) -> set[ObjectId]:
    """The tensors and literals of the files that a model of `commit` calls weights.  Reads metadata only."""
    manifest = read_record(store, commit.manifest, Manifest)
    paths = {path for model in manifest.models for path in model.weights}
    found: set[ObjectId] = set()
    for entry in manifest.files:
        if entry.path in paths:
            found |= _parts(read_record(store, entry.digest, FileContent))
    return found


def _parts(content: FileContent) -> set[ObjectId]:
    blobs = {segment.blob for segment in content.segments if isinstance(segment, Literal)}
    return {*blobs, *(tensor.id for tensor in content.tensors)}


def _shared(store: ObjectStore, parent: CommitId, manifest: Manifest) -> set[ObjectId]:
    """What the other side has through `parent` and `manifest` may need again."""
    record = read_record(store, parent, Commit)
    old = read_record(store, record.manifest, Manifest)
    shared: set[ObjectId] = {parent, record.manifest, *(entry.digest for entry in old.files)}
    kept = {entry.digest for entry in manifest.files}
    if kept <= shared:
        return shared
    for entry in old.files:
        if entry.digest not in kept:  # replaced or moved: its tensors may live on in another file
            shared |= _parts(read_record(store, entry.digest, FileContent))
    return shared


def _content(store: ObjectStore, content_id: ContentId, path: str, size: int, seen: set[ObjectId]) -> Iterator[Needed]:
    content = read_record(store, content_id, FileContent)
    check_content(content, path, size)
    for tensor in content.tensors:
        if tensor.id not in seen:
            seen.add(tensor.id)
            yield Needed(tensor.id, f"{shown_name(tensor.name)} of {path}", tensor.spec, tensor.spec.size_bytes)
    blobs: dict[BlobId, int] = {}
    for segment in content.segments:
        if isinstance(segment, Literal):
            blobs[segment.blob] = max(blobs.get(segment.blob, 0), segment.offset + segment.length)
    for blob, length in blobs.items():
        if blob not in seen:
            seen.add(blob)
            yield Needed(blob, f"bytes of {path}", None, length)
    seen.add(content_id)
    yield Needed(content_id, path)


def _mask(store: ObjectStore, mask_id: MaskId, seen: set[ObjectId]) -> Iterator[Needed]:
    mask = read_record(store, mask_id, Mask)
    for region in mask.regions:
        if region.positions is not None and region.positions not in seen:
            seen.add(region.positions)
            yield Needed(region.positions, f"positions of {shown_name(region.name)}")
    seen.add(mask_id)
    yield Needed(mask_id, f"mask of {shown_name(mask.model)}")


def shown_name(name: str) -> str:
    """A name that a stranger chose, fit for a message."""
    return name if name.isprintable() and len(name) <= 120 else ascii(name[:120])


def check_content(content: FileContent, path: str, size: int) -> None:
    """Raise IntegrityError unless the segments exist, and together are as long as the file says it is."""
    total = 0
    try:
        for tensor in content.tensors:
            tensor.spec.check()
        for segment in content.segments:
            if isinstance(segment, Literal):
                length = segment.length
                if segment.offset < 0:
                    raise IntegrityError(f"{path!a} has a segment that begins at byte {segment.offset}")
            elif 0 <= segment.index < len(content.tensors):
                length = content.tensors[segment.index].spec.size_bytes
            else:
                raise IntegrityError(f"{path!a} names tensor {segment.index} of {len(content.tensors)}")
            if length < 0:
                raise IntegrityError(f"{path!a} has a segment of {length} bytes")
            total += length
        for view in content.views:
            if not 0 <= view.tensor < len(content.tensors):
                raise IntegrityError(f"{path!a} has a view of tensor {view.tensor} of {len(content.tensors)}")
            check_view(view, content.tensors[view.tensor].spec)
    except CheckpointFormatError as error:
        raise IntegrityError(f"{path!a} holds {error.message}") from None
    if total != size:
        raise IntegrityError(f"{path!a} is said to have {size} bytes, its segments have {total}")
