"""Commits under one mask store values only: the positions lie in the mask, once, and go wherever they are needed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

from modelgit.codecs.base import Layout
from modelgit.codecs.sparse import encode_values
from modelgit.errors import RepositoryError
from modelgit.objects import BlobId, CommitId, Mask, MaskId, Patch, PatchId, TensorId, View
from modelgit.repo import Repository
from modelgit.repo.contents import tensors_of
from modelgit.repo.exchange.borrow import copy as copy_borrowed
from modelgit.repo.exchange.cloning import clone
from modelgit.repo.exchange.remote import add_remote
from modelgit.repo.exchange.sync import fetch, push
from modelgit.repo.history.encodings import encodings
from modelgit.repo.patches.masks import keep_mask, mask_positions, remove_mask
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect
from modelgit.repo.upkeep.prune import prune
from modelgit.repo.upkeep.repack import repack
from modelgit.repo.upkeep.usage import usage
from modelgit.store.base import Located
from modelgit.store.metadata import write_record
from tests.conftest import environment_at

SHAPES = {"embed.weight": (9_000, 300), "a.weight": (700, 500), "a.bias": (500,), "b.weight": (300, 900), "norm": (64,)}
DENSITY = 0.005


def base_model(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: (0.05 * random.standard_normal(shape)).astype("<f4") for name, shape in SHAPES.items()}


def random_positions(arrays: Mapping[str, np.ndarray], density: float = DENSITY) -> dict[str, np.ndarray]:
    """A share of all values, drawn over all tensors at once."""
    random = np.random.default_rng(7)
    total = sum(array.size for array in arrays.values())
    flat = np.sort(random.choice(total, round(density * total), replace=False))
    found, first = {}, 0
    for name, array in arrays.items():
        found[name] = flat[(flat >= first) & (flat < first + array.size)] - first
        first += array.size
    return found


def trained(arrays: Mapping[str, np.ndarray], positions: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The values under a mask moved as an optimiser moves them."""
    random = np.random.default_rng(seed)
    out = {name: array.copy() for name, array in arrays.items()}
    for name, at in positions.items():
        flat = out[name].reshape(-1)
        flat[at] += (1e-3 * random.standard_normal(at.size)).astype("<f4")
    return out


def put(repo: Repository, files, arrays: Mapping[str, np.ndarray], message: str, **options: object):
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    return repo.commit(message, **options)


def records(repo: Repository, result) -> dict[str, Located]:
    """The one record of every tensor that a commit changed."""
    found = {}
    tensors = tensors_of(repo, result.manifest, result.manifest.models[0])
    for change in result.patch.tensors:
        items = repo.store.locate(tensors[change.name].id)
        (found[change.name],) = (item for item in items if not item.is_leaf_table)
    return found


class Line:
    """A base model, a mask of half a per cent of it, and commits under the mask."""

    def __init__(self, repo: Repository, files, *, density: float = DENSITY) -> None:
        self.repo, self.files = repo, files
        self.arrays = [base_model()]
        (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(self.arrays[0]))
        repo.track("bot.safetensors")
        self.results = [repo.commit("base")]
        self.positions = random_positions(self.arrays[0], density)
        before = self.pack_bytes()
        tensors = tensors_of(repo, self.results[0].manifest, self.results[0].manifest.models[0])
        stored = keep_mask(repo, "bot.safetensors", self.positions, tensors, origin="random")
        self.mask_id, self.mask = stored.id, stored.record
        self.mask_bytes = self.pack_bytes() - before

    def pack_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.repo.store.packs_path.iterdir())

    def train(self, seed: int, *, named: bool = True):
        self.arrays.append(trained(self.arrays[-1], self.positions, seed))
        masks = (self.mask_id.hex,) if named else ()
        self.results.append(put(self.repo, self.files, self.arrays[-1], f"step {seed}", masks=masks))
        return self.results[-1]

    def value_bytes(self) -> int:
        """What the last changes take when they are coded without their positions."""
        old, new = ({name: array.reshape(-1).view("<u4") for name, array in side.items()} for side in self.arrays[-2:])
        return sum(
            len(encode_values(new[name][at], old[name][at], Layout(4, True), "balanced"))
            for name, at in self.positions.items()
            if at.size
        )

    def is_whole(self, repo: Repository | None = None) -> None:
        for result, arrays in zip(self.results, self.arrays, strict=True):
            state = (repo or self.repo).load(result.id.hex)
            assert {name: bytes(state[name].raw()) for name in state} == {
                name: array.tobytes() for name, array in arrays.items()
            }


