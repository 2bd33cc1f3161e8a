"""FISH masks of a repository: made from a Fisher pass, kept by id, checked at commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.numerics.sections import decode_section, encode_section
from modelgit.numerics.sparse import decode_positions
from modelgit.objects import Manifest, Mask, MaskId, MaskRegion, TensorEntry, TensorSpec
from modelgit.patching.base import TensorReads, windows
from modelgit.patching.encode import write_blob
from modelgit.patching.positions import Section
from modelgit.progress import SILENT, Progress
from modelgit.repo.load import ModelState, find_model
from modelgit.repo.tasks import open_task, task_settings
from modelgit.store.base import ObjectStore
from modelgit.store.durable import write_durably
from modelgit.store.metadata import read_record, write_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "CreatedMask",
    "create_mask",
    "find_mask",
    "keep_mask",
    "list_masks",
    "mask_positions",
    "mask_sections",
    "outside_mask",
    "remove_mask",
]

Positions = Mapping[str, NDArray[np.int64] | None]
SCORES = ("fisher", "magnitude", "random", "bias")


class CreatedMask(NamedTuple):
    """A mask that was made; `cached_fisher` says that no Fisher pass was needed for it."""

    id: MaskId
    mask: Mask
    examples: int
    cached_fisher: bool


def create_mask(
    repo: Repository,
    *,
    density: float,
    task: str | None = None,
    revision: str = "HEAD",
    score: str = "fisher",
    budget: str = "global",
    examples: int = 512,
    seed: int = 0,
    progress: Progress = SILENT,
) -> CreatedMask:
    """Choose the values to train: the `density` share of a task's model with the highest scores (FISH).

    The task's head is taken whole and counted; other heads of the checkpoint are no part of the model.  Sung, Nair and
    Raffel, "Training Neural Networks with Fixed Sparse Masks", NeurIPS 2021.
    """
    if score not in SCORES:
        raise UsageError(f"no score `{score}`", hint=f"known: {', '.join(SCORES)}")
    from modelgit.fisher.mask import bias_mask, top_mask
    from modelgit.fisher.scores import fisher_scores, magnitude_scores, random_scores
    from modelgit.repo.fisher import diagonal_of, estimate_fisher

    name, settings = task_settings(repo, task)
    manifest = repo.manifest_of(repo.resolve(revision))
    entry = find_model(manifest, settings.model)
    tensors = repo.tensors_of(manifest, entry)
    used, cached = 0, True
    if score == "fisher":
        stored = estimate_fisher(repo, task=name, revision=revision, examples=examples, seed=seed, progress=progress)
        used, cached = stored.estimate.examples, stored.cached
        diagonal = diagonal_of(repo, stored.estimate)
        head = {tensor for tensor in diagonal if tensor.startswith(settings.head + ".")}
        positions = top_mask(fisher_scores(diagonal), density=density, head=head, budget=budget)
        origin = f"FISH, density {density:g}, task {name}, {used} examples, {stored.estimate.estimator}, {budget}"
    else:
        model = open_task(repo, manifest, settings)
        names = sorted(set(model.tensor_of.values()))
        head = {model.tensor_of[parameter] for parameter in model.head}
        shapes = {tensor: tensors[tensor].spec.shape for tensor in names}
        if score == "bias":
            positions = bias_mask(shapes, head=head)
        elif score == "random":
            positions = top_mask(random_scores(shapes, seed=seed), density=density, head=head, budget=budget)
        else:
            state = ModelState(entry.path, tensors, repo.reader()).arrays()
            weights = {tensor: np.asarray(state[tensor], np.float32) for tensor in names}
            positions = top_mask(magnitude_scores(weights), density=density, head=head, budget=budget)
        origin = f"{score}, density {density:g}, task {name}, seed {seed}, {budget}"
    mask_id, mask = keep_mask(repo, settings.model, positions, tensors, origin)
    return CreatedMask(mask_id, mask, used, cached)


def keep_mask(
    repo: Repository, model: str, positions: Positions, tensors: Mapping[str, TensorEntry], origin: str
) -> tuple[MaskId, Mask]:
    """Store a mask of `positions` by tensor name (None: all) of the model at `model`, and keep it in this clone."""
    with repo.lock:
        with repo.session() as session:
            chosen = {name: at for name, at in sorted(positions.items()) if at is None or at.size}
            coded = {
                name: encode_section(at, tensors[name].spec.elements) for name, at in chosen.items() if at is not None
            }
            # One blob for all tensors: two values of a bias are not worth an object of their own.
            blob = write_blob(session, b"".join(coded.values()), name="positions") if coded else None
            regions = []
            offset = 0
            for name, at in chosen.items():
                spec = tensors[name].spec
                if at is None:
                    regions.append(MaskRegion(name=name, spec=spec, count=spec.elements))
                    continue
                length = len(coded[name])
                regions.append(
                    MaskRegion(name=name, spec=spec, count=int(at.size), positions=blob, offset=offset, length=length)
                )
                offset += length
            mask = Mask(model=model, regions=tuple(regions), origin=origin)
            mask_id = write_record(session, MaskId, mask)
            session.seal()
        repo.paths.masks.mkdir(parents=True, exist_ok=True)
        write_durably(repo.paths.masks / mask_id.hex, f"{mask_id}\n".encode())
    return mask_id, mask


def list_masks(repo: Repository) -> list[tuple[MaskId, Mask]]:
    """Masks that this clone keeps, the newest first."""
    if not repo.paths.masks.is_dir():
        return []
    files = [file for file in repo.paths.masks.iterdir() if len(file.name) == 64]
    ids = [MaskId(bytes.fromhex(file.name)) for file in sorted(files, key=lambda file: -file.stat().st_mtime_ns)]
    return [(mask_id, read_record(repo.store, mask_id, Mask)) for mask_id in ids]


def find_mask(repo: Repository, name: str) -> tuple[MaskId, Mask]:
    """The mask whose id begins with `name`; "latest" is the newest.  Raises UsageError when that is none or several."""
    masks = list_masks(repo)
    if name == "latest" and masks:
        return masks[0]
    digits = name.removeprefix("b3:")
    found = [item for item in masks if item[0].hex.startswith(digits)] if len(digits) >= 4 else []
    if len(found) != 1:
        what = f"`{name}` could be {len(found)} masks" if found else f"no mask `{name}`"
        raise UsageError(what, hint="`mgit mask list` shows them, `mgit mask create --density 0.5%` makes one")
    return found[0]


def remove_mask(repo: Repository, name: str) -> MaskId:
    """Forget a mask; commits that were made under it keep it."""
    with repo.lock:
        mask_id, _ = find_mask(repo, name)
        (repo.paths.masks / mask_id.hex).unlink(missing_ok=True)
    return mask_id


def mask_positions(repo: Repository, mask: Mask) -> dict[str, NDArray[np.int64] | None]:
    """Ascending element indices by tensor name; None means every element."""
    found: dict[str, NDArray[np.int64] | None] = {}
    reader = repo.reader()
    for region in mask.regions:
        if region.positions is None:
            found[region.name] = None
        elif region.length:
            stop = region.offset + region.length
            data = bytes(reader.read(region.positions, region.offset, stop))
            found[region.name] = decode_section(data, region.spec.elements, max_count=region.count)
        else:  # a mask from before tensors shared a blob
            data = reader.read_blob(region.positions)
            found[region.name] = decode_positions(data, region.spec.elements, max_count=region.count)
    return found


def mask_sections(masks: Iterable[Mask]) -> dict[str, list[tuple[TensorSpec, Section]]]:
    """By tensor name, where the positions of masks lie and the spec of what they are positions in."""
    found: dict[str, list[tuple[TensorSpec, Section]]] = {}
    for mask in masks:
        for region in mask.regions:
            if region.positions is not None and region.length:
                section = Section(region.positions, region.offset, region.length)
                found.setdefault(region.name, []).append((region.spec, section))
    return found


def outside_mask(
    repo: Repository, mask: Mask, before: Manifest, after: Manifest, *, new_store: ObjectStore | None = None
) -> dict[str, int]:
    """How many values outside of the mask differ between two manifests, by tensor; empty when none does."""
    old = repo.tensors_of(before, find_model(before, mask.model))
    new = repo.tensors_of(after, find_model(after, mask.model), store=new_store)
    positions = mask_positions(repo, mask)
    reader = repo.reader(new_store)
    strayed: dict[str, int] = {}
    for name, entry in new.items():
        if name in old and old[name].id == entry.id:
            continue
        if name in positions and positions[name] is None:
            continue
        if name not in old or old[name].spec != entry.spec:
            strayed[name] = entry.spec.elements
            continue
        count = _count_outside(reader, old[name], entry, positions.get(name))
        if count:
            strayed[name] = count
    return strayed


def _count_outside(reader: TensorReads, old: TensorEntry, new: TensorEntry, allowed: NDArray[np.int64] | None) -> int:
    unit = max(1, new.spec.kind.bits // 8)
    word = np.dtype(f"<u{unit}")
    count = 0
    for start, stop in windows(new.spec.size_bytes):
        a = np.frombuffer(reader.read(old.id, start, stop), word)
        b = np.frombuffer(reader.read(new.id, start, stop), word)
        changed = a != b
        if allowed is not None:
            low, high = np.searchsorted(allowed, (start // unit, stop // unit))
            changed[allowed[low:high] - start // unit] = False
        count += int(np.count_nonzero(changed))
    return count
