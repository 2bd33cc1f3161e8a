"""Retention: which commits keep their weights, that the bytes of the others go, and that nothing looks like damage."""

from __future__ import annotations

import numpy as np
import pytest

from modelgit.config.load import ConfigLayer, load_settings
from modelgit.errors import UsageError, WeightsPruned
from modelgit.objects import CommitId
from modelgit.repo import Repository
from modelgit.repo.branches import create_branch, create_tag
from modelgit.repo.exchange.cloning import clone
from modelgit.repo.exchange.remote import add_remote
from modelgit.repo.exchange.sync import fetch, push
from modelgit.repo.history.log import log
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.undo import undo
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect
from modelgit.repo.upkeep.prune import prune
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.repo.upkeep.repack import repack
from modelgit.repo.upkeep.retention import plan_retention


def on_disk(repo: Repository) -> int:
    return sum(path.stat().st_size for path in repo.store.packs_path.iterdir())


def retain(repo: Repository, text: str) -> None:
    (repo.worktree / "mgit.toml").write_text('[track]\npaths = ["bot.safetensors"]\n' + text)
    repo.forget_settings()


@pytest.fixture
def run(bot: Repository, files) -> Repository:
    """Branch `runs/a` with twelve checkpoints, each another dense state; main is where it began."""
    retain(bot, '[retention."runs/*"]\nlast = 2\nevery = 5\n')
    bot.commit("retention")
    bot.switch("runs/a", create=True)
    for step in range(12):
        checkpoint(bot, files, step)
    bot.switch("main")
    return bot


def checkpoint(repo: Repository, files, step: int) -> CommitId:
    random = np.random.default_rng(step)
    arrays = files.floats(7, rows=100, columns=80)
    for name, array in arrays.items():
        arrays[name] = (array * (1 + 0.01 * step * random.standard_normal(array.shape))).astype("<f4")
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    return repo.commit(f"step {step}").id


def steps_kept(repo: Repository) -> list[int]:
    """Steps of runs/a whose weights can be read."""
    found = []
    for entry in log(repo, "runs/a"):
        if entry.commit.subject.startswith("step"):
            try:
                state = repo.load(entry.id.hex)
                assert all(state[name].raw() is not None for name in state)
            except WeightsPruned:
                assert entry.pruned
                continue
            found.append(int(entry.commit.subject.split()[1]))
    return sorted(found)


def test_the_line_of_a_run_is_thinned(run: Repository) -> None:
    size, view = on_disk(run), run.view()
    dry = prune(run, dry_run=True)
    assert on_disk(run) == size
    assert len(list(log(run, "runs/a"))) == 14
    assert not any(entry.pruned for entry in log(run, "runs/a"))
    done = prune(run)
    assert (dry.pruned, dry.bytes_before, dry.bytes_after, dry.reanchored) == (
        done.pruned,
        done.bytes_before,
        done.bytes_after,
        done.reanchored,
    )
    assert (done.pruned, done.bytes_before, done.bytes_after) == (8, size, on_disk(run))
    assert steps_kept(run) == [2, 7, 10, 11], "every fifth (two commits come before the run) and the last two"
    assert done.bytes_after < 0.6 * size
    assert run.view() == view
    report = fsck(run)
    assert report.is_sound, report.findings
    assert report.pruned == 8
    again = prune(run)
    assert (again.pruned, again.bytes_before) == (0, again.bytes_after)
    assert collect(run, prune_now=True).bytes_freed >= 0
    assert steps_kept(run) == [2, 7, 10, 11]
    assert fsck(run).is_sound


