"""Masks of a repository: kept by id or name, found in the history, and compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.numerics.sections import decode_section, encode_section
from modelgit.numerics.sparse import decode_positions
from modelgit.objects import BlobId, CommitId, Mask, MaskId, MaskRegion, TensorEntry, TensorSpec
from modelgit.objects.graph import topological
from modelgit.patching.encode import write_blob
from modelgit.patching.positions import Section
from modelgit.repo.contents import tensors_of
from modelgit.repo.upkeep.reach import mask_files
from modelgit.store.durable import write_durably
from modelgit.store.metadata import read_record, write_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "MaskOverlap",
    "StoredMask",
    "check_name",
    "commits_under",
    "compare_masks",
    "find_mask",
    "keep_mask",
    "list_masks",
    "mask_positions",
    "mask_sections",
    "model_sizes",
    "remove_mask",
]

Positions = Mapping[str, NDArray[np.int64] | None]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}\Z")
_LIKE_AN_ID = re.compile(r"[0-9a-f]{4,64}\Z")


@dataclass(frozen=True)
class StoredMask:
    """A mask of a repository; `integrations.torch.freeze_outside` takes it as it is.

    `names` are those that this clone gave it; `kept` is False for one that only commits keep.
    """

    id: MaskId
    record: Mask
    names: tuple[str, ...] = ()
    kept: bool = True
    repo: Repository | None = field(default=None, repr=False, compare=False)

    def positions(self) -> dict[str, NDArray[np.int64] | None]:
        """Ascending element indices by tensor name, int64; None means every element.  Reads them when called."""
        if self.repo is None:
            raise UsageError(f"mask {self.id.short} is not bound to a repository")
        return mask_positions(self.repo, self.record)

    @property
    def label(self) -> str:
        """What to call it in a command: its name, or else its short id."""
        return self.names[0] if self.names else self.id.short


class MaskOverlap(NamedTuple):
    """How much two masks have in common, in values; `jaccard` is shared / either, 1 for two empty masks."""

    first: int
    second: int
    shared: int

    @property
    def jaccard(self) -> float:
        """The intersection over the union."""
        union = self.first + self.second - self.shared
        return self.shared / union if union else 1.0


# -- keeping


def check_name(repo: Repository, name: str) -> None:
    """Refuse a name that could be taken for something else, or that another mask has."""
    if _NAME.match(name) is None or _LIKE_AN_ID.match(name) or name == "latest" or name.endswith(".tmp"):
        raise UsageError(
            f"a mask cannot be called {name[:64]!a}",
            hint="letters, digits and `._+-`, not `latest`, and nothing that could be an id",
        )
    if any(file.name == name for file, _ in mask_files(repo)):
        raise UsageError(f"there is a mask called `{name}` already", hint=f"`mgit mask remove {name}` frees the name")


def keep_mask(
    repo: Repository,
    model: str,
    positions: Positions,
    tensors: Mapping[str, TensorEntry],
    *,
    origin: str,
    total: int = 0,
    name: str | None = None,
) -> StoredMask:
    """Store a mask over `tensors` of the model at path `model`, and keep it, as `name` if that is given.

    `total` counts the values of the whole model.  Positions are ascending element indices, None for every element.
    """
    with repo.lock:
        if name is not None:
            check_name(repo, name)
        with repo.session() as session:
            coded = {
                name: encode_section(at, tensors[name].spec.elements)
                for name, at in sorted(positions.items())
                if at is not None and 0 < at.size < tensors[name].spec.elements
            }
            # One blob for all tensors: two values of a bias are not worth an object of their own.
            blob = write_blob(session, b"".join(coded.values()), name="positions") if coded else None
            regions = []
            offset = 0
            for tensor, at in sorted(positions.items()):
                spec = tensors[tensor].spec
                if tensor in coded and at is not None:
                    length = len(coded[tensor])
                    regions.append(
                        MaskRegion(
                            name=tensor, spec=spec, count=int(at.size), positions=blob, offset=offset, length=length
                        )
                    )
                    offset += length
                elif at is None or at.size:
                    regions.append(MaskRegion(name=tensor, spec=spec, count=spec.elements))
            mask = Mask(model=model, regions=tuple(regions), origin=origin, total=total)
            mask_id = write_record(session, MaskId, mask)
            session.seal()
        _write(repo, mask_id.hex, mask_id)
        if name is not None:
            _write(repo, name, mask_id)
    return StoredMask(mask_id, mask, () if name is None else (name,), True, repo)


def _write(repo: Repository, name: str, mask: MaskId) -> None:
    repo.paths.masks.mkdir(parents=True, exist_ok=True)
    write_durably(repo.paths.masks / name, f"{mask}\n".encode())


def remove_mask(repo: Repository, name: str) -> StoredMask:
    """Forget a mask and its names; commits that were made under it keep it.

    Raises UsageError for one that only commits keep.
    """
    with repo.lock:
        found = find_mask(repo, name)
        if not found.kept:
            raise UsageError(
                f"mask {found.id.short} is kept by commits that were made under it, not by this clone",
                hint=f"`mgit mask show {found.id.short}` lists them",
            )
        for file in (*found.names, found.id.hex):
            (repo.paths.masks / file).unlink(missing_ok=True)
    return found


# -- finding


def _kept(repo: Repository) -> dict[MaskId, tuple[str, ...]]:
    """The masks that this clone keeps with their names, the newest first."""
    order: list[tuple[int, MaskId]] = []
    names: dict[MaskId, list[str]] = {}
    for file, mask in mask_files(repo):
        if file.name == mask.hex:
            order.append((-file.stat().st_mtime_ns, mask))
        elif _NAME.match(file.name):
            names.setdefault(mask, []).append(file.name)
    return {mask: tuple(names.get(mask, ())) for _, mask in sorted(order, key=lambda item: (item[0], item[1].hex))}


def commits_under(repo: Repository) -> dict[MaskId, tuple[CommitId, ...]]:
    """The masks that commits of any branch or tag were made under, each with these commits, newest first.

    Reads the metadata of the whole history.
    """
    found: dict[MaskId, list[CommitId]] = {}
    tips = sorted(repo.view().tips)
    for commit in topological(tips, repo.parents_of, lambda at: repo.commit_at(at).committer.time_s):
        for mask in repo.patch_of(commit).masks:
            found.setdefault(mask, []).append(commit)
    return {mask: tuple(commits) for mask, commits in found.items()}


def list_masks(repo: Repository) -> list[StoredMask]:
    """Masks that this clone keeps, the newest first, then those that only commits of the history were made under."""
    kept = _kept(repo)
    masks = [*kept, *(mask for mask in commits_under(repo) if mask not in kept)]
    return [_open(repo, mask, kept) for mask in masks if repo.store.has(mask)]


def _open(repo: Repository, mask: MaskId, kept: Mapping[MaskId, tuple[str, ...]]) -> StoredMask:
    return StoredMask(mask, read_record(repo.store, mask, Mask), kept.get(mask, ()), mask in kept, repo)


def find_mask(repo: Repository, name: str) -> StoredMask:
    """The mask called `name`, or whose id begins with it; "latest" is the newest.

    Masks that this clone keeps are looked through first, then those that commits were made under.  Raises UsageError
    when that is none or several.
    """
    kept = _kept(repo)
    called = next((mask for mask, names in kept.items() if name in names), None)
    if called is not None:
        return _open(repo, called, kept)
    digits = name.removeprefix("b3:")
    found = _matching([*kept], name, digits)
    if not found:
        found = _matching([*commits_under(repo)], name, digits)
    if len(found) != 1:
        what = f"`{name}` could be {len(found)} masks" if found else f"no mask `{name}`"
        raise UsageError(what, hint="`mgit mask list` shows them, `mgit mask create --density 0.5%` makes one")
    return _open(repo, found[0], kept)


def _matching(masks: list[MaskId], name: str, digits: str) -> list[MaskId]:
    if name == "latest":
        return masks[:1]
    return [mask for mask in masks if mask.hex.startswith(digits)] if len(digits) >= 4 else []


def mask_positions(repo: Repository, mask: Mask) -> dict[str, NDArray[np.int64] | None]:
    """Ascending element indices by tensor name; None means every element."""
    found: dict[str, NDArray[np.int64] | None] = {}
    for region in mask.regions:
        found[region.name] = _region_positions(repo, region)
    return found


def _region_positions(repo: Repository, region: MaskRegion) -> NDArray[np.int64] | None:
    if region.positions is None:
        return None
    reader = repo.reader()
    if region.length:
        data = bytes(reader.read(region.positions, region.offset, region.offset + region.length))
        return decode_section(data, region.spec.elements, max_count=region.count)
    # A mask from before tensors shared a blob.
    return decode_positions(reader.read_blob(region.positions), region.spec.elements, max_count=region.count)


def mask_sections(masks: Iterable[Mask]) -> dict[str, list[tuple[TensorSpec, Section]]]:
    """By tensor name, where the positions of masks lie and the spec of what they are positions in."""
    found: dict[str, list[tuple[TensorSpec, Section]]] = {}
    for mask in masks:
        for region in mask.regions:
            if region.positions is not None and region.length:
                section = Section(region.positions, region.offset, region.length)
                found.setdefault(region.name, []).append((region.spec, section))
    return found


def _section(region: MaskRegion) -> tuple[BlobId | None, int, int]:
    return region.positions, region.offset, region.length


# -- comparing


def compare_masks(repo: Repository, first: Mask, second: Mask) -> MaskOverlap:
    """How many values two masks share.  Holds the positions of one tensor at a time.

    Raises UsageError when they are not about the same tensors: of other shapes, or of another model.
    """
    others = {region.name: region for region in second.regions}
    shared = 0
    for region in first.regions:
        other = others.get(region.name)
        if other is None:
            continue
        if other.spec.shape != region.spec.shape:
            raise UsageError(
                f"the masks are about two models: tensor `{region.name}` has another shape in each",
                hint="`mgit mask list` shows of which model each is",
            )
        if region.positions is None or other.positions is None:
            shared += min(region.count, other.count)
        elif _section(region) == _section(other):
            shared += region.count
        else:
            one, two = _region_positions(repo, region), _region_positions(repo, other)
            if one is not None and two is not None:
                shared += int(np.intersect1d(one, two, assume_unique=True).size)
    return MaskOverlap(first.count, second.count, shared)


def model_sizes(repo: Repository, mask: Mask) -> dict[str, int]:
    """The elements of each float tensor of the mask's model in the current commit; empty if it is not there."""
    manifest = repo.manifest_of(repo.head())
    entry = manifest.model(mask.model)
    if entry is None:
        return {}
    tensors = tensors_of(repo, manifest, entry)
    return {name: tensor.spec.elements for name, tensor in tensors.items() if tensor.spec.kind.is_float}