@pytest.fixture
def line(repo: Repository, files) -> Line:
    return Line(repo, files)


def test_the_positions_of_a_mask_take_9_8_bits_and_no_commit_stores_any(line: Line) -> None:
    """The bar of issue 4; sizes are exact, so that they can be asserted."""
    count = line.mask.count
    assert count == round(DENSITY * sum(np.prod(shape) for shape in SHAPES.values()))
    # Everything that the mask added to the packs: positions, the list of tensors, headers and indices.
    assert 8 * line.mask_bytes / count <= 9.8
    blobs = {region.positions for region in line.mask.regions}
    assert len(blobs) == 1
    for seed in (1, 2, 3):
        result = line.train(seed)
        found = records(line.repo, result)
        assert set(result.encodings) == {"masked"}
        assert {BlobId(item.positions) for item in found.values()} == blobs
        # No unit falls back to positions of its own: the first byte of each would say so.
        reader = line.repo.reader()
        for name, item in found.items():
            located, table = reader.record(TensorId(item.digest))
            payload = line.repo.store.read_part(located, 0, located.length - located.header)
            forms = {payload[start] for start in table.offsets[:-1]}
            assert forms == {1}, name
        # What is left are the coded values, and headers.
        stored = sum(item.length for item in found.values())
        assert stored < 1.01 * line.value_bytes() + 64 * len(found)
    line.is_whole()


def test_it_is_smaller_than_positions_of_its_own_by_what_these_take(line: Line, make_repo, files) -> None:
    line.train(1)
    plain = make_repo("plain")
    (plain.worktree / "bot.safetensors").write_bytes(files.of_arrays(line.arrays[0]))
    plain.track("bot.safetensors")
    plain.commit("base")
    other = put(plain, files, line.arrays[1], "the same without a mask")
    saved = sum(i.length for i in records(plain, other).values()) - sum(
        i.length for i in records(line.repo, line.results[1]).values()
    )
    assert saved > 1.1 * line.mask.count


def test_later_commits_find_the_mask_by_themselves(line: Line) -> None:
    line.train(1)
    result = line.train(2, named=False)
    assert result.patch.masks == ()
    assert set(result.encodings) == {"masked"}
    line.is_whole()


def test_mask_positions_come_back(line: Line) -> None:
    found = mask_positions(line.repo, line.mask)
    assert {name: at.tolist() for name, at in found.items()} == {
        name: at.tolist() for name, at in line.positions.items() if at.size
    }
    assert isinstance(line.mask, Mask)
    assert isinstance(line.mask_id, MaskId)


def test_the_record_keeps_the_positions_alive_when_no_commit_and_no_mask_does(line: Line) -> None:
    line.train(1)
    line.train(2, named=False)
    # The mask goes, and so does every commit that lists it; the base stays.
    remove_mask(line.repo, line.mask_id.hex)
    lone = reset_to_unmasked(line)
    for work in (lambda: collect(line.repo, prune_now=True), lambda: repack(line.repo, prune_now=True)):
        work()
        assert fsck(line.repo).is_sound
        state = line.repo.load("HEAD")
        assert bytes(state["embed.weight"].raw()) == line.arrays[-1]["embed.weight"].tobytes()
    blob = line.mask.regions[0].positions
    assert blob is not None
    assert line.repo.store.has(blob)
    tensors = tensors_of(line.repo, line.results[-1].manifest, line.results[-1].manifest.models[0])
    (row,) = (row for row in line.repo.store.locate(tensors["embed.weight"].id) if not row.is_leaf_table)
    before = tensors_of(line.repo, line.results[0].manifest, line.results[0].manifest.models[0])
    assert (row.positions, row.base) == (blob.digest, before["embed.weight"].id.digest)
    assert not line.repo.store.has(line.mask_id)
    kinds = {row.name: row.bytes for row in usage(line.repo).rows}
    assert kinds["masks"] > line.mask.count
    assert sum(kinds.values()) == line.pack_bytes()
    (use,) = (row.tensor for row in usage(line.repo, by="tensor").rows if row.name == f"embed.weight@{lone.short}")
    assert use is not None
    assert use.mask == blob


