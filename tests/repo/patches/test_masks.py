"""Masks of a repository against a naive choice over all weights, and what applying one does to the work tree."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import modelgit
from modelgit.errors import NothingToDo, RepositoryError, UsageError
from modelgit.repo import Repository
from modelgit.repo.patches.masks import commits_under, compare_masks, find_mask, remove_mask
from modelgit.repo.tracking.undo import redo, undo
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect

pytest.importorskip("torch")


def save(repo: Repository, files, arrays: dict[str, np.ndarray], *, kind: str = "F32") -> None:
    raw = {name: (kind, array.shape, array.tobytes()) for name, array in arrays.items()}
    (repo.worktree / "bot.safetensors").write_bytes(files.safetensors(raw))


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(4)
    return {
        "layers.0.weight": draw.standard_normal((20, 30)).astype("<f4"),
        "layers.0.bias": np.zeros(30, "<f4"),
        "layers.1.weight": draw.standard_normal((20, 30)).astype("<f4"),
        "norm.running_mean": np.full(30, 9, "<f4"),
        "scale": np.array(0.5, "<f4"),
        "top.weight": draw.standard_normal((2, 30)).astype("<f4"),
    }


@pytest.fixture
def plain(repo: Repository, files, weights) -> Repository:
    """One commit of a model without any task; a table of integers and a running mean are in it."""
    raw = {name: ("F32", array.shape, array.tobytes()) for name, array in weights.items()}
    raw["ids"] = ("I64", (4,), np.arange(4).tobytes())
    (repo.worktree / "bot.safetensors").write_bytes(files.safetensors(raw))
    repo.track("bot.safetensors")
    repo.commit("base", gate="warn")
    return repo


TRAINABLE = ("layers.0.bias", "layers.0.weight", "layers.1.weight", "scale", "top.weight")
TOTAL = 600 + 30 + 600 + 1 + 60


def naive(scores: dict[str, np.ndarray], count: int, *, changed: bool = False) -> dict[str, list[int]]:
    names = sorted(scores)
    flat = np.concatenate([np.ravel(scores[name]).astype(np.float64) for name in names])
    order = [at for at in np.argsort(-flat, kind="stable") if flat[at] > 0 or not changed][:count]
    starts = np.cumsum([0, *(scores[name].size for name in names)])
    found: dict[str, list[int]] = {}
    for at in sorted(order):
        where = int(np.searchsorted(starts, at, side="right")) - 1
        found.setdefault(names[where], []).append(int(at - starts[where]))
    return found


def lists(mask) -> dict[str, list[int]]:
    sizes = {region.name: region.spec.elements for region in mask.record.regions}
    return {name: list(range(sizes[name])) if at is None else at.tolist() for name, at in mask.positions().items()}


def test_magnitude_without_a_task_leaves_out_what_is_no_parameter(plain: Repository, weights) -> None:
    made = plain.create_mask(density=0.1, score="magnitude")
    assert made.mask.record.total == TOTAL and made.examples == 0
    assert lists(made.mask) == naive({name: np.abs(weights[name]) for name in TRAINABLE}, round(0.1 * TOTAL))
    assert lists(plain.mask(made.mask.id.hex[:8])) == lists(made.mask)


def test_heads_patterns_and_budgets(plain: Repository, weights) -> None:
    made = plain.create_mask(density=0.2, score="magnitude", head=["top"], include=["layers.*"], exclude=["*.bias"])
    count = round(0.2 * TOTAL) - 60
    expected = naive({name: np.abs(weights[name]) for name in ("layers.0.weight", "layers.1.weight")}, count)
    assert lists(made.mask) == {**expected, "top.weight": list(range(60))}
    assert made.mask.positions()["top.weight"] is None
    by_tensor = plain.create_mask(density=0.1, score="random", budget="tensor", seed=3).mask
    shares = {region.name: region.count for region in by_tensor.record.regions}
    assert shares["layers.0.weight"] == shares["layers.1.weight"] == 60 and sum(shares.values()) == round(0.1 * TOTAL)
    again = plain.create_mask(density=0.1, score="random", budget="tensor", seed=3).mask
    assert again.id == by_tensor.id
    assert plain.create_mask(density=0.1, score="random", budget="tensor", seed=4).mask.id != by_tensor.id
    biases = plain.create_mask(score="bias").mask
    assert biases.positions() == {"layers.0.bias": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "fishy", "density": 0.1}, "no score `fishy`"),
        ({"score": "magnitude"}, "which density"),
        ({"score": "bias", "density": 0.1}, "takes no density"),
        ({"score": "fisher", "density": 0.1}, "which task"),
        ({"score": "gradient", "density": 0.1}, "which task"),
        ({"score": "gradient", "density": 0.1, "from_diff": ("HEAD", "HEAD")}, "does not go with a difference"),
        ({"score": "magnitude", "density": 0.01, "head": ["top"]}, "the head alone has 60 values"),
        ({"score": "magnitude", "density": 0.5, "head": ["hat"]}, "begins with hat"),
        ({"score": "magnitude", "density": 0.5, "include": ["hat*"]}, "matches `hat\\*`"),
        ({"score": "magnitude", "density": 0.5, "include": ["scale"]}, "only 1 of 1,291 may train"),
        ({"score": "magnitude", "density": 0.1, "name": "latest"}, "cannot be called"),
        ({"score": "magnitude", "density": 0.1, "name": "beef"}, "cannot be called"),
        ({"score": "magnitude", "density": 0.1, "name": "../x"}, "cannot be called"),
    ],
)
def test_choices_that_cannot_be_made_leave_nothing_behind(plain: Repository, options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plain.create_mask(**options)
    assert plain.masks() == []


@pytest.mark.parametrize("head", [[], ["top"]])
def test_two_commits_with_the_same_weights_give_no_mask(plain: Repository, head: list[str]) -> None:
    """Not even one of the head, which is taken whole where anything changed."""
    with pytest.raises(NothingToDo, match="HEAD has the same trainable values of"):
        plain.create_mask(density=0.1, score="magnitude", from_diff=("HEAD", "HEAD"), head=head)
    assert plain.masks() == []


def test_a_difference_names_the_values_that_changed_most(plain: Repository, files, weights) -> None:
    tuned = {name: array.copy() for name, array in weights.items()}
    tuned["layers.1.weight"][3, 4:20] += np.linspace(0.1, 1, 16, dtype="<f4")
    tuned["layers.0.bias"][2] = -5
    save(plain, files, tuned)
    plain.commit("dense", gate="warn")
    deltas = {name: np.abs(tuned[name].astype(float) - weights[name].astype(float)) for name in TRAINABLE}
    few = plain.create_mask(density=0.005, score="magnitude", from_diff=("HEAD~1", "HEAD"))
    assert lists(few.mask) == naive(deltas, round(0.005 * TOTAL)) and few.allowed == 6
    everything = plain.create_mask(density=0.5, score="magnitude", from_diff=("HEAD~1", "HEAD"))
    assert lists(everything.mask) == naive(deltas, TOTAL, changed=True)
    assert everything.mask.record.count == 17 < everything.allowed == round(0.5 * TOTAL)
    by_chance = plain.create_mask(density=0.005, score="random", from_diff=("HEAD~1", "HEAD")).mask
    assert by_chance.record.count == 6
    assert all(set(at) <= set(lists(everything.mask)[name]) for name, at in lists(by_chance).items())
    save(plain, files, {**tuned, "scale": np.zeros(2, "<f4")})
    plain.commit("another shape", gate="warn")
    with pytest.raises(UsageError, match="has another shape of `scale`"):
        plain.create_mask(density=0.1, score="magnitude", from_diff=("HEAD~2", "HEAD"))
    plain.create_mask(density=0.01, score="magnitude", from_diff=("HEAD~2", "HEAD"), exclude=["scale"])


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_weights_of_16_bits(repo: Repository, files, kind: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    element = np.dtype("<f2") if kind == "F16" else np.dtype(ml_dtypes.bfloat16)
    values = np.random.default_rng(1).standard_normal((8, 16)).astype(element)
    save(repo, files, {"w": values}, kind=kind)
    repo.track("bot.safetensors")
    repo.commit("base")
    mask = repo.create_mask(density=0.25, score="magnitude").mask
    assert lists(mask) == naive({"w": np.abs(values.astype(float))}, 32)
    save(repo, files, {"w": values * element.type(1.5)}, kind=kind)
    done = repo.apply_mask(mask.id.hex)
    assert done.total == 96
    now = np.frombuffer((repo.worktree / "bot.safetensors").read_bytes()[-256:], element).reshape(8, 16)
    inside = np.zeros(128, bool)
    inside[mask.positions()["w"]] = True
    expected = np.where(inside.reshape(8, 16), values * element.type(1.5), values)
    assert now.tobytes() == expected.tobytes()


def test_names_find_free_and_follow_a_mask(plain: Repository) -> None:
    first = plain.create_mask(density=0.1, score="magnitude", name="tone").mask
    assert first.label == "tone" and plain.mask("tone").id == plain.mask("latest").id == first.id
    with pytest.raises(UsageError, match="called `tone` already"):
        plain.create_mask(density=0.2, score="magnitude", name="tone")
    second = plain.create_mask(density=0.2, score="magnitude").mask
    assert [item.id for item in plain.masks()] == [second.id, first.id]
    assert [item.names for item in plain.masks()] == [(), ("tone",)]
    assert remove_mask(plain, "tone").id == first.id
    with pytest.raises(UsageError, match="no mask `tone`"):
        plain.mask("tone")
    assert [item.id for item in plain.masks()] == [second.id]


def test_overlaps_are_those_of_sets(plain: Repository) -> None:
    one = plain.create_mask(density=0.3, score="random", seed=1, head=["top"]).mask
    two = plain.create_mask(density=0.3, score="random", seed=2, head=["layers.0.bias"]).mask
    first, second = ({(n, at) for n, where in lists(mask).items() for at in where} for mask in (one, two))
    found = compare_masks(plain, one.record, two.record)
    assert found == (len(first), len(second), len(first & second))
    assert found.jaccard == len(first & second) / len(first | second)
    assert compare_masks(plain, one.record, one.record).jaccard == 1


def stray(repo: Repository, files, weights, mask, extra: int = 7) -> dict[str, np.ndarray]:
    """Train under the mask, and let some values outside of it slip."""
    now = {name: array.copy() for name, array in weights.items()}
    for name, at in mask.positions().items():
        flat = now[name].reshape(-1)
        flat[slice(None) if at is None else at] += 1
    outside = np.setdiff1d(np.arange(600), mask.positions()["layers.0.weight"])[:extra]
    now["layers.0.weight"].reshape(-1)[outside] = np.nan
    now["norm.running_mean"] += 1
    save(repo, files, now)
    return now


def test_what_strayed_is_refused_counted_and_put_back(repo: Repository, files, weights) -> None:
    save(repo, files, weights)
    repo.track("bot.safetensors")
    repo.commit("base")
    mask = repo.create_mask(density=0.1, score="magnitude", name="tone").mask
    now = stray(repo, files, weights, mask)
    file = repo.worktree / "bot.safetensors"
    before = file.read_bytes()
    with pytest.raises(RepositoryError) as raised:
        repo.commit("trained", masks=["tone"], gate="warn")
    assert raised.value.message.startswith("37 values in 2 tensors (30 in norm.running_mean, 7 in layers.0.weight)")
    assert "`mgit mask apply tone`" in raised.value.hint
    counted = repo.apply_mask("tone", dry_run=True)
    assert counted.values == {"layers.0.weight": 7, "norm.running_mean": 30} and counted.rescued == ()
    assert file.read_bytes() == before
    done = repo.apply_mask("tone")
    assert done.values == counted.values and done.files == ("bot.safetensors",)
    [copy] = done.rescued
    assert Path(copy).read_bytes() == before
    expected = {name: array.copy() for name, array in weights.items()}
    for name, at in mask.positions().items():
        where = slice(None) if at is None else at
        expected[name].reshape(-1)[where] = now[name].reshape(-1)[where]
    save(repo, files, expected)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(before)
    repo.apply_mask("tone")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    undo(repo)
    assert file.read_bytes() == before
    redo(repo)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    undo(repo)
    file.write_bytes(before[:-4] + bytes(4))  # what is edited after that is kept when the values are put back again
    redo(repo)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    copies = [copy.read_bytes() for copy in repo.paths.rescue.rglob("bot.safetensors")]
    assert before[:-4] + bytes(4) in copies and before in copies
    assert repo.apply_mask("tone").values == {} and repo.status().models
    result = repo.commit("trained", masks=["tone"])
    assert result.patch.masks == (mask.id,)
    assert commits_under(repo) == {mask.id: (result.id,)}
    with pytest.raises(NothingToDo):
        repo.commit("again")
    # Back to what an older commit has, the trained values kept: nothing differs outside.
    assert repo.apply_mask("tone", revision="HEAD~1").values == {}


def test_a_killed_apply_is_finished_by_the_next_command(repo, make_repo, files, weights, monkeypatch) -> None:
    save(repo, files, weights)
    repo.track("bot.safetensors")
    repo.commit("base")
    mask = repo.create_mask(density=0.1, score="magnitude").mask
    stray(repo, files, weights, mask)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modelgit.repo.tracking.update.write_files", die)
        with pytest.raises(KeyboardInterrupt):
            repo.apply_mask("latest")
    repo.close()
    again = make_repo(existing=True)
    assert again.apply_mask("latest").values == {}
    undo(again)
    assert again.apply_mask("latest").values != {}
    again.commit("trained", masks=["latest"])


def test_tensors_that_have_nothing_to_go_back_to(repo: Repository, files, weights) -> None:
    save(repo, files, weights)
    repo.track("bot.safetensors")
    repo.commit("base")
    repo.create_mask(density=0.2, score="magnitude", head=["top"])
    save(repo, files, {**weights, "extra": np.ones(3, "<f4")})
    with pytest.raises(RepositoryError, match="has no tensor `extra`"):
        repo.apply_mask("latest")
    save(repo, files, {**weights, "scale": np.ones(3, "<f4")})
    with pytest.raises(RepositoryError, match="another shape or type of tensor `scale`"):
        repo.apply_mask("latest")
    save(repo, files, {name: array for name, array in weights.items() if name != "scale"})
    with pytest.raises(RepositoryError, match="has no tensor `scale`"):
        repo.apply_mask("latest")
    save(repo, files, {**weights, "top.weight": np.ones((5, 30), "<f4")})  # whole in the mask: it may be anything
    assert repo.apply_mask("latest").values == {}
    (repo.worktree / "bot.safetensors").unlink()
    with pytest.raises(RepositoryError, match="not in the work tree"):
        repo.apply_mask("latest")


def test_a_clone_knows_the_masks_of_its_commits(repo, files, weights, tmp_path: Path) -> None:
    save(repo, files, weights)
    repo.track("bot.safetensors")
    repo.commit("base")
    mask = repo.create_mask(density=0.1, score="magnitude", name="tone").mask
    repo.create_mask(density=0.2, score="magnitude")
    now = {name: array.copy() for name, array in weights.items()}
    now["layers.1.weight"].reshape(-1)[mask.positions()["layers.1.weight"]] += 1
    save(repo, files, now)
    commit = repo.commit("trained", masks=["tone"])
    with modelgit.clone(str(repo.worktree), tmp_path / "copy", environment=repo.environment) as copy:
        [found] = copy.masks()
        assert found.id == mask.id and not found.kept and found.names == ()
        assert copy.mask("latest").id == copy.mask(mask.id.hex[:12]).id == mask.id
        assert lists(found) == lists(mask) and commits_under(copy)[mask.id] == (commit.id,)
        with pytest.raises(UsageError, match="kept by commits"):
            remove_mask(copy, "latest")
        assert copy.apply_mask("latest").values == {}


def test_tied_tensors_are_one_and_slices_are_followed_to_their_storage(repo: Repository) -> None:
    torch = pytest.importorskip("torch")
    file = repo.worktree / "bot.pt"

    def write(shift: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(3)
        table, joint = torch.randn(9, 4, generator=draw), torch.randn(6, 5, generator=draw)
        table, joint = table + shift, joint + shift
        torch.save({"embed.weight": table, "out.weight": table, "q": joint[:2], "k": joint[2:].t()}, file)

    write()
    repo.track("bot.pt")
    repo.commit("base")
    before = {name: value.clone() for name, value in torch.load(file).items()}
    mask = repo.create_mask(density=0.3, score="magnitude").mask
    assert mask.record.total == 36 + 30
    scores = {name: before[name].abs().numpy() for name in ("embed.weight", "q", "k")}
    assert lists(mask) == naive(scores, 20)
    write(1.0)
    after = torch.load(file)
    with pytest.raises(RepositoryError, match="46 values in 2 tensors"):
        repo.commit("trained", masks=["latest"])
    assert repo.apply_mask("latest").total == 46
    mixed = torch.load(file)  # the archive's checksums are right
    for name, value in before.items():
        inside = torch.zeros(value.numel(), dtype=torch.bool)
        where = mask.positions().get("embed.weight" if name == "out.weight" else name)
        inside[slice(None) if where is None else where] = True
        assert torch.equal(mixed[name], torch.where(inside.reshape(value.shape), after[name], value))
    assert mixed["embed.weight"].data_ptr() == mixed["out.weight"].data_ptr()
    repo.commit("trained", masks=["latest"])


def test_a_model_in_shards(repo: Repository, files) -> None:
    folder = repo.worktree / "bot"
    draw = np.random.default_rng(2)
    weights = {f"layers.{at}.weight": draw.standard_normal((6, 8)).astype("<f4") for at in range(4)}
    raw = {name: ("F32", array.shape, array.tobytes()) for name, array in weights.items()}
    files.sharded(folder, raw, 2)
    repo.track("bot")
    repo.commit("base")
    mask = repo.create_mask(density=0.25, score="random").mask
    moved = {name: ("F32", array.shape, (array + 1).tobytes()) for name, array in weights.items()}
    files.sharded(folder, moved, 3)  # other shards than those that were recorded
    done = repo.apply_mask("latest")
    assert done.total == 4 * 48 - 48 and len(done.files) == 3 and len(done.rescued) == 3
    repo.commit("trained", masks=["latest"])
    state = repo.load("HEAD")
    for name, array in weights.items():
        expected = array.copy().reshape(-1)
        at = mask.positions()[name]
        expected[at] = (array + 1).reshape(-1)[at]
        assert state[name].numpy().tobytes() == expected.tobytes()


@pytest.fixture
def toy(repo: Repository) -> Repository:
    """A repository with two tasks over an untrained model."""
    pytest.importorskip("tokenizers")
    from modelgit.integrations.demo.small import SETTINGS, write_checkpoint, write_data

    (repo.worktree / "mgit.toml").write_text(SETTINGS.split("# The gate")[0])
    repo.forget_settings()
    write_data(repo.worktree / "data")
    write_checkpoint(repo.worktree / "models" / "bot")
    repo.commit("base")
    return repo


def test_masks_of_a_task(toy: Repository) -> None:
    from modelgit.repo.patches.fisher import diagonal_of, estimate_fisher
    from modelgit.repo.tasks import open_task, task_settings

    head = {"heads.topic.weight", "heads.topic.bias"}
    made = toy.create_mask(density=0.05, task="topic", examples=16)
    assert made.examples == 16 and not made.cached_fisher
    assert toy.create_mask(density=0.04, task="topic", examples=16).cached_fisher
    diagonal = diagonal_of(toy, estimate_fisher(toy, task="topic", examples=16).estimate)
    values = {name: np.asarray(diagonal[name]) for name in diagonal}
    total = sum(value.size for value in values.values())
    whole = sum(values[name].size for name in head)
    body = {name: value for name, value in values.items() if name not in head}
    found = lists(made.mask)
    assert all(made.mask.positions()[name] is None for name in head)
    assert {n: at for n, at in found.items() if n not in head} == naive(body, round(0.05 * total) - whole)
    assert not any(name.startswith("heads.tone") for name in found)
    ranked = toy.create_mask(density=0.05, task="topic", examples=16, head=()).mask
    assert lists(ranked) == naive(values, round(0.05 * total))
    gradient = toy.create_mask(density=0.05, task="topic", score="gradient", examples=16)
    assert gradient.examples == 16 and gradient.mask.record.count == round(0.05 * total)
    assert lists(gradient.mask) != found
    _, settings = task_settings(toy, "topic")
    model = open_task(toy, toy.manifest_of(toy.head()), settings)
    import torch

    from modelgit.integrations.torch import freeze_outside

    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    with freeze_outside(model.module, made.mask, optimizer, tensor_of=model.tensor_of) as frozen:
        assert frozen.masked_parameters == made.mask.record.count


def test_information_times_change_at_either_side(toy: Repository) -> None:
    from safetensors.numpy import load_file, save_file

    from modelgit.repo.patches.fisher import diagonal_of, estimate_fisher

    file = toy.worktree / "models" / "bot" / "model.safetensors"
    old = load_file(file)
    draw = np.random.default_rng(0)
    new = {
        name: array + (0.2 * draw.standard_normal(array.shape)).astype(array.dtype) if "layer.1" in name else array
        for name, array in old.items()
    }
    save_file(new, file, metadata={"format": "pt"})
    toy.commit("dense")
    for revision, at in ((None, "HEAD~1"), ("HEAD", "HEAD")):
        made = toy.create_mask(density=0.02, task="topic", from_diff=("HEAD~1", "HEAD"), revision=revision, examples=16)
        diagonal = diagonal_of(toy, estimate_fisher(toy, task="topic", revision=at, examples=16).estimate)
        scores = {
            name: np.sqrt(np.asarray(diagonal[name], np.float64)) * np.abs(new[name].astype(float) - old[name])
            for name in diagonal
            if not name.startswith("heads.")
        }
        total = sum(np.asarray(diagonal[name]).size for name in diagonal)
        whole = sum(np.asarray(diagonal[name]).size for name in diagonal if name.startswith("heads."))
        found = {name: at for name, at in lists(made.mask).items() if not name.startswith("heads.")}
        assert found == naive(scores, round(0.02 * total) - whole)


def test_a_damaged_file_of_a_mask_loses_its_name_at_most(plain: Repository) -> None:
    made = plain.create_mask(density=0.1, score="random", name="mine").mask
    for file in plain.paths.masks.iterdir():
        file.write_bytes(b"")
    assert {finding.subject for finding in fsck(plain).findings} == {"mask file mine", f"mask file {made.id.hex}"}
    collect(plain, prune_now=True)
    assert [(mask.id, mask.names) for mask in plain.masks()] == [(made.id, ())]
    assert find_mask(plain, "latest").record == made.record
    assert plain.create_mask(density=0.1, score="random", name="mine").mask.names == ("mine",)
    assert fsck(plain, quick=True).is_sound