def test_survivors_that_lean_on_what_goes_are_coded_again(bot: Repository, files) -> None:
    retain(bot, '[retention."runs/*"]\nlast = 1\n')
    bot.commit("retention")
    bot.switch("runs/a", create=True)
    arrays = files.floats(3, rows=300, columns=200)
    for step in range(8):
        arrays = {name: array.copy() for name, array in arrays.items()}
        for array in arrays.values():
            array[step] += 1
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
        bot.commit(f"step {step}")
    wanted = files.digests(bot.worktree)
    size = on_disk(bot)
    dry = prune(bot, dry_run=True)
    report = prune(bot)
    assert report.reanchored == dry.reanchored == 3
    assert report.bytes_after == dry.bytes_after == on_disk(bot) < size
    assert report.pruned == 7
    (bot.worktree / "bot.safetensors").unlink()
    restore(bot, ["."])
    assert files.digests(bot.worktree) == wanted
    assert fsck(bot).is_sound
    assert steps_kept(bot) == [7]


def test_tags_other_branches_forks_and_the_current_commit_are_kept(run: Repository) -> None:
    create_tag(run, "v1", target="runs/a~10")  # step 1
    create_branch(run, "paper", start="runs/a~5")  # step 6 and all before it belong to another history, too
    assert steps_of(plan_retention(run, run.view()), run) == [8, 9]
    from modelgit.repo.branches import delete_branch

    delete_branch(run, "paper", force=True)
    create_branch(run, "runs/b", start="runs/a~5")
    run.switch("runs/b")
    (run.worktree / "bot.safetensors").write_bytes((run.worktree / "bot.safetensors").read_bytes()[:-4] + b"\0\0\0\1")
    run.commit("another way")
    run.switch("runs/a~3", detach=True)  # step 8
    plan = plan_retention(run, run.view())
    assert steps_of(plan, run) == [0, 3, 4, 5, 9]
    reasons = {run.commit_at(item.commit).subject: item.kept for item in plan.families["runs/*"]}
    assert reasons["step 1"] == "tag v1"
    assert reasons["step 6"] == "branches part here"
    assert reasons["step 8"] == "current commit"
    prune(run)
    assert steps_kept(run) == [1, 2, 6, 7, 8, 10, 11]
    assert fsck(run).is_sound
    run.switch("runs/b")


def steps_of(plan, repo: Repository) -> list[int]:
    return sorted(int(repo.commit_at(commit).subject.split()[1]) for commit in plan.pruned)


