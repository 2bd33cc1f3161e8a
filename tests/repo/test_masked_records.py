"""Commits under one mask store values only: the positions lie in the mask, once, and go wherever they are needed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from modelgit.codecs.base import Layout
from modelgit.codecs.sparse import encode_values
from modelgit.objects import BlobId, Mask, MaskId, TensorId
from modelgit.repo import Repository
from modelgit.repo.masks import keep_mask, mask_positions
from modelgit.store.base import Located

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
    tensors = repo.tensors_of(result.manifest, result.manifest.models[0])
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
        tensors = repo.tensors_of(self.results[0].manifest, self.results[0].manifest.models[0])
        self.mask_id, self.mask = keep_mask(repo, "bot.safetensors", self.positions, tensors, "random")
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