def reset_to_unmasked(line: Line) -> CommitId:
    """Make the last tree the only thing that is left of its line: a commit without parents' patches that list masks."""
    repo = line.repo
    commit = repo.commit_at(repo.resolve("HEAD"))
    # A minute later: two commits of one second that do not come from each other have no order.
    later = msgspec.structs.replace(commit.committer, time_s=commit.committer.time_s + 60)
    with repo.session() as session:
        patch = write_record(session, PatchId, Patch(base=None))
        alone = msgspec.structs.replace(commit, parents=(), patch=patch, message="alone", committer=later)
        lone = write_record(session, CommitId, alone)
        session.seal()
    refs = {"heads/main": lone, "heads/base": line.results[0].id}
    repo.publish(lambda view: View(refs=refs, branch="main"), "alone", session=session)
    return lone


def test_push_clone_and_fetch_bring_the_positions(line: Line, tmp_path: Path, make_repo) -> None:
    line.train(1)
    add_remote(line.repo, "origin", str(tmp_path / "origin"))
    push(line.repo, "origin")
    copy = clone(str(tmp_path / "origin"), tmp_path / "copy", environment=environment_at(tmp_path, tmp_path))
    try:
        assert fsck(copy).is_sound
        line.is_whole(copy)
        line.train(2)
        sent = push(line.repo, "origin")
        # The second commit under the mask is values and metadata.
        assert sent.bytes_sent < 1.01 * line.value_bytes() + 3000
        fetch(copy, "origin")
        copy.switch("main", discard=True)
        line.is_whole(copy)
        assert fsck(copy).is_sound
    finally:
        copy.close()


def test_a_push_brings_positions_that_no_commit_names(line: Line, tmp_path: Path) -> None:
    line.train(1)
    line.train(2, named=False)
    remove_mask(line.repo, line.mask_id.hex)
    reset_to_unmasked(line)
    add_remote(line.repo, "origin", str(tmp_path / "origin"))
    push(line.repo, "origin")
    copy = clone(str(tmp_path / "origin"), tmp_path / "copy", environment=environment_at(tmp_path, tmp_path))
    try:
        assert fsck(copy).is_sound
        state = copy.load("HEAD")
        assert {name: bytes(state[name].raw()) for name in state} == {
            name: array.tobytes() for name, array in line.arrays[-1].items()
        }
        assert copy.store.has(line.mask.regions[0].positions)
    finally:
        copy.close()


def test_borrowed_records_are_read_at_the_lender_and_copied_with_their_positions(line: Line, tmp_path: Path) -> None:
    line.train(1)
    place = environment_at(tmp_path, tmp_path)
    lender = str(line.repo.worktree)
    borrower = clone(lender, tmp_path / "copy", borrow=[lender], environment=place)
    try:
        line.is_whole(borrower)
        copy_borrowed(borrower)
        shutil.move(line.repo.worktree, tmp_path / "away")
        line.is_whole(borrower)
        assert fsck(borrower).is_sound
    finally:
        borrower.close()


def test_repack_takes_positions_from_a_mask_of_the_history(line: Line) -> None:
    """Commits that were made without the mask: once one lists it, repacking finds it for the others."""
    line.train(1, named=False)
    assert line.results[-1].encodings == {"sparse": len(records(line.repo, line.results[-1]))}
    line.train(2)
    size = line.pack_bytes()
    report = repack(line.repo, prune_now=True)
    assert report.recoded >= 3
    assert line.pack_bytes() < size - line.mask.count // 2
    assert all(item.positions for name, item in records(line.repo, line.results[1]).items() if name != "a.bias")
    line.is_whole()
    assert fsck(line.repo).is_sound
    again = line.pack_bytes()
    assert repack(line.repo, effort="tight").bytes_after <= again
    line.is_whole()