def test_the_best_by_a_recorded_metric_is_kept(run: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.objects import CheckResult, EvalRecord
    from modelgit.repo.upkeep import retention

    def verdicts(repo: Repository, commit: CommitId) -> list[EvalRecord]:
        commit_record = repo.commit_at(commit)
        if not commit_record.subject.startswith("step"):
            return []
        step = int(commit_record.subject.split()[1])
        results = (CheckResult(name="accuracy", decision="pass", value=1 - abs(step - 3) / 10),)
        return [
            EvalRecord(
                candidate=commit_record.manifest, baseline=None, suite="smoke", suite_id="x", results=results,
                decision="pass", seconds=0.0,
            )
        ]  # fmt: skip

    monkeypatch.setattr(retention, "recorded_verdicts", verdicts)
    retain(run, '[retention."runs/*"]\nbest = "smoke.accuracy"\nbest_count = 2\n')
    plan = plan_retention(run, run.view())
    assert sorted(set(range(12)) - set(steps_of(plan, run))) == [3, 4, 11]
    retain(run, '[retention."runs/*"]\nbest = "accuracy"\ngoal = "min"\n')
    plan = plan_retention(run, run.view())
    assert sorted(set(range(12)) - set(steps_of(plan, run))) == [11]
    retain(run, '[retention."runs/*"]\nbest = "nothing"\n')
    assert len(plan_retention(run, run.view()).pruned) == 11
    size = on_disk(run)
    for dry_run in (True, False):
        with pytest.raises(UsageError, match=r"`nothing`, which no commit of runs/\* has recorded"):
            prune(run, dry_run=dry_run)
    assert on_disk(run) == size and not any(entry.pruned for entry in log(run, "runs/a"))


def test_everything_says_that_the_weights_were_pruned(run: Repository, files, tmp_path) -> None:
    prune(run)
    gone, kept = run.resolve("runs/a~8"), run.resolve("runs/a~1")
    wanted, view = files.digests(run.worktree), run.view()
    attempts = {
        "switch": lambda: run.switch(gone.hex, detach=True),
        "restore": lambda: restore(run, ["."], source=gone.hex),
        "diff": lambda: run.diff(gone.hex, kept.hex),
        "load": lambda: bytes(next(iter(run.load(gone.hex).values())).raw()),
        "merge": lambda: run.merge(gone.hex),
    }
    for attempt in attempts.values():
        with pytest.raises(WeightsPruned, match=r"pruned by retention `runs/\*` on 20") as caught:
            attempt()
        assert caught.value.hint
        assert files.digests(run.worktree) == wanted
        assert not run.journal.pending
    assert run.view() == view
    [verdict] = run.evaluate(gone.hex)
    assert verdict.decision == "error"
    assert "pruned by retention" in verdict.results[0].detail
    add_remote(run, "origin", str(tmp_path / "remote"))
    push(run, "origin", ["main"])
    copy = clone(str(tmp_path / "remote"), tmp_path / "copy", environment=run.environment)
    assert fsck(copy).is_sound
    copy.close()


def test_a_thinned_run_can_be_pushed_fetched_and_cloned(run: Repository, files, tmp_path) -> None:
    """What the commits lost here, they do not have there either, and both sides say so."""
    gone = prune(run)
    kept = steps_kept(run)
    assert gone.pruned == 8
    add_remote(run, "origin", str(tmp_path / "remote"))
    early = push(run, "origin", ["main"])
    assert early.updates
    old = clone(str(tmp_path / "remote"), tmp_path / "old", environment=run.environment)
    assert not pruned_commits(old)
    push(run, "origin", ["runs/a"])
    fetch(old)
    copy = clone(str(tmp_path / "remote"), tmp_path / "copy", branch="runs/a", environment=run.environment)
    for other in (old, copy):
        assert set(pruned_commits(other)) == set(pruned_commits(run))
        assert fsck(other).is_sound
    assert steps_kept(copy) == kept
    with pytest.raises(WeightsPruned, match="pruned by retention"):
        copy.switch(next(iter(pruned_commits(copy))).hex, detach=True)
    # And on from there: a checkpoint on top, back to where the run began, a collection on every side.
    checkpoint(copy, files, 30)
    push(copy, "origin", ["runs/a"])
    fetch(run)
    collect(copy, prune_now=True)
    remote = clone(str(tmp_path / "remote"), tmp_path / "again", branch="runs/a", environment=run.environment)
    for other in (run, copy, remote):
        assert fsck(other).is_sound
    assert steps_kept(remote) == [*kept, 30]
    for other in (old, copy, remote):
        other.close()


def test_a_remote_that_says_pruned_takes_nothing_from_what_is_here(run: Repository, files, tmp_path) -> None:
    """Only commits that are new here are believed to lack their weights."""
    add_remote(run, "origin", str(tmp_path / "remote"))
    push(run, "origin", ["main", "runs/a"])
    copy = clone(str(tmp_path / "remote"), tmp_path / "copy", branch="runs/a", environment=run.environment)
    retain(copy, '[retention."runs/*"]\nlast = 1\n')
    copy.switch("main")
    assert prune(copy).pruned
    add_remote(run, "thin", str(tmp_path / "copy"))
    fetch(run, "thin")
    assert not pruned_commits(run)
    assert steps_kept(run) == list(range(12))
    assert fsck(run).is_sound
    copy.close()


def test_what_was_pushed_before_can_be_pushed_on(run: Repository, files, tmp_path) -> None:
    add_remote(run, "origin", str(tmp_path / "remote"))
    push(run, "origin", ["main", "runs/a"])
    assert prune(run).pruned == 8, "what the remote has of a run does not keep it here"
    run.switch("runs/a")
    checkpoint(run, files, 12)
    push(run, "origin", ["runs/a"])
    copy = clone(str(tmp_path / "remote"), tmp_path / "copy", branch="runs/a", environment=run.environment)
    assert steps_kept(copy) == list(range(13))
    copy.close()
    # A commit of somebody else that shares a tensor with one that is pruned here must come whole.
    other = clone(str(tmp_path / "remote"), tmp_path / "other", branch="runs/a", environment=run.environment)
    restore(other, ["bot.safetensors"], source="runs/a~10")
    other.commit("step 13")
    push(other, "origin", ["runs/a"])
    other.close()
    fetch(run)
    assert fsck(run).is_sound
    run.switch("main")
    run.switch("origin/runs/a", detach=True)
    assert fsck(run).is_sound


def test_a_remote_that_prunes_gets_what_it_lacks(run: Repository, tmp_path) -> None:
    other = clone(str(run.worktree), tmp_path / "other", environment=run.environment)
    assert prune(run).pruned == 8
    # A child of a commit whose weights the remote pruned shares tensors with it: they must come again.
    other.switch("origin/runs/a~9", detach=True)
    other.switch("runs/b", create=True)
    file = other.worktree / "bot.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    other.commit("child")
    push(other, "origin", ["runs/b"])
    other.close()
    assert fsck(run).is_sound
    run.switch("runs/b")
    assert (run.worktree / "bot.safetensors").read_bytes() == data


def test_pushing_a_thinned_run_takes_no_weights_from_a_remote_that_has_them(run: Repository, files, tmp_path) -> None:
    add_remote(run, "origin", str(tmp_path / "remote"))
    push(run, "origin", ["main", "runs/a"])
    # Somebody goes on there, so that the tip of the run there is not known here.
    other = clone(str(tmp_path / "remote"), tmp_path / "other", branch="runs/a", environment=run.environment)
    checkpoint(other, files, 12)
    push(other, "origin", ["runs/a"])
    assert prune(run).pruned == 8
    run.switch("runs/a")
    run.switch("runs/b", create=True)
    checkpoint(run, files, 13)
    push(run, "origin", ["runs/b"])
    fetch(other)
    assert not [entry for entry in log(other, "origin/runs/b") if entry.pruned]
    other.close()
    late = clone(str(tmp_path / "remote"), tmp_path / "late", branch="runs/a", environment=run.environment)
    assert steps_kept(late) == list(range(13))
    late.close()


def test_undo_does_not_step_onto_weights_that_are_gone(run: Repository, files) -> None:
    run.switch("runs/a")
    run.switch("runs/a~8", detach=True)  # step 3
    run.switch("runs/a")
    prune(run)
    wanted = files.digests(run.worktree)
    with pytest.raises(WeightsPruned):
        undo(run)
    assert files.digests(run.worktree) == wanted
    assert not run.journal.pending
    assert run.status().is_clean


def test_weights_that_come_again_are_stored_again(run: Repository, files) -> None:
    prune(run)
    run.switch("runs/a")
    again = checkpoint(run, files, 1)
    assert fsck(run).is_sound
    assert run.load(again.hex)
    assert 1 in steps_kept(run)
    wanted = files.digests(run.worktree)
    (run.worktree / "bot.safetensors").unlink()
    restore(run, ["."])
    assert files.digests(run.worktree) == wanted


def test_a_tag_that_comes_meanwhile_keeps_its_commit(run: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.repo.upkeep import repack as module

    real, calls = module._Recoding.run, []

    def work(self) -> None:
        real(self)
        if not calls:
            create_tag(run, "late", target="runs/a~10")
        calls.append(1)

    monkeypatch.setattr(module._Recoding, "run", work)
    assert prune(run).pruned == 7
    assert len(calls) == 2
    assert steps_kept(run) == [1, 2, 7, 10, 11]
    assert fsck(run).is_sound


def test_commits_meanwhile_do_not_stop_it(run: Repository, files, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.repo.upkeep import repack as module

    real, calls = module._Recoding.run, []

    def work(self) -> None:
        real(self)
        calls.append(1)
        other = Repository.open(run.worktree, environment=run.environment)
        create_branch(other, f"meanwhile-{len(calls)}", start="main")
        other.close()

    monkeypatch.setattr(module._Recoding, "run", work)
    assert prune(run).pruned == 8
    assert len(calls) == 1
    assert fsck(run).is_sound


def test_a_pruning_that_died_is_all_or_nothing(run: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.store.fs import FileSystemStore
    from modelgit.store.root import FileRoot

    def die(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FileRoot, "swap", die)
        with pytest.raises(KeyboardInterrupt):
            prune(run)
    assert steps_kept(run) == list(range(12))
    assert fsck(run).is_sound
    with monkeypatch.context() as patch:
        patch.setattr(FileSystemStore, "delete", die)
        with pytest.raises(KeyboardInterrupt):
            prune(run)
    assert sum(bool(entry.pruned) for entry in log(run, "runs/a")) == 8
    assert fsck(run).is_sound
    collect(run)
    assert fsck(run).is_sound
    prune(run)  # what was coded again before may have been given up for what it replaced
    assert steps_kept(run) == [2, 7, 10, 11]
    assert fsck(run).is_sound
    assert repack(run).bytes_after == on_disk(run)


def test_other_files_of_a_pruned_commit_stay(bot: Repository, files) -> None:
    retain(bot, '[retention."runs/*"]\n')
    bot.commit("retention")
    bot.switch("runs/a", create=True)
    (bot.worktree / "notes.txt").write_text("first notes")
    bot.track("notes.txt")
    first = checkpoint(bot, files, 1)
    (bot.worktree / "notes.txt").write_text("second notes")
    checkpoint(bot, files, 2)
    assert prune(bot).pruned == 1
    restore(bot, ["notes.txt"], source=first.hex)
    assert (bot.worktree / "notes.txt").read_text() == "first notes"
    assert fsck(bot).is_sound


def test_training_state_expires_by_a_rule_of_its_own(bot: Repository, files) -> None:
    from modelgit.repo.tracking.training import training_of

    (bot.worktree / "mgit.toml").write_text(
        '[track]\npaths = ["bot.safetensors"]\ntraining_state = ["state"]\n[retention.training-state]\nlast = 2\n'
    )
    bot.forget_settings()
    (bot.worktree / "state").mkdir()
    commits = []
    for step in range(5):
        (bot.worktree / "state" / "optimizer.bin").write_bytes(np.random.default_rng(step).bytes(50_000))
        commits.append(checkpoint(bot, files, step))
    assert not any(training_of(bot, commit).is_absent for commit in commits)
    size = on_disk(bot)
    dry = prune(bot, dry_run=True)
    report = prune(bot)
    assert (report.expired, report.pruned) == (dry.expired, dry.pruned) == (3, 0)
    assert report.bytes_after == dry.bytes_after == on_disk(bot) < size - 140_000
    assert [training_of(bot, commit).is_absent for commit in commits] == [True, True, True, False, False]
    found = fsck(bot)
    assert found.is_sound, found.findings
    assert found.training_absent == 3
    assert all(bot.load(commit.hex) for commit in commits)


def test_settings_are_read_and_needed(bot: Repository) -> None:
    with pytest.raises(UsageError, match="no \\[retention\\]") as caught:
        prune(bot)
    assert "mgit config set" in (caught.value.hint or "")
    settings = load_settings([ConfigLayer("x", '[retention."runs/*"]\nlast = 3\n')]).settings
    assert (settings.retention["runs/*"].last, settings.retention["runs/*"].every) == (3, 0)
    with pytest.raises(UsageError):
        load_settings([ConfigLayer("x", '[retention."runs/*"]\nlast = 0\n')])


def test_the_list_of_pruned_commits_is_checked(run: Repository) -> None:
    prune(run)
    [record] = (run.paths.directory / "retention").iterdir()
    data = record.read_bytes()
    record.chmod(0o644)
    record.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    report = fsck(run)
    assert not report.is_sound
    assert any("pruned" in finding.problem for finding in report.findings)
