"""Commits under one mask: what its positions and their values take in a real repository of MiniLM.

A random mask of half a per cent of all values (seed 0), three commits in which the values under it move as Adam moves
them (seeds 1 to 3), each stored under the mask and, for comparison, as sparse records with positions of their own.
Sizes are exact.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from parts import Plan
from table import Row

import modelgit
from modelgit.environment import Environment
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.integrations.demo.assets import minilm_weights
from modelgit.objects import Mask
from modelgit.patching.positions import is_maskable
from modelgit.repo import Repository
from modelgit.repo.contents import tensors_of
from modelgit.repo.patches.masks import keep_mask
from modelgit.repo.tracking.commit_records import CommitResult

_DENSITY = 0.005
_STEP = 1.6e-4  # a rate of 2e-5 for some sixty steps that half agree
_FILE = "model.safetensors"
_GROUP = "Commits under a mask (0.5 % of MiniLM, fp32)"

Places = dict[str, tuple[int, int]]  # offset in the file and number of values, by tensor


def rows(plan: Plan) -> Iterator[Row]:
    """Bits of a position, and what three commits store with and without a mask."""
    environment = Environment.capture()
    data = minilm_weights(environment).read_bytes()
    places = _places(minilm_weights(environment))
    positions = _positions(places)
    count = sum(at.size for at in positions.values())
    stored: dict[str, list[int]] = {}
    for way in ("under the mask", "as sparse records"):
        folder = plan.work / "records"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with modelgit.init(folder, environment=replace(environment, cwd=folder, author="A <a@example.org>")) as repo:
            state = bytearray(data)
            base = _put(repo, state, "base", track=True)
            names: tuple[str, ...] = ()
            if way == "under the mask":
                before = _packs(repo)
                tensors = tensors_of(repo, base.manifest, base.manifest.models[0])
                made_mask = keep_mask(repo, _FILE, positions, tensors, origin="random")
                mask, names = made_mask.record, (made_mask.id.hex,)
                bits = 8 * (_packs(repo) - before) / count
                yield Row(_GROUP, "the mask in all, a position", bits, "bits", 9.8, "at most", "headers and index too")
            for seed in (1, 2, 3):
                _train(state, places, positions, seed)
                before = _packs(repo)
                made = _put(repo, state, f"step {seed}", masks=names)
                stored.setdefault(way, []).append(_packs(repo) - before)
                if names and seed > 1:
                    own = _own_positions(repo, made, mask)
                    yield Row(_GROUP, f"commit {seed}: records with positions of their own", own, "", 0, "at most")
        shutil.rmtree(folder)
    for way, sizes in stored.items():
        each = ", ".join(f"{size:,}" for size in sizes)
        yield Row(_GROUP, f"a commit {way}, a value", 8 * sum(sizes) / len(sizes) / count, "bits", note=f"{each} bytes")


def _places(path: Path) -> Places:
    with FileReader(path, shown=_FILE) as reader:
        scanned = scan_reader(reader)
    return {
        scanned.tensors[item.tensor].name: (item.offset, item.length // 4)
        for item in scanned.ranges
        if item.tensor is not None
        and scanned.tensors[item.tensor].spec.dtype == "F32"
        and is_maskable(scanned.tensors[item.tensor].spec)
    }


def _positions(places: Places) -> dict[str, np.ndarray]:
    total = sum(count for _, count in places.values())
    flat = np.sort(np.random.default_rng(0).choice(total, round(_DENSITY * total), replace=False))
    found, first = {}, 0
    for name, (_, count) in places.items():
        low, high = np.searchsorted(flat, (first, first + count))
        found[name] = flat[low:high] - first
        first += count
    return found


def _train(state: bytearray, places: Places, positions: dict[str, np.ndarray], seed: int) -> None:
    random = np.random.default_rng(seed)
    for name, (offset, count) in places.items():
        values = np.frombuffer(state, "<f4", count=count, offset=offset)
        values[positions[name]] += (_STEP * random.standard_normal(positions[name].size)).astype("<f4")


def _put(
    repo: Repository, state: bytearray, message: str, *, track: bool = False, masks: tuple[str, ...] = ()
) -> CommitResult:
    (repo.worktree / _FILE).write_bytes(state)
    if track:
        repo.track(_FILE)
    return repo.commit(message, masks=masks)


def _packs(repo: Repository) -> int:
    return sum(path.stat().st_size for path in repo.store.packs_path.iterdir())


def _own_positions(repo: Repository, made: CommitResult, mask: Mask) -> int:
    """How many records of a commit do not take their positions from the mask."""
    tensors = tensors_of(repo, made.manifest, made.manifest.models[0])
    blobs = {region.positions.digest for region in mask.regions if region.positions is not None}
    found = (item for change in made.patch.tensors for item in repo.store.locate(tensors[change.name].id))
    return sum(item.positions not in blobs for item in found if not item.is_leaf_table)