def test_pruned_weights_do_not_take_the_positions_of_others(line: Line) -> None:
    line.repo.switch("runs/a", create=True)
    for seed in (1, 2, 3):
        line.train(seed)
    text = (line.repo.worktree / "mgit.toml").read_text()
    (line.repo.worktree / "mgit.toml").write_text(text + '[retention."runs/*"]\nlast = 1\n')
    line.repo.forget_settings()
    done = prune(line.repo)
    assert done.pruned == 2
    assert fsck(line.repo).is_sound
    state = line.repo.load("HEAD")
    assert bytes(state["embed.weight"].raw()) == line.arrays[-1]["embed.weight"].tobytes()


def test_few_of_the_masks_values_and_some_outside(line: Line) -> None:
    """A hundred of the mask's values; then one value outside of it, which the mask does not explain."""
    random = np.random.default_rng(3)
    few = {name: np.sort(random.choice(at, min(at.size, 100), replace=False)) for name, at in line.positions.items()}
    line.train(1)
    full, line.positions = line.positions, few
    small = line.train(2)
    assert set(small.encodings) == {"masked"}
    assert sum(item.length for item in records(line.repo, small).values()) < 350 * 5
    line.positions = {**full, "a.weight": np.union1d(full["a.weight"], [int(full["a.weight"][0]) + 1])}
    outside = line.train(3, named=False)
    assert outside.encodings == {"masked": len(outside.patch.tensors) - 1, "sparse": 1}
    line.is_whole()
    with pytest.raises(RepositoryError, match="outside of mask"):
        line.train(4)
    line.arrays.pop()
    line.is_whole()


def test_a_merge_finds_the_mask_of_its_parents(line: Line) -> None:
    line.train(1)
    line.repo.switch("side", create=True)
    side = line.train(2)
    line.repo.switch("main", discard=True)
    line.arrays[-1] = line.arrays[1]
    main = line.train(3)
    line.repo.merge("side", strategy="average")
    merged = line.repo.commit_at(line.repo.resolve("HEAD"))
    tensors = tensors_of(line.repo, line.repo.manifest_at(merged.manifest), side.manifest.models[0])
    rows = [row for row in line.repo.store.locate(tensors["embed.weight"].id) if not row.is_leaf_table]
    assert {row.positions for row in rows} == {line.mask.regions[0].positions.digest}
    assert main.id in merged.parents
    assert fsck(line.repo).is_sound


def test_storage_reports_name_the_mask(line: Line) -> None:
    result = line.train(1)
    shown = {item.name: item for item in encodings(line.repo, result.id)}
    assert {item.mask for item in shown.values()} == {line.mask_id}
    assert shown["embed.weight"].codec == "masked"
    assert "smallest" in shown["embed.weight"].reason
    assert {row.tensor.mask for row in usage(line.repo, by="tensor").rows if row.tensor and row.tensor.base} == {
        line.mask_id
    }


@pytest.mark.parametrize("quick", [True, False])
def test_fsck_finds_positions_that_are_missing(line: Line, quick: bool) -> None:
    line.train(1)
    remove_mask(line.repo, line.mask_id.hex)
    blob = line.mask.regions[0].positions
    (row,) = line.repo.store.locate(blob)
    line.repo.store.close()
    (line.repo.store.packs_path / row.pack).unlink()
    line.repo.store.lookup.refresh()
    findings = fsck(line.repo, quick=quick).findings
    assert len([item for item in findings if str(blob) in item.problem]) >= 4


def test_the_second_reader_agrees(line: Line, second_reader: ModuleType) -> None:
    line.train(1)
    line.train(2)
    repository = second_reader.Repository(line.repo.paths.directory)
    for result, arrays in zip(line.results, line.arrays, strict=True):
        found = repository.files(bytes.fromhex(result.id.hex))
        assert found["bot.safetensors"] == line.files.of_arrays(arrays)
