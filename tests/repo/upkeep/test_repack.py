"""Repacking: smaller or quicker to read, never another id, never a circle of bases, and nothing lost on the way."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from modelgit.errors import ConflictError
from modelgit.objects import TensorId
from modelgit.patching.chain import MAX_COST, chain_cost
from modelgit.progress import SilentProgress
from modelgit.repo import Repository
from modelgit.repo.contents import models_of
from modelgit.repo.tracking.switch import restore
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect
from modelgit.repo.upkeep.repack import repack


def on_disk(repo: Repository) -> int:
    return sum(path.stat().st_size for path in repo.store.packs_path.iterdir())


def everything(repo: Repository) -> dict[str, dict[str, bytes]]:
    """Every tensor of every branch and tag, as bytes."""
    found = {}
    for ref, commit in repo.view().refs.items():
        state = repo.load(commit.hex)
        found[f"{ref} {commit}"] = {name: bytes(state[name].raw()) for name in state}
    return found


def put(repo: Repository, files, arrays: dict[str, np.ndarray], message: str) -> None:
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    repo.commit(message)


def touched(arrays: dict[str, np.ndarray], seed: int, *, share: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: np.where(random.random(array.shape) < share, array + np.float32(0.001), array)
        for name, array in arrays.items()
    }


@pytest.fixture
def returned(bot: Repository, files) -> Repository:
    """A model that left for a commit and came back a little changed: its second version has no parent to lean on."""
    arrays = files.floats(1, rows=200, columns=100)
    put(bot, files, arrays, "first")
    put(bot, files, {"other": arrays["layers.0.weight"][:2]}, "gone")
    put(bot, files, touched(arrays, 2, share=0.01), "back")
    return bot


def test_a_better_base_from_history_is_found_and_ids_stay(returned: Repository) -> None:
    before, size, view = everything(returned), on_disk(returned), returned.view()
    dry = repack(returned, dry_run=True)
    assert on_disk(returned) == size
    assert not any(returned.store.incoming_path.iterdir())
    done = repack(returned)
    assert (done.recoded, done.bytes_before, done.bytes_after) == (dry.recoded, dry.bytes_before, dry.bytes_after)
    assert (done.packs_rewritten, done.packs_deleted) == (dry.packs_rewritten, dry.packs_deleted)
    assert done.recoded == 3
    assert done.bytes_after == on_disk(returned)
    assert done.bytes_after < 0.75 * size
    assert everything(returned) == before
    assert returned.view() == view
    assert fsck(returned).is_sound
    packs = {path.name for path in returned.store.packs_path.iterdir()}
    again = repack(returned)
    assert again.recoded == again.packs_rewritten == again.packs_deleted == 0
    returned.paths.repacked.unlink()
    again = repack(returned)
    assert again.recoded == again.packs_rewritten == again.packs_deleted == 0
    assert {path.name for path in returned.store.packs_path.iterdir()} == packs


def test_a_second_run_does_not_code_what_was_looked_at(returned: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repack(returned)
    from modelgit.patching.encode import TensorWriter

    asked: list[str] = []
    real = TensorWriter.store

    def store(self, jobs, **options):
        jobs = list(jobs)
        asked.extend(job.name for job in jobs)
        return real(self, jobs, **options)

    monkeypatch.setattr(TensorWriter, "store", store)
    repack(returned)
    assert asked == []
    repack(returned, effort="tight")
    assert asked


def test_chains_that_cost_too_much_are_flattened(bot: Repository, files, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = files.floats(1, rows=200, columns=100)
    put(bot, files, arrays, "first")
    for step in range(12):
        arrays = touched(arrays, step, share=0.02)
        put(bot, files, arrays, f"step {step}")
    tip = [entry.id for model in models_of(bot, bot.manifest_of(bot.head())).values() for entry in model.values()]
    deepest = max(chain_cost(bot.store, tensor) for tensor in tip)
    assert 1.7 < deepest < MAX_COST
    before = everything(bot)
    for name, bound in {
        "repo.upkeep.repack.MAX_COST": 1.7,
        "patching.recode.MAX_COST": 1.7,
        "patching.planner.MAX_SPARSE_COST": 1.2,
        "patching.planner.MAX_DENSE_COST": 1.2,
    }.items():
        monkeypatch.setattr(f"modelgit.{name}", bound)
    dry = repack(bot, dry_run=True)
    report = repack(bot)
    assert report.flattened == dry.flattened > 0
    assert (report.bytes_after, on_disk(bot)) == (dry.bytes_after, dry.bytes_after)
    assert max(chain_cost(bot.store, tensor) for tensor in tip) <= 1.7
    assert everything(bot) == before
    assert fsck(bot).is_sound
    assert repack(bot).recoded == 0


def test_interrupting_leaves_no_trace(returned: Repository) -> None:
    class Stop(SilentProgress):
        def __init__(self) -> None:
            self.left = 6

        def check(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    before, packs = everything(returned), sorted(path.name for path in returned.store.packs_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        repack(returned, progress=Stop())
    assert sorted(path.name for path in returned.store.packs_path.iterdir()) == packs
    assert not any(returned.store.incoming_path.iterdir())
    assert everything(returned) == before


def test_old_and_new_records_side_by_side_are_one_repository(
    returned: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after the new packs are sealed: every object has two records, and any collection may take either."""
    before = everything(returned)

    def die(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modelgit.repo.upkeep.gc.retire_packs", die)
        with pytest.raises(KeyboardInterrupt):
            repack(returned)
    assert everything(returned) == before
    assert fsck(returned).is_sound
    collect(returned)
    assert fsck(returned).is_sound
    report = repack(returned)
    assert everything(returned) == before
    assert fsck(returned).is_sound
    assert report.bytes_after == on_disk(returned)
    assert repack(returned).recoded == 0


def test_a_collection_meanwhile_stops_it(returned: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.repo.upkeep import repack as module

    real = module._Recoding.run

    def run(self) -> None:
        real(self)
        put_away = Repository.open(returned.worktree, environment=returned.environment)
        collect(put_away, prune_now=True)
        put_away.close()

    monkeypatch.setattr(module._Recoding, "run", run)
    with pytest.raises(ConflictError, match="nothing was changed") as caught:
        repack(returned)
    assert caught.value.hint
    assert fsck(returned).is_sound


def test_commits_meanwhile_lose_nothing(returned: Repository, files) -> None:
    stop = threading.Event()
    made = []
    arrays = files.floats(1, rows=200, columns=100)

    def work() -> None:
        other = Repository.open(returned.worktree, environment=returned.environment)
        number = 0
        while not stop.is_set():
            number += 1
            try:
                put(other, files, touched(arrays, 100 + number, share=0.01), f"meanwhile {number}")
                made.append(other.head())
            except ConflictError:  # the work tree is held for a moment
                continue
        other.close()

    thread = threading.Thread(target=work)
    thread.start()
    done = 0
    for _ in range(40):
        try:
            repack(returned)
            done += 1
        except ConflictError:
            continue
        if done >= 4 and len(made) >= 3:
            break
    stop.set()
    thread.join()
    assert done >= 4
    assert made
    fresh = Repository.open(returned.worktree, environment=returned.environment)
    report = fsck(fresh)
    assert report.is_sound, report.findings[:3]
    reached = set()
    pending = [fresh.head()]
    while pending:
        commit = pending.pop()
        reached.add(commit)
        pending += fresh.parents_of(commit)
    assert set(made) <= reached
    fresh.close()


def test_a_long_history_stays_quick_to_read_and_small(bot: Repository, files) -> None:
    """Sixty commits, every fifth dense: the cost of reading the last is bounded, and so is the size."""
    arrays = files.floats(1, layers=2, rows=200, columns=100)
    put(bot, files, arrays, "first")
    raw = sum(array.nbytes for array in arrays.values())
    random = np.random.default_rng(0)
    costs = []
    for step in range(60):
        if step % 5 == 4:
            arrays = {
                name: (array * (1 + 1e-4 * random.standard_normal(array.shape))).astype("<f4")
                for name, array in arrays.items()
            }
        else:
            arrays = touched(arrays, step, share=0.005)
        put(bot, files, arrays, f"step {step}")
        ids = [entry.id for model in models_of(bot, bot.manifest_of(bot.head())).values() for entry in model.values()]
        assert all(isinstance(tensor, TensorId) for tensor in ids)
        costs.append(max(chain_cost(bot.store, tensor) for tensor in ids))
    assert max(costs) <= MAX_COST
    assert max(costs[30:]) <= max(costs[:30]) + 0.5, "the cost grows with the history"
    size = on_disk(bot)
    assert size < 0.45 * 61 * raw
    report = repack(bot)
    assert report.bytes_after <= size
    assert max(chain_cost(bot.store, tensor) for tensor in ids) <= MAX_COST
    wanted = files.digests(bot.worktree)
    (bot.worktree / "bot.safetensors").unlink()
    restore(bot, ["."])
    assert files.digests(bot.worktree) == wanted
    assert fsck(bot).is_sound
