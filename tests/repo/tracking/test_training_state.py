"""Training state: recorded beside the model and apart from it, brought back with it, and free to expire."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from modelgit.config.schema import TrackSettings
from modelgit.errors import NothingToDo, RepositoryError
from modelgit.objects import CommitId, ManifestId
from modelgit.repo import Repository
from modelgit.repo.exchange.cloning import clone
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.track import track_training, untrack
from modelgit.repo.tracking.training import training_of
from modelgit.repo.tracking.undo import redo, undo
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.reach import needed_objects


def adam(seed: int) -> bytes:
    """The state of an optimizer, with a moment that is not finite."""
    generator = torch.Generator().manual_seed(seed)
    moments = {name: torch.randn(64, 32, generator=generator) for name in ("exp_avg", "exp_avg_sq")}
    moments["exp_avg"][0, 0] = float("nan")
    buffer = io.BytesIO()
    torch.save({"state": {0: moments}, "param_groups": [{"lr": seed}]}, buffer)
    return buffer.getvalue()


def step(repo: Repository, files, seed: int, *, place: str = "state") -> CommitId:
    folder = repo.worktree / place
    folder.mkdir(exist_ok=True)
    (folder / "optimizer.pt").write_bytes(adam(seed))
    (folder / "trainer_state.json").write_text(f'{{"step": {seed}}}')
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(seed)))
    return repo.commit(f"step {seed}").id


@pytest.fixture
def run(bot: Repository, files) -> Repository:
    """A repository with two commits that have training state."""
    (bot.worktree / "state").mkdir()
    (bot.worktree / "state" / "optimizer.pt").write_bytes(adam(0))
    assert track_training(bot, str(bot.worktree / "state")) == ("state", {"state/optimizer.pt": len(adam(0))})
    step(bot, files, 1)
    step(bot, files, 2)
    return bot


def state_files(repo: Repository, revision: str = "HEAD") -> list[str]:
    return [entry.path for entry in training_of(repo, repo.resolve(revision)).manifest.files]


def test_it_is_recorded_apart_from_the_model(run: Repository) -> None:
    head = run.head()
    assert state_files(run) == ["state/optimizer.pt", "state/trainer_state.json"]
    assert not any(entry.path.startswith("state/") for entry in run.manifest_of(head).files)
    assert not any(path.startswith("state/") for model in run.manifest_of(head).models for path in model.weights)
    assert set(run.load()) == {"layers.0.weight", "layers.1.weight", "layers.2.weight"}
    assert run.status().is_clean
    assert fsck(run).is_sound


def test_it_alone_is_reason_for_a_commit(run: Repository) -> None:
    with pytest.raises(NothingToDo):
        run.commit("nothing")
    (run.worktree / "state" / "optimizer.pt").write_bytes(adam(7))
    [changed] = run.status().training
    assert (changed.path, changed.change) == ("state/optimizer.pt", "modified")
    made = run.commit("state only")
    assert not made.patch.tensors
    assert run.status().is_clean


def test_switch_restore_and_undo_bring_it_back(run: Repository, files) -> None:
    new = files.digests(run.worktree)
    optimizer = run.worktree / "state" / "optimizer.pt"
    run.switch("HEAD~1", detach=True)
    assert optimizer.read_bytes() == adam(1)
    run.switch("HEAD~1", detach=True)
    assert not optimizer.exists(), "the first commit had none"
    run.switch("main")
    assert files.digests(run.worktree) == new
    optimizer.write_bytes(b"half written")
    with pytest.raises(RepositoryError, match=r"state/optimizer.pt has changes that switching would overwrite"):
        run.switch("HEAD~1", detach=True)
    assert restore(run, ["state"], source="HEAD~1") == ["state/optimizer.pt", "state/trainer_state.json"]
    assert optimizer.read_bytes() == adam(1)
    restore(run, ["."])
    assert files.digests(run.worktree) == new
    run.switch("HEAD~1", detach=True)
    undo(run)
    assert files.digests(run.worktree) == new
    redo(run)
    assert optimizer.read_bytes() == adam(1)


def test_a_merge_leaves_it_and_a_fast_forward_brings_it(run: Repository, files) -> None:
    run.switch("side", create=True, start="HEAD~1")
    (run.worktree / "state" / "optimizer.pt").write_bytes(adam(9))
    run.commit("side: state only")
    assert run.merge("main").kind == "merged"
    assert (run.worktree / "state" / "optimizer.pt").read_bytes() == adam(9)
    assert run.status().is_clean
    run.switch("other", create=True, start="main~1")
    assert run.merge("main").kind == "fast-forward"
    assert (run.worktree / "state" / "optimizer.pt").read_bytes() == adam(2)
    assert run.status().is_clean


def test_new_checkpoint_directories_follow_the_old_ones(bot: Repository, files) -> None:
    track_training(bot, str(bot.worktree))
    for name in ("checkpoint-1", "checkpoint-2"):
        folder = bot.worktree / name
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(adam(1))
        made = bot.commit(name)
    assert state_files(bot) == ["checkpoint-1/optimizer.pt", "checkpoint-2/optimizer.pt"]
    assert made.bytes_added < len(adam(1)) / 8, "the same bytes under another name"


def test_a_clone_has_the_model_without_it(run: Repository, files, tmp_path: Path) -> None:
    copy = clone(str(run.worktree), tmp_path / "copy", environment=run.environment)
    try:
        assert copy.head() == run.head()
        report = fsck(copy)
        assert report.is_sound
        assert report.training_absent == 2
        assert copy.status().is_clean
        assert training_of(copy, copy.head()).is_absent
        with pytest.raises(RepositoryError, match="is not kept here: it expired, or was never fetched"):
            restore(copy, ["state/optimizer.pt"])
        (copy.worktree / "state").mkdir()
        (copy.worktree / "state" / "optimizer.pt").write_bytes(adam(5))
        assert [item.change for item in copy.status().training] == ["added"]
        copy.commit("goes on here")
        assert state_files(copy) == ["state/optimizer.pt"]
    finally:
        copy.close()


def test_what_expires_is_not_walked(run: Repository) -> None:
    head, parent = run.resolve("HEAD"), run.resolve("HEAD~1")
    both = {item for item, _ in needed_objects(run, [head])}
    late = {item for item, _ in needed_objects(run, [head], expired=[parent])}
    training = run.commit_at(parent).training
    assert training in both
    assert training not in late
    assert late < both
    assert run.commit_at(head).training in late


def test_a_present_manifest_without_its_files_is_damage(run: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    [entry, _] = training_of(run, run.head()).manifest.files
    has = run.store.has
    monkeypatch.setattr(run.store, "has", lambda object_id: object_id != entry.digest and has(object_id))
    locate = run.store.locate
    monkeypatch.setattr(run.store, "locate", lambda found: [] if found == entry.digest else locate(found))
    assert not fsck(run).is_sound


def test_untracking_it_keeps_the_files(run: Repository) -> None:
    assert untrack(run, str(run.worktree / "state")) == "state"
    run.commit("no longer")
    assert run.commit_at(run.resolve("HEAD")).training is None
    assert (run.worktree / "state" / "optimizer.pt").exists()


def test_names_decide_where_a_model_lies() -> None:
    track = TrackSettings(paths=("out",), training_state=("out", "runs"))
    assert track.training_patterns("out") == track.training_patterns(".")
    assert track.training_patterns("runs") is None
    assert "trainer_state.json" in track.left_out
    assert "runs/" in track.left_out
    assert track.ignore_in_training == ()
    assert TrackSettings(paths=("out",)).left_out == TrackSettings().ignore


def test_the_id_of_a_commit_without_it_did_not_change() -> None:
    from modelgit.objects import Commit, PatchId, Signature, encode

    who = Signature(name="a", mail="b", time_s=1)
    fields = {"parents": (), "patch": PatchId(bytes(32)), "author": who, "committer": who, "message": "m"}
    plain = Commit(manifest=ManifestId(bytes(32)), **fields)  # type: ignore[arg-type]
    assert b"training" not in encode(plain)
    assert np.frombuffer(encode(plain), np.uint8)[0] == 0x86, "a map of six fields"


def test_a_model_from_elsewhere_does_not_get_the_state_of_the_one_here(run: Repository, files, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(files.of_arrays(files.floats(5)))
    made = run.commit("from elsewhere", source=str(elsewhere), as_path="bot.safetensors", worktree=False)
    assert run.commit_at(made.id).training is None
    assert (run.worktree / "state" / "optimizer.pt").read_bytes() == adam(2)


def test_expired_state_is_freed_and_the_rest_stays(run: Repository, files) -> None:
    from modelgit.repo.upkeep.prune import prune

    step(run, files, 3)
    toml = run.worktree / "mgit.toml"
    toml.write_text(toml.read_text() + "[retention.training-state]\nlast = 1\n")
    run.forget_settings()
    run.commit("retention")
    before = files.digests(run.worktree)
    assert prune(run).expired == 3, "the third commit names the state that the last one keeps"
    report = fsck(run)
    assert report.is_sound
    assert report.training_absent == 2
    assert run.status().is_clean
    run.switch("HEAD~3", detach=True)
    assert not (run.worktree / "state" / "optimizer.pt").exists()
    run.switch("main")
    assert files.digests(run.worktree) == before
